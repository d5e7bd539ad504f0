"""Bitboards against the rules written out: lists, loops, one game at a time."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.algorithmic import boards
from jaxinterp.algorithmic.prompts import as_prompts

N = 6


class Slow:
    """One game of Othello: a list of lists of ".", "b" and "w"."""

    begins = ((2, 2, "w"), (2, 3, "b"), (3, 2, "b"), (3, 3, "w"))
    passing = True

    def __init__(self):
        self.board = [["."] * N for _ in range(N)]
        for row, column, disc in self.begins:
            self.board[row][column] = disc
        self.player = "b"
        self.passes = 0

    def flips(self, row, column, player):
        """The discs that a move would turn over."""
        if self.board[row][column] != ".":
            return []
        found = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                line, r, c = [], row + down, column + right
                while 0 <= r < N and 0 <= c < N and self.board[r][c] == other(player):
                    line.append((r, c))
                    r, c = r + down, c + right
                if 0 <= r < N and 0 <= c < N and self.board[r][c] == player:
                    found += line
        return found

    def may(self, row, column, player):
        return bool(self.flips(row, column, player))

    def moves(self, player):
        places = [(r, c) for r in range(N) for c in range(N)]
        return [N * r + c for r, c in places if self.may(r, c, player)]

    def play(self, square):
        row, column = divmod(square, N)
        for r, c in self.flips(row, column, self.player):
            self.board[r][c] = self.player
        self.board[row][column] = self.player
        opponent = other(self.player)
        if self.passing and not self.moves(opponent) and self.moves(self.player):
            self.passes += 1
        else:
            self.player = opponent

    def over(self):
        return not self.moves(self.player)

    def state(self):
        kinds = {".": 0, self.player: 1, other(self.player): 2}
        return [kinds[disc] for row in self.board for disc in row]


class SlowAtaxx(Slow):
    """Ataxx without jumps."""

    begins = ((0, 0, "b"), (0, 5, "w"), (5, 0, "w"), (5, 5, "b"))
    passing = False

    def beside(self, row, column, disc):
        around = [(row + d, column + r) for d in (-1, 0, 1) for r in (-1, 0, 1)]
        inside = [(r, c) for r, c in around if 0 <= r < N and 0 <= c < N]
        return [(r, c) for r, c in inside if self.board[r][c] == disc]

    def flips(self, row, column, player):
        return self.beside(row, column, other(player))

    def may(self, row, column, player):
        return self.board[row][column] == "." and bool(self.beside(row, column, player))


def other(player):
    return "w" if player == "b" else "b"


SLOW = {boards.OTHELLO: Slow, boards.ATAXX: SlowAtaxx}
both = pytest.mark.parametrize("game", SLOW, ids=[game.name for game in SLOW])


@functools.cache
def games_of(game):
    return game.random_games(300, seed=7)


@both
def test_every_board_is_the_one_the_rules_give(game):
    games = games_of(game)
    played = game.replay(games)
    passes = short = 0
    for i, moves in enumerate(games):
        slow, over = SLOW[game](), False
        for t, square in enumerate(moves):
            if square < 0:
                assert slow.over()
                assert not slow.passing or not slow.moves(other(slow.player))
                over = True
            else:
                assert not over
                assert square in slow.moves(slow.player)
                slow.play(square)
            assert played.state[i, t].tolist() == slow.state()
            assert np.flatnonzero(played.legal[i, t]).tolist() == slow.moves(slow.player)
            assert played.black[i, t] == (slow.player == "b")
        passes, short = passes + slow.passes, short + over
    assert (passes > 30) == game.passes  # both happen often enough to have been seen right
    assert short > 8


def test_the_four_openings():
    first = boards.OTHELLO.random_games(200, seed=1)[:, 0]
    assert {boards.NAMES[i] for i in first} == {"c2", "b3", "e4", "d5"}


@both
def test_moves_are_drawn_evenly(game):
    games = game.random_games(4000, seed=3)
    legal = game.replay(games).legal[:, :-1].reshape(-1, boards.SQUARES)
    following = games[:, 1:].reshape(-1)
    legal, following = legal[following >= 0], following[following >= 0]
    rank = (legal.cumsum(1)[np.arange(len(legal)), following] - 1) / legal.sum(1)
    for count in (2, 5, 8):
        own = rank[legal.sum(1) == count]
        seen = np.bincount(np.rint(own * count).astype(int), minlength=count)
        expected = len(own) / count
        chi2 = ((seen - expected) ** 2 / expected).sum()
        assert chi2 < count - 1 + 5 * np.sqrt(2 * (count - 1))


@both
def test_games_follow_from_their_seed(game):
    games = games_of(game)
    assert np.array_equal(games, game.random_games(300, seed=7))
    assert not np.array_equal(games, game.random_games(300, seed=8))
    assert not np.array_equal(games, game.random_games(300, seed=(7, 1)))
    assert games.dtype == np.int32
    assert games.shape == (300, game.moves)


@both
def test_a_game_and_its_mirror_image_have_mirrored_boards(game):
    games = games_of(game)
    # Over the main diagonal the discs of the start lie as before.
    mirror = np.arange(boards.SQUARES).reshape(N, N).T.reshape(-1)
    played = game.replay(games)
    mirrored = game.replay(np.where(games < 0, -1, mirror[games]))
    assert np.array_equal(mirrored.state, played.state[..., mirror])
    assert np.array_equal(mirrored.legal, played.legal[..., mirror])


@both
def test_legal_squares_of_any_board(game):
    games = games_of(game)
    played = game.replay(games)
    assert np.array_equal(game.legal_squares(played.state), played.legal)
    # Boards that no game reaches: random discs, and one turned over.
    rng = np.random.default_rng(0)
    made_up = [*rng.integers(0, 3, (100, boards.SQUARES))]
    held = played.state[:, 10]
    square = np.array([rng.choice(np.flatnonzero(board)) for board in held])
    turned = boards.turned_over(held, square)
    changed = turned != held
    assert (changed.sum(1) == 1).all()
    assert changed[np.arange(len(held)), square].all()
    assert (turned[changed] + held[changed] == 3).all()
    slow = SLOW[game]()
    slow.player = "b"
    for board in [*made_up, *turned]:
        slow.board = [[".bw"[disc] for disc in row] for row in board.reshape(N, N)]
        assert np.flatnonzero(game.legal_squares(board)).tolist() == slow.moves("b")


@both
def test_positions_are_those_of_their_games(game):
    found = game.random_positions(200, seed=5)
    lengths = np.asarray(found.tokens.lengths)
    assert lengths.min() == 1
    assert lengths.max() >= 29
    for i, length in enumerate(lengths):
        slow = SLOW[game]()
        for square in found.tokens.ids[i, :length]:
            slow.play(int(square))
        assert found.state[i].tolist() == slow.state()
        assert np.flatnonzero(found.legal[i]).tolist() == slow.moves(slow.player)
        assert found.legal[i].any()  # a move follows
        assert found.black[i] == (slow.player == "b")
    again = game.random_positions(200, seed=5)[lengths > 9]
    assert len(again) == (lengths > 9).sum()
    assert np.array_equal(again.state, found.state[lengths > 9])
    assert np.array_equal(again.tokens.lengths, lengths[lengths > 9])


@both
def test_telling_squares_one_by_one(game):
    found = game.random_positions(40, seed=6)
    telling, slow = game.telling_squares(found), SLOW[game]()
    slow.player = "b"
    for i, state in enumerate(found.state):
        for square, disc in enumerate(state):
            board = [".bw"[disc] for disc in state]
            board[square] = ".wb"[disc]
            slow.board = [board[N * r : N * r + N] for r in range(N)]
            after = slow.moves("b")
            changes = after not in ([], np.flatnonzero(found.legal[i]).tolist())
            assert telling[i, square] == (disc > 0 and changes)
    assert 0.2 < telling[found.state > 0].mean() < 0.9


def test_predicted_moves_are_as_many_as_the_legal_ones():
    rng = np.random.default_rng(4)
    legal = rng.random((50, boards.SQUARES)) < 0.2
    scored = rng.random(legal.shape) < 0.5
    logits = rng.normal(size=legal.shape).astype(np.float32) + 4 * legal
    logits[:3] += 10 * legal[:3]  # these predict just what is legal
    wrong = np.zeros((2, len(legal)), int)
    for i in range(len(legal)):
        likeliest = set(np.argsort(-logits[i])[: legal[i].sum()].tolist())
        for square in range(boards.SQUARES):
            missed = (square in likeliest) != legal[i, square]
            wrong[0, i] += missed
            wrong[1, i] += missed and scored[i, square]
    given, tokens = jnp.asarray(logits)[:, None], as_prompts(np.zeros((len(legal), 1), int))
    assert (wrong[0, :3] == 0).all()
    assert wrong[0].max() > 1
    assert (boards.wrong_moves(legal)(given, tokens) == wrong[0]).all()
    assert (boards.wrong_moves(legal, scored)(given, tokens) == wrong[1]).all()
    assert (boards.legal_sets(legal)(given, tokens) == (wrong[0] == 0)).all()
    some, others = legal & scored, ~legal & scored
    apart = [
        all(a > b for a in z[yes].tolist() for b in z[no].tolist())
        for z, yes, no in zip(logits, some, others, strict=True)
    ]
    assert 3 < sum(apart) < len(apart)
    assert (boards.told_apart(some, others)(given, tokens) == np.array(apart)).all()
    assert (boards.told_apart(some, ~legal & False)(given, tokens) == 1).all()


def test_squares_by_name():
    tokenizer = boards.OTHELLO.tokenizer()
    assert tokenizer("a1 f1 a2 f6").ids.tolist() == [[0, 5, 6, 35]]
    assert tokenizer.decode([22, 15]) == "e4 d3"
    assert [boards.NAMES[i] for i in boards.OTHELLO.white] == ["c3", "d4"]
    assert [boards.NAMES[i] for i in boards.ATAXX.black] == ["a1", "f6"]


def test_the_start_and_a_move_drawn():
    # Black plays e4 and turns d4 over; white is to move, so that black's discs are theirs.
    state = boards.OTHELLO.replay([[boards.NAMES.index("e4")]]).state[0, 0]
    assert boards.drawn(state) == "\n".join([
        "  a b c d e f",
        "1 . . . . . .",
        "2 . . . . . .",
        "3 . . x o . .",
        "4 . . o o o .",
        "5 . . . . . .",
        "6 . . . . . .",
    ])  # fmt: skip


def test_a_move_of_ataxx_turns_all_beside_it():
    moves = [boards.NAMES.index(square) for square in ("b2", "e2", "c3", "d3")]
    state = boards.ATAXX.replay([moves]).state[0, -1]  # black is to move: x
    assert boards.drawn(state) == "\n".join([
        "  a b c d e f",
        "1 x . . . . o",
        "2 . x . . o .",
        "3 . . o o . .",
        "4 . . . . . .",
        "5 . . . . . .",
        "6 o . . . . x",
    ])  # fmt: skip


def test_bad_games_are_refused():
    games = games_of(boards.OTHELLO)
    over = games[(games < 0).any(1)][:1].copy()
    last = int((over[0] >= 0).sum())
    e4, f6 = boards.NAMES.index("e4"), boards.NAMES.index("f6")
    with pytest.raises(ValueError, match="Move 1 of game 0 is f6, which is not legal there"):
        boards.OTHELLO.replay([[e4, f6]])
    with pytest.raises(ValueError, match=r"Move 0 of game 1 is e5.*c2, b3, e4, d5"):
        boards.OTHELLO.replay([[e4], [boards.NAMES.index("e5")]])
    late = over.copy()
    late[0, last] = int(np.flatnonzero(~np.isin(np.arange(boards.SQUARES), late))[0])
    with pytest.raises(ValueError, match="none, the game is over"):
        boards.OTHELLO.replay(late)
    with pytest.raises(ValueError, match=r"Game 0 ends before move 1 \(-1\) and goes on at move 2"):
        boards.OTHELLO.replay([[e4, -1, f6]])
    with pytest.raises(ValueError, match="Move 0 of game 0 is 36, expected a square"):
        boards.OTHELLO.replay([[36]])
    with pytest.raises(ValueError, match="Move 0 of game 0 is -1, expected a square"):
        boards.OTHELLO.replay([[-1, -1]])
    with pytest.raises(ValueError, match=r"moves are float64 \[1, 1\]"):
        boards.OTHELLO.replay([[1.0]])
    with pytest.raises(ValueError, match="n=0, expected"):
        boards.OTHELLO.random_games(0)
    with pytest.raises(ValueError, match=r"A board is \[35\]"):
        boards.OTHELLO.legal_squares(np.zeros(35, int))
    with pytest.raises(ValueError, match="Square a1 of board 0 is empty"):
        boards.turned_over(np.zeros((1, 36), int), 0)
