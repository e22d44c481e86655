"""Killed and refused writes, damaged and hostile files for ``hardening.py``, and what each of them leaves."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import hashlib
import io
import os
import pickle
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import torch
from hardening_inputs import KEYS, RUN, SMALL, public_calls

import scvi_tahoe
from scvi_tahoe import EvaluationResult, TahoeEnsemble, TahoeST, datasets, tables
from scvi_tahoe.data import dense_rows
from scvi_tahoe.files import damaged, read_h5ad, verify_zarr
from scvi_tahoe.pretrained import read_pretrained
from scvi_tahoe.response import ResponseModel
from scvi_tahoe.study import TahoeRun, finetune

if TYPE_CHECKING:
    from collections.abc import Callable

HANG_SECONDS, LARGE_BYTES = 300.0, 10**9
#: arguments with which a call that is made two hundred times is short
SHORT: dict[str, dict[str, Any]] = {
    "TahoeST.train": {"max_steps": 1, "batch_size": 2, "progress": False},
    "TahoeST.find_learning_rate": {"n_steps": 10, "progress": False},
    "TahoeST.evaluate": {"preset": "quick", "allow_train": True, "progress": False},
    "TahoeEnsemble.evaluate": {"preset": "quick", "allow_train": True, "progress": False},
    "TahoeEnsemble.train": {"seeds": [0], "max_steps": 1, "progress": False},
    "evaluate": {"preset": "quick", "progress": False},
}
_RESPONSES: dict[str, Any] = {"perturbation_key": "perturbation", "context_key": "context", "progress": False}


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


def store_digest(path: Path) -> str:
    """Return a hash of a store's cells as training reads them, and of their labels."""
    cells = scvi_tahoe.read_store(path)
    return digest(dense_rows(cells.X, np.arange(cells.n_obs)), cells.obs.to_csv(), list(cells.var_names))


def make_kinds(place: Path) -> dict[str, Kind]:  # noqa: C901  a line each
    """Train two small models, and return every kind of artefact in a first and a second version."""
    cells = datasets.simulate_screen(2, 4, n_genes=40, n_cells=12, n_control_cells=30)
    cells.uns.clear()
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
    frames = [pd.DataFrame(np.random.default_rng(v).normal(size=(40, 9)), [f"g{i}" for i in range(40)]) for v in (0, 1)]
    for frame in frames:
        frame.columns = [f"c{i}" for i in range(9)]
    fitted = [ResponseModel.fit(m.predict_effects(as_adata=True), **_RESPONSES) for m in models]
    runs = [TahoeRun.from_dict({**RUN, "seed": seed}) for seed in (0, 1)]
    for version in (0, 1):
        screen = datasets.simulate_screen(2, 4, n_genes=40, n_cells=12, seed=version)
        screen.uns.clear()
        screen.write_h5ad(place / f"{version}.h5ad")

    def adapters(path: Path) -> str:
        model = TahoeST.load(base, False)
        model.load_adapters(path)
        return weights_digest(model)

    def zarr(path: Path) -> str:
        verify_zarr(path)
        with damaged(path):
            return digest(ad.read_zarr(path).X)

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
        "store": Kind(store, lambda p: store_digest(p)),
        "result": Kind(lambda p, v: results[v].save(p), result),
        "response model": Kind(
            lambda p, v: fitted[v].save(p, overwrite=True), lambda p: digest(ResponseModel.load(p).predict().X)
        ),
        "table": Kind(
            lambda p, v: tables.write_table(frames[v], p),
            lambda p: digest(tables.read_table(p).to_numpy()),
            "a.parquet",
        ),
        "run file": Kind(
            lambda p, v: runs[v].to_yaml(p), lambda p: digest(TahoeRun.from_yaml(p).to_dict()["seed"]), "run.yaml"
        ),
        "report": Kind(
            lambda p, v: results[v].to_html(p), lambda p: digest(p.read_text("utf-8").rstrip()[-7:]), "report.html"
        ),
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
    """Act at the so-manieth file event in a folder, in this process; at each of them if the number is 0."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and arguments and isinstance(arguments[0], str | bytes | os.PathLike):
            if str(folder) in os.fsdecode(arguments[0]):
                seen += 1
                if number in (0, seen):
                    act()

    sys.addaudithook(hook)


def refuse(number: int) -> Callable[[], None]:
    """Return an action that fails as the system does with an error number."""

    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act


def interrupt(kind: Kind, folder: Path, how: str, rng: random.Random, usual: float, version: int) -> None:
    """Write a version over the other one in a child that does not get to the end."""
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
        elif how == "slow disk":
            at_event(folder, 0, lambda: time.sleep(0.01))
        elif how != "moment":
            at_event(folder, rng.randrange(1, 40), actions[how])
        kind.write(path, version)

    in_child(work, kill_after=rng.uniform(0, 1.2 * usual) if how in ("moment", "slow disk") else None)


def interrupted_writes(name: str, kind: Kind, place: Path, n: int, ways: tuple[str, ...]) -> Counter[str]:
    """Count what interrupted writes of one kind lost, and what a later write left over."""
    rng, found = random.Random(name), Counter[str]()
    folder = place / f"writes of {name}, {ways[0]}"
    folder.mkdir()
    path = folder / kind.name
    begin = time.perf_counter()
    known = []
    for version in (1, 0):  # the first one also reads what the process needs
        begin = time.perf_counter()
        done(lambda version=version: kind.write(path, version) and None)
        usual = time.perf_counter() - begin
        known.insert(0, done(lambda: kind.read(path)))
    now = known[0]
    for k in range(n):
        interrupt(kind, folder, ways[k % len(ways)], rng, usual, 1 if now == known[0] else 0)
        found["tried"] += 1
        try:
            now = done(lambda: kind.read(path))
        except Exception as error:  # noqa: BLE001  counted
            now = str(error)
        if now not in known:
            found["lost"] += 1
            print(f"lost: {name}, {ways[k % len(ways)]}: {now[:200]}")
            done(lambda: kind.write(path, 0) and None)
            now = known[0]
    done(lambda: kind.write(path, 1) and None)
    left = [p.name for p in folder.rglob("*.partial-*") if p != path] + [p.name for p in folder.iterdir() if p != path]
    found["left over"] += len(left)
    if left:
        print(f"left over: {name}: {left[:5]}")
    return found


def two_at_once(name: str, kind: Kind, place: Path, n: int) -> Counter[str]:
    """Count what is lost if two processes write the same name at the same time, each slowed down at random."""
    found = Counter[str]()
    folder = place / f"two at once {name}"
    folder.mkdir()
    path = folder / kind.name

    def slowly(version: int, seed: int) -> None:
        rng = random.Random(seed)
        at_event(folder, 0, lambda: time.sleep(rng.choice([0, 0, 0.02])))
        kind.write(path, version)

    known = [done(lambda v=v: [kind.write(path, v), kind.read(path)][1]) for v in (0, 1)]
    for k in range(n):
        found["tried"] += 1
        answers = together([lambda v=v, k=k: slowly(v, 2 * k + v) for v in (0, 1)])
        for answer, status in answers:
            if status and not (isinstance(answer, tuple) and str(path.name) in answer[1] and answer[0] in _REFUSALS):
                found["foreign"] += 1
                print(f"two at once: {name}: {answer}")
        try:
            if done(lambda: kind.read(path)) not in known:
                raise RuntimeError("neither version")
        except Exception as error:  # noqa: BLE001  counted
            found["lost"] += 1
            print(f"lost: two at once, {name}: {error}")
            done(lambda: kind.write(path, 0) and None)
    done(lambda: kind.write(path, 1) and None)
    found["left over"] += len([p for p in folder.iterdir() if p != path])
    return found


_REFUSALS = ("FolderInUseError", "FileExistsError", "ValueError")


def together(works: list[Callable[[], Any]]) -> list[tuple[Any, int]]:
    """Do several works in forked processes at the same time; return the result and status of each."""
    ends = []
    for work in works:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            answer, status, _ = in_child(work)
            os.write(writing, pickle.dumps((answer, status)))
            os._exit(0)
        os.close(writing)
        ends.append((child, reading))
    found = []
    for child, reading in ends:
        with os.fdopen(reading, "rb") as stream:
            found.append(pickle.loads(stream.read()))
        os.waitpid(child, 0)
    return found


def resumed_trainings(place: Path, n: int) -> Counter[str]:
    """Kill trainings and whole runs at random moments, continue them, and compare with those that were not killed."""
    rng, found = random.Random(2), Counter[str]()
    cells = datasets.simulate_screen(2, 6, n_genes=40, n_cells=20, n_control_cells=40)
    cells.uns.clear()
    TahoeST.setup_anndata(cells, **KEYS)

    def train(folder: Path, **options: Any) -> str:
        model = TahoeST(cells, size=SMALL, set_size=4, seed=0)
        left = [folder / name for name in ("last.ckpt", "best.ckpt") if (folder / name).exists()]
        model.train(
            max_steps=24, validate_every=4, save_steps=4, batch_size=2, save_dir=folder, progress=False,
            **({"resume_from": left[0]} if left else {}), **options,
        )  # fmt: skip
        return weights_digest(model)

    def run(folder: Path) -> str:
        finetune(TahoeRun.from_dict(RUN), folder, progress=False, report=lambda _: None)
        scores = EvaluationResult.load(folder / "scores").summary
        return digest(read_h5ad(folder / "prediction.h5ad").X, scores.to_csv())

    works: dict[str, Callable[[Path], str]] = {
        "start": train, "lora": lambda f: train(f, recipe="full", plan_kwargs={"ema": 0.9}), "run": run,
    }  # fmt: skip
    for name, work in works.items():
        begin = time.perf_counter()
        expected = done(lambda name=name, work=work: work(place / f"whole {name}"))
        usual = time.perf_counter() - begin
        for k in range(n):
            folder = place / f"resumed {name} {k}"
            for _ in range(rng.randrange(1, 4)):
                in_child(lambda folder=folder, work=work: work(folder), kill_after=rng.uniform(0.05, usual))
            found["tried"] += 1
            answer, status, _ = in_child(lambda folder=folder, work=work: work(folder))
            if status or answer != expected:
                found["not equal"] += 1
                print(f"not equal: {name}, resumed: {answer if status else 'other numbers'}")
            shutil.rmtree(folder, ignore_errors=True)
    return found


def memory_growth(n: int, part: int, parts: int) -> Counter[str]:
    """Count public calls, of every so-manieth, whose process grows by more than 20 MB over repeated calls."""
    found = Counter[str]()
    cells = datasets.simulate_screen(2, 4, n_genes=200, n_cells=30, n_control_cells=60)
    cells.write_h5ad("cells.h5ad")
    calls = [
        (name, partial(f, **{**right, **SHORT.get(name, {})}))
        for f, right in public_calls(cells)
        if (name := getattr(f, "__qualname__", "evaluate")) != "TahoeST.push_to_hub"  # asks a server
    ]
    cells.uns.clear()
    TahoeST.setup_anndata(cells, **KEYS)
    model = TahoeST(cells, size=SMALL, set_size=4)
    model.train(max_steps=2, batch_size=2, progress=False)
    model.save("grown")
    model.export("exported")
    changes = model.predict_effects(as_adata=True)
    result = model.evaluate(cells, preset="quick", allow_train=True, progress=False)
    learned = ResponseModel.fit(changes, **_RESPONSES)
    quiet = {"progress": False, "report": lambda _: None}

    def read_again() -> None:
        TahoeST.setup_anndata(again := read_h5ad("grown.h5ad"), **KEYS)
        TahoeST(again, size=SMALL, set_size=4)

    cells.write_h5ad("grown.h5ad")
    with_files: dict[str, Callable[[], Any]] = {
        "load": lambda: TahoeST.load("grown", False), "read, set up, build": read_again,
        "save": lambda: model.save("grown", overwrite=True), "read export": lambda: read_pretrained("exported"),
        "export": lambda: model.export("exported", overwrite=True),
        "from_pretrained": lambda: TahoeST.from_pretrained("exported", cells, check_scale=False),
        "figure": lambda: result.plot("bars").clear(), "page": lambda: result.to_html("page.html"),
        "result": lambda: (result.save("result", overwrite=True), EvaluationResult.load("result")),
        "responses": lambda: (learned.save("learned", overwrite=True), ResponseModel.load("learned")),
        "store": lambda: scvi_tahoe.write_store("grown.h5ad", "grown.zarr", **KEYS, overwrite=True),
        "run": lambda: (shutil.rmtree("run", ignore_errors=True), finetune(TahoeRun.from_dict(RUN), "run", **quiet)),
    }  # fmt: skip
    for name, call in [*calls, *with_files.items()][part::parts]:
        found["tried"] += 1
        try:
            grown, made = done(lambda call=call: _growth(call, n))
        except RuntimeError as error:
            found["broken"] += 1
            print(f"not repeated: {name}: {error}")
            continue
        found["calls"] += made
        if grown > 20 * 2**20:
            found["grew"] += 1
            print(f"grew: {name}: {grown / 2**20:.0f} MB in {made} calls")
    return found


def _growth(call: Callable[[], Any], n: int) -> tuple[float, int]:
    """Return by how many bytes this process grows after the first quarter of the calls, and how many were made.

    Calls that are refused, as those of files that do not exist, count as well. No call is repeated for longer than two
    minutes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    sizes, begin = [], time.perf_counter()
    for k in range(1, n + 1):
        with contextlib.suppress(Exception):
            call()
        seconds = time.perf_counter() - begin
        if (not sizes and (k >= n // 4 or seconds > 30)) or k == n or (sizes and seconds > 120):
            gc.collect()
            if trim is not None:
                trim(0)  # memory that is free but not given back is no growth
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        if len(sizes) == 2:
            break
    return float(sizes[-1] - sizes[0]), k


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


def damaged_files(name: str, kind: Kind, place: Path, n: int) -> Counter[str]:
    """Count how readers answer damaged files of one kind."""
    rng, found = random.Random(name), Counter[str]()
    whole, copy = place / f"whole {name}" / kind.name, place / f"damaged {name}" / kind.name
    whole.parent.mkdir()
    expected = done(lambda: [kind.write(whole, 0), kind.read(whole)][1])
    files = [p for p in ([whole] if whole.is_file() else whole.rglob("*")) if p.is_file() and p.stat().st_size]
    usual = in_child(lambda: kind.read(whole))[2]

    def one() -> tuple[str, Any]:
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy.parent.mkdir()
        shutil.copytree(whole, copy) if whole.is_dir() else shutil.copy(whole, copy)
        victim = rng.choice(files)
        target = copy / victim.relative_to(whole) if whole.is_dir() else copy
        target.write_bytes(damage(victim.read_bytes(), rng))
        try:
            return victim.name, kind.read(copy)
        except Exception as error:  # noqa: BLE001  judged below
            place = traceback.extract_tb(error.__traceback__)[-1].filename
            return victim.name, (type(error).__name__, str(error)[:300], place)

    while found["tried"] < n:
        at_once = min(20, n - found["tried"])
        answers, status, memory = in_child(lambda at_once=at_once: [one() for _ in range(at_once)])
        found["tried"] += at_once
        found["over 1 GB"] += memory > LARGE_BYTES + usual
        if status:
            print(f"crashed: {name}: status {status}, {answers}")
            found["crashed"] += 1
        else:
            found.update(verdict(name, file, answer, expected) for file, answer in answers)
        rng = random.Random(f"{name} {found['tried']}")
    return found


def verdict(name: str, file: str, answer: Any, expected: str) -> str:
    """Say what became of a damaged file."""
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


def hostile_files(name: str, kind: Kind, place: Path) -> Counter[str]:
    """Put a pickle with code in place of every file of an artefact, and count how often the code runs."""
    found, marker = Counter[str](), place / f"code of {name} ran"
    whole = place / f"hostile whole {name}" / kind.name
    whole.parent.mkdir()
    done(lambda: kind.write(whole, 0) and None)
    files = [whole] if whole.is_file() else [p for p in whole.rglob("*") if p.is_file()]
    for victim in files:
        for content in (torch_bytes(Plant(marker)), pickle.dumps(Plant(marker)), b"", os.urandom(300)):
            copy = place / f"hostile {name}" / kind.name
            shutil.rmtree(copy.parent, ignore_errors=True)
            copy.parent.mkdir()
            shutil.copytree(whole, copy) if whole.is_dir() else shutil.copy(whole, copy)
            (copy / victim.relative_to(whole) if whole.is_dir() else copy).write_bytes(content)
            _, status, _ = in_child(lambda copy=copy: kind.read(copy))
            found["tried"] += 1
            found["crashed"] += os.WIFSIGNALED(status)
            found["executed"] += marker.exists()
            marker.unlink(missing_ok=True)
    return found
