"""Files of every format that is read, with contents that somebody may have, for ``hardening.py``."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import resource
import shutil
import signal
import tarfile
import time
import zipfile
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import yaml
from hardening_inputs import ARC, KEYS, RUN, SMALL, is_ours
from safetensors.torch import save as safetensors_bytes

import scvi_tahoe
from scvi_tahoe import EvaluationResult, TahoeST, datasets, evaluate, pretrained, study, tables
from scvi_tahoe.pretrained import LicenceNotAcceptedError
from scvi_tahoe.response import ResponseModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HANG_SECONDS, SLOW_SECONDS, LARGE_BYTES = 30, 10.0, 10**9
_GENES = [f"GENE{i}" for i in range(12)]

#: Texts that are right, by the ending of their file.
RIGHT: dict[str, str] = {
    "csv": "gene,a,b\n" + "".join(f"{name},{i}.5,{-i}\n" for i, name in enumerate(_GENES)),
    "tsv": "gene\ta\tb\n" + "".join(f"{name}\t{i}.5\t{-i}\n" for i, name in enumerate(_GENES)),
    "gmt": "".join(f"SET{i}\tabout\t" + "\t".join(_GENES[i : i + 6]) + "\n" for i in range(6)),
    "fasta": "".join(f">sp|P{i}|X GN={name}\nMK{'ACDEFGHIKLMNPQRSTVWY'[i:]}\n" for i, name in enumerate(_GENES)),
    "links": "protein1 protein2 combined_score\n"
    + "".join(f"9606.P{i} 9606.P{j} {400 + i}\n" for i in range(9) for j in range(i)),
    "info": "#string_protein_id\tpreferred_name\n" + "".join(f"9606.P{i}\tGENE{i}\n" for i in range(9)),
    "effects": ",".join(["line", *(f"{name} (1)" for name in _GENES)])
    + "\n"
    + "".join(f"L{i}," + ",".join(str((i * 7 + k * k) % 11) for k in range(12)) + "\n" for i in range(9)),
    "aliases": "symbol,alias_symbol\n" + "".join(f"{name},old{i}|older{i}\n" for i, name in enumerate(_GENES)),
    "smiles": "drug,smiles\naspirin,CC(=O)Oc1ccccc1C(=O)O\ncaffeine,Cn1cnc2c1c(=O)n(C)c(=O)n2C\n",
    "targets": "drug,target\na,X|Y\nb,X;Z\nc,Y|Z\nd,W\n",
    "run": yaml.safe_dump(RUN), "arc": yaml.safe_dump(ARC),
    "split": json.dumps({"train": ["a"], "val": ["b"], "test": ["c"]}),
    "log": "step,train_loss,val_loss\n" + "".join(f"{i},{1 / (i + 1)},{2 / (i + 1)}\n" for i in range(9)),
    "arc table": '[datasets]\nscreen = "cells.h5ad"\n[training]\nscreen = "train"\n[zeroshot]\n"screen.a" = "test"\n',
}  # fmt: skip


def strange_bytes() -> dict[str, bytes]:
    """Return contents that are of no text format, and some that nearly are."""
    found = {
        "empty": b"", "space": b" \n \n", "newline": b"\n", "NUL": b"\0" * 50, "0xff": b"\xff" * 50,
        "lone BOM": b"\xef\xbb\xbf", "random": random.Random(0).randbytes(3000),
        "HTML": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "XML": b"<?xml version='1.0'?><a/>", "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
        "PNG": b"\x89PNG\r\n\x1a\n" + bytes(40), "SQLite": b"SQLite format 3\0" + bytes(90),
        "HDF5 head": b"\x89HDF\r\n\x1a\n" + bytes(90), "zip head": b"PK\x03\x04" + bytes(90),
        "parquet ends": b"PAR1" + bytes(40) + b"PAR1", "npy": _saved(lambda s: np.save(s, np.eye(3))),
        "pickle": pickle.dumps({"a": [1, 2]}), "JSON": b'{"a": [1, 2]}', "list": b"[1, 2, 3]", "null": b"null",
        "number": b"5", "quote": b'"', "quotes": b'"' * 999, "commas": b"," * 999 + b"\n", "tabs": b"\t" * 999 + b"\n",
        "long line": b"x" * 3_000_000, "many lines": b"x\n" * 300_000, "deep": b"[" * 100_000, "colons": b":\n" * 99,
        "bell": b"a\x07b\x1b[31m,1\n", "shell": b"#!/bin/sh\necho x\n", "zip end": b"PK\x05\x06" + bytes(18),
        "gzip of nothing": gzip.compress(b""), "gzip cut": gzip.compress(b"a,1\n" * 999)[:-9],
        "gzip bomb": gzip.compress(bytes(10**8)), "safetensors head": (2**62).to_bytes(8, "little") + b"{}",
        "safetensors": safetensors_bytes({"a": torch.ones(2)}),
        "tar": _saved(lambda s: tarfile.open(fileobj=s, mode="w").close()),
        "empty zip": _saved(lambda s: zipfile.ZipFile(s, "w").close()),
    }  # fmt: skip
    return found


def _saved(write: Callable[[Any], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def other_bytes(text: str) -> dict[str, bytes]:
    """Return a right text in other encodings, line ends and packings."""
    plain = text.encode()
    return {
        "UTF-8 BOM": b"\xef\xbb\xbf" + plain, "UTF-16": text.encode("utf-16"), "UTF-16 BE": text.encode("utf-16-be"),
        "UTF-16 LE": text.encode("utf-16-le"), "UTF-32": text.encode("utf-32"), "EBCDIC": text.encode("cp500"),
        "latin-1": ("é" + text).encode("latin-1"), "CRLF": plain.replace(b"\n", b"\r\n"),
        "CR": plain.replace(b"\n", b"\r"), "no end": plain.rstrip(), "half": plain[: len(plain) // 2],
        "twice": plain * 2, "NUL at end": plain + b"\0", "NUL inside": plain[:20] + b"\0" + plain[20:],
        "NUL late": plain + b"\n" * 2_000_000 + b"\0", "gzip": gzip.compress(plain), "bz2": bz2.compress(plain),
        "xz": lzma.compress(plain), "Ctrl-Z": plain + b"\x1a", "upper": text.upper().encode(),
        "semicolons": text.replace(",", ";").encode(), "spaces": text.replace("\t", " ").encode(),
        "indented": "".join(f"  {line}\n" for line in text.splitlines()).encode(), "quoted": repr(text).encode(),
        "decimal commas": text.replace(".", ",").encode(), "bad byte late": plain * 50 + b"\xff\xfe",
        "form feed": plain.replace(b"\n", b"\f"), "line separator": text.replace("\n", "\u2028").encode(),
        "no-break spaces": text.replace(" ", "\xa0").encode(),
        "surrogate": text.encode() + "\ud800".encode(errors="surrogatepass"), "backwards": text[::-1].encode(),
        "lines backwards": "\n".join(text.splitlines()[::-1]).encode(),
        "commented": "".join(f"# {x}\n" for x in text.splitlines()).encode(),
    }  # fmt: skip


_FIELDS = (
    "", " ", "NaN", "inf", "-inf", "1e400", "1e39", "-0", "0x10", "1_0", "1,5", "True", "None", "nan", "NA", "é", "漢",
    "a\0b", "x" * 70_000, '"', '"a', "'", "\\", "=1+1", "2020-01-01", "1j", "9" * 400, "1e-400", "[]", "{}", "-", "+",
    ".", "..", "#", ">", "%s", "\x1b[0m", "\u202e",
)  # fmt: skip


def changed_text(text: str, rng: random.Random) -> bytes:
    """Return a text with a field, a line or a part of them replaced, doubled, dropped, moved or cut."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    separator = next((s for s in ("\t", ",", ": ", " ") if s in lines[at]), ",")
    fields = lines[at].split(separator)
    k, way = rng.randrange(len(fields)), rng.randrange(9)
    if way <= 3:
        fields[k] = rng.choice(_FIELDS)
    elif way == 4:
        fields.insert(k, fields[k])
    elif way == 5:
        del fields[k]
    elif way == 6:
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif way == 7:
        del lines[rng.randrange(len(lines)) :]
    else:
        separator = rng.choice(",;|\t :")
    if way not in (6, 7):
        lines[at] = separator.join(fields)
    return ("\n".join(lines) + "\n").encode(errors="surrogatepass")


def parquet_files() -> Iterator[tuple[str, bytes]]:
    """Yield parquet files with labels and values of kinds that a table may have, or not."""
    ab = ["A", "B"]
    indices = {
        "int": [1, 2], "float": [1.5, 2], "levels": pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]),
        "None": ["a", None], "dates": pd.to_datetime(["2020", "2021"]), "twice": ["a", "a"], "NUL": ["a\0", "b"],
        "range": None, "bytes": [b"a", b"b"], "interval": pd.interval_range(0, 2),
        "categories": pd.CategoricalIndex(ab), "bool": [True, False], "NaN": [np.nan, 1.0],
    }  # fmt: skip
    columns: dict[str, Any] = {
        "text": ab, "bool": [True, False], "int8": np.int8([1, 2]), "nullable": pd.array([1, None], dtype="Int64"),
        "NaN": [1.0, np.nan], "categories": pd.Categorical(ab), "date": pd.to_datetime(["2020", "2021"]),
        "list": [[1, 2], [3, 4]], "struct": [{"a": 1}, {"a": 2}], "bytes": [b"a", b"b"], "float16": np.float16([1, 2]),
        "decimal": [Decimal("1.5"), Decimal(2)], "uint64": np.uint64([2**63, 1]), "time": pd.to_timedelta([1, 2]),
        "inf": [np.inf, 1], "huge": [3e38, 1], "nulls": [None, None], "Float64": pd.array([1.0, None], "Float64"),
    }  # fmt: skip
    frames = {f"index of {name}": pd.DataFrame(np.eye(2), index=index) for name, index in indices.items()}
    frames |= {f"column of {name}": pd.DataFrame({"x": column}, index=ab) for name, column in columns.items()}
    frames |= {"empty": pd.DataFrame(), "no rows": pd.DataFrame({"x": [1.0]})[:0], "no columns": pd.DataFrame(index=ab)}
    frames |= {"labels in a column": pd.DataFrame({"gene": ab, "x": [1.0, 2.0]})}
    for name, frame in frames.items():
        frame.columns = frame.columns.astype(str)
        try:
            yield name, _saved(frame.to_parquet)
        except Exception:  # noqa: BLE001  no parquet holds it
            continue


def npz_files() -> Iterator[tuple[str, bytes]]:
    """Yield npz files with names and numbers of kinds that a table may have, or not."""
    names, one = np.array(["a", "b"]), np.ones(2)
    contents: dict[str, dict[str, Any]] = {
        "objects": {"names": names.astype(object), "matrix": np.eye(2)},
        "object matrix": {"names": names, "matrix": np.array([[1], [2]], object)},
        "1-D": {"names": names, "matrix": one}, "3-D": {"names": names, "matrix": np.ones((2, 2, 2))},
        "0-D": {"names": np.array("a"), "matrix": np.ones((1, 1))}, "complex": {"a": one * 1j, "b": one},
        "bool": {"a": one > 0, "b": one > 0}, "text": {"a": names},
        "bytes": {"names": names.astype("S"), "matrix": np.eye(2)},
        "whole names": {"names": np.arange(2), "matrix": np.eye(2)}, "nothing": {}, "empty": {"a": np.ones(0)},
        "numbers": {"a": np.float32(1)}, "structured": {"a": np.zeros(2, [("x", "f4")])},
        "dates": {"a": np.array(["2020"], "M8[D]")}, "NaN": {"a": np.array([np.nan])}, "slash": {"a/b": one},
        "more names": {"names": np.array(list("abc")), "matrix": np.eye(2)}, "only names": {"names": names},
        "only matrix": {"matrix": np.eye(2)}, "void": {"a": np.void(b"abc")},
        "long double": {"a": one.astype(np.longdouble)}, "NUL": {"names": np.array(["a\0b", "c"]), "matrix": np.eye(2)},
        "big endian": {"a": one.astype(">f8"), "b": one.astype(">f8")},
        "twice": {"names": np.array(["a", "a"]), "matrix": np.eye(2)}, "ragged": {"a": one, "b": np.ones(3)},
        "right": {"names": names, "matrix": np.eye(2)},
        "empty names": {"names": np.array(["", "b"]), "matrix": np.eye(2)},
    }  # fmt: skip
    for name, content in contents.items():
        for save in (np.savez, np.savez_compressed):
            yield name, _saved(lambda stream, save=save, content=content: save(stream, **content))


def torch_files() -> Iterator[tuple[str, bytes]]:
    """Yield files of ``torch.save`` with tensors and other values of kinds that a table may have, or not."""
    one = torch.ones(2)
    contents: dict[str, Any] = {
        "right": {"a": one, "b": one}, "lists": {"a": [1, 2]}, "numbers": {"a": 1.0}, "2-D": {"a": torch.eye(2)},
        "0-D": {"a": torch.tensor(1.0)}, "sparse": {"a": torch.eye(2).to_sparse()[0]},
        "CSR": {"a": torch.eye(2).to_sparse_csr()}, "half": {"a": one.half()}, "bf16": {"a": one.bfloat16()},
        "float8": {"a": one.to(torch.float8_e4m3fn)}, "complex": {"a": one * 1j}, "conjugate": {"a": (one * 1j).conj()},
        "negative view": {"a": torch._neg_view(one)}, "bool": {"a": one > 0},
        "whole": {"a": one.long(), "b": one.to(torch.uint8)},
        "quantized": {"a": torch.quantize_per_tensor(one, 0.1, 0, torch.qint8)},
        "quantized rows": {"a": torch.quantize_per_channel(torch.eye(2), one, one.long() * 0, 0, torch.qint8)},
        "nested": {"a": torch.nested.nested_tensor([one, one])}, "meta": {"a": one.to("meta")},
        "parameter": {"a": torch.nn.Parameter(one)}, "buffer": {"a": torch.nn.Buffer(one)},
        "gradient": {"a": one.clone().requires_grad_()}, "ragged": {"a": one, "b": torch.ones(3)},
        "expanded": {"a": torch.ones(1).expand(10**9)}, "stepped": {"a": torch.arange(9.0)[::3], "b": torch.ones(3)},
        "whole keys": {1: one, 2: one}, "mixed keys": {1: one, "1": one}, "tuple keys": {("a", 1): one},
        "None key": {None: one}, "deep": {"a": {"b": one}}, "tensor": torch.eye(2), "list": [one, one], "empty": {},
        "no numbers": {"a": torch.ones(0)}, "None": {"a": None}, "text": "hello", "numpy": {"a": np.ones(2)},
        "module": torch.nn.Linear(2, 2), "size": {"a": torch.Size([2])}, "dtype": {"a": torch.float32},
        "device": {"a": torch.device("cpu")}, "set": {"a": {1, 2}}, "storage": {"a": one.untyped_storage()},
        "NaN": {"a": one * torch.nan}, "infinite": {"a": one * torch.inf}, "empty key": {"": one},
        "NUL key": {"a\0": one}, "generator": {"a": torch.Generator()}, "bytes": {"a": b"xx"},
        "order": __import__("collections").OrderedDict(a=one, b=one), "state": torch.nn.Linear(2, 2).state_dict(),
    }  # fmt: skip
    for name, content in contents.items():
        for old in (False, True):
            try:
                yield (
                    name,
                    _saved(lambda s, c=content, old=old: torch.save(c, s, _use_new_zipfile_serialization=not old)),
                )
            except Exception:  # noqa: BLE001  torch saves no such thing
                continue


def readers() -> dict[str, tuple[Callable[[Path], Any], str, str]]:
    """Return what reads single files: function, ending, and the right text."""
    scores = datasets.simulate_screen(2, 3, n_genes=12, n_cells=5)
    links = Path("right.links")
    links.write_text(RIGHT["links"])
    return {
        "embeddings csv": (scvi_tahoe.read_embedding_table, ".csv", "csv"),
        "embeddings tsv": (scvi_tahoe.read_embedding_table, ".tsv", "tsv"),
        "table csv": (tables.read_table, ".csv", "csv"),
        "parquet": (scvi_tahoe.read_embedding_table, ".parquet", "csv"),
        "table parquet": (tables.read_table, ".parquet", "csv"),
        "npz": (scvi_tahoe.read_embedding_table, ".npz", "csv"), "pt": (scvi_tahoe.read_embedding_table, ".pt", "csv"),
        "gene sets": (tables.read_gene_sets, ".gmt", "gmt"),
        "table of gene sets": (lambda p: tables.gene_sets(p, min_size=2), ".gmt", "gmt"),
        "proteins": (tables.protein_kmers, ".fasta", "fasta"),
        "proteins gz": (tables.protein_kmers, ".fasta.gz", "fasta"),
        "links": (lambda p: tables.string_links(p, min_score=1), ".txt", "links"),
        "links gz": (lambda p: tables.string_links(p, min_score=1), ".txt.gz", "links"),
        "info": (lambda p: tables.string_links(links, info=p, min_score=1), ".txt", "info"),
        "effects": (tables.gene_effects, ".csv", "effects"), "aliases": (tables.read_aliases, ".csv", "aliases"),
        "aliases txt": (tables.read_aliases, ".txt", "aliases"), "targets": (tables.drug_targets, ".csv", "targets"),
        "structures": (tables.drug_structures, ".csv", "smiles"), "run": (study.TahoeRun.from_yaml, ".yaml", "run"),
        "configuration": (study.check_config, ".yaml", "arc"), "inspect yaml": (study.inspect_path, ".yaml", "arc"),
        "inspect csv": (study.inspect_path, ".csv", "log"), "inspect toml": (study.inspect_path, ".toml", "arc table"),
        "inspect pt": (study.inspect_path, ".pt", "csv"), "inspect ckpt": (study.inspect_path, ".ckpt", "csv"),
        "inspect h5ad": (study.inspect_path, ".h5ad", "csv"), "inspect json": (study.inspect_path, ".json", "split"),
        "cells": (study.read_cells, ".h5ad", "csv"), "cells h5mu": (study.read_cells, ".h5mu", "csv"),
        "split json": (lambda p: evaluate.read_split(p, scores), ".json", "split"),
        "split csv": (lambda p: evaluate.read_split(p, scores), ".csv", "csv"),
        "log": (lambda p: study.diagnose([p]), ".csv", "log"),
        "arc table": (lambda p: study.read_cells(p), ".toml", "arc table"),
        "weights": (pretrained.read_pretrained, ".ckpt", "csv"), "response model": (ResponseModel.load, "", "csv"),
        "study": (study.run_study, ".yaml", "run"), "aliases tsv": (tables.read_aliases, ".tsv", "aliases"),
    }  # fmt: skip


def folders(place: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """Return folders that are read, each with its reader."""
    cells = datasets.simulate_screen(2, 4, n_genes=20, n_cells=8, n_control_cells=12)
    cells.uns.clear()
    TahoeST.setup_anndata(cells, **KEYS)
    model = TahoeST(cells, size=SMALL, set_size=4)
    model.train(max_steps=1, batch_size=2, progress=False)
    model.save(place / "model")
    model.export(place / "export")
    model.evaluate(cells, preset="quick", allow_train=True, progress=False).save(place / "result")
    with_adapters = TahoeST.load(place / "model", cells)
    with_adapters.train(max_steps=1, batch_size=2, progress=False, recipe="lora")
    with_adapters.save_adapters(place / "adapters")
    scvi_tahoe.TahoeEnsemble([model, model]).save(place / "ensemble")
    keys = {name: KEYS[name] for name in ("perturbation_key", "context_key")}
    ResponseModel.fit(model.predict_effects(as_adata=True), **keys, progress=False).save(place / "response")
    study.finetune(study.TahoeRun.from_dict(RUN), place / "run", progress=False, report=lambda _: None)
    shutil.copytree(place / "run", place / "other run")

    def adapters(path: Path) -> None:
        TahoeST.load(place / "model", cells).load_adapters(path)

    def either(path: Path) -> None:
        study.inspect_path(path)
        pretrained.read_pretrained(path)

    def either_run(path: Path) -> None:
        study.inspect_path(path)
        study.compare_runs(place / "other run", path)

    readers: dict[str, Callable[[Path], Any]] = {
        "model": lambda p: TahoeST.load(p, False), "export": either, "result": EvaluationResult.load,
        "adapters": adapters, "ensemble": lambda p: scvi_tahoe.TahoeEnsemble.load(p, False),
        "response": ResponseModel.load, "run": either_run,
    }  # fmt: skip
    return {name: (place / name, reader) for name, reader in readers.items()}


class Hang(BaseException):
    """A reader that does not come back."""


def judged(label: str, read: Callable[[], Any]) -> str:
    """Read once, and say what became of it: taken, refused, foreign, hang, slow, or of too much memory."""

    def alarm(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, alarm)
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(HANG_SECONDS)
    try:
        answer = "taken"
        made = read()
        if isinstance(made, pd.DataFrame) and not np.isfinite(made.select_dtypes("number")).all(axis=None):
            answer = "silent"
            print(f"silent: {label}: not finite")
    except Hang:
        answer = "hang"
    except Exception as error:  # noqa: BLE001  judged
        answer = "refused" if is_ours(error) or isinstance(error, LicenceNotAcceptedError) else "foreign"
        if answer == "foreign":
            print(f"foreign: {label}: {type(error).__name__}: {str(error)[:140]!r}")
    finally:
        signal.alarm(0)
    if answer == "hang":
        print(f"hang: {label}")
    elif time.process_time() - begin > SLOW_SECONDS:
        answer = "slow"
        print(f"slow: {label}: {time.process_time() - begin:.0f} s")
    elif 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > LARGE_BYTES:
        answer = "over 1 GB"
        print(f"over 1 GB: {label}")
    return answer


#: contents that no reader may take for something
NONSENSE = frozenset(
    "empty|space|newline|NUL|0xff|lone BOM|random|PDF|PNG|SQLite|HDF5 head|zip head|parquet ends|npy|pickle|tar|"
    "gzip of nothing|gzip cut|UTF-16|UTF-16 BE|UTF-16 LE|UTF-32|EBCDIC|bz2|xz|NUL inside|safetensors head".split("|")
)
#: and readers for which some of them are right, or that say of anything what it is
ANYTHING = ("inspect", "weights")


def odd_files(n: int) -> Counter[str]:
    """Read files with strange contents, by every reader of single files, and count the answers."""
    found: Counter[str] = Counter()
    for name, (read, ending, right) in readers().items():
        path, rng = Path(f"odd{ending}"), random.Random(name)
        plain = RIGHT[right]
        contents = [*strange_bytes().items(), *other_bytes(plain).items()]
        contents += [(f"changed {k}", changed_text(plain, rng)) for k in range(-(-n // 40))]
        if ending in (".parquet", ".npz", ".pt", ".ckpt"):
            made = {".parquet": parquet_files, ".npz": npz_files}.get(ending, torch_files)
            contents += list(made())
        for kind, content in contents:
            path.write_bytes(gzip.compress(content) if ending.endswith(".gz") and "gzip" not in kind else content)
            found["tried"] += 1
            answer = judged(f"{name} of {kind}", lambda read=read, path=path: read(path))
            found[answer] += 1
            if answer == "taken" and kind in NONSENSE and not name.startswith(ANYTHING):
                found["silent"] += 1
                print(f"silent: {name} of {kind}")
        path.unlink()
        for kind, make in _odd_names(ending).items():
            found["tried"] += 1
            place = make()
            answer = judged(f"{name} of {kind}", lambda read=read, place=place: read(place))
            found[answer] += 1
            _remove(Path(f"odd{ending}"))
    return found


def _odd_names(ending: str) -> dict[str, Callable[[], Any]]:
    path = Path(f"odd{ending}")
    return {
        "folder": lambda: path.mkdir() or path, "pipe": lambda: os.mkfifo(path) or path,
        "circle": lambda: path.symlink_to(path) or path, "dangling link": lambda: path.symlink_to("nothing") or path,
        "link to a device": lambda: path.symlink_to("/dev/zero") or path, "no file": lambda: Path(f"nothing{ending}"),
        "empty name": lambda: "", "NUL in a name": lambda: f"a\0{ending}", "long name": lambda: "x" * 300 + ending,
        "long path": lambda: "x/" * 3000 + ending, "half a character": lambda: f"\ud800{ending}",
        "URL": lambda: f"https://example.invalid/x{ending}", "folder above": lambda: f"../nothing{ending}",
        "ending alone": lambda: ending or ".", "file as folder": lambda: Path("right.links") / f"x{ending}",
        "home": lambda: f"~nobody/x{ending}", "device": lambda: Path("/dev/null"),
    }  # fmt: skip


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def odd_folders(place: Path) -> Counter[str]:
    """Put strange contents in place of every file of folders that are read, one at a time, and count the answers."""
    found: Counter[str] = Counter()
    place = place / "odd folders"
    place.mkdir()
    for name, (whole, read) in folders(place).items():
        files = sorted(p for p in whole.rglob("*") if p.is_file())
        copy = place / f"copy of {name}"
        for victim in files:
            strange = strange_bytes()
            if victim.suffix in (".json", ".csv", ".md", ".yaml"):
                strange |= other_bytes(victim.read_text())
            if victim.suffix in (".pt", ".ckpt"):
                strange |= {f"torch {kind}": content for kind, content in torch_files()}
            for kind, content in [
                *strange.items(),
                ("pipe", None),
                ("folder", None),
                ("circle", None),
                ("missing", None),
            ]:
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(whole, copy)
                target = copy / victim.relative_to(whole)
                if content is None:
                    target.unlink()
                    made: dict[str, Callable[[], Any]] = {
                        "pipe": lambda t=target: os.mkfifo(t), "folder": target.mkdir,
                        "circle": lambda t=target: t.symlink_to(t),
                    }  # fmt: skip
                    made.get(kind, lambda: None)()
                else:
                    target.write_bytes(content)
                found["tried"] += 1
                found[
                    judged(f"{name}/{target.relative_to(copy)} of {kind}", lambda copy=copy, read=read: read(copy))
                ] += 1
    return found
