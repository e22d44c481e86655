"""Fail unless a demo's folder is complete and its model beats the mean of the seen targets."""

import sys
from pathlib import Path

import pandas as pd

from scvi_tahoe.demo import FILES

folder = Path(sys.argv[1])
if missing := [name for name in FILES if not (folder / name).exists()]:
    sys.exit(f"the demo left no {missing}")
if partial := [p.name for p in folder.rglob(".partial-*")]:
    sys.exit(f"the demo left half-written files: {partial}")
scores = pd.read_csv(folder / "scores.csv", index_col=0)
model, mean = scores.loc["TahoeST"], scores.loc["mean of the seen targets"]
lost = [name for name in ("PDS", "Pearson", "direction") if not model[name] > mean[name]]
lost += [name for name in ("MAE",) if not model[name] < mean[name]]
if lost:
    sys.exit(f"TahoeST does not beat the mean of the seen targets on {lost}:\n{scores}")
sys.stdout.write("demo: complete; TahoeST beats the mean of the seen targets on PDS, Pearson, direction and MAE\n")
