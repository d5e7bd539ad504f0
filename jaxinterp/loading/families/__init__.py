"""One small table per family: config.json to `Config`, tensor names to leaves."""

from __future__ import annotations

from jaxinterp.loading.families import bert, gemma, gpt2, gpt_neox, gptj, llama, opt
from jaxinterp.loading.families.base import Family, Rule, Rules
from jaxinterp.loading.families.keys import Json
from jaxinterp.reading import LoadError

__all__ = ["FAMILIES", "Family", "Json", "Rule", "Rules", "family_of"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        gpt2.FAMILY, gpt_neox.FAMILY, gptj.FAMILY, opt.FAMILY, llama.LLAMA, llama.MISTRAL,
        llama.QWEN2, llama.QWEN3, gemma.GEMMA2, gemma.GEMMA3_TEXT, gemma.GEMMA3, llama.PHI3,
        llama.OLMO2, bert.FAMILY,
    )
}  # fmt: skip


def family_of(model_type: str | None) -> Family:
    """The table of an architecture, by its ``model_type``."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise LoadError(
            f"Architecture {model_type!r} is not supported: expected one of "
            f"{', '.join(FAMILIES)}. Convert the weights to one of these layouts, or build a "
            "Model from a Config and arrays of your own."
        )
    return FAMILIES[model_type]
