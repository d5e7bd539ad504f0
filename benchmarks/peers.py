"""The peers' end of a pipe, as seen from ours: other people's tools on the same sweeps.

`server.py`, run by a Python that has torch and a peer's library (``make_peer_env.py``),
answers JSON lines on stdin with JSON lines on stdout. `Peer` is the caller's end and needs
NumPy only::

    with Peer("path/to/peers-env/bin/python") as peer:
        peer.ask("load", path="SmolLM2-135M-Instruct.Q4_1.gguf")
        peer.ask("threads", n=2)
        result = peer.sweep("torch_hooks", clean, corrupted, answers, wrong)
        result["values"], result["seconds_all"], result["peak_rss"]

Three methods patch clean activations into the corrupted run and read the logit difference at
the last position (see `torch_patching.py`). Prompts are token ids of equal length, without
padding.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SERVER = Path(__file__).parent / "server.py"
METHODS = {
    "transformer_lens": "TransformerLens",
    "nnsight": "nnsight",
    "torch_hooks": "hand-batched PyTorch",
}
# Where: z_pos is a head's output at one position; the heads' sites are patched at all of them.
SITES = ("resid_pre", "z", "z_pos", "q", "k", "v", "pattern")


# The caller's end.


class Peer:
    """A process of the peers' environment that holds a model and runs sweeps.

    Its peak memory covers all it has loaded: use one process per method to compare memory.
    """

    def __init__(self, python: str | os.PathLike[str], log: Any = subprocess.DEVNULL) -> None:
        """python: the environment's interpreter. log: where its stderr goes."""
        environ = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [os.fspath(python), os.fspath(SERVER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environ,
        )  # fmt: skip

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send one request (a method of `server.Server`) and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The peer ended with status {self.process.wait()} in {do!r}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"The peer failed in {do!r}:\n{answer['error']}")
        return answer

    def sweep(
        self,
        method: str,
        clean: np.ndarray,
        corrupted: np.ndarray,
        answers: np.ndarray,
        wrong: np.ndarray,
        **options: Any,
    ) -> dict[str, Any]:
        """`Server.sweep` on arrays: clean and corrupted [B T], answers and wrong [B]."""
        arrays = {"clean": clean, "corrupted": corrupted, "answers": answers, "wrong": wrong}
        return self.exchange("sweep", arrays, method=method, **options)

    def exchange(self, do: str, arrays: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """A request that takes arrays and brings some back, beside the answer's own fields."""
        with tempfile.TemporaryDirectory() as folder:
            inputs, outputs = f"{folder}/inputs.npz", f"{folder}/outputs.npz"
            np.savez(inputs, **arrays)
            answer = self.ask(do, inputs=inputs, outputs=outputs, **fields)
            with np.load(outputs) as found:
                return {**answer, **found}

    def choose_threads(self, method: str) -> None:
        """The number of threads, 1 or all, at which the method's own forward is faster."""
        times = {}
        for n in {1, os.cpu_count() or 1}:
            self.ask("threads", n=n)
            times[n] = self.ask("forward", method=method, batch=1, length=14)["median"]
        self.ask("threads", n=min(times, key=times.__getitem__))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# What both ends share.


def spread(n_layers: int, limit: int | None) -> list[int]:
    """The layers to run: all, or ``limit`` of them from the first to the last."""
    count = n_layers if limit is None else max(1, min(limit, n_layers))
    return sorted({round(layer) for layer in np.linspace(0, n_layers - 1, count)})


def timed(run: Any) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def reset_peak() -> None:
    """Forget the peak of resident memory so far, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    """The peak of resident memory since `reset_peak`, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
