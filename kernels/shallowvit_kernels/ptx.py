"""Triton's PTX made ready for others to launch: our name, our parameters only, and forward compatible where the code allows it.

Triton ends a kernel's parameters with two pointers to scratch memory of its own, which its launcher fills; TensorRT and PyCUDA
pass only ours. A newcomer's trap: code for ``sm_90a`` runs on compute capability 9.0 alone, code for ``sm_90`` there and on
everything later, and Triton always writes the former.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import KernelError

__all__ = ["PTX_VERSIONS", "Target", "own_ptx", "target_of", "threads_of", "without_suffix"]

# The ISA each compute capability's PTX is written in: the first that knows the target, since a driver compiles no PTX of an ISA
# newer than itself, and the drivers on boards are old (JetPack 6's knows 8.5). Below 8.0 Triton doesn't go.
PTX_VERSIONS = {75: 80, 80: 80, 86: 80, 87: 80, 89: 80, 90: 80, 100: 86, 103: 88, 110: 90, 120: 87, 121: 88}
_SCRATCH_POINTERS = 2

_ENTRY = re.compile(r"\.visible \.entry (?P<name>\w+)\(\n(?P<parameters>.*?)\n\)", re.DOTALL)
_TARGET = re.compile(r"^\.target sm_(?P<sm>\d+)(?P<suffix>[af]?)", re.MULTILINE)
_THREADS = re.compile(r"^\.reqntid (?P<threads>\d+)(?:, 1, 1)?$", re.MULTILINE)


@dataclass(frozen=True)
class Target:
    """What a PTX was written for: the compute capability and, of code that runs on it alone, a letter."""

    sm: int
    suffix: str

    @property
    def name(self) -> str:
        """As the assembler calls it."""
        return f"sm_{self.sm}{self.suffix}"


def own_ptx(ptx: str, name: str, parameters: int) -> str:
    """Return Triton's PTX with the entry called ``name`` and without the pointers to scratch memory.

    Args:
        ptx: As Triton wrote it, of one kernel.
        name: What the kernel is to be called.
        parameters: How many it has without the scratch pointers.

    Raises:
        KernelError: it has another number of parameters, or reads one that is taken away.
    """
    entries = list(_ENTRY.finditer(ptx))
    if len(entries) != 1:
        raise KernelError(f"ptx: {len(entries)} kernels found, and one is expected; is this Triton's PTX?")
    entry = entries[0]
    lines = entry["parameters"].rstrip().split(",\n")
    if len(lines) != parameters + _SCRATCH_POINTERS:
        raise KernelError(
            f"ptx: {entry['name']} has {len(lines)} parameters, and {parameters} and {_SCRATCH_POINTERS} for scratch "
            "memory are expected; this version of Triton passes others"
        )
    body = ptx[entry.end() :]
    for index in range(parameters, len(lines)):
        if re.search(rf"\b{entry['name']}_param_{index}\b", body):
            raise KernelError(
                f"ptx: {entry['name']} reads scratch memory (parameter {index}), which TensorRT doesn't pass; choose "
                "smaller tiles"
            )
    ptx = ptx[: entry.start("parameters")] + ",\n".join(lines[:parameters]) + ptx[entry.end("parameters") :]
    return re.sub(rf"\b{entry['name']}(?=(?:_param_\d+)?\b)", name, ptx)


def target_of(ptx: str) -> Target:
    """Return what a PTX was written for."""
    found = _TARGET.search(ptx)
    if found is None:
        raise KernelError("ptx: no line with a target; is this PTX?")
    return Target(int(found["sm"]), found["suffix"])


def without_suffix(ptx: str) -> str:
    """Return the PTX with a target that later generations run too, which an assembler may refuse."""
    return _TARGET.sub(lambda found: f".target sm_{found['sm']}", ptx)


def threads_of(ptx: str) -> int:
    """Return the threads of a block, which can be more than the warps asked for: a compiler may add some of its own."""
    found = _THREADS.search(ptx)
    if found is None:
        raise KernelError("ptx: no line that says how many threads a block has; is this Triton's PTX?")
    return int(found["threads"])
