"""Speed, memory and precision of embedding cells, with random weights of the size of a published model.

python benchmarks/embed_cells.py --size se600m                   (a GPU: every precision)
python benchmarks/embed_cells.py --size small --n-cells 64       (a laptop)
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from safetensors.torch import save_file

from scvi_tahoe.pretrained import embed_cells, read_state_embedding

#: width of protein embeddings, hidden width, layers, intermediate width, output
SIZES = {
    "se600m": (5120, 2048, 16, 2048, 2048),
    "se100m": (5120, 1024, 8, 1024, 1024),
    "small": (512, 256, 4, 256, 256),
}
N_GENES = 18_080


def tensors(protein, hidden, n_layers, intermediate, output, device):
    """Return random weights under the published names, those that embedding needs."""
    generator = torch.Generator(device).manual_seed(0)
    state = {}

    def weight(name, *shape):
        values = torch.randn(shape, generator=generator, device=device) / math.sqrt(shape[-1])
        state[name] = values.cpu()

    def linear(name, n_out, n_in):
        weight(f"{name}.weight", n_out, n_in)
        state[f"{name}.bias"] = torch.zeros(n_out)

    def norm(name):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(hidden), torch.zeros(hidden)

    for token in ("cls_token", "dataset_token"):
        weight(token, 1, protein)
    linear("encoder.0", hidden, protein)
    norm("encoder.1")
    linear("count_encoder.0", 512, 1)
    linear("count_encoder.2", 10, 512)
    weight("bin_encoder.weight", 10, hidden)
    for i in range(n_layers):
        layer = f"transformer_encoder.layers.{i}"
        linear(f"{layer}.qkv_proj", 3 * hidden, hidden)
        linear(f"{layer}.out_proj", hidden, hidden)
        linear(f"{layer}.linear1", intermediate, hidden)
        linear(f"{layer}.linear2", hidden, intermediate)
        norm(f"{layer}.norm1")
        norm(f"{layer}.norm2")
    linear("decoder.0.intermediate_dense", 2 * hidden, hidden)
    linear("decoder.0.dense", hidden, 2 * hidden)
    norm("decoder.0.layer_norm")
    linear("decoder.1", output, hidden)
    linear("dataset_embedder", 10, output)
    return state


def screen(n_cells):
    """Return cells as a droplet screen has them: about 20,000 counts, 4,000 genes expressed."""
    rng = np.random.default_rng(0)
    rates = rng.lognormal(0, 2.0, N_GENES)
    rates /= rates.sum()
    values = rng.poisson(rates * rng.lognormal(np.log(20_000), 0.4, (n_cells, 1))).astype(np.float32)
    names = [f"G{i}" for i in range(N_GENES)]
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n_cells)])
    return anndata.AnnData(sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=names))


def timed(say, what, function, **facts):
    """Run a function and print how long it took."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    memory = {"gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)} if torch.cuda.is_available() else {}
    memory["host_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    rate = {"cells_per_second": round(facts["cells"] / seconds, 1)} if "cells" in facts else {}
    say({"what": what, "seconds": round(seconds, 2), **rate, **facts, **memory})
    return result


def agreement(exact, other, width):
    """Return how far embeddings are from those in float32: cosine of the first part, error of the last ten."""
    n = min(len(exact), len(other))
    exact, other = exact[:n], other[:n]
    return {
        "worst_cosine": round(float((exact[:, :width] * other[:, :width]).sum(1).min()), 6),
        "max_error_last_ten": float(np.abs(exact[:, width:] - other[:, width:]).max()),
        "largest_of_last_ten": float(np.abs(exact[:, width:]).max()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--n-cells", type=int, default=512)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    shape, lines = SIZES[options.size], []

    def say(facts):
        lines.append(facts)
        print(json.dumps(facts), flush=True)
        if options.output:
            options.output.write_text("\n".join(map(json.dumps, lines)))

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        state = tensors(*shape, "cuda" if on_gpu else "cpu")
        say({"size": options.size, "parameters": sum(x.numel() for x in state.values()), "torch": torch.__version__})
        save_file(state, folder / "model.safetensors")
        del state
        proteins = torch.randn(19_790, shape[0], generator=torch.Generator().manual_seed(1))
        torch.save({f"G{i}": vector.clone() for i, vector in enumerate(proteins)}, folder / "protein_embeddings.pt")
        del proteins
        adata = timed(say, "simulate cells", lambda: screen(options.n_cells))
        model = timed(say, "read the model", lambda: read_state_embedding(folder))
        exact = None
        runs = [("32", 16, 0.25), ("tf32", 16, 0.5), ("bf16", 16, 1), ("bf16", 64, 1)] if on_gpu else [("32", 16, 1)]
        embed_cells(adata[:16].copy(), model, progress=False)  # starts the device
        for precision, batch_size, share in runs:
            part = adata[: max(16, int(share * adata.n_obs))].copy()
            embed = partial(embed_cells, part, model, precision=precision, batch_size=batch_size, progress=False)
            timed(say, "embed", embed, cells=part.n_obs, precision=precision, batch_size=batch_size)
            found = part.obsm["X_state"]
            exact = found if exact is None else exact
            if found is not exact:
                say({"precision": precision, **agreement(exact, found, shape[-1])})
        other = adata[: len(exact)].copy()
        embed_cells(other, model, precision="tf32" if on_gpu else "32", seed=1, progress=False)
        say({"another seed": agreement(exact, other.obsm["X_state"], shape[-1])})
        adata.write_h5ad(Path(temporary) / "in.h5ad")
        timed(
            say, "from disk to disk",
            lambda: embed_cells(
                Path(temporary) / "in.h5ad", model, output=Path(temporary) / "out.h5ad", progress=False,
                precision="bf16" if on_gpu else "32",
            ),
            cells=adata.n_obs,
        )  # fmt: skip


if __name__ == "__main__":
    main()
