"""Sites: the named values of the forward pass, with their axes and TransformerLens names."""

from __future__ import annotations

import dataclasses
import re

from jaxinterp.model.config import Config


@dataclasses.dataclass(frozen=True)
class Site:
    """A named value of the forward pass.

    ``axes`` name the value's axes after "batch": ``position``, ``head`` (key/value heads for
    k and v), ``source`` (the key position), ``neuron``, ``d_model``, ``d_head``, ``one``.
    ``layered`` sites occur once in every layer and are recorded with a leading layer axis.
    """

    name: str
    axes: tuple[str, ...]
    hook: str  # TransformerLens's name, without "blocks.N."
    layered: bool = True
    kv_heads: bool = False


_STREAM = ("position", "d_model")
_HEADS = ("position", "head", "d_head")
_INPUT = ("position", "head", "d_model")
_PATTERN = ("head", "position", "source")
_NEURON = ("position", "neuron")
_SCALE = ("position", "one")


def _norm(name: str, hook: str, layered: bool = True) -> tuple[Site, Site]:
    return (
        Site(f"{name}_scale", _SCALE, f"{hook}.hook_scale", layered),
        Site(f"{name}_normalized", _STREAM, f"{hook}.hook_normalized", layered),
    )


SITES: dict[str, Site] = {
    site.name: site
    for site in (
        Site("embed", _STREAM, "hook_embed", layered=False),
        Site("pos_embed", _STREAM, "hook_pos_embed", layered=False),
        *_norm("ln_embed", "embed.ln", layered=False),
        Site("resid_pre", _STREAM, "hook_resid_pre"),
        Site("q_input", _INPUT, "hook_q_input"),
        Site("k_input", _INPUT, "hook_k_input", kv_heads=True),
        Site("v_input", _INPUT, "hook_v_input", kv_heads=True),
        *_norm("ln1", "ln1"),
        Site("q", _HEADS, "attn.hook_q"),
        Site("k", _HEADS, "attn.hook_k", kv_heads=True),
        Site("v", _HEADS, "attn.hook_v", kv_heads=True),
        Site("rot_q", _HEADS, "attn.hook_rot_q"),
        Site("rot_k", _HEADS, "attn.hook_rot_k", kv_heads=True),
        Site("attn_scores", _PATTERN, "attn.hook_attn_scores"),
        Site("pattern", _PATTERN, "attn.hook_pattern"),
        Site("z", _HEADS, "attn.hook_z"),
        Site("result", _INPUT, "attn.hook_result"),
        *_norm("ln1_post", "ln1_post"),
        Site("attn_out", _STREAM, "hook_attn_out"),
        Site("resid_mid", _STREAM, "hook_resid_mid"),
        Site("mlp_in", _STREAM, "hook_mlp_in"),
        *_norm("ln2", "ln2"),
        Site("mlp_pre", _NEURON, "mlp.hook_pre"),
        Site("mlp_pre_linear", _NEURON, "mlp.hook_pre_linear"),
        Site("mlp_post", _NEURON, "mlp.hook_post"),
        *_norm("ln2_post", "ln2_post"),
        Site("mlp_out", _STREAM, "hook_mlp_out"),
        Site("resid_post", _STREAM, "hook_resid_post"),
        *_norm("ln_final", "ln_final", layered=False),
    )
}

_BY_HOOK = {site.hook: name for name, site in SITES.items()}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def absent(config: Config) -> dict[str, str]:
    """The sites this architecture does not have, each with the reason."""
    c, out = config, {}

    def drop(reason: str, *names: str) -> None:
        out.update(dict.fromkeys(names, reason))

    if c.positions != "learned":
        drop("its positions are not learned embeddings", "pos_embed")
    if c.positions != "rotary":
        drop("it has no rotary positions", "rot_q", "rot_k")
    if not c.norm_output:
        drop(
            "it does not norm what its sublayers write",
            "ln1_post_scale", "ln1_post_normalized", "ln2_post_scale", "ln2_post_normalized",
        )  # fmt: skip
    if not (c.norm_input or c.norm_stream):
        drop(
            "its sublayers read the stream without a norm",
            "ln1_scale", "ln1_normalized", "ln2_scale", "ln2_normalized",
        )  # fmt: skip
    if not c.norm_embed:
        drop("it does not norm its embedding", "ln_embed_scale", "ln_embed_normalized")
    if not c.norm_final:
        drop("it has no final norm", "ln_final_scale", "ln_final_normalized")
    if not c.gated:
        drop("its MLP is not gated", "mlp_pre_linear")
    if c.parallel:
        drop("its attention and MLP run in parallel", "resid_mid")
    if c.attention_only:
        drop("it has no MLP", "resid_mid", *(s for s in SITES if s.startswith(("mlp", "ln2"))))
    if c.norm == "none":
        drop("it has no norms", *(s for s in SITES if s.startswith("ln")))
    return out


def parse(name: str) -> tuple[str, int | None]:
    """The site and layer of one of our names or a TransformerLens hook name.

    >>> parse("blocks.9.attn.hook_z")
    ('z', 9)

    Raises ``ValueError`` for a name that is neither.
    """
    if name in SITES:
        return name, None
    block = _BLOCK.fullmatch(name)
    layer, hook = (int(block[1]), block[2]) if block else (None, name)
    site = _BY_HOOK.get(hook)
    if site is None or SITES[site].layered != (block is not None):
        raise ValueError(
            f"{name!r} is not a site. Sites are {', '.join(SITES)}; "
            "TransformerLens names such as 'blocks.3.attn.hook_z' work too."
        )
    return site, layer


def hook_name(site: str, layer: int | None = None) -> str:
    """TransformerLens's name of a site, at a layer where the site is layered.

    >>> hook_name("z", 9)
    'blocks.9.attn.hook_z'
    """
    hook = SITES[site].hook
    return hook if layer is None else f"blocks.{layer}.{hook}"


def require(config: Config, name: str) -> Site:
    """The site of that (own) name, or a ``ValueError`` that says why the model lacks it."""
    if name not in SITES:
        raise ValueError(f"{name!r} is not a site. Sites are {', '.join(SITES)}.")
    reason = absent(config).get(name)
    if reason:
        raise ValueError(f"A {config.family} model has no site {name!r}: {reason}.")
    return SITES[name]


def axis_size(config: Config, site: Site, axis: str) -> int | None:
    """The length of one of a site's axes, or None where it depends on the tokens."""
    sizes = {
        "layer": config.n_layers if site.layered else None,
        "head": config.n_kv_heads if site.kv_heads else config.n_heads,
        "neuron": config.d_mlp,
        "d_model": config.d_model,
        "d_head": config.d_head,
        "one": 1,
    }
    return sizes.get(axis)
