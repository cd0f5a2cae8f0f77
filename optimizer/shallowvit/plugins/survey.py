"""Say of each attention of a graph who could compute it: TensorRT's own kernel, ours, or none, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shallowvit_kernels.records import Kernel

from ..engines.records import AttentionChoice
from ..engines.sites import find_attentions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shallowvit_kernels.ahead import Compiled
    from shallowvit_kernels.records import Variant

    from ..engines.sites import AttentionSite

__all__ = ["Surveyed", "compile_surveyed", "survey_graph"]


@dataclass(frozen=True)
class Surveyed:
    """An attention; ``variant`` is our kernel for it, None where ``reason`` says why there is none."""

    site: AttentionSite
    variant: Variant | None
    reason: str | None


def survey_graph(graph: Path, blocks: Mapping[str, int] | None = None) -> tuple[Surveyed, ...]:
    """Look at every attention of a graph, which stays as it is.

    Args:
        graph: The ONNX file.
        blocks: What ``block_paths`` returns; without it no attention knows its block.
    """
    import onnx_ir

    from .rewriting import plugins_of, rewrite_attention

    model = onnx_ir.load(graph)
    variants = dict(plugins_of(model))
    sites = find_attentions(model, blocks)
    rewrite = rewrite_attention(model, str(AttentionChoice.PLUGIN))
    variants |= dict(rewrite.replaced)
    reasons = dict(rewrite.left)
    known = {site.anchor for site in sites}
    # attention without a softmax is none to TensorRT; what the rewrite has found of it stands in the graph by now
    others = [site for site in find_attentions(model, blocks) if site.anchor not in known and site.anchor in variants]
    sites += tuple(replace(site, kind="pattern", obstacle=_WITHOUT_SOFTMAX[variants[site.anchor].kernel]) for site in others)
    return tuple(
        Surveyed(site, variants.get(site.anchor), None if site.anchor in variants else reasons.get(site.anchor, _UNKNOWN))
        for site in sites
    )


_UNKNOWN = "it isn't among the forms that are understood"
_WITHOUT_SOFTMAX = {
    Kernel.ATTENTION: "isn't recognised as an attention",
    Kernel.GAUSSIAN: "has no softmax; its weights, tokens times tokens, are written to memory",
    Kernel.LINEAR: "has no softmax; it runs as single operators, none of them tokens times tokens",
}


def compile_surveyed(found: tuple[Surveyed, ...], sm: int) -> tuple[Compiled, ...]:
    """Compile each different kernel of a survey for a compute capability, as 86 for 8.6.

    Raises:
        KernelError: one can't be compiled for it.
    """
    from shallowvit_kernels.ahead import Request, compile_variants

    different = dict.fromkeys(one.variant for one in found if one.variant is not None)
    return tuple(compile_variants([Request(variant, sm) for variant in different]))
