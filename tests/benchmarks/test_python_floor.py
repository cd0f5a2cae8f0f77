import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shallowvit_bench

PACKAGE = Path(shallowvit_bench.__file__).parent
ON_DEVICES = sorted(path for path in PACKAGE.rglob("*.py") if "remote" not in path.relative_to(PACKAGE).parts)


def test_python_floor_looks_at_the_device_s_modules():
    assert {"device.py", "__main__.py", "job.py", "onnx_runtime.py"} <= {path.name for path in ON_DEVICES}


def test_what_runs_on_a_device_needs_no_python_newer_than_that_of_jetpack_6():
    vermin = shutil.which("vermin", path=str(Path(sys.executable).parent))
    if vermin is None:
        pytest.skip("vermin is not installed; run: pip install 'shallowvit[dev]'")
    # annotations are strings there: every module begins with the future import
    options = ["--no-tips", "--violations", "--target=3.10-", "--no-eval-annotations", "--backport", "typing"]
    done = subprocess.run([vermin, *options, *map(str, ON_DEVICES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", ON_DEVICES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_of_a_device_leaves_annotations_alone(path):
    text = path.read_text()
    assert "from __future__ import annotations" in text or ":" not in "".join(
        line for line in text.splitlines() if line.startswith(("def ", "    def "))
    )
