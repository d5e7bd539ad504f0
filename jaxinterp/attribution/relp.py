"""RelP (Jafari et al. 2025, arXiv:2508.21258): attribution patching with relevance for gradients.

The coefficients of layer-wise relevance propagation are the gradients of a forward pass in
which some factors are held constant, so each rule is an intervention that stops a gradient:

- ``norm``: the scale a norm divides by is held (LN-rule; Ali et al. 2022);
- ``activation``: act(x) is x times a gain, act(x) / x, that is held (identity rule);
- ``gate``: of act(x) * y each factor gets half the gradient (half-rule; Arras et al. 2019);
- ``attention``: the pattern is held (AH-rule; Ali et al. 2022).

The norms of queries and keys, the dense layer's norm in BERT's head and soft-caps have no rule
here: their gradient is the ordinary one.
"""

from __future__ import annotations

import dataclasses

import jax
from flax import struct

from jaxinterp.attribution.gradients import Pair
from jaxinterp.model import SITES, At, Config, Model
from jaxinterp.model.parts import GAIN_HELD
from jaxinterp.model.sites import absent

RULES = ("norm", "activation", "gate", "attention")
DEFAULT = ("norm", "activation", "gate")  # what the authors' code applies to IOI
ABOVE_PATTERN = ("q", "k", "rot_q", "rot_k", "attn_scores")


def attribution(pair: Pair, rules: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """The base run's metric [B] and the relevance of each cell [*over, B]."""
    before = interventions(pair.model.config, rules)
    held = pair
    if "activation" in rules:
        config = pair.model.config
        model = pair.model.replace(config=config.replace(act=config.act + GAIN_HELD))
        held = dataclasses.replace(pair, model=model)
    metric, slopes = held.slopes(before)
    return metric, pair.cells(slopes)


def interventions(config: Config, rules: tuple[str, ...]) -> tuple[Detach | Halve, ...]:
    """The rules but ``activation``, which is a choice of activation function."""
    held = [site for site in SITES if site.endswith("_scale")] if "norm" in rules else []
    held += ["pattern"] if "attention" in rules else []
    gated = "gate" in rules and config.gated and not config.attention_only
    present = tuple(site for site in held if site not in absent(config))
    return (Detach(present), *([Halve()] if gated else []))


def check(model: Model, site: str, rules: tuple[str, ...]) -> None:
    """Refuse unknown rules and sites that no relevance reaches. Raises ``ValueError``."""
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a rule of RelP, expected some of {RULES}.")
    if "attention" in rules and site in ABOVE_PATTERN:
        raise ValueError(
            f"The rule 'attention' holds the pattern, so {site!r} gets no relevance: leave it "
            "out of rules, or attribute to 'v' or 'z'."
        )
    if site.endswith("_input"):
        raise ValueError(
            f"RelP has no coefficients at {site!r}, whose copies have norms of their own: "
            f"attribute to {site.removesuffix('_input')!r} or 'resid_pre'."
        )


class Detach(struct.PyTreeNode):
    """Holds sites constant: their values stay, no gradient passes."""

    sites: tuple[str, ...] = struct.field(pytree_node=False)

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        return jax.lax.stop_gradient(value)


class Halve(struct.PyTreeNode):
    """Half the gradient at the product of a gated MLP; values stay."""

    @property
    def sites(self) -> tuple[str, ...]:
        return ("mlp_post",)

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        half = value / 2
        return half + jax.lax.stop_gradient(value - half)
