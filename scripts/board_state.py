"""Where the model of a board game keeps the board, and that it plays by what it keeps there.

    python scripts/board_state.py --out docs/mechanisms/board

First, on games the model has not seen, linear probes of every square (empty, mine, theirs) at every
point of the stream, beside probes of a random model, of black and white, and with shuffled labels.
Then, on other games, the stream at the last move is moved along a probe's direction, from some
layer on, so that one disc changes hands: are the legal moves of the board so edited what the model
now predicts? From which layer and how far is chosen on one half of the cases, told on the other.
The probes are put beside the model, for `jaxinterp.algorithmic.boards.probes`.
The setting of Li et al. 2023 (arXiv:2210.13382), the directions of Nanda et al. 2023
(arXiv:2309.00941). Ends with a claim, on some of those cases.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import mechanism
import numpy as np
import xarray as xr
from tqdm import tqdm

import jaxinterp as ji
from jaxinterp import directions, probes, report, stats
from jaxinterp.algorithmic import boards
from jaxinterp.algorithmic.prompts import pick
from jaxinterp.loading.shipped import attach, find

PROBED, EDITED = 2, 3  # streams of games; training and its measurement have others
PENALTIES = np.geomspace(1e-5, 1e-1, 5)
NEVER = -1e9  # a logit
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
THRESHOLDS = np.geomspace(1e-3, 0.2, 40).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Probed:
    """Probes of every point p of the stream and every square s.

    found: accuracies and controls over (point, split), the squares being the splits. steps, by kind
    [p s D]: from mine to theirs, along the "probe" or the difference of "means", as long as the two
    means lie apart along it.
    """

    found: xr.Dataset
    board: boards.Probes
    steps: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Cases:
    """Positions and a square [n] of each whose disc is to change hands; the legal moves then."""

    positions: boards.Positions
    square: np.ndarray
    after: np.ndarray

    def __len__(self) -> int:
        return len(self.square)

    def __getitem__(self, rows: Any) -> Cases:
        return Cases(self.positions[rows], self.square[rows], self.after[rows])

    @property
    def held(self) -> np.ndarray:
        """Whose the disc is."""
        return self.positions.state[np.arange(len(self)), self.square]

    def pushes(self, steps: np.ndarray) -> np.ndarray:
        """What is added after each layer, [L n 1 D], by steps [L+1 36 D] from mine to theirs."""
        sign = np.where(self.held == boards.MINE, 1, -1)[:, None]
        return (steps[1:, self.square] * sign)[:, :, None].astype(np.float32)


def main() -> None:
    parser = mechanism.parser(__doc__, "board", "ataxx-6x6", n=100)
    parser.add_argument("--games", type=int, default=6000, help="probed")
    parser.add_argument("--cases", type=int, default=1200)
    parser.add_argument("--placebos", type=int, default=8)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = ji.load(args.model)
    game = boards.GAMES[tokenizer.name]
    known, decodable = probe_board(args, model, game)
    attach(find(args.model), "probes", known.board._asdict())
    cases = draw_cases(game, args.cases, (EDITED, args.seed))
    chosen_on, told_on = cases[::2], cases[1::2]
    tried, settings = choose(model, known, chosen_on)
    edited = edit_board(args, model, known, chosen_on, told_on, tried, settings)
    some, (factor, begin) = told_on[: args.n], settings["probe"]
    claim = ji.Claim(
        f"{model.name} plays by a board that its stream holds linearly: where a disc changes hands "
        "along the probes' directions, the moves it predicts are those of the board so changed.",
        model, task=f"the next moves of random games of {game.name.capitalize()}, 6x6",
        dataset=f"{len(some)} positions of games that neither the model nor the probes have seen, "
        "with a disc whose change of hands changes what is legal",
        components=[f"resid_post of layer {i} at the last move, a direction for each square"
                    for i in range(begin, model.config.n_layers)],
        experiments=experiments(model, some, factor * some.pushes(known.steps["probe"]), begin,
                                args),
        limits=[
            "How the model computes the board from the moves.",
            "What probes read of other squares after the last layers is disturbed (the table), "
            "though the moves are as they should be.",
            "That nothing else carries it, and that squares lie independent of one another in the "
            "stream: one disc was changed at a time.",
            "An edited board need not be one that a game can reach. All games are random ones: "
            "strategy plays no part.",
        ],
    ).run(model)  # fmt: skip
    mechanism.state(args, claim, [*decodable, *edited])


# Decodable


def probe_board(
    args: argparse.Namespace, model: ji.Model, game: boards.Game
) -> tuple[Probed, list[str]]:
    at = game.random_positions(args.games, (PROBED, args.seed))
    colour = np.where((at.state == boards.MINE) == at.black[:, None], 1, 2) * (at.state > 0)
    untrained = ji.init(model.config, jax.random.key(args.seed))
    X, X_untrained = (ji.collect(m, at.tokens, batch=500) for m in (model, untrained))
    with tqdm(total=3 * boards.SQUARES, desc="probes", unit=" squares") as bar:
        own = probed(X, at.state, args.seed, bar)
        rivals = {
            "random model": probed(X_untrained, at.state, args.seed, bar).found,
            "black or white": probed(X, colour, args.seed, bar).found,
        }
    found = own.found
    best = found.accuracy.isel(point=int(found.accuracy.mean("split").argmax("point")))
    worst = boards.NAMES[int(best.argmin("split"))]
    pictured = found.assign(
        baseline=xr.concat([f.accuracy.max("point") for f in rivals.values()], "feature")
    ).assign_coords(feature=list(rivals))
    report.probe_curves(pictured, args.out / "probes.png", title="All squares: mean and range")
    others = game.random_positions(1000, (PROBED, args.seed, 1))
    right = read(model, own, others) == others.state
    columns = {
        "probe": found.accuracy, **{name: f.accuracy for name, f in rivals.items()},
        "shuffled labels": found.shuffled, "random direction": found.random_direction,
    }  # fmt: skip
    lines = [
        "## Decodable", "",
        f"Softmax-linear probes of {args.games} games that the model was not trained on, each read "
        "after one of its moves (60% train, 20% choose the penalty, 20% test). Mean accuracy over "
        "the 36 squares; always saying a square's commonest state gives "
        f"{float(found.majority.mean()):.3f}. The worst square, where probes are best, before "
        f"layer {int(best.point)}: {worst}, {float(best.min()):.3f}.",
        "", "| stream before layer | " + " | ".join(columns) + " | whose disc it is |",
        "| --- |" + " --- |" * (len(columns) + 1),
        *(
            f"| {p} |" + "".join(f" {float(v.sel(point=p).mean()):.3f} |" for v in columns.values())
            + (f" {right[p - 1][others.state > 0].mean():.3f} |" if p else " |")
            for p in found.point.values
        ), "",
        "Random model: the same architecture as initialised. Black or white: probes of the trained "
        "model for a disc's colour in place of whose it is. Whose disc it is: the probe's accuracy "
        "on occupied squares alone, on 1000 other games.", "", "![probes](probes.png)", "",
    ]  # fmt: skip
    return own, lines


def probed(X: np.ndarray, labels: np.ndarray, seed: int, bar: tqdm) -> Probed:
    """Probes of X [L+1 n D] for labels [n 36]."""
    kept, W, b = [], [], []
    # One split for all squares: parts of one size share a program.
    splits = probes.make_splits(np.arange(len(labels)) % 2, n_splits=1, seed=seed)
    for column in labels.T:
        one = probes.probe(X, column, splits=splits, penalties=PENALTIES, seed=seed).isel(split=0)
        kept.append(one[["accuracy", "shuffled", "random_direction", "majority"]])
        weight, bias = one.weight.transpose("point", "width", "output").values, one.bias.values
        if weight.shape[-1] == 1:  # never empty: one logit, of the second class
            weight = np.pad(weight, ((0, 0), (0, 0), (2, 0)))
            bias = np.pad(bias, ((0, 0), (2, 0)))
            bias[:, boards.EMPTY] = NEVER
        W.append(weight)
        b.append(bias)
        bar.update()
    found = xr.concat([one.drop_vars("split") for one in kept], "split")
    weights = np.stack(W, 1)
    unit = weights[..., boards.THEIRS] - weights[..., boards.MINE]
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    means = between_means(X, labels)
    steps = {"probe": unit * (unit * means).sum(-1, keepdims=True), "means": means}
    board = boards.Probes(weights.astype(np.float32), np.stack(b, 1).astype(np.float32))
    return Probed(found, board, steps)


def between_means(X: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """From the mean of mine to the mean of theirs: [L+1 36 D]."""
    sides = []
    for who in (boards.MINE, boards.THEIRS):
        share = (labels == who) / (labels == who).sum(0)
        sides.append(np.einsum("lnd,ns->lsd", X, share, optimize=True))
    return sides[1] - sides[0]


def read(model: ji.Model, known: Probed, at: boards.Positions, edits: Any = ()) -> np.ndarray:
    """The states int [L n 36] that probes read from what each layer leaves, at the last move."""
    x = ji.forward(model, at.tokens, edits, record=("resid_post",)).activations["resid_post"]
    x = np.asarray(x)[:, np.arange(len(at)), last(at)]
    return np.stack([known.board.read(each, point) for point, each in enumerate(x, 1)])


# Causal


def last(at: boards.Positions) -> np.ndarray:
    """The position [n] of each prompt's last move."""
    return np.asarray(at.tokens.lengths) - 1


def draw_cases(game: boards.Game, n: int, stream: tuple[int, ...]) -> Cases:
    """n positions of a game each, and one of their discs that tells, drawn evenly."""
    at = game.random_positions(n + n // 10 + 10, stream)
    telling = game.telling_squares(at)
    rows = np.flatnonzero(telling.any(1))[:n]
    square = pick(np.random.default_rng((*stream, 1)), telling[rows])
    edited = boards.turned_over(at.state[rows], square)
    return Cases(at[rows], square, game.legal_squares(edited))


def missed_above(logits: jax.Array, legal: jax.Array, threshold: jax.Array) -> jax.Array:
    """Wrong moves [B], predicted being those more probable than the threshold [B 1]."""
    return ((jax.nn.softmax(logits[:, 0]) > threshold) != legal).sum(-1)


def above(legal: np.ndarray, threshold: float) -> ji.Metric:
    return ji.metric(missed_above, data=(legal, np.full((len(legal), 1), threshold, np.float32)))


def measures(cases: Cases, threshold: float) -> dict[str, ji.Metric]:
    """Wrong moves per case, by what they are held against."""
    before, after = cases.positions.legal, cases.after
    changed = after != before
    return {
        "edited": boards.wrong_moves(after),
        "changed": boards.wrong_moves(after, changed),
        "unchanged": boards.told_apart(after & before, ~after & ~before),
        "threshold": above(after, threshold),
        "before": boards.wrong_moves(before),
    }


def swept(
    model: ji.Model, cases: Cases, metric: ji.Metric, pushes: Any, begin: np.ndarray
) -> np.ndarray:
    """[E n]: the metric, the pushes being added after every layer from ``begin`` [E] on."""
    at = cases.positions
    grid = ji.add(
        "resid_post", pushes, layer=np.arange(model.config.n_layers) >= begin[:, None],
        position=ji.Shared(last(at)),
    )  # fmt: skip
    return np.asarray(ji.sweep(model, at.tokens, grid, metric))


def choose(
    model: ji.Model, known: Probed, chosen_on: Cases
) -> tuple[dict[str, np.ndarray], dict[str, tuple[float, int]]]:
    """The share of cases [factor layer] that are exactly the edited board's, and the best."""
    layers = np.arange(model.config.n_layers)
    wrong = measures(chosen_on, 0)["edited"]
    tried, settings = {}, {}
    for kind, steps in known.steps.items():
        pushes = chosen_on.pushes(steps)
        tried[kind] = np.array([
            (swept(model, chosen_on, wrong, ji.Shared(f * pushes), layers) == 0).mean(1)
            for f in tqdm(FACTORS, desc=kind)
        ])  # fmt: skip
        factor, begin = np.unravel_index(tried[kind].argmax(), tried[kind].shape)
        settings[kind] = FACTORS[factor], int(begin)
    return tried, settings


def edit_board(
    args: argparse.Namespace, model: ji.Model, known: Probed, chosen_on: Cases, told_on: Cases,
    tried: dict[str, np.ndarray], settings: dict[str, tuple[float, int]],
) -> list[str]:  # fmt: skip
    at = chosen_on.positions
    by_threshold = [np.mean(ji.evaluate(above(at.legal, t), model, at.tokens)) for t in THRESHOLDS]
    threshold = float(THRESHOLDS[np.argmin(by_threshold)])

    pushes = [f * told_on.pushes(known.steps[kind]) for kind, (f, _) in settings.items()]
    flat = directions.Direction(pushes[0].reshape(-1, pushes[0].shape[-1]))
    random = directions.random_like(flat, args.placebos, args.seed)
    pushes += [d.vector.reshape(pushes[0].shape) for d in random]
    begin = np.array([b for _, b in settings.values()] + [settings["probe"][1]] * len(random))
    names = [*settings, *(f"random {i}" for i in range(len(random)))]
    found = {}
    for name, metric in measures(told_on, threshold).items():
        base = np.asarray(ji.evaluate(metric, model, told_on.positions.tokens))
        values = swept(model, told_on, metric, np.stack(pushes), begin)
        found[name] = (("edit", "prompt"), np.concatenate([base[None], values]))
    data = xr.Dataset(found, {"edit": ["not edited", *names]})
    some = range(min(3, len(names)))
    readings = {names[i]: specific(model, known, told_on, pushes[i], begin[i]) for i in some}
    return [
        *effects(data, tried["probe"], settings, len(chosen_on), threshold, args.seed),
        "## Specificity", "",
        "What probes read after each layer of the edited runs. Moves whose legality the edit does "
        "not change are in the table above.", "",
        "| edit | after layer | edited square reads as intended | other squares read as without "
        "the edit | other squares read rightly | without the edit |", "| --- |" + " --- |" * 5,
        *(
            f"| {name} | {layer} | " + " | ".join(f"{x:.3f}" for x in shares) + " |"
            for name, rows in readings.items() for layer, *shares in rows
        ), "",
    ]  # fmt: skip


def experiments(
    model: ji.Model, cases: Cases, pushes: np.ndarray, begin: int, args: argparse.Namespace
) -> list[ji.Experiment]:
    """Of the claim: pushes [L n 1 D] after every layer from ``begin`` on."""
    tokens, at, n_layers = cases.positions.tokens, last(cases.positions), model.config.n_layers
    layers = np.arange(n_layers)
    lengths = np.linalg.norm(pushes, axis=-1).mean((1, 2))
    random = np.random.default_rng(args.seed).normal(size=(args.placebos, n_layers, 1, 1,
                                                           pushes.shape[-1]))  # fmt: skip
    random *= lengths[:, None, None, None] / np.linalg.norm(random, axis=-1, keepdims=True)
    exact = boards.legal_sets(cases.after)
    before = cases.positions.legal
    same = boards.told_apart(cases.after & before, ~cases.after & ~before)
    edit = ji.add("resid_post", pushes, layer=layers >= begin, position=at)
    return [
        ji.Experiment(
            "a disc changes hands after every layer from one on", "localization", tokens,
            ji.add("resid_post", ji.Shared(pushes), layer=layers >= layers[:, None],
                   position=ji.Shared(at)), exact, grid=True,
            names=[f"from layer {i} on" for i in layers],
            note="1 where the k likeliest moves are the k legal ones of the changed board.",
        ),
        ji.Experiment("a disc changes hands", "effect", tokens, edit, exact),
        ji.Experiment("a disc changes hands: wrong moves", "effect", tokens, edit,
                      boards.wrong_moves(cases.after), note="Against the changed board."),
        ji.Experiment(
            f"random directions, {args.placebos} draws", "control", tokens,
            ji.add("resid_post", random.astype(np.float32),
                   layer=np.tile(layers >= begin, (args.placebos, 1)), position=ji.Shared(at)),
            exact, grid=True, note="As long as the pushes are on average, layer by layer.",
        ),
        ji.Experiment("a disc changes hands: moves it does not concern", "specificity", tokens,
                      edit, same, margin=0.05, note="1 where all that stay legal are likelier than "
                      "all that stay illegal."),
    ]  # fmt: skip


def effects(
    data: xr.Dataset, tried: np.ndarray, settings: dict[str, Any], n_chosen: int, threshold: float,
    seed: int,
) -> list[str]:  # fmt: skip
    """What the edits do to the predicted moves."""

    def row(edit: str) -> str:
        own = data.sel(edit=edit)
        shares = {
            "none": own.edited == 0, "changed": own.changed == 0, "unchanged": own.unchanged,
            "nearer": own.edited < own.before, "threshold": own.threshold == 0,
        }  # fmt: skip
        columns = [own.edited, own.before, *shares.values()]
        cells = []
        for values in columns:
            found = stats.bootstrap(values.astype(float), seed=seed, method="percentile")
            cells.append(
                f"{float(found.estimate):.3f} [{float(found.low):.3f}, {float(found.high):.3f}]"
            )
        return f"| {edit} | " + " | ".join(cells) + " |"

    where = "; ".join(
        f"{kind}, factor {f:g} from layer {b} on" for kind, (f, b) in settings.items()
    )
    return [
        "## Causal effect", "",
        "A case is a position of a new game, and a disc whose change of hands changes what is "
        "legal (and leaves some move). After every layer from one on, at the last move alone, a "
        "factor times a step from mine to theirs (or back) is added; a step is along a direction "
        "and as long as the means of the two lie apart there. The predicted moves are the n "
        "likeliest, n being the number of legal moves of the board they are held against.", "",
        f"On {n_chosen} cases, along the probes' directions, the share in which the predicted "
        "moves are exactly the legal ones of the edited board:", "",
        "| factor |" + "".join(f" from layer {i} |" for i in range(tried.shape[1])),
        "| --- |" + " --- |" * tried.shape[1],
        *(
            f"| {f:g} | " + " | ".join(f"{x:.3f}" for x in shares) + " |"
            for f, shares in zip(FACTORS, tried, strict=True)
        ), "",
        f"Chosen by these shares: {where}. On {data.sizes['prompt']} other cases [95% over cases]; "
        "wrong moves are those falsely predicted and those falsely not; moves that the edit does "
        "not concern are told apart where all that stay legal are likelier than all that stay "
        "illegal:", "",
        "| edit | wrong moves, edited board | wrong moves, board as it was | exactly the edited "
        "board's | all moves that change are right | those that do not are told apart | fewer "
        "wrong for the edited board than for the board as it was | exactly the edited board's, by "
        f"probability above {threshold:.3f} |", "| --- |" + " --- |" * 7,
        *map(row, data.edit.values.tolist()), "",
        "Means: the difference of the class means in place of the probe's direction. Random: "
        "directions drawn at random, the steps as long as the probe's in every case and layer.", "",
    ]  # fmt: skip


def specific(
    model: ji.Model, known: Probed, cases: Cases, pushes: np.ndarray, begin: int
) -> list[tuple[int, float, float, float, float]]:
    """By layer: the share of edited squares read as intended; of the others, read as without the
    edit, rightly, and rightly without the edit."""
    at, rows = cases.positions, np.arange(len(cases))
    mask = np.arange(model.config.n_layers) >= begin
    edit = ji.add("resid_post", pushes, layer=mask, position=last(at))
    before, after = read(model, known, at), read(model, known, at, edit)
    aim = boards.turned_over(at.state, cases.square)[rows, cases.square]
    others = np.ones(at.state.shape, bool)
    others[rows, cases.square] = False
    return [
        (
            layer,
            (after[layer, rows, cases.square] == aim).mean(),
            (after[layer] == before[layer])[others].mean(),
            (after[layer] == at.state)[others].mean(),
            (before[layer] == at.state)[others].mean(),
        )
        for layer in np.flatnonzero(mask)
    ]


if __name__ == "__main__":
    main()
