"""From PTX to machine code by the tools that Triton brings, and what the machine code says about itself.

A newcomer's trap: the driver's own compiler may use other registers than the one here, so facts are of the cubin, not of what a
driver makes of the PTX.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import KernelError
from .ptx import Target, target_of, without_suffix

if TYPE_CHECKING:
    from .records import Tile

__all__ = ["Assembled", "Facts", "assemble", "facts_of", "tool_versions"]

# The first compute capability whose code needs the newer assembler.
_NEWER = 100
# From 9.0 on the tools count in each block's shared memory what the system keeps there, which a launch's limit doesn't.
_RESERVED_BYTES = 1024
_RESERVED_FROM = 90
_TENSOR_CORES = re.compile(r"^(?:[HIDQOB]G?MMA|UTC\w*MMA)\b")
# A line of the disassembly: where, perhaps a predicate, the operation.
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*(?P<operation>[A-Z]\w*)", re.MULTILINE)


@dataclass(frozen=True)
class Facts:
    """What a compiled kernel takes.

    Args:
        tile: How the work is cut.
        registers: Of a thread.
        spilled_bytes: Of a thread, written to memory for want of registers, or otherwise kept in its stack.
        shared_bytes: Of a block, dynamic and static.
        instructions: In the code, padding behind its end left out.
        tensor_core_instructions: Of these, matrix products of tensor cores.
        cubin_bytes: The size of the file.
        compile_seconds: Triton's and the assembler's.
        triton: Its version.
        ptxas: The assembler's version.
    """

    tile: Tile
    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: int
    tensor_core_instructions: int
    cubin_bytes: int
    compile_seconds: float
    triton: str
    ptxas: str


@dataclass(frozen=True)
class Assembled:
    """A PTX, perhaps with a wider target, its machine code, and what the assembler said of spills."""

    ptx: str
    cubin: bytes
    spilled_bytes: int


@functools.cache
def tool_versions(sm: int) -> tuple[str, str]:
    """Return the versions of Triton and of its assembler for a compute capability.

    Raises:
        KernelError: Triton isn't there, or without its assembler.
    """
    said = _run("ptxas-blackwell" if sm >= _NEWER else "ptxas", "--version").stdout
    found = re.search(r"V(\d[\d.]*)", said)
    return _triton_version(), found[1] if found else said.strip()


def assemble(ptx: str) -> Assembled:
    """Return the machine code of a PTX, written for later generations too where the assembler takes it so.

    Raises:
        KernelError: the assembler refuses it.
    """
    target = target_of(ptx)
    if target.suffix:
        wider = without_suffix(ptx)
        done = _assembled(wider, Target(target.sm, ""))
        if isinstance(done, Assembled):
            return done
    done = _assembled(ptx, target)
    if isinstance(done, str):
        raise KernelError(f"assemble: the assembler refuses the code for {target.name}: {done}")
    return done


def facts_of(assembled: Assembled, tile: Tile, dynamic_bytes: int, compile_seconds: float) -> Facts:
    """Return what a machine code takes, by the tools' word.

    Args:
        assembled: The code.
        tile: To be written down.
        dynamic_bytes: Of shared memory, which only the launch knows.
        compile_seconds: To be written down.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(assembled.cubin)
        usage = _run("cuobjdump", "--dump-resource-usage", str(path)).stdout
        listing = _run("nvdisasm", "--print-code", str(path)).stdout
    used = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    operations = Counter(found["operation"] for found in _INSTRUCTION.finditer(listing))
    sm = target_of(assembled.ptx).sm
    triton, ptxas = tool_versions(sm)
    return Facts(
        tile=tile,
        registers=used["REG"],
        spilled_bytes=max(assembled.spilled_bytes, used["STACK"], used["LOCAL"]),
        shared_bytes=dynamic_bytes + used["SHARED"] - (_RESERVED_BYTES if sm >= _RESERVED_FROM else 0),
        instructions=sum(operations.values()) - operations["NOP"],
        tensor_core_instructions=sum(count for name, count in operations.items() if _TENSOR_CORES.match(name)),
        cubin_bytes=len(assembled.cubin),
        compile_seconds=round(compile_seconds, 2),
        triton=triton,
        ptxas=ptxas,
    )


def _assembled(ptx: str, target: Target) -> Assembled | str:
    """The code, or the assembler's first complaint."""
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        tool = "ptxas-blackwell" if target.sm >= _NEWER else "ptxas"
        # As Triton calls it: without the second option an assembler of 13.x is wrong at times.
        done = _run(tool, "-v", "--regAllocOptLevel=2", f"--gpu-name={target.name}", str(source), "-o", str(result), fails=True)
        if done.returncode:
            complaints = [line for line in done.stderr.splitlines() if "error" in line or "fatal" in line]
            return (complaints or [f"it ended with {done.returncode}"])[0].replace(f"{source}, ", "")
        said = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
        return Assembled(ptx, result.read_bytes(), max(int(number) for number in said.groups()) if said else 0)


def _run(tool: str, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    path = _tools() / tool
    if not path.is_file():
        raise KernelError(f"assemble: {path} isn't there; install triton from the package index, which brings it along")
    done = subprocess.run([str(path), *arguments], capture_output=True, text=True, check=False)
    if done.returncode and not fails:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise KernelError(f"assemble: {tool} ended with {done.returncode}: {''.join(last)}; install triton again")
    return done


def _tools() -> Path:
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        raise KernelError("assemble: Triton isn't installed, and kernels are compiled with it; pip install triton (Linux)")
    return Path(spec.origin).parent / "backends" / "nvidia" / "bin"


def _triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError as err:
        raise KernelError("assemble: Triton's version can't be read from its package; pip install triton (Linux)") from err
