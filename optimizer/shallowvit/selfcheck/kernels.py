"""Launch our attention kernels on this GPU from their PTX alone, as an engine does, and hold them against fp32 references."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from shallowvit_kernels.records import Dtype, FeatureMap, Kernel, Layout, Modifier, Operand, Variant

from ..errors import ShallowvitError

__all__ = ["CHECKED_VARIANTS", "check_kernels", "kernels_missing"]

_SCALE = 0.125
# Each kernel, modifier, layout and type once, head sizes in and out of a power of two.
CHECKED_VARIANTS = (
    Variant(Kernel.ATTENTION, Dtype.FP16, 64, scale=_SCALE),
    Variant(Kernel.ATTENTION, Dtype.BF16, 72, scale=_SCALE, layout=Layout.TOKENS_FIRST),
    Variant(Kernel.ATTENTION, Dtype.FP32, 64, scale=_SCALE, layout=Layout.PACKED, output_layout=Layout.TOKENS_FIRST),
    Variant(Kernel.ATTENTION, Dtype.FP16, 48, scale=_SCALE, operands=(Operand(Modifier.BIAS, "b"),), soft_cap=20.0),
    Variant(Kernel.ATTENTION, Dtype.FP16, 64, scale=_SCALE, operands=(Operand(Modifier.SCORE_MASK, "h"),)),
    Variant(
        Kernel.ATTENTION, Dtype.FP16, 32, scale=_SCALE, operands=(Operand(Modifier.PROBABILITY_MASK, "bh"),), renormalise=True
    ),
    Variant(Kernel.ATTENTION, Dtype.FP16, 64, scale=_SCALE, operands=(Operand(Modifier.POSITIONS, "b"),)),
    Variant(Kernel.GAUSSIAN, Dtype.FP16, 64, scale=0.05),
    Variant(Kernel.LINEAR, Dtype.FP16, 32, feature_map=FeatureMap.RELU, epsilon=1e-6),
)


def kernels_missing() -> str | None:
    """Return what this machine lacks for the check, or None."""
    for module, install in (("triton", "pip install triton, for Linux"), ("pycuda", "pip install pycuda, which needs nvcc")):
        if find_spec(module) is None:
            return f"{module} isn't installed here ({install})"
    return None


def check_kernels() -> dict[str, Any]:
    """Compile and launch every kernel; return the error of each and what is allowed.

    Raises:
        ShallowvitError: one errs by more.
        KernelError: there is no GPU, or a kernel can't be compiled for it.
    """
    from shallowvit_kernels.gpu_check import check_on_gpu

    found = [check_on_gpu(variant) for variant in CHECKED_VARIANTS]
    wrong = next((one for one in found if not one.passed), None)
    if wrong is not None:
        raise ShallowvitError(
            f"selfcheck: the kernel {wrong.kernel} errs by {wrong.error:.2g} of the largest output on this GPU, and "
            f"{wrong.limit:g} is allowed; build engines with --attention native and please report this GPU"
        )
    return {one.kernel: asdict(one) for one in found}
