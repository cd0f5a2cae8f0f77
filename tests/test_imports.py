import ast
import subprocess
import sys
from pathlib import Path

import pytest

import shallowvit

ROOT = Path(__file__).parents[1]
PARTS = {"shallowvit": "optimizer", "shallowvit_bench": "benchmarks", "shallowvit_kernels": "kernels"}
# What each part may import of the other two: the arrows point one way.
ALLOWED = {"shallowvit": {"shallowvit_bench", "shallowvit_kernels"}, "shallowvit_bench": set(), "shallowvit_kernels": set()}
HEAVY = ["torch", "numpy", "transformers", "timm", "torchvision", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "matplotlib"]


def _sources(part):
    return sorted((ROOT / PARTS[part] / part).rglob("*.py"))


def _imported(path):
    """Top-level names of every absolute import in a file, at whatever depth it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("part", PARTS)
def test_imports_point_one_way(part):
    sources = _sources(part)
    assert sources
    forbidden = set(PARTS) - ALLOWED[part] - {part}
    wrong = [f"{path.relative_to(ROOT)} imports {name}" for path in sources for name in _imported(path) if name in forbidden]
    assert wrong == []


def test_import_shallowvit_loads_nothing_heavy():
    script = f"import sys, shallowvit\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", shallowvit.__all__)
def test_every_public_name_is_there(name):
    assert getattr(shallowvit, name) is not None
    assert name in dir(shallowvit)


def test_unknown_public_name_raises():
    with pytest.raises(AttributeError, match="module 'shallowvit' has no attribute 'shrink'"):
        shallowvit.shrink  # noqa: B018 - the access is what is tested


def _modules():
    for part in PARTS:
        for path in _sources(part):
            parts = path.relative_to(ROOT / PARTS[part]).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_module_imports_with_the_extras_blocked():
    script = f"""
import importlib, sys
for name in ("transformers", "timm", "torchvision", "tensorrt", "tensorrt_rtx", "pycuda", "pandas", "sklearn", "ray"):
    sys.modules[name] = None
for name in {sorted(_modules())}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
