"""The caller's end of the pipe to the peers, and what both ends share. Needs no torch."""

import importlib.util
import sys
import time

import peers
import pytest
import server

ANY_LAYERS = 30


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, list(range(ANY_LAYERS))), (1, [0]), (2, [0, 29]), (4, [0, 10, 19, 29]), (0, [0])],
)
def test_spread_takes_layers_from_first_to_last(limit, expected):
    assert peers.spread(ANY_LAYERS, limit) == expected


def test_spread_never_exceeds_the_model():
    for n_layers in range(1, 13):
        for limit in range(1, 20):
            assert len(peers.spread(n_layers, limit)) == min(limit, n_layers)


def test_timed_returns_the_result_and_its_seconds():
    result, seconds = peers.timed(lambda: time.sleep(0.01) or "done")
    assert result == "done"
    assert 0.01 <= seconds < 5


def test_peak_memory_is_of_this_process():
    peers.reset_peak()
    assert 1 << 20 < peers.peak_rss() < 1 << 40


def test_every_request_is_a_method_of_the_server():
    assert all(callable(getattr(server.Server, name)) for name in server.REQUESTS)


def test_errors_come_back_and_the_peer_lives_on():
    with peers.Peer(sys.executable) as peer:
        for _ in range(2):
            has_torch = importlib.util.find_spec("torch") is not None
            message = "Unknown request" if has_torch else "has no torch"
            with pytest.raises(RuntimeError, match=message):
                peer.ask("dance")
    assert peer.process.returncode == 0


def test_a_peer_that_died_is_an_error():
    with peers.Peer(sys.executable) as peer:
        peer.process.kill()
        peer.process.wait()
        with pytest.raises(RuntimeError, match="ended with status"):
            peer.ask("about")
