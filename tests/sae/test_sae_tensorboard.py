"""What TensorBoard is told, read back from its files."""

import struct
import sys

import numpy as np
import pytest

from jaxinterp import sae
from jaxinterp.sae.tensorboard import tensorboard

SEEN = {"l0": [1.0, 2.0], "explained": [0.25, -0.5]}


def scalars(folder):
    """{tag: [(step, value), ...]} of all files in a run's folder, and the steps of its starts."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found, starts = {}, []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record: its length, a checksum, itself, a checksum
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            if event.session_log.status == SessionLog.START:
                starts.append(event.step)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found, starts


def test_each_member_is_a_run(tmp_path):
    log = tensorboard(tmp_path / "tb", ["a", "b"])
    log(4, {"step": 4, **SEEN})
    log(9, {"step": 9, **SEEN, "l0": [3.0, 4.0]})
    log.close()
    assert sorted(p.name for p in (tmp_path / "tb").iterdir()) == ["a", "b"]
    for i, name in enumerate("ab"):
        found, starts = scalars(tmp_path / "tb" / name)
        assert found == {
            "l0": [(4, 1.0 + i), (9, 3.0 + i)],
            "explained": [(4, SEEN["explained"][i]), (9, SEEN["explained"][i])],
        }
        assert starts == [4]
    again = tensorboard(tmp_path / "tb", ["a", "b"])
    again(7, {"step": 7, **SEEN})  # what was told from step 7 on is to be hidden
    again.close()
    found, starts = scalars(tmp_path / "tb" / "a")
    assert sorted(found["l0"]) == [(4, 1.0), (7, 1.0), (9, 3.0)]
    assert sorted(starts) == [4, 7]


def test_training_tells_its_history(tmp_path):
    log = tensorboard(tmp_path)
    x = np.random.default_rng(0).normal(size=(6, 16, 5)).astype(np.float32)
    found = sae.train(
        sae.DictionaryConfig(5, 8, activation="topk"), x, sae.TrainingConfig(6),
        sae.Hyperparameters(k=[1, 2]), log_every=2, on_step=log,
    )  # fmt: skip
    log.close()
    for i in range(2):
        told, _ = scalars(tmp_path / f"member{i}")
        assert set(told) == set(found.history.data_vars)
        for name, rows in told.items():
            steps, values = zip(*rows, strict=True)
            assert list(steps) == [1, 3, 5]
            np.testing.assert_allclose(values, found.history[name][:, i], rtol=1e-6)


def test_bad_input(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="1 names for 2 members"):
        tensorboard(tmp_path, ["a"])(0, SEEN)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxinterp\[tensorboard\]'"):
        tensorboard(tmp_path)
