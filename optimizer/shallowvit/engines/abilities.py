"""Answer whether this machine can prepare a bundle for a target, build its engine and run it, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .findings import Status
from .targets import (
    Kind,
    find_target,
    flavours,
    opset_of_tensorrt,
    rtx_compute_capability,
    same_board,
    tensorrt_of,
    typing_refusal,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shallowvit_bench.boards import Board
    from shallowvit_bench.probes import GpuInfo

    from .findings import Finding
    from .target_records import Target

__all__ = ["Answer", "TargetAnswer", "answer_for_target"]

_MODULES = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class Answer:
    """Whether something can be done here, why or why not, and the command that would change it, if one does."""

    possible: bool
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class TargetAnswer:
    """What this machine can do for a target: export a bundle for it, build its engine, run the engine."""

    target: str
    prepare: Answer
    build: Answer
    run: Answer

    @property
    def possible(self) -> bool:
        """Whether this machine is of use for the target: it can prepare a bundle or build the engine."""
        return self.prepare.possible or self.build.possible


def answer_for_target(
    target: Target, findings: Sequence[Finding], gpus: Sequence[GpuInfo], board: Board | None
) -> TargetAnswer:
    """Say what this machine can do for a target.

    Args:
        target: The device.
        findings: What the doctor found.
        gpus: What nvidia-smi shows.
        board: The Jetson that this machine is, if it is one.
    """
    found = {finding.name: finding for finding in findings}
    lacking = [name for name in ("torch", "onnx", "onnxruntime") if found[name].status is not Status.OK]
    if lacking:
        prepare = Answer(False, f"exporting needs {', '.join(lacking)}", found[lacking[0]].fix)
    else:
        prepare = Answer(True, "a graph can be exported here")
    here = _is_here(target, gpus, board)
    build = _build_on_jetson(target, found, here) if target.kind is Kind.JETSON else _build(target, found, here)
    return TargetAnswer(target.key, prepare, build, _run(target, found, here))


def _is_here(target: Target, gpus: Sequence[GpuInfo], board: Board | None) -> bool:
    """Whether this machine is the target, or has a GPU of its compute capability."""
    if target.kind is Kind.JETSON:
        return bool(board and board.key) and same_board(find_target(str(board.key if board else "")), target)
    return board is None and any(gpu.sm == target.sm for gpu in gpus)


def _build_on_jetson(target: Target, found: dict[str, Finding], here: bool) -> Answer:
    newest = tensorrt_of(target)
    if newest and (refusal := typing_refusal(newest)):
        return Answer(False, f"no JetPack of it has a TensorRT that can: {refusal}")
    if not here:
        return Answer(False, "engines for a Jetson are built on the Jetson: copy the bundle there and run shallowvit build")
    if found["tensorrt"].status is not Status.OK:
        return Answer(False, f"TensorRT: {found['tensorrt'].note}", found["tensorrt"].fix)
    version = found["tensorrt"].value or ""
    if refusal := typing_refusal(version):
        return Answer(False, refusal)
    return Answer(True, f"this is the board, with TensorRT {version}, for graphs of opset {opset_of_tensorrt(version)}")


def _build(target: Target, found: dict[str, Finding], here: bool) -> Answer:
    rtx, full = found.get("tensorrt_rtx"), found["tensorrt"]
    by_rtx = rtx is not None and rtx.status is Status.OK and "rtx" in flavours(target)
    if here and full.status is Status.OK:
        return Answer(True, f"with TensorRT {full.value} on this machine's own GPU")
    if by_rtx and rtx is not None:
        if rtx_compute_capability(target) is not None:
            return Answer(True, f"with TensorRT-RTX {rtx.value}, ahead of time")
        return Answer(True, f"with TensorRT-RTX {rtx.value} as a portable engine, which was not tried on {target.title}")
    if rtx is not None and "rtx" in flavours(target):
        return Answer(False, f"TensorRT-RTX: {rtx.note}", rtx.fix)
    if not here:
        return Answer(
            False, f"no GPU of compute capability {target.compute_capability} here, and TensorRT builds on its own GPU"
        )
    return Answer(False, f"TensorRT: {full.note}", full.fix)


def _run(target: Target, found: dict[str, Finding], here: bool) -> Answer:
    if not here:
        what = "this is another machine" if target.kind is Kind.JETSON else "no such GPU is here"
        return Answer(False, f"{what}: bench the bundle on the target")
    modules = [_MODULES[flavour] for flavour in flavours(target)]
    usable = [found[name] for name in modules if name in found and found[name].status is Status.OK]
    if not usable:
        return Answer(False, f"TensorRT: {found['tensorrt'].note}", found["tensorrt"].fix)
    if found["CUDA from Python"].status is not Status.OK:
        return Answer(False, found["CUDA from Python"].note, found["CUDA from Python"].fix)
    return Answer(True, f"with {usable[0].name} {usable[0].value}")
