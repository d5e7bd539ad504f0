"""Edge detectors in the first layer of the shipped vision transformer.

    python scripts/edge_study.py --out docs/mechanisms/edges

Neurons of the first MLP are shown single straight edges of every direction; those that answer to
one direction much more than to others are edge detectors (orientation tuning, after Hubel &
Wiesel). Then those tuned to sloping edges, and those tuned to upright and level ones, are ablated:
the shapes made of such edges should suffer, the others not. That holds for sloping ones alone. Ends
with a claim and pictures.
"""

from __future__ import annotations

from typing import Any

import jax
import mechanism
import numpy as np

import jaxinterp as ji
from jaxinterp.algorithmic import shapes

ANGLES = np.arange(16) * np.pi / 16  # of an edge; 0 is level
PHASES = np.linspace(-3.5, 3.5, 8)  # pixels from a patch's centre
TUNED = 0.3  # selectivity from which a neuron is tuned
NEAR = np.pi / 8  # how far from a direction its preferred one may lie
DRAWS = 20


def main() -> None:
    args = mechanism.parser(__doc__, "edges", "shapes-vit", n=96).parse_args()
    model, _ = ji.load(args.model)
    answers = tuning(model)
    untrained = tuning(ji.init(model.config, jax.random.key(args.seed)))
    (selective, preferred), (by_chance, _) = selectivity(answers), selectivity(untrained)
    upright = tuned(selective, preferred, 0.0) | tuned(selective, preferred, np.pi / 2)
    sloping = tuned(selective, preferred, np.pi / 4) | tuned(selective, preferred, 3 * np.pi / 4)
    if not (upright.any() and sloping.any()):
        raise SystemExit("No neurons are tuned to both kinds of edges: the claim has no subject.")
    claim = ji.Claim(
        f"Neurons in the first layer of {model.name} detect edges of one direction, and shapes "
        "made of sloping edges are told by those of sloping ones.",
        model, task="which of six shapes", dataset=f"{args.n} images of each kind of shape",
        components=[
            f"layer 0, {sloping.sum()} neurons tuned to sloping edges",
            f"layer 0, {upright.sum()} neurons tuned to upright and level edges",
        ],
        experiments=experiments(model, args, sloping, upright),
        limits=[
            "Neurons tuned to edges may answer to other things too: bars and corners were not "
            "told apart.",
            "Synthetic shapes of 24 x 24 pixels, patches of 4 x 4: no photographs.",
            "How the second layer puts edges together was not studied.",
        ],
    ).run(model)  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    draw(model, answers, selective, args.out)
    alive = answers.max(1) > 1e-3
    mechanism.state(args, claim, [
        f"{alive.sum()} of the {len(alive)} neurons of the first MLP answer to straight edges. How "
        "much more to one direction than to others is their orientation selectivity, "
        f"|sum r(a) e^(2ia)| / sum r(a) over {len(ANGLES)} directions a: 0 for none, 1 for one "
        f"alone. Its median is {np.median(selective[alive]):.2f}, and "
        f"{np.mean(selective > TUNED):.0%} of the neurons have more than {TUNED}; before training "
        f"the median is {np.median(by_chance):.2f}, and {np.mean(by_chance > TUNED):.0%} have "
        "more.", "",
        "Twelve of the most selective, by number and selectivity:", "",
        "![tuning](tuning.png)", "",
        "What the patches' embedding reads most of (its first singular directions, 4 x 4 pixels, "
        "with their singular values):", "", "![filters](filters.png)",
    ])  # fmt: skip


def edge_images(angle: float) -> np.ndarray:
    """Straight edges of a direction through one patch, at all phases and both signs: [16 24 24]."""
    middle = np.arange(shapes.SIZE) + 0.5 - shapes.SIZE / 2 - shapes.PATCH / 2
    across = -np.sin(angle) * middle[None, :] + np.cos(angle) * middle[:, None]
    one = np.clip(across[None] - PHASES[:, None, None], -0.5, 0.5)
    return np.concatenate([one, -one]).astype(np.float32)


def tuning(model: ji.Model) -> np.ndarray:
    """The mean answer of every neuron of the first MLP at that patch, by direction: [M 16]."""
    half = shapes.SIDE // 2
    patch = 1 + half * shapes.SIDE + half  # the one through whose centre all edges at phase 0 go
    out = [
        np.asarray(
            ji.forward(model, shapes.patches(edge_images(angle)), record=("mlp_post",))
            .activations["mlp_post"][0, :, patch]
        ).mean(0)
        for angle in ANGLES
    ]  # fmt: skip
    return np.stack(out, 1)


def selectivity(answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How tuned each neuron is, 0 to 1, and to which direction."""
    along = (answers * np.exp(2j * ANGLES)).sum(1)
    return abs(along) / np.maximum(answers.sum(1), 1e-6), np.angle(along) / 2 % np.pi


def tuned(selective: np.ndarray, preferred: np.ndarray, to: float) -> np.ndarray:
    """bool [M]: neurons tuned to a direction."""
    apart = abs((preferred - to + np.pi / 2) % np.pi - np.pi / 2)
    return (selective > TUNED) & (apart < NEAR)


def experiments(
    model: ji.Model, args: Any, sloping: np.ndarray, upright: np.ndarray
) -> list[ji.Experiment]:
    """Each kind of neurons ablated, on both kinds of shapes."""
    drawn = shapes.images(20 * args.n, (5, args.seed))
    sides = {}
    for kind in (shapes.SLOPING, shapes.UPRIGHT):
        rows = np.isin(drawn.labels, [shapes.NAMES.index(name) for name in kind])
        rows = np.flatnonzero(rows)[: args.n]
        held = shapes.patches(np.round(drawn.pixels[rows], 2))
        sides[kind] = held, ji.log_prob(drawn.labels[rows], 0)
    every = drawn.tokens[: args.n]
    post = ji.forward(model, every, record=("mlp_post",)).activations["mlp_post"]
    mean = np.asarray(post)[0].mean((0, 1))
    rng = np.random.default_rng(args.seed)
    out = []
    for word, mask, own, other in (
        ("sloping", sloping, shapes.SLOPING, shapes.UPRIGHT),
        ("upright and level", upright, shapes.UPRIGHT, shapes.SLOPING),
    ):
        random = np.stack([rng.permutation(mask) for _ in range(DRAWS)])
        one = ji.replace("mlp_post", mean, layer=0, neuron=mask)
        some = ji.replace("mlp_post", ji.Shared(mean), layer=ji.Shared(np.int32(0)), neuron=random)
        (tokens, metric), (others, theirs) = sides[own], sides[other]
        names = " and ".join(own)
        out += [
            ji.Experiment(f"neurons of {word} edges ablated, {names}", "effect", tokens, one,
                          metric, note=f"{mask.sum()} neurons, their mean in their place."),
            ji.Experiment(f"as many random neurons ablated, {names}", "control", tokens, some,
                          metric, grid=True),
            ji.Experiment(f"neurons of {word} edges ablated, {' and '.join(other)}", "specificity",
                          others, one, theirs, margin=0.1),
        ]  # fmt: skip
    tokens, metric = sides[shapes.SLOPING]
    numbers = np.arange(model.config.d_mlp)
    single = ji.replace("mlp_post", mean[:, None], layer=np.zeros_like(numbers), neuron=numbers)
    return [
        ji.Experiment("each neuron of the first layer ablated, diamond and saltire",
                      "localization", tokens, single, metric, grid=True),
        *out,
    ]  # fmt: skip


def draw(model: ji.Model, answers: np.ndarray, selective: np.ndarray, out: Any) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots(2, 6, sharex=True)
    first = np.argsort(-np.where(selective > TUNED, selective * answers.max(1), 0))[:12]
    for axis, neuron in zip(axes.flat, first, strict=True):
        axis.plot(np.degrees(ANGLES), answers[neuron], color="#c2410c")
        axis.set_title(f"{neuron}: {selective[neuron]:.2f}", fontsize=8)
        axis.set(yticks=[], xticks=[0, 90, 180], ylim=(0, None))
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("direction of the edge, degrees (0: level)", fontsize=8)
    figure.supylabel("mean answer, from 0", fontsize=8)
    figure.savefig(out / "tuning.png", dpi=130)

    filters = np.linalg.svd(np.asarray(model.params.embed.W_E), full_matrices=False)
    figure = Figure(figsize=(7, 1.2), layout="constrained")
    for i, axis in enumerate(figure.subplots(1, 8)):
        axis.imshow(filters[0][:, i].reshape(shapes.PATCH, -1), cmap="gray")
        axis.set_title(f"{filters[1][i]:.2f}", fontsize=8)
        axis.set_axis_off()
    figure.savefig(out / "filters.png", dpi=130)


if __name__ == "__main__":
    main()
