"""Genes by the sequence of their proteins, from a FASTA file: short words of amino acids, or a language model."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe._arguments import checked
from scvi_tahoe._devices import device_of
from scvi_tahoe.files import verify_text
from scvi_tahoe.tables._table import described, existing, largest_components

if TYPE_CHECKING:
    import pandas as pd

_GENE = re.compile(r"\bGN=(\S+)")  # UniProt
_AMINO_ACIDS = re.compile(r"[A-Za-z*-]+")


@checked()
def protein_kmers(
    path: str | Path, *, k: int = 3, n_components: int = 128, licence: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Make a table of genes from the amino acids of their proteins.

    Words of ``k`` amino acids are counted, weighted (1 + log of the count, times inverse document frequency) and
    decomposed. It needs no network; a protein language model is more informative, see :func:`protein_embeddings`.

    Parameters
    ----------
    path
        FASTA file, ``.gz`` or not. The name of an entry is its gene (``GN=`` of UniProt), else its first word. Of
        several entries of one name, the longest counts.
    k
        Length of a word.
    n_components
        Maximum number of columns.
    licence
        Licence of the sequences, kept with the table.
    seed
        Random seed of the decomposition.

    Returns
    -------
    DataFrame ``[genes, components]``.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is not in the FASTA format.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    path = existing(path, "a FASTA file")
    if k < 1:
        raise ValueError(f"k={k!r} must be 1 or more.")
    sequences = {name: text for name, text in _sequences(path).items() if len(text) >= k}
    if len(sequences) < 2:
        raise ValueError(f"{path.name} has {len(sequences)} sequences of {k} or more amino acids; two are needed.")
    words = TfidfVectorizer(analyzer="char", ngram_range=(k, k), lowercase=False, sublinear_tf=True)
    counts = words.fit_transform(sequences.values())
    return described(
        largest_components(counts, n_components, seed), list(sequences), kind="protein words", source=path.name,
        licence=licence, detail=f"{counts.shape[1]:,} words of {k} amino acids",
    )  # fmt: skip


@checked()
def protein_embeddings(
    path: str | Path,
    model: str | Path,
    *,
    max_length: int = 1022,
    batch_size: int = 8,
    device: str = "auto",
    licence: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Make a table of genes from a protein language model such as ESM2, run here.

    A row is the mean over amino acids of the last layer, of ESM2 [1]_ or another model. Nothing is downloaded: the
    model lies in a folder, or in the cache of Hugging Face. It needs the package ``transformers``.

    Parameters
    ----------
    path
        FASTA file, as for :func:`protein_kmers`.
    model
        Folder with a model and its tokenizer, weights as safetensors, or the name of one in the cache, such as
        ``"facebook/esm2_t12_35M_UR50D"``.
    max_length
        Number of amino acids that are read, from the start of each protein.
    batch_size
        Proteins at once, those of similar length together.
    device
        Device; ``"auto"`` is the first CUDA device, if there is one.
    licence
        Licence of the sequences and of the model, kept with the table.
    progress
        Whether to show a progress bar if it takes more than a few seconds.

    Returns
    -------
    DataFrame ``[genes, width of the model]``.

    Raises
    ------
    ImportError, FileNotFoundError, ValueError
        If transformers is not installed; if there is no such file or model; if the file is not in the FASTA format.

    References
    ----------
    .. [1] Lin et al. 2023, Science 379:1123.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ImportError("protein language models need transformers: pip install transformers.") from None
    import torch
    from tqdm.auto import tqdm

    path = existing(path, "a FASTA file")
    if max_length < 1 or batch_size < 1:
        raise ValueError(f"max_length={max_length!r} and batch_size={batch_size!r} must be 1 or more.")
    sequences = _sequences(path)
    if not sequences:
        raise ValueError(f"{path.name} has no sequences.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        network = AutoModel.from_pretrained(model, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"there is no usable model {str(model)!r}, as a folder or in the cache of Hugging Face ({reason}); nothing "
            "is downloaded."
        ) from None
    where = device_of(device, kinds=("cpu", "cuda", "mps"))
    network = network.to(where).eval()
    names = sorted(sequences, key=lambda name: len(sequences[name]))
    rows: dict[str, np.ndarray] = {}
    for start in tqdm(range(0, len(names), batch_size), desc="proteins", disable=not progress, delay=3):
        some = names[start : start + batch_size]
        texts = [sequences[name].replace("*", "")[:max_length] for name in some]
        tokens = tokenizer(texts, return_tensors="pt", padding=True, return_special_tokens_mask=True)
        is_residue = (1 - tokens.pop("special_tokens_mask")).bool() & tokens["attention_mask"].bool()
        with torch.inference_mode():
            hidden = network(**{key: value.to(where) for key, value in tokens.items()}).last_hidden_state.float().cpu()
        weight = is_residue[..., None].float()
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)
        rows |= dict(zip(some, mean.numpy(), strict=True))
    return described(
        np.stack([rows[name] for name in sequences]), list(sequences), kind="protein language model", source=path.name,
        licence=licence, detail=f"mean of the last layer of {Path(model).name}",
    )  # fmt: skip


def _sequences(path: Path) -> dict[str, str]:
    """Return the longest sequence of each name."""
    found: dict[str, str] = {}
    name, parts = "", list[str]()

    def finish() -> None:
        if name and len(text := "".join(parts)) > len(found.get(name, "")):
            found[name] = text

    verify_text(path)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as stream:
        for number, line in enumerate(map(str.strip, stream), 1):
            if line.startswith(">"):
                finish()
                gene = _GENE.search(line)
                name, parts = gene[1] if gene else (line[1:].split() or [f"entry {number}"])[0], []
            elif line and (not name or not _AMINO_ACIDS.fullmatch(line)):
                raise ValueError(f"line {number} of {path.name} is not part of a FASTA file: {line[:40]!r}.")
            else:
                parts.append(line.upper())
    finish()
    return found
