"""Say what this machine can do: what is installed, what the GPU or the board is, and the one command for what is missing.

A newcomer's trap: a TensorRT library can end the process that loads it, so each is loaded in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from shallowvit_bench.boards import Board, read_board
from shallowvit_bench.probes import GPU_QUERY, GpuInfo, Output, Runner, memory_gib, parse_gpus, read_text, run_command

from .abilities import TargetAnswer, answer_for_target
from .board import board_findings
from .findings import Finding, Status, missing, ok, unknown
from .targets import find_target

__all__ = ["Diagnosis", "Finding", "Status", "TargetAnswer", "diagnose"]

_LOW_DISK_GIB = 2.0
_LOW_MEMORY_GIB = 2.0
_NVIDIA = "0x10de"  # as vendor on the PCI bus
_SHOW = {
    "tensorrt_rtx": "import json, tensorrt_rtx as m; print(json.dumps([m.__version__, []]))",
    "tensorrt": "import json, tensorrt as m; print(json.dumps([m.__version__, []]))",
    "onnxruntime": "import json, onnxruntime as m; print(json.dumps([m.__version__, m.get_available_providers()]))",
}


@dataclass(frozen=True)
class Diagnosis:
    """What this machine can do: the findings, the Jetson that it is, its GPUs, and the answer for a target if one was asked."""

    findings: tuple[Finding, ...]
    jetson: str | None
    gpus: tuple[GpuInfo, ...]
    answer: TargetAnswer | None = None


def diagnose(target: str | None = None, root: Path = Path("/"), run: Runner = run_command) -> Diagnosis:
    """Look at this machine.

    Args:
        target: A key; then the answer says whether engines for it can be built, run and prepared here.
        root: Where ``proc``, ``sys`` and ``etc`` are found.
        run: Runs a command with a time limit; None is no such command.

    Raises:
        ShallowvitError: no such target.
    """
    wanted = find_target(target) if target is not None else None
    smi = ("nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits")
    with ThreadPoolExecutor(len(_SHOW) + 2) as pool:  # each of these starts a process: together they take as long as one
        loads = {name: pool.submit(_load, name, run) for name in _SHOW}
        asked = pool.submit(run, smi)
        board_asked = pool.submit(read_board, root, run)
        board, gpu_output = board_asked.result(), asked.result()
        loaded = {name: load.result() for name, load in loads.items()}
    gpus = parse_gpus(gpu_output.out) if gpu_output else ()
    findings = (
        *_software(loaded, board, root),
        *_gpu_findings(gpus, gpu_output, root, board),
        *(board_findings(board) if board else ()),
        *_resources(root),
    )
    jetson = board.key if board else None
    answer = answer_for_target(wanted, findings, gpus, board) if wanted else None
    return Diagnosis(findings, jetson, gpus, answer)


def _load(module: str, run: Runner) -> Output | None:
    """Load a module in a process of its own; None where it isn't installed."""
    if importlib.util.find_spec(module) is None:
        return None
    return run((sys.executable, "-c", _SHOW[module]))


def _software(loaded: dict[str, Output | None], board: Board | None, root: Path) -> tuple[Finding, ...]:
    tensorrt_fix = "sudo apt install nvidia-jetpack" if board else "pip install tensorrt"
    rtx_note = "builds engines for GeForce, RTX and data-centre GPUs, without a GPU too"
    rows = [
        ok("Python", platform.python_version(), sys.executable),
        ok("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        _package("torch", "loads, prunes and exports models", "pip install torch"),
        _package("triton", "compiles attention kernels for engines", "pip install triton, for Linux"),
        _package("onnx", "checks and exports graphs", "pip install onnx"),
        _loaded("onnxruntime", loaded["onnxruntime"], "runs graphs and quantises them", "pip install onnxruntime"),
    ]
    if board is None:  # there are no packages of it for a Jetson
        rows.append(_loaded("tensorrt_rtx", loaded["tensorrt_rtx"], rtx_note, "pip install 'shallowvit[tensorrt]'"))
    full_note = "builds engines on a Jetson or on a machine with an NVIDIA GPU"
    if loaded["tensorrt"] is None and any(root.glob("usr/lib/python3*/dist-packages/tensorrt")):
        note = "installed for the system's Python, not for this one: use an environment that sees it"
        rows.append(missing("tensorrt", note, "python3 -m venv --system-site-packages .venv"))
    else:
        rows.append(_loaded("tensorrt", loaded["tensorrt"], full_note, tensorrt_fix))
    rows.append(_cuda_for_python())
    return tuple(rows)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, purpose: str, fix: str) -> Finding:
    version = _version(name)
    return ok(name, version) if version else missing(name, f"{purpose}; not installed", fix)


def _loaded(name: str, output: Output | None, purpose: str, fix: str) -> Finding:
    """A module that was loaded in a process of its own."""
    if output is None:
        return missing(name, f"{purpose}; not installed", fix)
    lines = output.out.strip().splitlines()
    if output.code == 0 and lines:
        try:
            version, providers = json.loads(lines[-1])
        except (ValueError, TypeError):
            return unknown(name, f"installed, but it printed {lines[-1][:80]!r} in place of its version")
        return ok(name, str(version), ", ".join(providers))
    if output.code is None:
        return unknown(name, f"installed, but loading {output.first_line.removeprefix('it ')}")
    how = f"signal {-output.code}" if output.code < 0 else f"exit code {output.code}"
    last = (output.err.strip().splitlines() or ["no message"])[-1]
    return missing(
        name, f"installed, but loading it ends with {how}: {last}", f"{fix} --force-reinstall" if "pip" in fix else fix
    )


def _cuda_for_python() -> Finding:
    for package in ("pycuda", "cuda-python", "cuda-bindings"):
        if version := _version(package):
            return ok("CUDA from Python", f"{package} {version}")
    return missing("CUDA from Python", "runs TensorRT engines; neither PyCUDA nor cuda-python is there", "pip install pycuda")


def _gpu_findings(gpus: tuple[GpuInfo, ...], output: Output | None, root: Path, board: Board | None) -> tuple[Finding, ...]:
    driver = _driver(gpus, output, root, board)
    if board and board.key:  # nvidia-smi gives little more than a name on a Jetson
        return (ok("GPU", f"compute capability {find_target(board.key).compute_capability}, of the board"), driver)
    if board:
        return (unknown("GPU", "the board isn't in the table of targets"), driver)
    if not gpus:
        if _has_nvidia_device(root):
            return (unknown("GPU", "an NVIDIA device is on the PCI bus, but nvidia-smi doesn't show it"), driver)
        return (missing("GPU", "no NVIDIA GPU is seen: RTX engines can be built, none can be run"), driver)
    names = ", ".join(f"{gpu.name} (compute capability {_capability(gpu)})" for gpu in gpus)
    limit = gpus[0].power_limit_w
    memory = gpus[0].memory_mib
    notes = (f"{memory / 1024:.1f} GiB" if memory else "", f"power limit {limit:g} W" if limit else "")
    return (ok("GPU", names, ", ".join(filter(None, notes))), driver)


def _capability(gpu: GpuInfo) -> str:
    return "unknown" if gpu.sm is None else f"{gpu.sm // 10}.{gpu.sm % 10}"


def _driver(gpus: tuple[GpuInfo, ...], output: Output | None, root: Path, board: Board | None) -> Finding:
    version = next((gpu.driver for gpu in gpus if gpu.driver), None)
    if version is None and (loaded := read_text(root / "proc/driver/nvidia/version")):
        # NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  ...
        version = next((word for word in loaded.split() if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)
    if version:
        return ok("NVIDIA driver", version)
    if board:
        return ok("NVIDIA driver", f"that of L4T {board.l4t or 'unknown'}")
    if _has_nvidia_device(root):
        said = f": {output.first_line}" if output and output.first_line else ""
        return missing("NVIDIA driver", f"an NVIDIA GPU is there without a working driver{said}", "sudo ubuntu-drivers install")
    return missing("NVIDIA driver", "not needed without an NVIDIA GPU")


def _has_nvidia_device(root: Path) -> bool:
    return any(read_text(path) == _NVIDIA for path in sorted((root / "sys/bus/pci/devices").glob("*/vendor")))


def _resources(root: Path) -> tuple[Finding, ...]:
    governor = read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor is None:
        clocks = unknown("CPU governor", "the system doesn't say; a virtual machine has none")
    elif governor == "performance":
        clocks = ok("CPU governor", governor)
    else:
        fix = "sudo cpupower frequency-set -g performance"
        clocks = missing("CPU governor", "clocks follow the load, so latencies vary", fix, governor)
    total, free = memory_gib(root), memory_gib(root, "MemAvailable")
    if total is None or free is None:
        memory = unknown("memory", "/proc/meminfo doesn't say")
    else:
        text = f"{free:.1f} of {total:.1f} GiB free"
        memory = missing("memory", "little for building engines", value=text) if free < _LOW_MEMORY_GIB else ok("memory", text)
    disk_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    text = f"{disk_gib:.1f} GiB free in {Path.cwd()}"
    disk = missing("disk", "little for graphs and engines", value=text) if disk_gib < _LOW_DISK_GIB else ok("disk", text)
    return (clocks, memory, disk)
