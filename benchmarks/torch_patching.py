"""The sweeps in PyTorch, as other people's tools run them. Run by `server.py`.

``transformer_lens``: `transformer_lens.patching` as it comes, one forward per cell with all
prompts in it. ``nnsight``: the "layer x position map" of its documentation, one trace per
layer with one invoke per position. ``torch_hooks``: what a careful user writes on the Hugging
Face model, one forward per layer with every cell that can matter as its batch, and logits at
the last position only.

Each class records the clean run, and patches layers: [layer, *places, B].
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Task:
    """Pairs of prompts [B T], and the tokens [B] whose logit difference is the metric."""

    def __init__(self, clean: Tensor, corrupted: Tensor, answers: Tensor, wrong: Tensor) -> None:
        self.clean, self.corrupted, self.answers, self.wrong = clean, corrupted, answers, wrong

    def measure(self, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """The logit difference at the last position [N], of prompts ``rows`` (all)."""
        rows = torch.arange(len(self.answers)) if rows is None else rows
        lane, last = torch.arange(len(rows)), logits[:, -1]
        return last[lane, self.answers[rows]] - last[lane, self.wrong[rows]]


class LensPatching:
    """TransformerLens's own sweeps, with per-prompt values (``reduce="none"``)."""

    def __init__(self, bridge: Any, task: Task, site: str) -> None:
        from transformer_lens import patching

        self.bridge, self.task, self.site = bridge, task, site
        length, heads = task.clean.shape[1], bridge.cfg.n_heads
        if site in ("k", "v"):
            heads = bridge.cfg.n_key_value_heads or heads
        function, self.hook, self.places = {
            "resid_pre": ("resid_pre", "hook_resid_pre", {"pos": length}),
            "z": ("attn_head_out_all_pos", "attn.hook_z", {"head": heads}),
            "z_pos": ("attn_head_out_by_pos", "attn.hook_z", {"pos": length, "head": heads}),
            "pattern": ("attn_head_pattern_all_pos", "attn.hook_pattern", {"head_index": heads}),
        }.get(site, (f"attn_head_{site}_all_pos", f"attn.hook_{site}", {"head": heads}))
        self.patch = getattr(patching, f"get_act_patch_{function}")
        self.make_frame = patching.make_df_from_ranges

    def record(self) -> None:
        _, self.cache = self.bridge.run_with_cache(
            self.task.clean, names_filter=lambda name: name.endswith(self.hook)
        )

    def sweep(self, layers: list[int]) -> Tensor:
        sizes = tuple(self.places.values())
        if len(layers) == self.bridge.cfg.n_layers:
            values = self.run()
        else:
            frame = self.make_frame((self.bridge.cfg.n_layers, *sizes), ("layer", *self.places))
            frame = frame[frame["layer"].isin(layers)]
            values = self.run(index_axis_names=None, index_df=frame)
        values = values.reshape(len(layers), *sizes, -1)
        return values.transpose(1, 2) if self.site == "z_pos" else values

    def run(self, **which: Any) -> Tensor:
        args = (self.bridge, self.task.corrupted, self.cache, self.task.measure)
        return self.patch(*args, reduce="none", **which).values


class NnsightPatching:
    """nnsight's recipe: a trace per layer, in which every position is an invoke."""

    def __init__(self, model: Any, task: Task, site: str, batch: int) -> None:
        if site != "resid_pre":
            raise ValueError(f"nnsight's recipe is for the residual stream, not {site!r}.")
        self.model, self.task = model, task
        self.positions = torch.arange(task.clean.shape[1])
        self.at_once = max(1, batch // len(task.clean))

    def record(self) -> None:
        import nnsight

        model = self.model
        with model.trace(self.task.clean):
            found = nnsight.save([block.input.detach().clone() for block in model.model.layers])
        self.cache = list(found)

    def sweep(self, layers: list[int]) -> Tensor:
        parts = self.positions.split(self.at_once)
        rows = [[v for part in parts for v in self.patched(n, part.tolist())] for n in layers]
        return torch.stack([torch.stack(row) for row in rows])

    def patched(self, layer: int, positions: list[int]) -> list[Tensor]:
        """The metric [B] with each of some positions patched."""
        import nnsight

        model, task, clean = self.model, self.task, self.cache[layer]
        with model.trace() as tracer:
            row = nnsight.save([])
            for position in positions:
                with tracer.invoke(task.corrupted):
                    model.model.layers[layer].input[:, position, :] = clean[:, position, :]
                    row.append(task.measure(model.output.logits))
        return list(row)


def traced_logits(model: Any, ids: Tensor) -> Tensor:
    """Logits [B T V] of a forward in nnsight."""
    with model.trace(ids):
        logits = model.output.logits.save()
    return logits  # noqa: RET504 (the body above runs elsewhere: only names come out of it)


class HookPatching:
    """Hooks on the Hugging Face modules; the cells of a layer are one batch."""

    def __init__(self, hf: Any, task: Task, site: str, batch: int) -> None:
        self.hf, self.task, self.site, self.batch = hf, task, site, batch
        n_prompts, length = task.clean.shape
        config = hf.config
        few = config.num_key_value_heads if site in ("k", "v") else config.num_attention_heads
        self.n_heads = few
        places = {"resid_pre": (length,), "z_pos": (few, length)}.get(site, (few,))
        felt = torch.ones(n_prompts, *places, dtype=torch.bool)
        if site in ("resid_pre", "z_pos"):
            # From the first difference on: before it the patch changes nothing.
            changed = (task.clean != task.corrupted).int().cumsum(1) > 0
            felt &= changed if site == "resid_pre" else changed[:, None]
        self.places = places
        self.rows, *self.at = felt.nonzero(as_tuple=True)

    def record(self) -> None:
        self.cache: dict[int, Tensor] = {}
        with contextlib.ExitStack() as stack:
            for layer in range(self.hf.config.num_hidden_layers):
                stack.enter_context(self.editing(layer, functools.partial(self.keep, layer)))
            last_logits(self.hf, self.task.clean)
        self.base = self.task.measure(last_logits(self.hf, self.task.corrupted))

    def keep(self, layer: int, x: Tensor) -> Tensor:
        self.cache[layer] = x
        return x

    def sweep(self, layers: list[int]) -> Tensor:
        values = self.base.repeat(len(layers), *self.places, 1)
        parts = list(torch.arange(len(self.rows)).split(self.batch))
        for i, layer in enumerate(layers):
            for part in parts:
                rows, at = self.rows[part], [index[part] for index in self.at]
                values[(i, *at, rows)] = self.patched(layer, rows, at)
        return values

    def patched(self, layer: int, rows: Tensor, at: list[Tensor]) -> Tensor:
        """The metric [N] of prompts ``rows`` with one place each patched."""
        with self.editing(layer, functools.partial(self.put, self.cache[layer], rows, at)):
            logits = last_logits(self.hf, self.task.corrupted[rows])
        return self.task.measure(logits, rows)

    def put(self, clean: Tensor, rows: Tensor, at: list[Tensor], x: Tensor) -> Tensor:
        lane, x = torch.arange(len(rows)), x.clone()
        if self.site in ("resid_pre", "pattern"):  # [B T D]; [B H T T]
            x[lane, at[0]] = clean[rows, at[0]]
            return x
        heads, donor = (a.unflatten(-1, (self.n_heads, -1)) for a in (x, clean))
        if self.site == "z_pos":
            heads[lane, at[1], at[0]] = donor[rows, at[1], at[0]]
        else:
            heads[lane, :, at[0]] = donor[rows, :, at[0]]
        return x

    def editing(self, layer: int, edit: Callable[[Tensor], Tensor]) -> Any:
        """A context in which the site's value passes through ``edit``."""
        block = self.hf.model.layers[layer]
        if self.site == "pattern":
            return editing_pattern(self.hf, block.self_attn, edit)
        if self.site in ("q", "k", "v"):
            module = getattr(block.self_attn, f"{self.site}_proj")
            return module.register_forward_hook(lambda _, args, out: edit(out))
        module = block if self.site == "resid_pre" else block.self_attn.o_proj
        return module.register_forward_pre_hook(lambda _, args: (edit(args[0]), *args[1:]))


def last_logits(hf: Any, ids: Tensor) -> Tensor:
    """Logits [B 1 V] at the last position."""
    return hf(ids, use_cache=False, logits_to_keep=1).logits


@contextlib.contextmanager
def editing_pattern(hf: Any, attention: Any, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Attention of our own, registered as transformers asks: its pattern can be edited."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register("edited", attend)
    AttentionMaskInterface.register("edited", eager_mask)
    before = hf.config._attn_implementation
    hf.set_attn_implementation("edited")
    attention.edit_pattern = edit
    try:
        yield
    finally:
        del attention.edit_pattern
        hf.set_attn_implementation(before)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float, **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention written out, whose pattern [B H T T] passes through the module's edit."""
    groups = module.num_key_value_groups
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    pattern = scores.softmax(-1)
    edit = getattr(module, "edit_pattern", None)
    pattern = pattern if edit is None else edit(pattern)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern
