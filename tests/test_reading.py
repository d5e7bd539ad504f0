"""The shared layer for files of strangers: what is refused before it is opened or allocated."""

import errno
import io
import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
import xarray as xr

import jaxinterp as ji
from jaxinterp import hdf5
from jaxinterp.directions import Direction
from jaxinterp.reading import (
    MESSAGE,
    LoadError,
    damage_refused,
    inside,
    parse_json,
    read_npz,
    regular_file,
    regular_folder,
)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "loop", "device", ".", "a" * 300, "a\0b"):
        with pytest.raises(LoadError, match=r"no regular file|cannot be looked at"):
            regular_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no file"):
        regular_file(tmp_path / "none")
    (tmp_path / "file").write_bytes(bytes(9))
    assert regular_file(tmp_path / "file", 9) == tmp_path / "file"
    with pytest.raises(LoadError, match="9 bytes, expected at most 8"):
        regular_file(tmp_path / "file", 8)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/x", "C:\\x", "..\\x", "", "a\0", "a\n", "x" * 200, 3, None, ["x"]],
)
def test_names_stay_in_their_folder(tmp_path, name):
    with pytest.raises(LoadError, match="not inside"):
        inside(tmp_path, name)
    assert inside(tmp_path, "shards/a-1.safetensors") == tmp_path / "shards" / "a-1.safetensors"


def test_json_is_of_bounded_depth_and_says_nothing_twice():
    assert parse_json('{"a": [1, {"b": null}]}', "x") == {"a": [1, {"b": None}]}
    assert parse_json("[" * 99 + "]" * 99, "x")
    for deep in (101, 5_000, 1_000_000):
        with pytest.raises(LoadError, match="x nests more than 100 levels"):
            parse_json("[" * deep + "]" * deep, "x")
    for text in ("{", b"\xff", "9" * 5000, "[1,]"):
        with pytest.raises(LoadError, match="x is not valid JSON"):
            parse_json(text, "x")


def test_json_says_one_thing_under_a_name():
    same = '{"a": 1, "b": {"c": [1], "c": [1]}, "a": 1}'
    assert parse_json(same, "x") == {"a": 1, "b": {"c": [1]}}
    for one, other in (("1", "2"), ("1", "true"), ("1", "1.0"), ('{"c": 1}', '{"c": true}')):
        with pytest.raises(LoadError, match=r"x gives 'a' two values, .*the wrong") as caught:
            parse_json(f'{{"b": [{{"a": {one}, "a": {other}}}]}}', "x")
        assert "valid JSON" not in str(caught.value)


def test_an_error_quotes_no_more_than_a_reader_reads():
    error = LoadError("The start " + "x" * 10**6 + " the end.")
    assert len(str(error)) < MESSAGE
    assert str(error).startswith("The start")
    assert str(error).endswith("the end.")


def test_what_interrupts_is_no_damage():
    for kind in (KeyboardInterrupt, MemoryError, FileNotFoundError, SystemExit):
        with pytest.raises(kind), damage_refused("x", "a file"):
            raise kind
    for number in (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOSPC):
        with pytest.raises(OSError, match="fault") as caught, damage_refused("x", "a file"):
            raise OSError(number, "not the file's fault")
        assert caught.value.errno == number
    with pytest.raises(LoadError, match="damaged"), damage_refused("x", "a file"):
        raise OSError("truncated")
    with pytest.raises(LoadError, match=r"x is not a file, or it is damaged \(KeyError\)"):
        _lacking()


def _lacking():
    with damage_refused("x", "a file"):
        raise KeyError


def npz(path, header, data, method=zipfile.ZIP_STORED, version=b"\x01\x00"):
    text = header.encode()
    with zipfile.ZipFile(path, "w", method) as out:
        length = len(text).to_bytes(2, "little")
        out.writestr("a.npy", b"\x93NUMPY" + version + length + text + data)
    return path


HEADER = "{{'descr': {!r}, 'fortran_order': False, 'shape': {}}}"


def test_arrays_are_what_their_bytes_are(tmp_path):
    given = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array("text"), "c": np.zeros((0, 3))}
    np.savez_compressed(tmp_path / "x.npz", **given)
    found = read_npz(tmp_path / "x.npz")
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    found["a"][0, 0] = 7  # writable, as NumPy's


@pytest.mark.parametrize(
    ("descr", "shape", "message"),
    [
        ("<f4", "(1000000000000,)", "24 bytes for float32"),
        ("<f4", "(5,)", "24 bytes for float32"),
        ("<f4", "(-2, -3)", "24 bytes for float32"),
        ("<f4", "('a',)", "not a file of arrays"),
        ("|O", "(3,)", "holds object"),
        ("<U1000000000", "(1,)", "24 bytes for <U|not a valid dtype"),
        ([("x", "<f4")], "(6,)", "expected numbers or text"),
        ("(2,)<f4", "(3,)", "expected numbers or text|24 bytes"),
    ],
)
def test_an_npz_file_claims_no_more_than_it_has(tmp_path, descr, shape, message):
    path = npz(tmp_path / "x.npz", HEADER.format(descr, shape), bytes(24))
    tracemalloc.start()
    with pytest.raises(LoadError, match=message):
        read_npz(path, "a file of arrays")
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_an_npz_file_does_not_swell(tmp_path):
    header = HEADER.format("<f4", "(33554432,)")
    path = npz(tmp_path / "x.npz", header, bytes(4 << 25), zipfile.ZIP_DEFLATED)
    with pytest.raises(LoadError, match="unpacks to more than 50 times its size"):
        read_npz(path)
    path = npz(tmp_path / "y.npz", HEADER.format("<f4", "(2,)"), bytes(8), version=b"\x03\x00")
    with pytest.raises(LoadError, match="version"):
        read_npz(path)


def test_a_direction_is_all_that_its_file_holds(tmp_path):
    about = json.dumps(["z", "given"])
    vector = np.ones(3, np.float32)
    for arrays in (
        {"vector": vector, "about": about, "more": vector},
        {"vector": vector},
        {"vector": np.arange(3), "about": about},
        {"vector": vector, "about": json.dumps(["z", 3])},
        {"vector": vector, "about": "[" * 200},
        {"vector": np.full(3, np.nan, np.float32), "about": about},
    ):
        np.savez(tmp_path / "d.npz", **arrays)
        with pytest.raises(LoadError):
            Direction.load(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", vector=vector, about=about)
    assert Direction.load(tmp_path / "d.npz").site == "z"


# Results


def result():
    values = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    coords = {"layer": [0, 1, 2], "token": ("position", list("abcd"))}
    return xr.DataArray(values, coords, ("layer", "position"), "z", {"model": "m"})


def test_a_result_that_was_changed_is_noticed(tmp_path):
    path = ji.results.save(result(), tmp_path / "r.nc")
    data = path.read_bytes()
    xr.testing.assert_identical(xr.open_dataarray(path), result())  # others read it as well
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data) - 48, 12):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(LoadError, match="its checksum is another"):
            ji.results.load(path)


def test_nothing_that_lies_beside_a_file_is_run(tmp_path, monkeypatch):
    path = ji.results.save(result(), tmp_path / "r.nc")
    for name in ("h5py", "resource", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    xr.testing.assert_identical(ji.results.load(path), result())
    assert not (tmp_path / "ran").exists()


def test_files_of_others_are_looked_at_in_another_process(tmp_path, monkeypatch):
    import h5py

    result().to_netcdf(tmp_path / "theirs.nc", engine="h5netcdf")
    xr.testing.assert_identical(ji.results.load(tmp_path / "theirs.nc"), result())
    path = tmp_path / "large.nc"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (10**6, 10**6), "f4", chunks=(1000, 1000))
    with pytest.raises(LoadError, match="claim many times its size"):
        ji.results.load(path)
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink(str(tmp_path / "theirs.nc"), "z")
    with pytest.raises(LoadError, match="lies in another place"):
        ji.results.load(path)
    for walk, message in (
        ("import time; time.sleep(60)", "busy with it for more than"),
        ("import os; os.abort()", "HDF5 ends with -6"),
    ):
        monkeypatch.setattr(hdf5, "SECONDS", 1)
        monkeypatch.setattr(hdf5, "_WALK", walk)
        with pytest.raises(LoadError, match=f"not a complete result file .*{message}"):
            ji.results.load(tmp_path / "theirs.nc")


def test_bytes_that_are_no_result(tmp_path):
    held = io.BytesIO()
    np.save(held, np.ones(3))
    for data in (b"", b"\x89HDF\r\n\x1a\n", held.getvalue(), hdf5.sealed(b"nothing")):
        (tmp_path / "r.nc").write_bytes(data)
        with pytest.raises(LoadError, match=r"r\.nc is not a complete result file .*run it again"):
            ji.results.load(tmp_path / "r.nc")


def test_a_folder_of_arrays_holds_files_alone(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(bytes(7))
    assert regular_folder(tmp_path) == 7
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda p: p.symlink_to("/")):
        make(tmp_path / "a" / "d")
        with pytest.raises(LoadError, match=r"no regular file|is a link"):
            regular_folder(tmp_path)
        (tmp_path / "a" / "d").unlink()
    with pytest.raises(FileNotFoundError, match="no folder"):
        regular_folder(tmp_path / "none")
