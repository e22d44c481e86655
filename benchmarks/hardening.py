"""Wrong inputs, killed and refused writes, damaged and hostile files: what each of them leaves, as a table.

python benchmarks/hardening.py
python benchmarks/hardening.py --kills 40 --refusals 80 --damaged 120 --inputs 500   # a minute

Everything runs against the real readers and writers, in forked processes: one that is killed, crashes or fills the
memory is counted and nothing else is affected. A write is interrupted at a random moment (SIGKILL) or at a chosen file
event (SIGKILL, SIGINT, SIGTERM, no rights), or by a real limit on the size of a file; afterwards either the earlier or
the new version must be read, whole, and after one more write nothing else may be left. A damaged file must be refused
in one sentence, or be read as what was written.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import inspect
import io
import logging
import os
import pickle
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import scvi_tahoe
from scvi_tahoe import EvaluationResult, TahoeEnsemble, TahoeST, datasets
from scvi_tahoe.files import damaged, read_h5ad, verify_zarr
from scvi_tahoe.pretrained import read_pretrained

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = {"hidden": 8, "n_layers": 1, "intermediate": 16, "n_heads": 2}
KEYS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
USER_ERRORS = (ValueError, TypeError, KeyError, OSError, NotImplementedError, ImportError)
SLOW_SECONDS, HANG_SECONDS, LARGE_BYTES = 10.0, 60.0, 10**9


class Kind(NamedTuple):
    """Something that is written and read: ``write(path, version)``, and ``read(path)``, a digest of what was read."""

    write: Callable[[Path, int], object]
    read: Callable[[Path], str]
    name: str = "artefact"


def digest(*values: Any) -> str:
    """Return a hash of arrays, tensors and text."""
    found = hashlib.sha256()
    for value in values:
        plain = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        plain = plain.toarray() if hasattr(plain, "toarray") else plain
        found.update(np.ascontiguousarray(plain).tobytes() if isinstance(plain, np.ndarray) else repr(plain).encode())
    return found.hexdigest()


def weights_digest(model: TahoeST) -> str:
    """Return a hash of a model's weights, genes and perturbations."""
    return digest(*model.module.state_dict().values(), list(model.genes), list(model.perturbation_table.names))


def make_kinds(place: Path) -> dict[str, Kind]:
    """Train two small models, and return every kind of artefact in a first and a second version."""
    cells = datasets.simulate_screen(2, 4, n_genes=40, n_cells=12, n_control_cells=30)
    TahoeST.setup_anndata(cells, **KEYS)
    models = [TahoeST(cells, size=SMALL, set_size=4, seed=seed) for seed in (0, 1)]
    for model in models:
        model.train(max_steps=2, batch_size=2, progress=False)
    with_adapters = [TahoeST(cells, size=SMALL, set_size=4, seed=0) for _ in range(2)]
    base = place / "base"
    models[0].save(base)
    for seed in (0, 1):
        with_adapters[seed] = TahoeST.load(base, cells)
        with_adapters[seed].train(max_steps=2, batch_size=2, progress=False, recipe="lora", seed=seed)
    results = [model.evaluate(cells, preset="quick", allow_train=True, progress=False) for model in models]
    for version in (0, 1):
        datasets.simulate_screen(2, 4, n_genes=40, n_cells=12, seed=version).write_h5ad(place / f"{version}.h5ad")

    def adapters(path: Path) -> str:
        model = TahoeST.load(base, False)
        model.load_adapters(path)
        return weights_digest(model)

    def zarr(path: Path) -> str:
        import anndata

        verify_zarr(path)
        with damaged(path):
            return digest(anndata.read_zarr(path).X)

    def predict(path: Path, version: int) -> None:
        models[version].predict(path=path, overwrite=True, progress=False, n_cells=40)

    def export(path: Path) -> str:
        weights = read_pretrained(path)
        return digest(*weights.state_dict.values(), list(weights.genes or ()))

    def result(path: Path) -> str:
        found = EvaluationResult.load(path)
        return digest(found.effects.predicted, found.effects.observed, found.summary.to_csv())

    def store(path: Path, version: int) -> None:
        scvi_tahoe.write_store(place / f"{version}.h5ad", path, **KEYS, overwrite=True)

    return {
        "model": Kind(lambda p, v: models[v].save(p, overwrite=True), lambda p: weights_digest(TahoeST.load(p, False))),
        "export": Kind(lambda p, v: models[v].export(p, overwrite=True), export),
        "ensemble": Kind(
            lambda p, v: TahoeEnsemble([models[v], models[v]]).save(p, overwrite=True),
            lambda p: weights_digest(TahoeEnsemble.load(p, False).models[1]),
        ),
        "adapters": Kind(lambda p, v: with_adapters[v].save_adapters(p), adapters),
        "prediction": Kind(predict, lambda p: digest(read_h5ad(p).X), "artefact.h5ad"),
        "prediction (zarr)": Kind(predict, zarr, "artefact.zarr"),
        "store": Kind(store, lambda p: digest(scvi_tahoe.read_store(p).to_memory().X)),
        "result": Kind(lambda p, v: results[v].save(p), result),
    }


def in_child(work: Callable[[], Any], *, kill_after: float | None = None) -> tuple[Any, int, int]:
    """Do work in a forked process; return its pickled result, its status and its largest memory in bytes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 0
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        try:
            answer = pickle.dumps(work())
        except BaseException as error:  # noqa: BLE001  whatever ends a writer is told to the parent
            place = traceback.extract_tb(error.__traceback__)[-1].filename
            answer, code = pickle.dumps((type(error).__name__, str(error)[:300], place)), 3
        os.write(writing, answer[:60_000])
        os._exit(code)
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    if kill_after is None and not select.select([reading], [], [], HANG_SECONDS)[0]:
        os.kill(child, signal.SIGABRT)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read()
    _, status, usage = os.wait4(child, 0)
    return (pickle.loads(answer) if answer else None), status, usage.ru_maxrss * 1024


def done(work: Callable[[], Any]) -> Any:
    """Do work in a forked process, and return its result; a RuntimeError if it fails.

    The parent reads and writes nothing itself, as threads that it had started would be missing in its children.
    """
    answer, status, _ = in_child(work)
    if status:
        raise RuntimeError(f"status {status}: {answer}")
    return answer


EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree")


def at_event(folder: Path, number: int, act: Callable[[], None]) -> None:
    """Act at the so-manieth file event in a folder, in this process."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and arguments and str(folder) in os.fsdecode(arguments[0] or ""):
            seen += 1
            if seen == number:
                act()

    sys.addaudithook(lambda event, arguments: hook(event, arguments) if event in EVENTS else None)


def refuse(number: int) -> Callable[[], None]:
    """Return an action that fails as the system does with an error number."""

    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act


def interrupt(kind: Kind, folder: Path, how: str, rng: random.Random, usual: float) -> None:
    """Replace version 0 by version 1 in a child that does not get to the end."""
    path = folder / kind.name
    actions: dict[str, Callable[[], None]] = {
        "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT),
        "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "no rights": refuse(errno.EACCES),
        "disk full": refuse(errno.ENOSPC),
    }

    def work() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if how == "size of a file":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            limit = rng.choice([0, 500, 3_000, 20_000])
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        elif how != "moment":
            at_event(folder, rng.randrange(1, 40), actions[how])
        kind.write(path, 1)

    in_child(work, kill_after=rng.uniform(0, 1.2 * usual) if how == "moment" else None)


def interrupted_writes(kinds: dict[str, Kind], place: Path, n: int, ways: tuple[str, ...]) -> Counter[str]:
    """Count what interrupted writes lost, and what a later write left over."""
    rng, found = random.Random(0), Counter[str]()
    for name, kind in kinds.items():
        folder = place / f"writes of {name}"
        folder.mkdir(exist_ok=True)
        path = folder / kind.name
        begin = time.perf_counter()
        known = {done(lambda kind=kind, path=path: [kind.write(path, 0), kind.read(path)][1])}
        usual = time.perf_counter() - begin
        known.add(done(lambda kind=kind, path=path: [kind.write(path, 1), kind.read(path)][1]))
        for k in range(n // len(kinds) + 1):
            done(lambda kind=kind, path=path: kind.write(path, 0) and None)
            interrupt(kind, folder, ways[k % len(ways)], rng, usual)
            found["tried"] += 1
            try:
                if done(lambda kind=kind, path=path: kind.read(path)) not in known:
                    found["lost"] += 1
                    print(f"lost: {name}, {ways[k % len(ways)]}: neither version")
            except Exception as error:  # noqa: BLE001  counted
                found["lost"] += 1
                print(f"lost: {name}, {ways[k % len(ways)]}: {error}")
        done(lambda kind=kind, path=path: kind.write(path, 1) and None)
        found["left over"] += len([p for p in folder.iterdir() if p != path])
    return found


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return a file cut off, with a flipped bit, with foreign or missing bytes, or with a part of zeros."""
    at, changed = rng.randrange(len(data)), bytearray(data)
    way = rng.randrange(5)
    if way == 0:
        return data[:at]
    if way == 1:
        changed[at] ^= 1 << rng.randrange(8)
    elif way == 2:
        changed[at : at + 64] = rng.randbytes(64)
    elif way == 3:
        del changed[at : at + rng.randrange(1, 200)]
    else:
        changed[at : at + 512] = bytes(len(changed[at : at + 512]))
    return bytes(changed)


def damaged_files(kinds: dict[str, Kind], place: Path, n: int) -> Counter[str]:
    """Count how readers answer damaged files."""
    rng, found = random.Random(1), Counter[str]()
    for name, kind in kinds.items():
        whole, copy = place / f"whole {name}" / kind.name, place / f"damaged {name}" / kind.name
        whole.parent.mkdir()
        expected = done(lambda kind=kind, whole=whole: [kind.write(whole, 0), kind.read(whole)][1])
        files = [p for p in ([whole] if whole.is_file() else whole.rglob("*")) if p.is_file() and p.stat().st_size]
        for _ in range(n // len(kinds) + 1):
            shutil.rmtree(copy.parent, ignore_errors=True)
            copy.parent.mkdir()
            shutil.copytree(whole, copy) if whole.is_dir() else shutil.copy(whole, copy)
            victim = rng.choice(files)
            target = copy / victim.relative_to(whole) if whole.is_dir() else copy
            target.write_bytes(damage(victim.read_bytes(), rng))
            found["tried"] += 1
            answer, status, memory = in_child(lambda copy=copy, kind=kind: kind.read(copy))
            found[verdict(name, victim.name, answer, status, expected)] += 1
            found["over 1 GB"] += memory > LARGE_BYTES + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def verdict(name: str, file: str, answer: Any, status: int, expected: str) -> str:
    """Say what became of a damaged file."""
    if os.WIFSIGNALED(status):
        print(f"crashed: {name}, {file}")
        return "crashed"
    if isinstance(answer, str):
        if answer == expected:
            return "harmless"
        print(f"silent: {name}, {file}")
        return "silent"
    kind, text, where = answer
    ours = f"{os.sep}scvi_tahoe{os.sep}" in where
    if ours and kind in ("UnsafeFileError", "ValueError", "FileNotFoundError", "KeyError"):
        return "refused"
    print(f"foreign: {name}, {file}: {kind}: {text[:150]} ({where})")
    return "foreign"


class Plant:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def torch_bytes(content: Any) -> bytes:
    """Return what ``torch.save`` writes."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def hostile_files(kinds: dict[str, Kind], place: Path) -> Counter[str]:
    """Put a pickle with code in place of every file of every artefact, and count how often the code runs."""
    found, marker = Counter[str](), place / "code ran"
    for name, kind in kinds.items():
        whole = place / f"whole {name}" / kind.name
        files = [whole] if whole.is_file() else [p for p in whole.rglob("*") if p.is_file()]
        for victim in files:
            for content in (torch_bytes(Plant(marker)), pickle.dumps(Plant(marker))):
                copy = place / f"hostile {name}" / kind.name
                shutil.rmtree(copy.parent, ignore_errors=True)
                copy.parent.mkdir()
                shutil.copytree(whole, copy) if whole.is_dir() else shutil.copy(whole, copy)
                (copy / victim.relative_to(whole) if whole.is_dir() else copy).write_bytes(content)
                _, status, _ = in_child(lambda copy=copy, kind=kind: kind.read(copy))
                found["tried"] += 1
                found["crashed"] += os.WIFSIGNALED(status)
                found["executed"] += marker.exists()
                marker.unlink(missing_ok=True)
    return found


#: Values, and the words of annotations that allow them.
WRONG: list[tuple[str, Any]] = [
    *(("int float", value) for value in (3, -7, 10**30)),
    *(("str Literal", "no such thing"), ("str", ""), ("Path str", Path("/no/such/place")), ("float", 2.5)),
    *(("Sequence list tuple", value) for value in ([1, 2], ["A", "B"], (), {1, 2}, frozenset())),
    *(("Mapping dict", value) for value in ({"a": 1}, {})),
    *(("bool", value) for value in (True, np.bool_(False))),
    ("DataFrame", pd.DataFrame({"a": [1]})),
    *(("", value) for value in (float("nan"), float("inf"), float("-inf"), 1j, b"bytes", object(), Ellipsis, int)),
    *(("", value) for value in (np.array([[1.0]]), np.datetime64("2020-01-01"), pd.NaT, pd.NA, slice(1), range, type)),
    *(("", value) for value in (torch.ones(2, 2), bytearray(b"x"), memoryview(b"x"), np.complex64(1), property())),
    *(("", value) for value in (np.timedelta64(1, "D"), warnings, NotImplemented, Exception("x"), super, iter([]))),
]


def public_calls(model: TahoeST, cells: Any) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """Return public calls with arguments that are right, of which one at a time is replaced."""
    splits = (scvi_tahoe.FractionSplit, scvi_tahoe.HeldOutPerturbations, scvi_tahoe.HeldOutContexts)
    return [
        (model.predict, {}), (model.train, {}), (model.evaluate, {"reference": cells}), (model.save, {"dir_path": "x"}),
        (model.export, {"folder": "x"}), (TahoeST.load, {"dir_path": "x"}), (TahoeST, {"adata": cells}),
        (TahoeST.setup_anndata, {"adata": cells, **KEYS}), (TahoeST.from_pretrained, {"source": "x"}),
        (model.save_adapters, {"folder": "x"}), (model.load_adapters, {"folder": "x"}), (model.memory_plan, {}),
        (scvi_tahoe.evaluate, {"prediction": cells, "reference": cells}), (datasets.simulate_screen, {}),
        (scvi_tahoe.EvaluationReference.from_adata, {"adata": cells, **KEYS}),
        (scvi_tahoe.read_embedding_table, {"path": "x.csv"}), (scvi_tahoe.read_store, {"folder": "x"}),
        (scvi_tahoe.write_store, {"files": "x.h5ad", "folder": "x", **KEYS}), (scvi_tahoe.smiles_fingerprints, {}),
        (scvi_tahoe.suggest_decoder_weight, {"adata": cells}), *((split, {}) for split in splits),
        (scvi_tahoe.nn.NetworkConfig, {"n_input": 4, "n_output": 4, "n_perturbation": 4}),
        (scvi_tahoe.nn.ObjectiveConfig, {}), (scvi_tahoe.training.PlanConfig, {"max_steps": 5, "lr": 0.1}),
    ]  # fmt: skip


def tries_of(function: Callable[..., Any], right: dict[str, Any]) -> list[tuple[Any, dict[str, Any], str]]:
    """Return calls of a function, each with one wrong argument, and the name of that."""
    tries = []
    for name, parameter in inspect.signature(function).parameters.items():
        words = str(parameter.annotation)
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in ("registry", "control"):
            continue
        if "Any" in words.replace("[str, Any]", ""):
            continue
        for allowed, value in WRONG:
            if not any(word in words for word in allowed.split()):
                tries.append((function, {**right, name: value}, name))
    near = f"{next(iter(inspect.signature(function).parameters))}x"
    return [*tries, (function, {**right, near: 1}, near)]


def wrong_inputs(n: int) -> Counter[str]:
    """Give wrong values to every argument of public calls, in turn, and count the answers."""
    found, begin = Counter[str](), time.perf_counter()
    cells = datasets.simulate_screen(2, 4, n_genes=30, n_cells=8, n_control_cells=20)
    TahoeST.setup_anndata(cells, **KEYS)
    model = TahoeST(cells, size=SMALL, set_size=4)
    tries = [one for function, right in public_calls(model, cells) for one in tries_of(function, right)]
    random.Random(0).shuffle(tries)
    for function, arguments, name in tries[:n]:
        start = time.perf_counter()
        found["tried"] += 1
        label = f"{getattr(function, '__qualname__', function)}({name}={arguments[name]!r})"[:110]
        try:
            function(**arguments)
        except USER_ERRORS as error:
            if name not in str(error):
                found["foreign"] += 1
                print(f"foreign: {label}: {type(error).__name__}: {str(error)[:120]}")
        except Exception as error:  # noqa: BLE001  counted
            found["foreign"] += 1
            print(f"foreign: {label}: {type(error).__name__}: {str(error)[:120]}")
        else:
            found["silent"] += 1
            print(f"silent: {label}")
        found["slow"] += time.perf_counter() - start > SLOW_SECONDS
    found["seconds"] = round(time.perf_counter() - begin)
    return found


def main() -> None:
    """Do all parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=6_000)
    parser.add_argument("--kills", type=int, default=320)
    parser.add_argument("--refusals", type=int, default=320)
    parser.add_argument("--damaged", type=int, default=1_000)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.stdout.reconfigure(line_buffering=True)
    torch.set_num_threads(1)
    rows: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.chdir(place)
        rows["wrong inputs"] = wrong_inputs(options.inputs)
        kinds = make_kinds(place)
        parts: dict[str, Callable[[], Counter[str]]] = {
            "killed writes": lambda: interrupted_writes(kinds, place, options.kills, ("moment", "SIGKILL")),
            "refused or ended writes": lambda: interrupted_writes(
                kinds, place, options.refusals, ("disk full", "size of a file", "no rights", "SIGINT", "SIGTERM")
            ),
            "damaged files": lambda: damaged_files(kinds, place, options.damaged),
            "hostile files": lambda: hostile_files(kinds, place),
        }
        for name, part in parts.items():
            begin = time.perf_counter()
            rows[name] = part()
            rows[name]["seconds"] = round(time.perf_counter() - begin)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(pd.DataFrame([[row[c] for c in columns] for row in rows.values()], list(rows), columns).to_markdown())
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
