"""The same sweeps in PyTorch, as other people's tools run them.

This file is both ends of a pipe. As a program, run by a Python that has torch and
transformer-lens (``make_peer_env.py``), it answers JSON lines on stdin with JSON lines on
stdout. `Peer` is the caller's end and needs NumPy only::

    with Peer("path/to/peers-env/bin/python") as peer:
        peer.ask("load", path="SmolLM2-135M-Instruct.Q4_1.gguf")
        peer.ask("threads", n=2)
        result = peer.sweep("torch_hooks", clean, corrupted, answers, wrong)
        result["values"], result["seconds_all"], result["peak_rss"]

Two methods. ``transformer_lens``: `transformer_lens.patching` as it comes, one forward per
cell with all prompts in it. ``torch_hooks``: what a careful user writes on the Hugging Face
model, one forward per layer with every cell that can matter as its batch, and logits at the
last position only. Both patch clean activations into the corrupted run and read the logit
difference at the last position. Prompts are token ids of equal length, without padding.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
except ImportError:  # the caller's end
    torch = None

METHODS = ("transformer_lens", "torch_hooks")
SITES = ("resid_pre", "z")  # by (layer, position); by (layer, head), all positions


# The caller's end.


class Peer:
    """A process of the peers' environment that holds a model and runs sweeps.

    Its peak memory covers all it has loaded: use one process per method to compare memory.
    """

    def __init__(self, python: str | os.PathLike[str], log: Any = subprocess.DEVNULL) -> None:
        """python: the environment's interpreter. log: where its stderr goes."""
        environ = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [os.fspath(python), __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environ,
        )  # fmt: skip

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send one request (a method of `Server`) and wait for its answer."""
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
        with tempfile.TemporaryDirectory() as folder:
            inputs, outputs = f"{folder}/inputs.npz", f"{folder}/outputs.npz"
            np.savez(inputs, clean=clean, corrupted=corrupted, answers=answers, wrong=wrong)
            answer = self.ask("sweep", method=method, inputs=inputs, outputs=outputs, **options)
            with np.load(outputs) as arrays:
                return {**answer, **arrays}

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


# The server's end.


class Server:
    """One method per request; each returns what goes back as JSON."""

    def __init__(self) -> None:
        self.hf: Any = None
        self.tokenizer: Any = None
        self._bridge: Any = None

    def about(self) -> dict[str, Any]:
        """Versions of what matters, and the number of threads."""
        packages = ("torch", "transformers", "transformer-lens", "numpy")
        versions = {name: importlib.metadata.version(name) for name in packages}
        return {"versions": versions, "threads": torch.get_num_threads()}

    def load(self, path: str) -> dict[str, Any]:
        """Load a Llama-like model from a GGUF file, in float32."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = {
            "pretrained_model_name_or_path": str(Path(path).parent),
            "gguf_file": Path(path).name,
        }
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(**source)
        self.hf, self._bridge = plain_llama(loaded), None
        config = self.hf.config
        return {"n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads}

    @property
    def bridge(self) -> Any:
        """The model in TransformerLens. It rewires what it is given, so it gets a copy."""
        if self._bridge is None:
            from transformer_lens.model_bridge import TransformerBridge

            with tempfile.TemporaryDirectory() as folder:
                self.hf.config.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
                self._bridge = TransformerBridge.boot_transformers(
                    folder, hf_model=plain_llama(self.hf), tokenizer=self.tokenizer
                )
            self._bridge.enable_compatibility_mode(no_processing=True)
            self._bridge.eval()
        return self._bridge

    def tokenize(self, texts: list[str]) -> dict[str, Any]:
        """Token ids of each text, by the model's own tokenizer."""
        return {"ids": self.tokenizer(texts, add_special_tokens=False)["input_ids"]}

    def threads(self, n: int) -> dict[str, Any]:
        """Use n threads from here on."""
        torch.set_num_threads(n)
        return {"threads": torch.get_num_threads()}

    def matmul(self, size: int = 2048, repeats: int = 7) -> dict[str, Any]:
        """The best rate of a float32 product of two [size, size] matrices."""
        a, b = torch.randn(2, size, size)
        torch.mm(a, b)
        seconds = min(timed(lambda: torch.mm(a, b))[1] for _ in range(repeats))
        return {"seconds": seconds, "flop_per_second": 2 * size**3 / seconds}

    def forward(self, method: str, batch: int, length: int, repeats: int = 5) -> dict[str, Any]:
        """Seconds of a forward without patches, as the sweep of that method runs it."""
        ids = torch.randint(self.hf.config.vocab_size, (batch, length))
        run = self.forwards(method)
        run(ids)
        seconds = sorted(timed(lambda: run(ids))[1] for _ in range(repeats))
        return {"seconds": seconds[0], "median": seconds[len(seconds) // 2]}

    def sweep(
        self,
        method: str,
        inputs: str,
        outputs: str,
        site: str = "resid_pre",
        limit_layers: int | None = None,
        batch: int = 128,
    ) -> dict[str, Any]:
        """Patch ``site`` at every layer and position (resid_pre) or head (z).

        inputs: .npz of clean, corrupted [B T], answers, wrong [B]. outputs: .npz to write:
        ``values`` [layer, position or head, B], NaN in layers left out by ``limit_layers``,
        and the logit differences ``clean`` and ``corrupted`` [B]. batch: the most rows per
        forward of torch_hooks.

        Seconds are of the timed part, after a warm-up: ``seconds`` in total for
        ``layers_run``, of which ``cache_seconds`` record the clean run; ``seconds_all`` is
        for all layers: the same number, or extrapolated from the layers run.
        """
        if site not in SITES:
            raise ValueError(f"site is {site!r}, expected one of {SITES}.")
        with np.load(inputs) as arrays:
            data = {name: torch.as_tensor(array).long() for name, array in arrays.items()}
        task = Task(**data)
        run = self.forwards(method)
        baselines = {
            name: task.measure(run(getattr(task, name))) for name in ("clean", "corrupted")
        }
        if method == "transformer_lens":
            patching: Any = LensPatching(self.bridge, task, site)
        else:
            patching = HookPatching(self.hf, task, site, batch)
        n_layers = self.hf.config.num_hidden_layers
        layers = spread(n_layers, limit_layers)

        patching.record()
        patching.warm_up(layers[0])
        reset_peak()
        _, cache_seconds = timed(patching.record)
        values, sweep_seconds = timed(lambda: patching.sweep(layers))
        peak = peak_rss()

        everything = torch.full((n_layers, *values.shape[1:]), torch.nan)
        everything[layers] = values
        np.savez(outputs, values=everything, **baselines)
        return {
            "seconds": cache_seconds + sweep_seconds,
            "cache_seconds": cache_seconds,
            "seconds_all": cache_seconds + sweep_seconds * n_layers / len(layers),
            "extrapolated": len(layers) < n_layers,
            "layers_run": layers,
            "peak_rss": peak,
            "threads": torch.get_num_threads(),
        }

    def forwards(self, method: str) -> Any:
        """The function from ids [B T] to logits [B ... V] that a method's sweep calls."""
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, expected one of {METHODS}.")
        if self.hf is None:
            raise ValueError("No model is loaded: send a 'load' request first.")
        if method == "transformer_lens":
            return self.bridge
        return lambda ids: last_logits(self.hf, ids)


def plain_llama(model: Any) -> Any:
    """A fresh LlamaForCausalLM with a model's weights and none of its wrappers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = model.config.to_dict()
    fields.pop("quantization_config", None)
    copy = LlamaForCausalLM(LlamaConfig(**fields))
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def last_logits(hf: Any, ids: Any) -> Any:
    """Logits [B 1 V] at the last position."""
    return hf(ids, use_cache=False, logits_to_keep=1).logits


class Task:
    """Pairs of prompts [B T], and the tokens [B] whose logit difference is the metric."""

    def __init__(self, clean: Any, corrupted: Any, answers: Any, wrong: Any) -> None:
        self.clean, self.corrupted, self.answers, self.wrong = clean, corrupted, answers, wrong

    def measure(self, logits: Any, rows: Any = None) -> Any:
        """The logit difference at the last position [N], of prompts ``rows`` (all)."""
        rows = torch.arange(len(self.answers)) if rows is None else rows
        lane, last = torch.arange(len(rows)), logits[:, -1]
        return last[lane, self.answers[rows]] - last[lane, self.wrong[rows]]


class LensPatching:
    """TransformerLens's own sweeps, with per-prompt values (``reduce="none"``)."""

    def __init__(self, bridge: Any, task: Task, site: str) -> None:
        from transformer_lens import patching

        self.bridge, self.task = bridge, task
        if site == "resid_pre":
            self.patch, self.axes = patching.get_act_patch_resid_pre, ("layer", "pos")
            self.size, self.hook = task.clean.shape[1], "hook_resid_pre"
        else:
            self.patch, self.axes = patching.get_act_patch_attn_head_out_all_pos, ("layer", "head")
            self.size, self.hook = bridge.cfg.n_heads, "attn.hook_z"
        self.make_frame = patching.make_df_from_ranges

    def record(self) -> None:
        _, self.cache = self.bridge.run_with_cache(
            self.task.clean, names_filter=lambda name: name.endswith(self.hook)
        )

    def warm_up(self, layer: int) -> None:
        frame = self.make_frame((layer + 1, self.size), self.axes)
        self.run(index_axis_names=None, index_df=frame.tail(2))

    def sweep(self, layers: list[int]) -> Any:
        if len(layers) == self.bridge.cfg.n_layers:
            return self.run()
        frame = self.make_frame((self.bridge.cfg.n_layers, self.size), self.axes)
        frame = frame[frame["layer"].isin(layers)]
        values = self.run(index_axis_names=None, index_df=frame)
        return values.reshape(len(layers), self.size, -1)

    def run(self, **which: Any) -> Any:
        args = (self.bridge, self.task.corrupted, self.cache, self.task.measure)
        return self.patch(*args, reduce="none", **which).values


class HookPatching:
    """Pre-hooks on the Hugging Face modules; the cells of a layer are one batch."""

    def __init__(self, hf: Any, task: Task, site: str, batch: int) -> None:
        self.hf, self.task, self.site, self.batch = hf, task, site, batch
        n_prompts, length = task.clean.shape
        if site == "resid_pre":
            # From the first difference on: before it the patch changes nothing.
            changed = (task.clean != task.corrupted).int().cumsum(1) > 0
            self.rows, self.places = changed.nonzero(as_tuple=True)
            self.size = length
        else:
            self.size = hf.config.num_attention_heads
            self.rows = torch.arange(n_prompts).repeat_interleave(self.size)
            self.places = torch.arange(self.size).repeat(n_prompts)

    def module(self, layer: int) -> Any:
        """What reads the site."""
        block = self.hf.model.layers[layer]
        return block if self.site == "resid_pre" else block.self_attn.o_proj

    def record(self) -> None:
        self.cache: dict[int, Any] = {}
        with contextlib.ExitStack() as stack:
            for layer in range(self.hf.config.num_hidden_layers):

                def keep(_: Any, args: Any, layer: int = layer) -> None:
                    self.cache[layer] = args[0]

                stack.enter_context(self.module(layer).register_forward_pre_hook(keep))
            last_logits(self.hf, self.task.clean)
        self.base = self.task.measure(last_logits(self.hf, self.task.corrupted))

    def warm_up(self, layer: int) -> None:
        self.sweep([layer])

    def sweep(self, layers: list[int]) -> Any:
        values = self.base.repeat(len(layers), self.size, 1)
        for i, layer in enumerate(layers):
            parts = zip(self.rows.split(self.batch), self.places.split(self.batch), strict=True)
            for rows, places in parts:
                values[i, places, rows] = self.patched(layer, rows, places)
        return values

    def patched(self, layer: int, rows: Any, places: Any) -> Any:
        """The metric [N] of prompts ``rows`` with one place each patched."""
        lane, clean = torch.arange(len(rows)), self.cache[layer]

        def put(_: Any, args: Any) -> Any:
            x = args[0].clone()
            if self.site == "resid_pre":
                x[lane, places] = clean[rows, places]
            else:
                heads = x.unflatten(-1, (self.size, -1))
                heads[lane, :, places] = clean.unflatten(-1, (self.size, -1))[rows, :, places]
            return (x, *args[1:])

        with self.module(layer).register_forward_pre_hook(put):
            logits = last_logits(self.hf, self.task.corrupted[rows])
        return self.task.measure(logits, rows)


def serve() -> None:
    """Answer requests until stdin ends. Only answers go to stdout: libraries print too."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server()
    inference = torch.inference_mode() if torch else contextlib.nullcontext()
    with inference:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                name = request.pop("do")
                if torch is None:
                    raise RuntimeError(f"{sys.executable} has no torch: see make_peer_env.py.")
                if name not in REQUESTS:
                    raise ValueError(f"Unknown request {name!r}, expected one of {REQUESTS}.")
                answer = getattr(server, name)(**request)
            except Exception:
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), file=answers, flush=True)


REQUESTS = ("about", "load", "tokenize", "threads", "matmul", "forward", "sweep")

if __name__ == "__main__":
    serve()
