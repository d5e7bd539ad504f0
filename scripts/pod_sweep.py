"""An exact patching sweep on every device of a TPU slice or a GPU cluster.

The same command runs in every process; JAX joins them into one mesh, and the first process
writes the results. On one machine it needs no launcher::

    python scripts/pod_sweep.py --model smollm2-135m-instruct --grid 8

A TPU pod slice (one process per host; JAX finds its coordinator by itself)::

    gcloud compute tpus tpu-vm ssh NAME --worker=all --command="cd jaxinterp && \\
        python scripts/pod_sweep.py --distributed --model ORG/NAME --grid 8 --model-ways 8"

A GPU cluster under Slurm (one process per GPU; JAX reads Slurm's variables)::

    srun --ntasks-per-node=8 --gpus-per-task=1 \\
        python scripts/pod_sweep.py --distributed --model ORG/NAME --grid 8 --model-ways 8

Anywhere else, tell each process where to meet::

    python scripts/pod_sweep.py --coordinator HOST:PORT --processes 2 --process 0 ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxinterp as ji


def join(args: argparse.Namespace) -> None:
    """Meet the other processes, if there are any."""
    if args.coordinator:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    elif args.distributed:
        jax.distributed.initialize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--site", default="resid_pre")
    parser.add_argument("--over", nargs="+", default=["layer", "position"])
    parser.add_argument("--n", type=int, default=32, help="prompts")
    parser.add_argument("--batch", type=int, default=8, help="prompts per program")
    parser.add_argument("--dtype", default="float32", help="of the parameters")
    parser.add_argument("--grid", type=int, default=1, help="ways to split the experiments")
    parser.add_argument("--prompt", type=int, default=1, help="ways to split each batch")
    parser.add_argument("--model-ways", type=int, default=1, help="ways to split the parameters")
    parser.add_argument("--out", type=Path, default=Path("runs/pod"))
    parser.add_argument("--distributed", action="store_true", help="a TPU slice, or Slurm")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    args = parser.parse_args()
    join(args)

    ways = {"grid": args.grid, "prompt": args.prompt, "model": args.model_ways}
    mesh = jax.make_mesh(tuple(ways.values()), tuple(ways))
    model, tokenizer = ji.load(args.model, dtype=jnp.dtype(args.dtype), mesh=mesh)
    task = ji.tasks.ioi(tokenizer, n=args.n, seed=0)
    first, ledger = jax.process_index() == 0, ji.Ledger()
    result = ji.patch(
        model, clean=task.clean, corrupted=task.corrupted, metric=task.metric, site=args.site,
        over=args.over, tokenizer=tokenizer, names=task.labels(), batch=args.batch, mesh=mesh,
        record={"task": task.record(), "mesh": ways}, ledger=ledger,
    )  # fmt: skip
    if first:
        path = ji.results.save(result, args.out / f"{args.site}.nc")
        print(f"{jax.device_count()} devices in {jax.process_count()} processes: {ledger}")
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
