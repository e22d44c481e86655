"""Wrong inputs, killed and refused writes, damaged and hostile files: what each of them leaves, as a table.

python benchmarks/hardening.py
python benchmarks/hardening.py --scale 0.1   # some minutes

Everything runs against the real readers and writers, in forked processes: one that is killed, crashes or fills the
memory is counted and nothing else is affected. A write is interrupted at a random moment (SIGKILL, also on a slow disk)
or at a chosen file event (SIGKILL, SIGINT, SIGTERM, disk full, no rights), or by a real limit on the size of a file;
afterwards either the earlier or the new version must be read, whole, and after one more write nothing else may be left.
A damaged file must be refused in one sentence, or be read as what was written. Trainings and runs that are killed and
continued must end with the same numbers. The same cells must give the same answer however they are stored, and whatever
a writer is told to write to, it must answer in a sentence of this package and leave what is not its own.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import hardening_commands as commands
import hardening_files as files
import hardening_formats as formats
import hardening_inputs as inputs
import hardening_screens as screens
import hardening_targets as targets
import pandas as pd
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

KILLS = ("moment", "SIGKILL", "slow disk")
REFUSALS = ("disk full", "size of a file", "no rights", "SIGINT", "SIGTERM")
NUMBERS = {
    "inputs": 8_000,
    "files": 500,
    "contents": 8_000,
    "commands": 5_800,
    "kills": 360,
    "refusals": 420,
    "damaged": 1_400,
    "twice": 72,
    "resumes": 10,
    "calls": 200,
}


def jobs_of(place: Path, numbers: dict[str, int]) -> list[tuple[str, Callable[[], Counter[str]]]]:
    """Return the work, in pieces that run beside each other, each with the row of the table that it counts for."""
    kinds = files.make_kinds(place)
    share = {name: -(-n // len(kinds)) for name, n in numbers.items()}
    jobs: list[tuple[str, Callable[[], Counter[str]]]] = [
        *(("wrong arguments", lambda k=k: inputs.wrong_arguments(numbers["inputs"], k, 4)) for k in range(4)),
        ("screens without sense", inputs.wrong_screens),
        ("run files, command line", lambda: inputs.wrong_files(numbers["files"])),
        *(("commands", lambda k=k: commands.wrong_commands(numbers["commands"], k, 4)) for k in range(4)),
        ("files by hand", lambda: formats.odd_files(numbers["contents"])),
        ("folders by hand", lambda: formats.odd_folders(Path.cwd())),
        *(("screens of every kind", lambda k=k: screens.odd_screens(k, 6)) for k in range(6)),
        *(("names to write to", lambda k=k: targets.odd_targets(k, 4)) for k in range(4)),
        ("killed and resumed", lambda: files.resumed_trainings(place, numbers["resumes"])),
    ]  # fmt: skip
    for name, kind in kinds.items():
        jobs += [
            ("killed writes", lambda a=(name, kind): files.interrupted_writes(*a, place, share["kills"], KILLS)),
            ("refused writes", lambda a=(name, kind): files.interrupted_writes(*a, place, share["refusals"], REFUSALS)),
            ("two processes at once", lambda a=(name, kind): files.two_at_once(*a, place, share["twice"])),
        ]
        if name not in ("run file", "report", "table"):  # text that a user may edit; a table has no checksums
            jobs.append(("damaged files", lambda a=(name, kind): files.damaged_files(*a, place, share["damaged"])))
        jobs.append(("hostile files", lambda a=(name, kind): files.hostile_files(*a, place)))
    return [*jobs, *(("repeated calls", lambda k=k: files.memory_growth(numbers["calls"], k, 8)) for k in range(8))]


def started(job: Callable[[], Counter[str]], place: Path) -> tuple[int, int]:
    """Start a piece of work in a process and a folder of its own; return the process and where its answer comes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    folder = Path(tempfile.mkdtemp(dir=place))
    os.chdir(folder)
    begin = time.perf_counter()
    try:
        answer = job()
    except BaseException:  # noqa: BLE001  the harness itself is at fault
        traceback.print_exc(file=sys.stdout)
        answer = Counter({"broken": 1})
    answer["seconds"] = round(time.perf_counter() - begin)
    os.write(writing, pickle.dumps(answer))
    os._exit(0)


def main() -> None:
    """Do all pieces and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, n in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, help=f"default: {n}")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all of these numbers")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--only", default="", help="words that the row of the table contains")
    options = parser.parse_args()
    numbers = {name: getattr(options, name) or max(1, round(n * options.scale)) for name, n in NUMBERS.items()}
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.stdout.reconfigure(line_buffering=True)
    torch.set_num_threads(1)
    os.nice(5)
    rows: dict[str, Counter[str]] = {}
    place = Path(tempfile.mkdtemp(prefix="hardening-"))
    try:
        waiting = [job for job in jobs_of(place, numbers) if options.only in job[0]]
        running: dict[int, tuple[str, int]] = {}
        while waiting or running:
            while waiting and len(running) < options.jobs:
                row, job = waiting.pop(0)
                child, reading = started(job, place)
                running[child] = row, reading
            child, status = os.wait()
            row, reading = running.pop(child)
            with os.fdopen(reading, "rb") as stream:
                answer = stream.read()
            rows.setdefault(row, Counter()).update(pickle.loads(answer) if answer else {"crashed": 1})
            print(f"{time.strftime('%H:%M:%S')} {row}: {dict(rows[row])}, {len(waiting)} pieces to do")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    columns = ["tried", *sorted({column for row in rows.values() for column in row} - {"tried", "seconds"}), "seconds"]
    print(pd.DataFrame([[row[c] for c in columns] for row in rows.values()], list(rows), columns).to_string())
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
