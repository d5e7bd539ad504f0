"""Where other libraries say that a dictionary reads and writes: our sites of their names."""

from __future__ import annotations

import re
from typing import Any

from jaxinterp.model.sites import SITES, parse
from jaxinterp.sae.dictionary import DictionaryConfig

HF_HOOKS = {  # what follows model.layers.N: the site
    "output": "resid_post", "post_feedforward_layernorm.output": "mlp_out",
    "post_attention_layernorm.output": "attn_out",
}  # fmt: skip


def lens_site(hook: str) -> dict[str, Any]:
    """Our site and layer of TransformerLens's name; the name itself where it is no site of ours."""
    try:
        site, layer = parse(hook)
    except ValueError:
        return {"site": hook}
    return {"site": site, "layers": () if layer is None else (layer,)}


def lens_hook(c: DictionaryConfig, site: str) -> str:
    """TransformerLens's name of a place; "" where its layer is not known."""
    if site not in SITES:
        return site
    if not SITES[site].layered:
        return SITES[site].hook
    return f"blocks.{c.layers[0]}.{SITES[site].hook}" if c.layers else ""


def hf_site(hook: str) -> dict[str, Any]:
    """Our site and layer of the name of a module's output; the name itself where it is no site."""
    found = re.fullmatch(r"model\.layers\.(\d{1,9})\.(.+)", hook)
    if not found:
        return lens_site(hook)
    return {"site": HF_HOOKS.get(found[2], hook), "layers": (int(found[1]),)}


def hf_hook(c: DictionaryConfig, site: str) -> str:
    """The name of the module whose output a site is; the site itself where it is none's."""
    known = {site: hook for hook, site in HF_HOOKS.items()}
    return f"model.layers.{c.layers[0]}.{known[site]}" if site in known and c.layers else site
