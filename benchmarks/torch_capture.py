"""Recording every activation, and generating, in PyTorch. Run by `server.py`."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from torch import Tensor


def capture(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Every value of a forward by name: TransformerLens's cache, or every module's output."""
    if hasattr(model, "run_with_cache"):
        _, cache = model.run_with_cache(ids)
        return {name: value for name, value in cache.items() if isinstance(value, Tensor)}
    found: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            keep = functools.partial(_keep, found, name)
            stack.enter_context(module.register_forward_hook(keep))
        model(ids, use_cache=False)
    return found


def _keep(found: dict[str, Tensor], name: str, _: Any, args: Any, out: Any) -> None:
    out = out[0] if isinstance(out, tuple) else out
    if isinstance(out, Tensor):
        found[name] = out


def generate(hf: Any, ids: Tensor, n_new: int, layer: int | None, vector: Tensor) -> Tensor:
    """Greedy new tokens [B n_new] with the cache, never stopping early."""
    hf.generation_config.eos_token_id = None

    def steer(_: Any, args: Any) -> Any:
        return (args[0] + vector, *args[1:])

    with contextlib.ExitStack() as stack:
        if layer is not None:
            module = hf.model.layers[layer]
            stack.enter_context(module.register_forward_pre_hook(steer))
        out = hf.generate(
            ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=n_new, do_sample=False,
            use_cache=True, pad_token_id=0,
        )  # fmt: skip
    return out[:, ids.shape[1] :]
