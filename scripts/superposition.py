"""The phase diagram of superposition: two features, one dimension (Elhage et al. 2022).

    python scripts/superposition.py --out runs/superposition

Every cell of the diagram, times its seeds, trains in one vmapped program. Ends with a picture and
the phases' shares.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from jaxinterp import report, results, superposition
from jaxinterp.cli.output import begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=24, help="a side")
    parser.add_argument("--features", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("runs/superposition"))
    args = parser.parse_args()
    begin(args.out, "superposition", vars(args))
    began = time.perf_counter()
    found = superposition.phase_diagram(
        np.geomspace(0.01, 1, args.cells), np.geomspace(0.1, 10, args.cells),
        n_features=args.features, n_hidden=args.hidden, seeds=args.seeds, steps=args.steps,
        batch=args.batch,
    )  # fmt: skip
    took = time.perf_counter() - began
    title = f"{args.features} features in {args.hidden} dimension{'s' * (args.hidden > 1)}"
    report.phase_map(found, args.out / "phases.png", title=title)
    results.save(found, args.out / "phases.nc")
    kinds, counts = np.unique(found.phase.values, return_counts=True)
    shares = ", ".join(f"{k} {n / counts.sum():.0%}" for k, n in zip(kinds, counts, strict=True))
    n = args.cells**2 * args.seeds
    print(f"{title}: {n} models in {took:.0f} s, one program. Cells: {shares}.")
    print(f"Wrote phases.png and phases.nc to {args.out}")


if __name__ == "__main__":
    main()
