"""What ``from scvi_tahoe import TahoeST`` adds to ``import scvi``, in processor seconds of fresh processes, in turns.

And the processor seconds of help texts, which an idle machine takes on the clock, too.

python benchmarks/speed_import.py --repeats 7
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

CODE = """
import json, sys, time
import scvi
start = time.process_time()
{more}
heavy = [m for m in ("cell_eval", "polars", "scanpy", "matplotlib.pyplot", "transformers") if m in sys.modules]
print(json.dumps([time.process_time() - start, time.process_time(), heavy]))
"""


def measure(more: str) -> tuple[float, float, list[str]]:
    """Seconds after ``import scvi``, seconds in all, and which heavy packages came along."""
    done = subprocess.run([sys.executable, "-c", CODE.format(more=more)], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def help_seconds(*command: str) -> float:
    """Return the processor seconds of a help text, from the start of the process to its end."""
    code = f"import sys; sys.argv = {['scvi-tahoe', *command, '--help']!r}; from scvi_tahoe.cli import main; main()"
    before = os.times()
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    measure("from scvi_tahoe import TahoeST")  # compiles the bytecode
    plain, ours = [], []
    for _ in range(repeats):
        plain.append(measure(""))
        ours.append(measure("from scvi_tahoe import TahoeST"))
    texts = {"--help": [help_seconds() for _ in range(repeats)]}
    texts |= {f"{c} --help": [help_seconds(c) for _ in range(repeats)] for c in ("finetune", "evaluate", "respond")}
    rows = {**texts, "import scvi": [p[1] for p in plain], "TahoeST after it": [o[0] for o in ours]}
    for name, values in rows.items():
        spread = f"({min(values):.2f} to {max(values):.2f}, n={len(values)})"
        print(f"{name:<30}{statistics.median(values):8.2f} s  {spread}")
    print("heavy packages that came along:", sorted({m for o in ours for m in o[2]} - {m for p in plain for m in p[2]}))


if __name__ == "__main__":
    main()
