"""Board games on 6x6: random legal games, and the board behind every move of them.

Worlds like that of Li et al. 2023 (arXiv:2210.13382) and Nanda et al. 2023 (arXiv:2309.00941),
smaller. A token is the square played: ids 0 to 35, row by row from the upper left (those taken from
the start never occur). A move puts a disc on an empty square and turns some of the other player's
over; black begins. A board is told from the side of the player to move.

`OTHELLO`: a move must turn discs over, those in a row between it and another of one's own; what
stands anywhere can hang on all moves before. `ATAXX`, without its jumps: a move must be next to one
of one's own discs, and turns all over that are next to it; whose a disc is hangs on the last move
there or beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.algorithmic.prompts import as_prompts, at_least_one, generator, pick, tokenizer_of
from jaxinterp.checks import whole_number
from jaxinterp.loading import attached
from jaxinterp.metrics import Metric, metric
from jaxinterp.model import Tokens
from jaxinterp.numerics import wide, wide_dtype
from jaxinterp.tokens import Tokenizer

SIZE = 6
SQUARES = SIZE * SIZE
NAMES = tuple(f"{column}{row}" for row in range(1, SIZE + 1) for column in "abcdef")
EMPTY, MINE, THEIRS = range(3)

_BIT = np.uint64(1) << np.arange(SQUARES, dtype=np.uint64)  # of each square
_FULL = _BIT.sum(dtype=np.uint64)

Rule = Callable[..., np.ndarray]


class Played(NamedTuple):
    """What stands after each of T moves of n games; after a game's last, that again.

    state: int8 [n T 36] of `EMPTY`, `MINE`, `THEIRS`, mine being those of the player who moves
    next (passes counted; after the end, of the one who did not move last). legal: bool [n T 36],
    that player's moves. black: bool [n T], whether it is black.
    """

    state: np.ndarray
    legal: np.ndarray
    black: np.ndarray


@dataclasses.dataclass(frozen=True)
class Positions:
    """n games, each up to one of its moves, as prompts; the board there as in `Played`, [n ...]."""

    tokens: Tokens
    state: np.ndarray
    legal: np.ndarray
    black: np.ndarray

    def __len__(self) -> int:
        return len(self.state)

    def __getitem__(self, rows: Any) -> Positions:
        """Some of them, by slice, indices or mask."""
        return Positions(self.tokens[rows], self.state[rows], self.legal[rows], self.black[rows])


class Probes(NamedTuple):
    """Softmax-linear probes of all squares: W [point 36 D 3], b [point 36 3], in float32.

    At point p they read the stream before layer p (after the last, for the last point); the three
    are logits of `EMPTY`, `MINE` and `THEIRS`.
    """

    W: np.ndarray
    b: np.ndarray

    def read(self, x: Any, point: int) -> np.ndarray:
        """The board int [... 36] that a stream [... D] holds there."""
        point = whole_number("point", point, 0, len(self.W) - 1)
        logits = np.einsum("...d,sdk->...sk", wide(np.asarray(x)), self.W[point], optimize=True)
        return (logits + self.b[point]).argmax(-1)


def probes(model: str = "ataxx-6x6") -> Probes:
    """Those that come with a shipped model (made by scripts/board_state.py).

    Raises `jaxinterp.loading.LoadError` for a model that has none.
    """
    arrays = attached(model, "probes")
    return Probes(arrays["W"], arrays["b"])


@dataclasses.dataclass(frozen=True)
class Game:
    """A game, as its rules.

    black, white: squares taken at the start. legal: ``(mine, theirs)`` to the squares on which the
    player to move may play; turned: ``(mine, theirs, move)`` to the discs that this turns over; all
    of them bitboards uint64 [n]. passes: who has no move passes, which no token shows, and the game
    ends when neither has one; otherwise it ends there.
    """

    name: str
    black: tuple[int, ...]
    white: tuple[int, ...]
    legal: Rule
    turned: Rule
    passes: bool

    @property
    def moves(self) -> int:
        """Of a game, at most."""
        return SQUARES - len(self.black) - len(self.white)

    def tokenizer(self) -> Tokenizer:
        """Of games like ``"c2 d3 b3"``."""
        return tokenizer_of(self.name, NAMES)

    def random_games(self, n: int, seed: Any = 0) -> np.ndarray:
        """Moves int32 [n 32] of n games, each drawn evenly from the legal ones; -1 after the end.

        seed: as `numpy.random.default_rng` takes it. Raises ``ValueError`` for n < 1.
        """
        at_least_one(n=n)
        rng = generator(seed)
        turn, moves = self._begin(n), np.full((n, self.moves), -1, np.int32)
        for t in range(self.moves):
            legal = _squares(self.legal(turn.mine, turn.theirs))
            moves[:, t] = np.where(legal.any(1), pick(rng, legal), -1)
            turn = self._play(turn, moves[:, t])
        return moves

    def replay(self, moves: Any) -> Played:
        """The boards of games [n T], each begun at the start and filled up with -1 after its end.

        Raises ``ValueError`` for what is not that, naming the first move that the rules forbid.
        """
        moves = np.asarray(moves)
        if moves.ndim != 2 or not moves.size or moves.dtype.kind not in "iu":
            raise ValueError(
                f"moves are {moves.dtype} {list(moves.shape)}, expected whole numbers [game, move]."
            )
        n, length = moves.shape
        turn = self._begin(n)
        state, black = np.empty((n, length, SQUARES), np.int8), np.empty((n, length), bool)
        legal = np.empty((n, length, SQUARES), bool)
        now = _squares(self.legal(turn.mine, turn.theirs))
        for t, square in enumerate(moves.T):
            _check(moves, t, now)
            turn = self._play(turn, square)
            now = _squares(self.legal(turn.mine, turn.theirs))
            state[:, t] = _squares(turn.mine) * MINE + _squares(turn.theirs) * THEIRS
            legal[:, t], black[:, t] = now, turn.black
        return Played(state, legal, black)

    def random_positions(self, n: int, seed: Any = 0) -> Positions:
        """Of n random games, each up to a move drawn evenly from all but its last; [n 31]."""
        rng = generator(seed)
        moves, rows = self.random_games(n, rng), np.arange(n)
        at = rng.integers(0, (moves >= 0).sum(1) - 1)
        played = self.replay(moves)
        cut = np.where(np.arange(self.moves) <= at[:, None], moves, -1)[:, :-1]
        return Positions(as_prompts(cut), *(part[rows, at] for part in played))

    def legal_squares(self, state: Any) -> np.ndarray:
        """bool [... 36]: where the player to move may play on boards [... 36], reached or not."""
        state = _boards(state)
        mine, theirs = (np.where(state == who, _BIT, 0).sum(-1, dtype=np.uint64) for who in (1, 2))
        return _squares(self.legal(mine, theirs))

    def telling_squares(self, positions: Positions) -> np.ndarray:
        """bool [n 36]: discs that, turned over, would change what is legal, and leave a move."""
        telling = np.zeros(positions.state.shape, bool)
        for square in range(SQUARES):
            rows = np.flatnonzero(positions.state[:, square])
            after = self.legal_squares(turned_over(positions.state[rows], square))
            telling[rows, square] = (after != positions.legal[rows]).any(1) & after.any(1)
        return telling

    def _begin(self, n: int) -> _Turn:
        black, white = (_BIT[list(at)].sum(dtype=np.uint64) for at in (self.black, self.white))
        return _Turn(np.full(n, black), np.full(n, white), np.ones(n, bool))

    def _play(self, turn: _Turn, square: np.ndarray) -> _Turn:
        """After a move [n] of each game, and a pass if need be; -1 leaves a game as it is."""
        played = square >= 0
        move = np.where(played, _BIT[square.clip(0)], np.uint64(0))
        turned = self.turned(turn.mine, turn.theirs, move)
        mine, theirs = turn.mine | move | turned, turn.theirs & ~turned
        stays = ~played
        if self.passes:
            stuck = np.flatnonzero(played & (self.legal(theirs, mine) == 0))
            stays[stuck] = self.legal(mine[stuck], theirs[stuck]) != 0
        ours, others = np.where(stays, mine, theirs), np.where(stays, theirs, mine)
        return _Turn(ours, others, turn.black == stays)


def turned_over(state: Any, square: Any) -> np.ndarray:
    """Boards [n 36] with the disc on one square [n] of each turned over.

    Raises ``ValueError`` where that square is empty.
    """
    state, rows = _boards(state).copy(), np.arange(len(state))
    held = state[rows, square]
    if (held == EMPTY).any():
        bad = int((held == EMPTY).argmax())
        name = NAMES[int(np.broadcast_to(square, rows.shape)[bad])]
        raise ValueError(f"Square {name} of board {bad} is empty: it has no disc to turn over.")
    state[rows, square] = MINE + THEIRS - held
    return state


def wrong_moves(legal: Any, scored: Any = None) -> Metric:
    """How many moves of each prompt are predicted and not legal, or legal and not predicted.

    Predicted are the k likeliest moves, k being the number of legal ones. legal: bool [n 36].
    scored: bool [n 36], the moves that count; by default all.
    """
    legal = np.asarray(legal, bool)
    scored = np.ones_like(legal) if scored is None else np.asarray(scored, bool)
    return metric(missed_moves, data=(legal, scored))


def legal_sets(legal: Any) -> Metric:
    """1 where the k likeliest moves are the k legal ones, else 0. legal: bool [n 36]."""
    return metric(all_legal, data=(np.asarray(legal, bool),))


def told_apart(legal: Any, illegal: Any) -> Metric:
    """1 where each of some legal moves is likelier than all of some illegal ones, else 0.

    legal, illegal: bool [n 36]; 1 where either has none.
    """
    return metric(all_above, data=(np.asarray(legal, bool), np.asarray(illegal, bool)))


def missed_moves(logits: jax.Array, legal: jax.Array, scored: jax.Array) -> jax.Array:
    """The function of `wrong_moves`: logits [B 1 36], legal and scored bool [B 36] to [B]."""
    z = logits[:, 0]
    above = (z[:, None, :] > z[:, :, None]).sum(-1)
    said = above < legal.sum(-1, keepdims=True)
    return ((said != legal) & scored).sum(-1)


def all_legal(logits: jax.Array, legal: jax.Array) -> jax.Array:
    """The function of `legal_sets`: logits [B 1 36], legal bool [B 36] to [B]."""
    return (missed_moves(logits, legal, jnp.ones_like(legal)) == 0).astype(wide_dtype(logits))


def all_above(logits: jax.Array, legal: jax.Array, illegal: jax.Array) -> jax.Array:
    """The function of `told_apart`: logits [B 1 36], legal and illegal bool [B 36] to [B]."""
    z = logits[:, 0]
    lowest = jnp.where(legal, z, jnp.inf).min(-1)
    return (lowest > jnp.where(illegal, z, -jnp.inf).max(-1)).astype(wide_dtype(logits))


def drawn(state: Any) -> str:
    """A board [36] as text: x mine, o theirs, a dot for empty."""
    rows = _boards(state).reshape(SIZE, SIZE)
    lines = [f"{i} " + " ".join(".xo"[disc] for disc in row) for i, row in enumerate(rows, 1)]
    return "\n".join(["  a b c d e f", *lines])


class _Turn(NamedTuple):
    """Where games stand: bitboards uint64 [n] of the player to move and of the other; who it is."""

    mine: np.ndarray
    theirs: np.ndarray
    black: np.ndarray


def _check(moves: np.ndarray, t: int, legal: np.ndarray) -> None:
    """Refuse moves number t that are not among the legal ones [n 36]."""
    square, rows = moves[:, t], np.arange(len(moves))
    over = moves[:, t - 1] < 0 if t else np.zeros(len(moves), bool)
    known = (square >= (-1 if t else 0)) & (square < SQUARES)
    may = ~over & legal[rows, square.clip(0, SQUARES - 1)]
    right = known & ((square < 0) | may)
    if right.all():
        return
    game = int((~right).argmax())
    said, left = int(square[game]), [NAMES[i] for i in np.flatnonzero(legal[game])]
    if not known[game]:
        raise ValueError(
            f"Move {t} of game {game} is {said}, expected a square from 0 to {SQUARES - 1}, or -1 "
            "once the game is over."
        )
    if over[game]:
        raise ValueError(f"Game {game} ends before move {t - 1} (-1) and goes on at move {t}.")
    raise ValueError(
        f"Move {t} of game {game} is {NAMES[said]}, which is not legal there: legal are "
        f"{', '.join(left) or 'none, the game is over'}."
    )


def _boards(state: Any) -> np.ndarray:
    state = np.asarray(state)
    if state.shape[-1:] != (SQUARES,) or not np.isin(state, (EMPTY, MINE, THEIRS)).all():
        raise ValueError(
            f"A board is {list(state.shape)}, expected [..., {SQUARES}] of 0 (empty), 1 (mine) "
            "and 2 (theirs)."
        )
    return state


def _squares(bits: np.ndarray) -> np.ndarray:
    """bool [... 36] of bitboards [...]."""
    return (bits[..., None] & _BIT) != 0


# Bitboards: a step in a direction shifts all squares at once; what would leave the board is cut.


class _Step(NamedTuple):
    """One of the eight directions: how far it shifts, and the squares from which it is possible."""

    shift: np.uint64
    back: bool
    possible: np.uint64

    def __call__(self, discs: np.ndarray) -> np.ndarray:
        held = discs & self.possible
        return held >> self.shift if self.back else held << self.shift


def _steps() -> tuple[_Step, ...]:
    out = []
    rows, columns = np.divmod(np.arange(SQUARES), SIZE)
    for down, right in ((0, 1), (1, -1), (1, 0), (1, 1), (0, -1), (-1, 1), (-1, 0), (-1, -1)):
        inside = np.isin(rows + down, range(SIZE)) & np.isin(columns + right, range(SIZE))
        shift = SIZE * down + right
        out.append(_Step(np.uint64(abs(shift)), shift < 0, _BIT[inside].sum(dtype=np.uint64)))
    return tuple(out)


_STEPS = _steps()


# Othello


def _row(step: _Step, begin: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Their discs that stand in an unbroken row from ``begin`` on."""
    row = step(begin) & theirs
    for _ in range(SIZE - 3):  # between two squares of a line stand at most SIZE - 2
        row |= step(row) & theirs
    return row


def _closes_a_row(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    empty = _FULL & ~(mine | theirs)
    legal = np.zeros_like(mine)
    for step in _STEPS:
        legal |= step(_row(step, mine, theirs)) & empty
    return legal


def _rows_closed(mine: np.ndarray, theirs: np.ndarray, move: np.ndarray) -> np.ndarray:
    turned = np.zeros_like(mine)
    for step in _STEPS:
        row = _row(step, move, theirs)
        turned |= np.where(step(row) & mine, row, np.uint64(0))
    return turned


OTHELLO = Game("othello", (15, 20), (14, 21), _closes_a_row, _rows_closed, passes=True)


# Ataxx


def _beside(discs: np.ndarray) -> np.ndarray:
    around = np.zeros_like(discs)
    for step in _STEPS:
        around |= step(discs)
    return around


def _beside_mine(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return _beside(mine) & _FULL & ~(mine | theirs)


def _beside_the_move(mine: np.ndarray, theirs: np.ndarray, move: np.ndarray) -> np.ndarray:
    return _beside(move) & theirs


ATAXX = Game("ataxx", (0, 35), (5, 30), _beside_mine, _beside_the_move, passes=False)

GAMES = {game.name: game for game in (ATAXX, OTHELLO)}
