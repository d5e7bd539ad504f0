"""PyTorch's tensor files: what ``torch.save`` wrote, and what we write."""

import base64
import io
import pickle
import tracemalloc
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


# Hostile files: each of these read beyond its buffer, changed the process, or took all memory.


def number(value):
    coded = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(coded)]) + coded


def described(shape, strides, offset=0, size=6, kind=b"FloatStorage"):
    """The pickle of {"x": a tensor} that claims these sizes."""
    storage = b"(X\x07\0\0\0storagectorch\n" + kind + b"\nX\x01\0\0\0" + b"0X\x03\0\0\0cpu"
    sizes = [b"(" + b"".join(map(number, given)) + b"t" for given in (shape, strides)]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(size) + b"tQ"
    tensor += number(offset) + b"".join(sizes) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x01\0\0\0x" + tensor + b"s."


def read(folder, pickled, data=bytes(24)):
    return read_torch(archive(folder / "t.pt", pickled, [data]))


def test_the_pickles_of_these_tests_are_right(tmp_path):
    values = np.arange(6, dtype=np.float32)
    found = read(tmp_path, described((2, 2), (2, 1), 1), values.tobytes())["x"]
    np.testing.assert_array_equal(found, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        (((2, 2), (-4000, 4001)), "where a size is expected"),
        (((4, 2), (-1, 3), 3), "where a size is expected"),
        (((2,), (1,), -1), "where a size is expected"),
        (((-1, -6), (1, 1)), "where a size is expected"),
        (((7,), (1,)), "beyond its storage of 6"),
        (((2, 3), (3, 2)), "beyond its storage of 6"),
        (((6,), (1,), 1), "beyond its storage of 6"),
        (((1 << 40,), (0,)), "repeats the 6 values"),
        (((1 << 20, 1 << 20), (0, 0)), "repeats the 6 values"),
        (((0, 1 << 61), (1, 1)), "repeats the 6 values"),
        (((2, 3), (3,)), "2 sizes and 1 strides"),
        (((1,) * 40, (1,) * 40), "40 sizes"),
        (((6,), (1,), 0, 7), "6 values, expected 7"),
        (((3,), (1,), 0, 3, b"ComplexDoubleStorage"), "ComplexDoubleStorage"),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path, claims, message):
    tracemalloc.start()
    with pytest.raises(LoadError, match=message):
        read(tmp_path, described(*claims))
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_a_tensor_is_no_storage(tmp_path):
    # A tensor of shape (9, 0) in a storage's place once gave 16 kB of the heap.
    inner = described((9, 0), (1, 1))[9:-2]
    sizes = b"K\0(" + number(9) + number(9) + b"t(" + number(1) + number(0) + b"t\x89)"
    program = b"\x80\x02}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n(" + inner + sizes + b"tRs."
    with pytest.raises(LoadError, match=r"calls .*_v2.* with what describes no tensor"):
        read(tmp_path, program)


@pytest.mark.parametrize(
    "name",
    [b"torch\nBFloat16Storage", b"collections\nOrderedDict", b"torch._utils\n_rebuild_parameter"],
)
def test_no_file_changes_the_process(tmp_path, name):
    good = write_torch(tmp_path / "good.pt", {"x": np.ones(3, ml_dtypes.bfloat16)})
    state = b"}X\x04\0\0\0nameX\x01\0\0\0xs"
    for given in (state, b"N" + state + b"\x86"):  # attributes, or slots
        program = b"c" + name + b"\n" + given + b"b."
        with pytest.raises(LoadError, match="as if it were a dict"):
            read(tmp_path, b"\x80\x02" + program)
    np.testing.assert_array_equal(read_torch(good)["x"], np.ones(3))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02cos\nsystem\n(X\x02\0\0\0lstR.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02(X\x02\0\0\0lsios\nsystem\n.", "INST"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02Pstorage\n.", "PERSID"),
        (b"\x80\x02}q\0X\x01\0\0\0ah\0s.", "levels of names"),  # it holds itself
        (b"\x80\x02" + b"}" * 3, "does not end|exhausted"),
        (b"\x80\x02tR.", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02}" + b"0}" * 1_100_000 + b".", "more than 2000000 steps|POP"),
        (b"\x80\x02" + b"}" * (9 << 20) + b".", "8388608"),
    ],
)
def test_steps_that_no_file_of_tensors_has(tmp_path, program, message):
    with pytest.raises(LoadError, match=message):
        read(tmp_path, program)


def test_values_that_hold_each_other_many_times(tmp_path):
    # Each dict holds the one before twice: 2^60 ways to the innermost.
    program = b"\x80\x02}q\0"
    for i in range(1, 60):
        before = b"h" + bytes([i - 1])
        program += b"}q" + bytes([i]) + b"(X\x01\0\0\0a" + before + b"X\x01\0\0\0b" + before + b"u"
    with pytest.raises(LoadError, match="levels of names"):
        read(tmp_path, program + b".")


def test_archives_that_swell(tmp_path):
    path = tmp_path / "t.pt"
    pickled, zeros = described((1 << 24,), (1,), size=1 << 24), bytes(4 << 24)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("t/data.pkl", pickled)
        out.writestr("t/data/0", zeros)
    assert path.stat().st_size < 1e5
    with pytest.raises(LoadError, match="unpacks to more than"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("t/data.pkl", pickled)
        with pytest.warns(UserWarning, match="Duplicate"):
            out.writestr("t/data.pkl", pickled)
    with pytest.raises(LoadError, match="two of its parts have one name"):
        read_torch(path)


def test_the_form_before_version_1_6(tmp_path):
    old = io.BytesIO()
    pickle.dump(0x1950A86A20F9469CFC6C, old, protocol=2)
    (tmp_path / "t.pt").write_bytes(old.getvalue() + b"more")
    with pytest.raises(LoadError, match=r"before version 1\.6, .*save it again"):
        read_torch(tmp_path / "t.pt")


STATE_DICT = (
    "gAJjY29sbGVjdGlvbnMKT3JkZXJlZERpY3QKcQApUnEBKFgGAAAAd2VpZ2h0cQJjdG9yY2guX3V0aWxzCl9yZWJ1aW"
    "xkX3RlbnNvcl92MgpxAygoWAcAAABzdG9yYWdlcQRjdG9yY2gKRmxvYXRTdG9yYWdlCnEFWAEAAAAwcQZYAwAAAGNw"
    "dXEHSwJ0cQhRSwBLAoVxCUsBhXEKiWgAKVJxC3RxDFJxDVgEAAAAYmlhc3EOaAMoKGgEaAVYAQAAADFxD2gHSwJ0cR"
    "BRSwBLAoVxEUsBhXESiWgAKVJxE3RxFFJxFXV9cRZYCQAAAF9tZXRhZGF0YXEXaAApUnEYWAAAAABxGX1xGlgHAAAA"
    "dmVyc2lvbnEbSwFzc3NiLg=="
)


def test_a_state_dict_that_carries_its_versions(tmp_path):
    # torch.save(torch.nn.LayerNorm(2).state_dict(), path): an OrderedDict with BUILD
    pickled = base64.b64decode(STATE_DICT)
    parts = [np.ones(2, np.float32).tobytes(), np.zeros(2, np.float32).tobytes()]
    found = read_torch(archive(tmp_path / "t.pt", pickled, parts))
    assert b"_metadata" in pickled
    assert {name: value.tolist() for name, value in found.items()} == {
        "weight": [1, 1], "bias": [0, 0],
    }  # fmt: skip
