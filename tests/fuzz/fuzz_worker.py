"""A process that loads damaged files, and says before and after each what it does.

Run as ``fuzz_worker.py FOLDER LOG FIRST LAST``: the valid files are made in FOLDER, and a line
of JSON goes to LOG when a case begins and when it ends. What takes more than `MEMORY` bytes beyond
what the process holds after loading the valid files fails; the parent stops what takes too long.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))
import fuzz_mutations
from fuzz_forms import FORMS, Form, plain

from jaxinterp.reading import LoadError

MEMORY = 2 << 30
SEED = 18


def case(form: Form, valid: Path, folder: Path, number: int, expected: Any) -> dict[str, Any]:
    """Damage one file of a form and load it: what came out."""
    rng = np.random.default_rng((SEED, number))
    shutil.copytree(valid, folder, symlinks=True)
    pattern = fuzz_mutations.pick(rng, list(form.files))
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    target = fuzz_mutations.pick(rng, files)
    done = fuzz_mutations.of_file(target, form.files[pattern], rng)
    said: dict[str, Any] = {"form": form.name, "file": target.name, "done": done}
    began = time.perf_counter()
    try:
        value = form.load(folder)
        outcome = "equal" if plain(value) == expected else form.judge(folder, value)
    except LoadError as error:
        outcome = "LoadError" if len(str(error)) < 2000 else f"a message of {len(str(error))}"
        said["text"] = str(error)[:300]
    except FileNotFoundError as error:
        outcome = "LoadError" if done == "removed" else f"FileNotFoundError: {error}"
    except BaseException as error:  # also what Rust panics with
        outcome = f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]}"
        said["text"] = _where(error)
    shutil.rmtree(folder)
    return {**said, "outcome": outcome, "seconds": time.perf_counter() - began}


def _where(error: BaseException) -> str:
    import traceback

    return " < ".join(f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__))


def main(folder: Path, log: Path, first: int, last: int) -> None:
    """The cases from ``first`` to ``last``, each form in turn."""
    warnings.simplefilter("ignore")
    valid = {}
    for form in FORMS:
        place = folder / form.name
        if not place.exists():
            place.mkdir(parents=True)
            form.make(place)
        valid[form.name] = plain(form.load(place))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    with log.open("a", buffering=1) as out:
        for number in range(first, last):
            form = FORMS[number % len(FORMS)]
            out.write(json.dumps({"begins": number, "form": form.name}) + "\n")
            found = case(
                form, folder / form.name, folder / f"case-{number}", number, valid[form.name]
            )
            out.write(json.dumps({"ends": number, **found}) + "\n")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
