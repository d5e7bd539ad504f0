"""PyTorch's tensor files: what ``torch.save`` wrote, and what we write."""

import base64
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxinterp.loading import LoadError
from jaxinterp.loading.torch_file import read_torch, write_torch


def archive(path, pickled, storages=(), order="little"):
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("t/data.pkl", pickled)
        out.writestr("t/byteorder", order)
        for number, data in enumerate(storages):
            out.writestr(f"t/data/{number}", data)
    return path


@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.uint8, bool],
)
def test_round_trip(tmp_path, dtype):
    tensors = {
        "a.weight": np.arange(12).reshape(3, 4).astype(dtype),
        "empty": np.zeros((0, 3), dtype),
        "scalar": np.ones((), dtype),
        "turned": np.arange(6).reshape(2, 3).T.astype(dtype, order="F"),
    }
    found = read_torch(write_torch(tmp_path / "t.pt", tensors))
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_a_file_that_torch_wrote(tmp_path):
    # torch.save({"0.weight": torch.arange(6.).reshape(2, 3), "0.bias": torch.ones(2)}, path)
    pickled = base64.b64decode(
        "gAJ9cQAoWAgAAAAwLndlaWdodHEBY3RvcmNoLl91dGlscwpfcmVidWlsZF90ZW5zb3JfdjIKcQIoKFgHAAAAc3Rv"
        "cmFnZXEDY3RvcmNoCkZsb2F0U3RvcmFnZQpxBFgBAAAAMHEFWAMAAABjcHVxBksGdHEHUUsASwJLA4ZxCEsDSwGG"
        "cQmJY2NvbGxlY3Rpb25zCk9yZGVyZWREaWN0CnEKKVJxC3RxDFJxDVgGAAAAMC5iaWFzcQ5oAigoaANoBFgBAAAA"
        "MXEPaAZLAnRxEFFLAEsChXERSwGFcRKJaAopUnETdHEUUnEVdS4="
    )
    weight, bias = np.arange(6, dtype=np.float32), np.ones(2, np.float32)
    path = archive(tmp_path / "t.pt", pickled, [weight.tobytes(), bias.tobytes()])
    found = read_torch(path)
    np.testing.assert_array_equal(found["0.weight"], weight.reshape(2, 3))
    np.testing.assert_array_equal(found["0.bias"], bias)
    short = archive(tmp_path / "s.pt", pickled, [weight.tobytes()[:20], bias.tobytes()])
    with pytest.raises(LoadError, match="5 values, expected 6"):
        read_torch(short)
    with pytest.raises(LoadError, match="big"):
        read_torch(archive(tmp_path / "b.pt", pickled, [], order="big"))


class _Evil:
    def __reduce__(self):
        return print, ("this must not run",)


def test_no_code_of_a_file_runs(tmp_path, capsys):
    with pytest.raises(LoadError, match=r"builtins\.print|__builtin__\.print"):
        read_torch(archive(tmp_path / "e.pt", pickle.dumps(_Evil(), 2)))
    assert capsys.readouterr().out == ""


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pt"):
        read_torch(tmp_path / "none.pt")
    path = tmp_path / "t.pt"
    path.write_bytes(b"not a zip")
    with pytest.raises(LoadError, match="not a whole PyTorch file"):
        read_torch(path)
    with pytest.raises(ValueError, match="complex64"):
        write_torch(path, {"x": np.zeros(2, np.complex64)})
    # A tensor that claims more than its storage holds.
    write_torch(path, {"x": np.zeros(6, np.float32)})
    with zipfile.ZipFile(path) as held:
        pickled = held.read("archive/data.pkl")
    at = pickled.rindex(b"(" + b"\x8a\x08" + (6).to_bytes(8, "little") + b"t")
    pickled = pickled[: at + 3] + (7).to_bytes(8, "little") + pickled[at + 11 :]
    with pytest.raises(LoadError, match="beyond its storage"):
        read_torch(archive(path, pickled, [bytes(24)]))
