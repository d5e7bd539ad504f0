"""Make the optional environment in which `peers.py` runs: python make_peer_env.py FOLDER."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

# torch first and by itself: what comes after must not choose another build of it.
STEPS = (("torch==2.13.0",), ("transformer-lens==4.3.0", "gguf"))


def make(folder: Path) -> Path:
    """Create the environment if it is not there, install the peers, return its interpreter.

    pip's own configuration decides which build of torch that is. For the small CPU build on
    Linux: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
    """
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    for packages in STEPS:
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(command, check=True)
    return python


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(make(Path(sys.argv[1])))
