"""Hold an engine's layers against the graph's attentions: which are one kernel, which aren't, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from .records import AttentionChoice, AttentionFusion, FusionReport
from .worker.layers import fused_nodes, kernels_in_bytes, kernels_of_nodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .sites import AttentionSite
    from .worker.layers import Layer

__all__ = ["check_fused", "fusion_report", "way_out"]

_OURS = "shallowvit_"  # our operators' names
_SOME_PROFILES = "is fused in some optimisation profiles only; build with one --batch"
_NOT_TAKEN = "is a node of ours, and the engine has no plugin for it; its kernel was missing from the build"
_NO_REASON = "isn't fused, and nothing in the graph says why; the build log has the builder's own words"


def fusion_report(
    sites: Sequence[AttentionSite], layers: list[Layer], engine: bytes, source: str, *, named: bool, profiles: int = 1
) -> FusionReport:
    """Return what became of each attention, and check the layers against the engine's bytes.

    Args:
        sites: Every attention of the graph.
        layers: The engine's layers as ``worker.layers`` reads them.
        engine: The engine itself. The kernels that the layers name must stand in it, and no others.
        source: Where the layers come from: ``builder log`` or ``engine inspector``.
        named: Whether this flavour's engines hold the names of their kernels as plain text; where it isn't known, an engine
            without any is let pass.
        profiles: Optimisation profiles of the engine; an attention counts as fused when it is in each.

    Raises:
        ShallowvitError: layers and bytes contradict each other.
    """
    kernels = kernels_of_nodes(layers, [{"anchor": site.anchor, "operator": site.operator} for site in sites])
    attentions = tuple(_of_site(site, kernels[site.anchor], profiles) for site in sites)
    everywhere = fused_nodes(layers) | kernels  # also at nodes that are no site's
    ours = {site.operator for site in sites}
    listed = sorted({kernel for each in everywhere.values() for kernel in each if "_0x" in kernel or kernel in ours})
    found = kernels_in_bytes(engine)
    for whose in (True, False):  # full TensorRT may show its own and hide ours, or the other way round
        said, held = ([kernel for kernel in some if kernel.startswith(_OURS) is whose] for some in (listed, found))
        if said != held and (named or held):
            raise ShallowvitError(
                f"build: the {source} names the attention kernels {', '.join(said) or 'none'}, but the engine holds "
                f"{', '.join(held) or 'none'}, so its fusion can't be vouched for; please report this TensorRT version"
            )
    return FusionReport(source, attentions, tuple(found) if named or found else None)


def _of_site(site: AttentionSite, kernels: Sequence[str], profiles: int) -> AttentionFusion:
    fused = len(kernels) >= profiles
    reason = None if fused else site.obstacle or _reason(site, kernels)
    return AttentionFusion(
        path=site.path,
        block=site.block,
        node=site.anchor,
        fused=fused,
        kernel=kernels[0] if fused else None,
        reason=reason,
        dtype=site.dtype,
        heads=site.heads,
        head_size=site.head_size,
        queries=site.queries,
        keys=site.keys,
    )


def _reason(site: AttentionSite, kernels: Sequence[str]) -> str:
    if kernels:
        return _SOME_PROFILES
    return _NOT_TAKEN if site.operator else _NO_REASON


def check_fused(
    report: FusionReport, attention: AttentionChoice | None = None, refused: Iterable[tuple[str, str]] = ()
) -> None:
    """Refuse an engine in which an attention isn't fused.

    Args:
        report: What became of the attentions.
        attention: Who was to compute them.
        refused: Those that our kernels were asked for and don't take, by node, and why.

    Raises:
        ShallowvitError: names the first attention that isn't, the reason, and how many there are.
    """
    if report.whole:
        return
    first = next(attention for attention in report.attentions if not attention.fused)
    block = first.path if first.block is None else f"block {first.block} ({first.path})"
    raise ShallowvitError(
        f"build: attention is fused in {report.fused} of {report.expected}: that of {block} {first.reason}. "
        f"{way_out(first.node, attention, refused)}"
    )


def way_out(node: str, attention: AttentionChoice | None, refused: Iterable[tuple[str, str]]) -> str:
    """Return what can be done about an attention that TensorRT doesn't fuse; see ``check_fused``."""
    why = dict(refused).get(node)
    if why is not None:
        return f"Our kernels don't take it either: {why}. Accept it with --allow-unfused"
    if attention in (AttentionChoice.PLUGIN, AttentionChoice.AUTO):
        return "It has no kernel of ours in this engine; accept it with --allow-unfused"
    return "Give it a kernel of ours with --attention auto, or accept it with --allow-unfused"
