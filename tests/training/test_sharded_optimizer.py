"""Every process updates its share of the weights: as one process would with the mean of all gradients."""

from __future__ import annotations

import pytest
import torch

# all cases in one script, whose processes are forked: what takes long is to import the package
SCRIPT = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from scvi_tahoe.training import ShardedAdamW


def make(rank):
    torch.manual_seed(rank)  # the weights of the first process count
    sizes = [(5, 7), (7,), (33, 9), (4,)]
    weights = [torch.nn.Parameter(torch.randn(size)) for size in sizes]
    weights[3].requires_grad_(False)
    return weights


def optimizer_of(weights, precision):
    first = {"params": weights[0:2], "lr": 0.1, "weight_decay": 0.1}
    groups = [first, {"params": weights[2:3]}, {"params": weights[3:]}]
    optimizer = ShardedAdamW(groups, lr=0.02, weight_decay=0.0, fused=True, precision=getattr(torch, precision))
    optimizer.begin()
    return optimizer


def gradients(step, of):
    generator = torch.Generator().manual_seed(10 * step + of)
    return [torch.randn(size, generator=generator) for size in [(5, 7), (7,), (33, 9)]]


def one_step(step, rank, weights, optimizer, limit):
    optimizer.zero_grad()
    for weight, gradient in zip(weights, gradients(step, rank)):
        weight.grad = gradient
    norm = optimizer.reduce_gradients(limit)
    optimizer.step()
    return float(norm)


def process(rank, n, precision, folder):
    folder.mkdir(exist_ok=True)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=n)
    weights = make(rank)
    optimizer = optimizer_of(weights, precision)
    start = [w.detach().clone() for w in weights]
    norms = [one_step(step, rank, weights, optimizer, 3.0) for step in range(4)]
    optimizer.consolidate_state_dict()
    state = optimizer.state_dict() if rank == 0 else None
    norms += [one_step(step, rank, weights, optimizer, float("inf")) for step in range(4, 6)]
    optimizer.end()

    # what was saved goes on in the same way
    middle = [None]
    if rank == 0:
        middle[0] = (state, start)
    dist.broadcast_object_list(middle, 0)
    torch.save(
        {"start": start, "weights": [w.detach() for w in weights], "norms": norms, "state": state,
         "own_memory": [w.untyped_storage().nbytes() == w.numel() * 4 for w in weights]},
        folder / f"rank{rank}.pt",
    )

    # a checkpoint has nothing of a weight that had no gradient before
    part = make(rank)
    partly = optimizer_of(part, precision)
    del (lacking := {**middle[0][0], "state": dict(middle[0][0]["state"])})["state"][1]
    partly.load_state_dict(lacking)
    partly.consolidate_state_dict()
    if rank == 0:
        kept = partly.state_dict()["state"]
        assert all(torch.equal(kept[i]["exp_avg"], middle[0][0]["state"][i]["exp_avg"]) for i in (0, 2))
        assert not kept[1]["exp_avg"].any()
    part[0].grad = torch.zeros_like(part[0])
    try:
        partly.reduce_gradients(1.0)
        raise SystemExit("a weight without a gradient was trained")
    except ValueError as error:
        assert "has no part in the loss" in str(error)

    again = make(rank)
    second = optimizer_of(again, precision)
    for step in range(4):
        one_step(step, rank, again, second, 3.0)
    second.load_state_dict(middle[0][0])
    for step in range(4, 6):
        one_step(step, rank, again, second, float("inf"))
    assert all(torch.equal(a, b) for a, b in zip(again, weights))
    dist.barrier()
    dist.destroy_process_group()


for n, precision in ((2, "float32"), (3, "float32"), (2, "bfloat16")):
    arguments = (n, precision, Path(sys.argv[1]) / f"{precision}_{n}")
    torch.multiprocessing.start_processes(process, args=arguments, nprocs=n, start_method="fork")
"""


@pytest.fixture(scope="module")
def processes_of(folder_of_script):
    """What each process of a case ended with."""
    folder = folder_of_script(SCRIPT)
    return lambda n, precision: [
        torch.load(folder / f"{precision}_{n}" / f"rank{i}.pt", weights_only=True) for i in range(n)
    ]


def gradients(step, of):
    generator = torch.Generator().manual_seed(10 * step + of)
    return [torch.randn(size, generator=generator) for size in [(5, 7), (7,), (33, 9)]]


def plain(start, processes):
    """The same with torch's own optimizer and the mean of the gradients: weights, norms, state after four steps."""
    weights = [torch.nn.Parameter(w.clone()) for w in start]
    first = {"params": weights[0:2], "lr": 0.1, "weight_decay": 0.1}
    groups = [first, {"params": weights[2:3]}, {"params": weights[3:]}]
    optimizer = torch.optim.AdamW(groups, lr=0.02, weight_decay=0.0, fused=True)
    norms = []
    for step in range(6):
        of_weights = zip(*(gradients(step, i) for i in range(processes)), strict=True)
        for weight, parts in zip(weights, of_weights, strict=False):
            weight.grad = torch.stack(parts).mean(0)
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights[:3], 3.0 if step < 4 else float("inf"))))
        optimizer.step()
        if step == 3:
            state = {k: {n: v.clone() for n, v in s.items()} for k, s in optimizer.state_dict()["state"].items()}
    return weights, norms, state


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_end_where_one_would_with_the_mean_gradient(processes_of, processes):
    ranks = processes_of(processes, "float32")
    weights, norms, state = plain(ranks[0]["start"], processes)
    for rank in ranks:
        assert all(torch.equal(a, b) for a, b in zip(rank["weights"][:3], ranks[0]["weights"][:3], strict=True))
        assert rank["norms"] == pytest.approx(norms, rel=1e-6)
        assert all(rank["own_memory"])
    for ours, theirs in zip(ranks[0]["weights"], weights, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    saved = ranks[0]["state"]
    assert [len(group["params"]) for group in saved["param_groups"]] == [2, 1, 1]
    assert saved["state"].keys() == state.keys()  # nothing of what is frozen
    for number, values in state.items():
        assert float(saved["state"][number]["step"]) == 4
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(saved["state"][number][name], values[name], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_gradients_of_16_bits_are_summed_to_within_their_precision(processes_of):
    ranks = processes_of(2, "bfloat16")
    _, norms, _ = plain(ranks[0]["start"], 2)
    assert ranks[0]["norms"] == pytest.approx(norms, rel=4e-3)
    assert ranks[0]["norms"] != pytest.approx(norms, rel=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(ranks[0]["weights"][:3], ranks[1]["weights"][:3], strict=True))


def test_scaled_gradients_of_float16_are_refused(make_model, train):
    with pytest.raises(ValueError, match="give precision='bf16-mixed', or strategy='ddp'"):
        train(make_model(), precision="16-mixed", strategy="ddp_sharded")
