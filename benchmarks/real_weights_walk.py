"""The walk of somebody with ST weights and the H1 screen, step by step, on stand-ins: each timed, none may fail.

    python benchmarks/real_weights_walk.py                 # small, a minute or two
    python benchmarks/real_weights_walk.py --full          # 18,080 genes, 375 M parameters: wants a GPU

What is written is checked: options asked for are those of the model (representation, batch encoder, encoder kind, set
size), licences are said, and what is refused is refused with the decision to accept. `--json` keeps the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from stand_in import Shape, write_all

from scvi_tahoe import TahoeST
from scvi_tahoe.pretrained import DecisionsNeededError, LicenceNotAcceptedError, inspect_folder, read_embedding_table
from scvi_tahoe.study import TahoeRun, check_config, dry_run_text, finetune, read_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_DAYS = ("0826", "0901", "0905", "0906", "0907", "0908")
#: checkpoints that are kept for later runs; that of 0906 names `last.ckpt` of 0905, which is read where no best one is
_NEEDED = {"0826": "best", "0905": "last", "0906": "best"}
_GIGABYTE = 1024**3


class Walk:
    """Steps, each carried out at once: its seconds, and the most memory that it took, of machine and card."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def step(self, name: str, do: Callable[[], Any]) -> Any:
        """Carry out a step; what it returns is what the next steps go on with."""
        error, result = "", None
        _forget_peaks()
        start, worked = time.perf_counter(), time.process_time()
        try:
            result = do()
        except Exception as found:  # noqa: BLE001
            error = f"{type(found).__name__}: {' '.join(str(found).split())[:300]}"
        seconds, worked, (host, card) = time.perf_counter() - start, time.process_time() - worked, _peaks()
        row = {"step": name, "seconds": seconds, "cpu_seconds": worked, "host_gb": host, "card_gb": card}
        self.rows.append(row | {"failed": error})
        on_card = f"{card:8.2f} GB of the card" if card else ""
        print(f"{name:<60}{seconds:7.1f} s{worked:7.1f} CPU s{host:7.2f} GB{on_card}  {error or 'ok'}", flush=True)
        return result


def _forget_peaks() -> None:
    gc.collect()
    with suppress(OSError):  # Linux: the peak of the process begins anew
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peaks() -> tuple[float, float]:
    """Return the most memory since `_forget_peaks`, in GB: of the process, and of the card."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        host = int(lines["VmHWM"].split()[0]) * 1024
    else:  # since the process began
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return host / _GIGABYTE, (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0) / _GIGABYTE


def _brief(run: TahoeRun, n_steps: int) -> TahoeRun:
    train = run.train.replaced(
        max_steps=n_steps, batch_size=2, accumulate=1, validate_every=n_steps, loggers=(), save_steps=None
    )
    return replace(run, train=train, score=run.score.replaced(preset=None))


def _wants(holds: bool, said: object) -> None:
    if not holds:
        raise AssertionError(f"expected otherwise: {said}")


def walk(folder: Path, shape: Shape, n_steps: int, days: Sequence[str] = _DAYS) -> Walk:
    """Take all steps in a folder, with the runs of some days."""
    gc.freeze()  # what was there before is not looked through at every step
    steps = Walk()
    places = steps.step("stand-ins are written where there are none", lambda: write_all(folder, shape))
    for name in ("ST-Tahoe", "ST-HVG-Tahoe", "ST-SE-Tahoe"):
        steps.step(f"inspect {name}", partial(inspect_folder, places[name]))
    for day in days:
        path = folder / f"run-{day}.yaml"
        run = steps.step(f"{day} is checked and written as a run file", partial(_written, places[day], path))
        steps.step(f"{day} is tried without training", partial(dry_run_text, path))
        train = partial(_trained, _brief(run, n_steps), folder / "runs" / day)
        steps.step(f"{day} trains for {n_steps} steps", train)
    adata = steps.step("cells are registered with ESM2 and SE embedding", lambda: _registered(folder))
    _from_python(steps, places, adata)
    model = steps.step(
        f"the run of {days[-1]} is read from its folder", lambda: TahoeST.from_pretrained(folder / "runs" / days[-1])
    )
    cells = read_cells(folder / "support.h5ad")
    chosen = [str(label) for label in cells.obs["target_gene"].cat.categories[:2]]
    options = {"perturbations": chosen, "contexts": ["HepG2"], "n_cells": 16, "check_scale": False, "progress": False}
    steps.step("predict HepG2", lambda: model.predict(cells, **options))
    renamed = cells[cells.obs["cell_type"] == "HepG2"].copy()
    renamed.obs["batch_var"] = "next year"
    steps.step("predict a new batch by the mean vector", lambda: model.predict(renamed, new_batches="mean", **options))
    steps.step("export, and read it again", lambda: _exported(model, folder / "export"))
    steps.step("export for arc-state, and read it again", lambda: _exported(model, folder / "for_arc", format="arc"))
    return steps


def _embeds(day: str) -> bool:
    return day in ("0826", "0901")


def _written(config: Path, path: Path) -> TahoeRun:
    check = check_config(config)
    _wants(check.exit_code() == int(_embeds(config.stem[-4:])), check)
    _wants(check.exit_code(allow_mismatch=True) == 0, check)
    return check.write(path)


def _trained(run: TahoeRun, folder: Path) -> None:
    result = finetune(run, folder, progress=False)
    report = (result.folder / "loading_report.txt").read_text()
    _wants("batch_encoder" in report or "loaded" in report, report)
    for checkpoint in result.folder.glob("*.ckpt"):
        if checkpoint.stem != _NEEDED.get(folder.name):  # gigabytes each at full size
            checkpoint.unlink()
    written = TahoeRun.from_yaml(result.folder / "config.yaml").model
    _wants((written.representation == "embedding") == _embeds(folder.name) and written.batch_encoder is True, written)


def _registered(folder: Path) -> Any:
    adata = read_cells(folder / "support.h5ad")
    adata.uns["esm2"] = read_embedding_table(folder / "ESM2.pt")
    TahoeST.setup_anndata(
        adata, "target_gene", "non-targeting", context_key="cell_type", batch_key="batch_var",
        cell_embedding_key="X_state", perturbation_embedding_key="esm2",
    )  # fmt: skip
    return adata


def _from_python(steps: Walk, places: dict[str, Path], adata: Any) -> None:
    """Start from each layout as a user would who takes every decision that is asked for."""

    def started(name: str, **options: Any) -> TahoeST:
        try:
            TahoeST.from_pretrained(places[name], adata, check_scale=False, **options)
        except DecisionsNeededError as error:
            accept = tuple(error.needed)
        model = TahoeST.from_pretrained(places[name], adata, check_scale=False, accept=accept, **options)
        for option, value in options.items():
            found = model.module.config.n_batches > 0 if option == "batch_encoder" else getattr(model, option)
            _wants(found == value, (option, found))
        _wants(set(accept) >= set(model.loading_report_.decisions), model.loading_report_.text())
        return model

    kind = {"representation": "expression+embedding", "batch_encoder": True}
    steps.step("SE embedding as auxiliary signal on ST-HVG-Tahoe", lambda: started("ST-HVG-Tahoe", **kind))
    steps.step("ST-SE-Tahoe as it is, on embeddings", lambda: started("ST-SE-Tahoe"))
    steps.step("ST-SE-Tahoe to expression", lambda: started("ST-SE-Tahoe", representation="expression"))
    steps.step("a name on the hub asks for its licence first", _asks_for_licence)
    steps.step("of best, final and last the best is read", lambda: _reads_the_best(places["ST-HVG-Tahoe"]))


def _asks_for_licence() -> None:
    try:
        TahoeST.from_pretrained("arcinstitute/ST-Tahoe", accept_license=False)
    except (LicenceNotAcceptedError, ImportError):
        return
    raise AssertionError("the licence was not asked for")


def _reads_the_best(folder: Path) -> None:
    final = folder / "checkpoints" / "final.ckpt"
    for name in ("best", "last"):
        (folder / "checkpoints" / f"{name}.ckpt").hardlink_to(final)
    text = inspect_folder(folder)
    _wants("best.ckpt" in text and "others:" in text, text)


def _exported(model: TahoeST, folder: Path, **options: Any) -> None:
    model.export(folder, **options)
    again = TahoeST.from_pretrained(folder)
    pairs = zip(model.module.state_dict().values(), again.module.state_dict().values(), strict=True)
    _wants(all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs), "weights differ")


def main() -> None:
    """Print the table; exit with 1 if a step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="of the stand-ins, or a new one; default: a temporary one")
    parser.add_argument("--full", action="store_true", help="sizes of the case study")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--days", nargs="+", default=_DAYS, choices=_DAYS, help="the runs; the last on expression")
    parser.add_argument("--json", type=Path, help="file to keep the table in")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    shape = Shape.full() if args.full else Shape()
    with tempfile.TemporaryDirectory() as temporary:
        steps = walk((args.folder or Path(temporary) / "walk").resolve(), shape, args.steps, args.days)
    if args.json:
        args.json.write_text(json.dumps(steps.rows, indent=1))
    failed = [row["step"] for row in steps.rows if row["failed"]]
    print(f"{len(steps.rows)} steps, {sum(row['seconds'] for row in steps.rows):.0f} s; failed: {failed or 'none'}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
