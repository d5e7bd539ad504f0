"""The program at the peers' end of the pipe: JSON lines in, JSON lines out. See `peers.py`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from peers import METHODS, SITES, peak_rss, reset_peak, spread, timed

try:
    import torch
except ImportError:  # the tests of the caller's end
    torch = None

PACKAGES = (
    "torch", "transformers", "transformer-lens", "nnsight", "dictionary-learning", "sae-lens",
    "numpy",
)  # fmt: skip


class Server:
    """One method per request; each returns what goes back as JSON."""

    def __init__(self) -> None:
        self.hf: Any = None
        self.tokenizer: Any = None
        self._bridge: Any = None
        self._nnsight: Any = None
        self._trainers: dict[int, Any] = {}

    def about(self) -> dict[str, Any]:
        """Versions of what matters and is there, and the number of threads."""
        versions = {}
        for name in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
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
        self.hf, self._bridge, self._nnsight = plain_llama(loaded), None, None
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

    @property
    def traced(self) -> Any:
        """The model in nnsight."""
        if self._nnsight is None:
            from nnsight import TransformersModel

            self._nnsight = TransformersModel(plain_llama(self.hf), tokenizer=self.tokenizer)
        return self._nnsight

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
        """Patch ``site`` (one of `peers.SITES`) at every layer and place.

        inputs: .npz of clean, corrupted [B T], answers, wrong [B]. outputs: .npz to write:
        ``values`` [layer, *places, B] (places: position; head; or head, position), NaN in
        layers left out by ``limit_layers``, and the logit differences ``clean`` and
        ``corrupted`` [B]. batch: the most rows per forward of torch_hooks and nnsight.

        Seconds are of the timed part, after a warm-up: ``seconds`` in total for
        ``layers_run``, of which ``cache_seconds`` record the clean run; ``seconds_all`` is
        for all layers: the same number, or extrapolated from the layers run.
        """
        if site not in SITES:
            raise ValueError(f"site is {site!r}, expected one of {SITES}.")
        from torch_patching import Task

        task = Task(**long_arrays(inputs))
        run = self.forwards(method)
        baselines = {
            name: task.measure(run(getattr(task, name))) for name in ("clean", "corrupted")
        }
        patching = self.patching(method, task, site, batch)
        n_layers = self.hf.config.num_hidden_layers
        layers = spread(n_layers, limit_layers)

        patching.record()
        patching.sweep(layers[:1])
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

    def patching(self, method: str, task: Any, site: str, batch: int) -> Any:
        """What records and sweeps, by method."""
        from torch_patching import HookPatching, LensPatching, NnsightPatching

        if method == "transformer_lens":
            return LensPatching(self.bridge, task, site)
        if method == "nnsight":
            return NnsightPatching(self.traced, task, site, batch)
        return HookPatching(self.hf, task, site, batch)

    def forwards(self, method: str) -> Any:
        """The function from ids [B T] to logits [B ... V] that a method's sweep calls."""
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, expected one of {tuple(METHODS)}.")
        if self.hf is None:
            raise ValueError("No model is loaded: send a 'load' request first.")
        from torch_patching import last_logits, traced_logits

        if method == "transformer_lens":
            return self.bridge
        if method == "nnsight":
            return lambda ids: traced_logits(self.traced, ids)
        return lambda ids: last_logits(self.hf, ids)

    def capture(
        self, method: str, inputs: str, outputs: str, names: list[str], repeats: int = 5
    ) -> dict[str, Any]:
        """Record every activation of a forward on ``ids`` [B T]; see `torch_capture.capture`.

        outputs: .npz to write, of the recorded values called ``names``.
        """
        from torch_capture import capture

        model = self.bridge if method == "transformer_lens" else self.hf
        ids = long_arrays(inputs)["ids"]
        capture(model, ids)
        reset_peak()
        runs = [timed(lambda: capture(model, ids)) for _ in range(repeats)]
        found, peak = runs[-1][0], peak_rss()
        np.savez(outputs, **{name: found[name] for name in names})
        return {
            "seconds": [seconds for _, seconds in runs],
            "arrays": len(found),
            "bytes": sum(value.nbytes for value in found.values()),
            "peak_rss": peak,
        }

    def generate(
        self, inputs: str, outputs: str, n_new: int, layer: int | None = None, repeats: int = 3
    ) -> dict[str, Any]:
        """Greedy new tokens after ``ids`` [B T], with the cache, ``vector`` added before ``layer``.

        outputs: .npz to write, of ``new`` [B n_new].
        """
        from torch_capture import generate

        with np.load(inputs) as arrays:
            ids, vector = (torch.as_tensor(arrays[name]) for name in ("ids", "vector"))

        def run() -> Any:
            return generate(self.hf, ids.long(), n_new, layer, vector)

        run()
        reset_peak()
        runs = [timed(run) for _ in range(repeats)]
        np.savez(outputs, new=runs[-1][0])
        return {"seconds": [seconds for _, seconds in runs], "peak_rss": peak_rss()}

    def new_dictionary(self, library: str, member: int, **fields: Any) -> dict[str, Any]:
        """Begin to train a dictionary; fields of `torch_dictionaries.Learned`."""
        from torch_dictionaries import KINDS

        self._trainers[member] = KINDS[library](**fields)
        return {}

    def train_dictionary(self, member: int, path: str, first: int, steps: int) -> dict[str, Any]:
        """Seconds of so many of its steps, on batches of a file [N B D] from ``first`` on."""
        batches, trainer = np.load(path, mmap_mode="r"), self._trainers[member]
        held = [torch.tensor(batches[(first + i) % len(batches)]) for i in range(steps)]
        with torch.enable_grad():
            _, seconds = timed(lambda: [trainer.step(x) for x in held])
        return {"seconds": seconds}

    def reconstruct(self, member: int, inputs: str, outputs: str) -> dict[str, Any]:
        """Its reconstruction of ``x`` [B D]: the most active features of the whole batch."""
        with np.load(inputs) as arrays:
            np.savez(outputs, y=self._trainers[member].reconstruct(torch.tensor(arrays["x"])))
        return {}


def long_arrays(path: str) -> dict[str, Any]:
    """The arrays of a file, as indices."""
    with np.load(path) as arrays:
        return {name: torch.as_tensor(array).long() for name, array in arrays.items()}


def plain_llama(model: Any) -> Any:
    """A fresh LlamaForCausalLM with a model's weights and none of its wrappers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = model.config.to_dict()
    fields.pop("quantization_config", None)
    copy = LlamaForCausalLM(LlamaConfig(**fields))
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def serve() -> None:
    """Answer requests until stdin ends. Only answers go to stdout: libraries print too."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server()
    with without_gradients():
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


def without_gradients() -> Any:
    """Torch's fastest mode; nnsight reads version counters, which it takes away."""
    if torch is None:
        return contextlib.nullcontext()
    if importlib.util.find_spec("nnsight"):
        return torch.no_grad()
    return torch.inference_mode()


REQUESTS = (
    "about", "load", "tokenize", "threads", "matmul", "forward", "sweep", "capture", "generate",
    "new_dictionary", "train_dictionary", "reconstruct",
)  # fmt: skip

if __name__ == "__main__":
    serve()
