"""Make an optional environment for `server.py`: python make_peer_env.py FOLDER [PEER].

PEER: transformer-lens (the default, which also runs the hand-batched PyTorch), nnsight, or
sae-lens (with the other libraries of sparse dictionaries). Their requirements differ: give each a
folder of its own.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

PEERS = {
    "transformer-lens": ("transformer-lens==4.3.0", "gguf"),
    "nnsight": ("nnsight==0.8.1", "transformers", "accelerate", "gguf"),
    "sae-lens": ("sae-lens==6.54.12", "eai-sparsify==1.3.3", "zstandard", "nnsight"),
}
ALONE = {  # packages whose own requirements are of another time
    "sae-lens": ("dictionary-learning==0.1.0", "circuit-tracer==0.5.0"),
}


def steps(peer: str) -> tuple[tuple[str, ...], ...]:
    """What to install. torch first and alone: what follows must not choose another build."""
    alone = tuple(("--no-deps", package) for package in ALONE.get(peer, ()))
    return ("torch==2.13.0",), PEERS[peer], *alone


def make(folder: Path, peer: str = "transformer-lens") -> Path:
    """Create the environment if it is not there, install the peer, return its interpreter.

    pip's own configuration decides which build of torch that is. For the small CPU build on
    Linux: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
    """
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    for packages in steps(peer):
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(command, check=True)
    return python


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], *([peer] for peer in PEERS)):
        sys.exit(__doc__)
    print(make(Path(sys.argv[1]), *sys.argv[2:]))
