"""How well Hill curves are found: EC50 within a factor of 1.5, and how often intervals hold the truth.

python benchmarks/hill_curves.py     # some seconds

1,000 curves with an EC50 between the second and the second last dose, a slope around 1 and an effect of .5 to 2; noise
of each dose as given. With the standard deviation of the noise known, and estimated from what the curve leaves.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_tahoe.effects import dose_response, hill


def recovered(n_doses: int, noise: float, *, knows_sd: bool, n: int = 1000, seed: int = 0) -> dict[str, float]:
    """Fit simulated curves, and say how near they came."""
    rng = np.random.default_rng(seed)
    doses = np.geomspace(0.01, 100, n_doses)
    emax = rng.uniform(0.5, 2, n) * rng.choice([-1, 1], n)
    ec50, slope = 10 ** rng.uniform(-1, 1, n), np.exp(rng.normal(0, 0.3, n))
    changes = np.stack([hill(dose, emax, ec50, slope) for dose in doses]) + rng.normal(0, noise, (n_doses, n))
    genes = pd.DataFrame(index=[f"gene_{i}" for i in range(n)])
    obs = pd.DataFrame({"drug": "A", "dose": doses}, index=[str(d) for d in doses])
    layers = {"sd": np.full_like(changes, noise)} if knows_sd else None
    fits = dose_response(
        AnnData(changes, obs=obs, var=genes, layers=layers), genes.index, perturbation_key="drug", dose_key="dose"
    )
    truth = {"ec50": ec50, "emax": emax, "slope": slope}
    held = {f"{k} held": ((fits[f"{k}_low"] <= t) & (t <= fits[f"{k}_high"])).mean() for k, t in truth.items()}
    near = float((np.abs(np.log(fits["ec50"] / ec50)) < np.log(1.5)).mean())
    return {"doses": n_doses, "noise": noise, "sd known": knows_sd, "within 1.5": near, **held}


def main() -> None:
    """Print the table."""
    cases = [(n, noise, knows) for n in (5, 8) for noise in (0.02, 0.05, 0.1) for knows in (True, False)]
    table = pd.DataFrame([recovered(n, noise, knows_sd=knows) for n, noise, knows in cases])
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
