"""Make an aarch64 "board" out of Debian packages and qemu: a folder with a userland, numpy and onnxruntime for aarch64.

Run as ``python tests/benchmarks/aarch64_board.py FOLDER`` it makes the folder (a few minutes, 700 MB, needs a network);
``test_aarch64.py`` finds it by $SHALLOWVIT_AARCH64. Needs: apt-get install qemu-user-static debootstrap.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# onnxruntime 1.32 crashes under qemu 7.2, and numpy does with qemu's default CPU model. JetPack 6 has numpy 1.21; this is the
# oldest for the Python here.
PACKAGES = ["numpy==1.23.5", "onnxruntime==1.23.2"]
PLATFORMS = ["manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64"]
CPU = "cortex-a72"


def missing_tools():
    """Return what has to be installed before a board can be made."""
    return [tool for tool in ("qemu-aarch64-static", "debootstrap", "dpkg") if shutil.which(tool) is None]


def make_board(folder):
    """Download and unpack the userland and the wheels, and return its Python; what is there already stays."""
    system, site, debian = folder / "system", folder / "site", folder / "debian"
    if not (system / "usr/bin/python3.11").exists():
        wanted = ["--arch=arm64", "--foreign", "--variant=minbase", "--include=python3", "bookworm"]
        subprocess.run(["debootstrap", *wanted, str(debian)], check=True, stdout=sys.stderr)
        system.mkdir(parents=True, exist_ok=True)
        for package in sorted((debian / "var/cache/apt/archives").glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(system)], check=True)
        shutil.rmtree(debian)
    if not (site / "onnxruntime").is_dir():
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        only = ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp", "--target", str(site)]
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", *only, *platforms, *PACKAGES], check=True, stdout=sys.stderr
        )
    return write_python(folder)


def write_python(folder):
    """Write ``FOLDER/python3``, which runs the board's Python under qemu, and so do the processes it starts."""
    system, site = folder / "system", folder / "site"
    script = folder / "python3"
    script.write_text(
        "#!/bin/sh\n"
        f"export PYTHONHOME={system}/usr\n"
        f"export PYTHONPATH={site}${{PYTHONPATH:+:$PYTHONPATH}}\n"
        f'exec qemu-aarch64-static -0 {script} -cpu {CPU} -L {system} {system}/usr/bin/python3.11 "$@"\n'
    )
    script.chmod(0o755)
    return script


if __name__ == "__main__":
    if missing := missing_tools():
        sys.exit(f"aarch64_board: {', '.join(missing)} not found; run: apt-get install qemu-user-static debootstrap")
    make_board(Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else Path(os.environ["SHALLOWVIT_AARCH64"]).absolute())
