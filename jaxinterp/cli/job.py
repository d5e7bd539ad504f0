"""What every command over a task does: load, make the prompts, show progress, write results."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.cli.output import Output, output
from jaxinterp.files import discard

if TYPE_CHECKING:
    import xarray as xr

    from jaxinterp.model import Model
    from jaxinterp.tasks import Task


MODEL = "smollm2-135m-instruct"


@dataclasses.dataclass(frozen=True)
class Job:
    """The prompts of a task, a model, and where results go.

    Args:
        model: A built-in name, hub id, local folder, .gguf file or checkpoint.
        task: One of docstring, factual_recall, gendered_pronouns, greater_than, induction, ioi,
            multiple_choice, subject_verb_agreement.
        n: Number of prompts.
        seed: Seed of the prompts.
        corruption: How the corrupted prompts differ; by default as the task has it.
        batch: Prompts per program call.
        out: Output folder; by default runs/ and the command's name. It holds one run's results.
        overwrite: Whether to delete those of other settings.
    """

    model: str = MODEL
    task: str = "ioi"
    n: int = 32
    seed: int = 0
    corruption: str = ""
    batch: int = 8
    out: Path | None = None
    overwrite: bool = False

    @contextlib.contextmanager
    def start(self, command: str, given: Mapping[str, Any]) -> Iterator[Setting]:
        """Check, load and make the prompts. given: the command's arguments.

        Raises ``ValueError`` for bad choices; ``OSError`` as `output`.
        """
        from jaxinterp import loading, results, tasks

        if self.n < 1 or self.batch < 1:
            raise ValueError(f"--n {self.n} --batch {self.batch}: both must be at least 1.")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: a seed is 0 or more.")
        started = time.perf_counter()
        with output(self.out or Path("runs") / command, command, given, self.overwrite) as out:
            say(f"Loading {self.model}")
            net, tokenizer = loading.load(self.model)
            if tokenizer is None:
                raise ValueError(
                    f"{self.model} has no tokenizer: a task needs one for its prompts."
                )
            options = {"corruption": self.corruption} if self.corruption else {}
            job = tasks.make(self.task, tokenizer, n=self.n, seed=self.seed, **options)
            prompts = results.fingerprint(job.clean, job.corrupted, job.answers, job.wrong)
            out.also(weights=results.weights_digest(net), prompts=prompts)
            ability = tasks.check(net, job)
            say(f"{job.name}: " + ", ".join(f"{k} {np.round(v, 3)}" for k, v in ability.items()))
            yield Setting(net, tokenizer, job, ability, out, self.batch, started)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A job that has started."""

    model: Model
    tokenizer: Any
    task: Task
    ability: Mapping[str, float]
    out: Output
    batch: int
    started: float

    @property
    def record(self) -> dict[str, Any]:
        """For a result's claim."""
        return {"task": self.task.record(), "ability": self.ability}

    @property
    def twins(self) -> dict[str, Any]:
        """The arguments of methods that compare two runs."""
        task = self.task
        return {"clean": task.clean, "corrupted": task.corrupted, "metric": task.metric}

    @property
    def parts(self) -> str:
        """Where an interrupted run keeps what it has."""
        return str(self.out.inner(".parts"))

    def save(self, results: Mapping[str, xr.DataArray]) -> list[Path]:
        """Each result as a file; then its strongest cells to the terminal."""
        from jaxinterp import report
        from jaxinterp import results as files

        written = [files.save(each, self.out / f"{name}.nc") for name, each in results.items()]
        for result in results.values():
            print(report.summary_table(result))
            print()
        return written

    def finish(self, written: list[Path]) -> None:
        """Tidy up and say what was written."""
        discard(self.out.inner(".parts"))
        say(f"Wrote {', '.join(path.name for path in written)} to {self.out}")
        say(f"Done in {time.perf_counter() - self.started:.0f} s")


def load_model(name: str, out: Output | None = None) -> tuple[Any, Any]:
    """A model and its tokenizer; the weights are compared with those of earlier results in ``out``.

    Raises ``ValueError`` where there is no tokenizer.
    """
    from jaxinterp import loading, results

    say(f"Loading {name}")
    model, tokenizer = loading.load(name)
    if tokenizer is None:
        raise ValueError(f"{name} has no tokenizer: this command needs one.")
    if out is not None:
        out.also(weights=results.weights_digest(model))
    return model, tokenizer


def write_results(
    out: Output, found: Mapping[str, xr.DataArray | xr.Dataset],
    draw: Mapping[str, Callable[[Path], Any]],
) -> None:  # fmt: skip
    """Results and pictures; says what was written. What is printed comes after."""
    from jaxinterp import results

    written = [results.save(each, out / f"{name}.nc") for name, each in found.items()]
    if draw and pictures():
        for name, picture in draw.items():
            picture(out / f"{name}.png")
            written.append(out / f"{name}.png")
    say(f"Wrote {', '.join(path.name for path in written)} to {out}")


def pictures() -> bool:
    """Whether pictures can be drawn; says so where they cannot."""
    if importlib.util.find_spec("matplotlib"):
        return True
    say("No pictures: they need matplotlib (pip install 'jaxinterp[report]').")
    return False


def say(text: str) -> None:
    """A line for the person who waits; results go to stdout."""
    print(text, file=sys.stderr, flush=True)


def bar(total: int, unit: str) -> Any:
    """A progress bar."""
    from tqdm import tqdm

    return tqdm(total=total, unit=f" {unit}", unit_scale=True, dynamic_ncols=True, smoothing=0.1)
