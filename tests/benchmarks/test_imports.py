import os
import subprocess
import sys

BLOCKED = """
import importlib, pkgutil, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import shallowvit_bench
for module in pkgutil.walk_packages(shallowvit_bench.__path__, "shallowvit_bench."):
    importlib.import_module(module.name)
    print(module.name)
"""


def test_harness_imports_with_numpy_alone():
    blocked = {
        "torch",
        "shallowvit",
        "shallowvit_kernels",
        "onnxruntime",
        "matplotlib",
        "rich",
        "PIL",
        "typer",
        "pydantic",
        "onnx",
        "pynvml",
        "jtop",
        "asyncssh",
        "av",
        "sklearn",
        "scipy",
        "pycuda",
        "tensorrt",
        "tensorrt_rtx",
        "mlperf_loadgen",
    }
    script = BLOCKED.format(blocked=blocked)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=_environment())
    assert done.returncode == 0, done.stderr
    assert "shallowvit_bench.compare" in done.stdout
    assert "shallowvit_bench.report" in done.stdout
    assert "shallowvit_bench.power.nvml" in done.stdout


def _environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
