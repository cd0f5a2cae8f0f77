"""Put the page together from bundles, rows and profiles, as blocks; ``writing`` makes a file of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .blocks import Block, Heading, Notice, Paragraph, Tiles
from .entries import Entry, Row, entries_from_rows, newest
from .finding import caveats_of, finding_of, main_metric, metric_title, rows_of_bundle, text_of_metric
from .html_page import html_from_blocks
from .markdown_page import markdown_from_blocks
from .measured_sections import energy_blocks, figures_blocks, latency_blocks, sides_blocks, tradeoff_blocks
from .model_sections import model_blocks, profile_blocks
from .setting_sections import conditions_blocks, providers_blocks, reproduce_blocks, scenario_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..bundles import BundleInfo
    from .profiles import Profile

__all__ = ["html_from_results", "markdown_from_results"]


def html_from_results(bundles: Sequence[BundleInfo], rows: Sequence[Row], profiles: Sequence[Profile] = ()) -> str:
    """Return the page as HTML.

    Args:
        bundles: The first one is whose figures stand on top.
        rows: As ``read_rows`` gives them, older ones first.
        profiles: Per-layer profiles of the bundles' engines.
    """
    return html_from_blocks(_blocks(bundles, rows, profiles), _title(bundles))


def markdown_from_results(bundles: Sequence[BundleInfo], rows: Sequence[Row], profiles: Sequence[Profile] = ()) -> str:
    """Return the page as Markdown; see ``html_from_results``."""
    return markdown_from_blocks(_blocks(bundles, rows, profiles))


def _title(bundles: Sequence[BundleInfo]) -> str:
    return ", ".join(bundle.name for bundle in bundles) or "benchmark"


def _blocks(bundles: Sequence[BundleInfo], rows: Sequence[Row], profiles: Sequence[Profile]) -> list[Block]:
    shown = entries_from_rows(newest(rows))
    entries = [entry for entry in shown if not entry.row.get("scenario")]
    scenarios = [entry for entry in shown if entry.row.get("scenario")]
    return [
        *_summary_blocks(bundles, entries, scenarios),
        *model_blocks(bundles),
        *sides_blocks(entries, len(rows) - len(shown)),
        *tradeoff_blocks(entries),
        *latency_blocks(entries),
        *energy_blocks(entries),
        *profile_blocks(profiles),
        *scenario_blocks(scenarios),
        *providers_blocks(entries),
        *figures_blocks(entries),
        *conditions_blocks(shown),
        *reproduce_blocks(bundles, shown),
    ]


def _summary_blocks(bundles: Sequence[BundleInfo], entries: Sequence[Entry], scenarios: Sequence[Entry]) -> list[Block]:
    """The finding of each bundle, the figures of the first, and what isn't known."""
    parts: list[Block] = [Heading(_title(bundles) if bundles else "Benchmark", 1)]
    sources = dict.fromkeys(
        f"{source['architecture']} from {source['spec']}, weights {source['weights_sha256'][:12]}"
        for source in (bundle.manifest["source"] for bundle in bundles)
    )
    parts += [Paragraph("; ".join(sources), "soft")] if bundles else []
    parts += [Paragraph(finding_of(bundle, entries), "plain" if place else "lead") for place, bundle in enumerate(bundles)]
    parts += [_tiles(bundles[0], entries)] if bundles else []
    caveats = caveats_of(bundles, entries, scenarios)
    if caveats:
        parts.append(Notice("Before you believe a figure", caveats))
    elif entries:
        parts.append(Paragraph("Nothing is known that speaks against these figures.", "soft"))
    return parts


def _tiles(bundle: BundleInfo, entries: Sequence[Entry]) -> Tiles:
    plan = bundle.manifest["plan"]
    total = len(plan["removed"]) + len(plan["kept"])
    tiles = [
        (f"{len(plan['kept'])} of {total}", "blocks kept"),
        (f"{plan['parameters_after'] / 1e6:.3g} M", f"parameters, from {plan['parameters_before'] / 1e6:.3g} M"),
        (f"{bundle.flops_after / 1e9:.3g} G", f"FLOPs an item, from {bundle.flops_before / 1e9:.3g} G"),
        (bundle.precision, f"ONNX opset {bundle.manifest['graph']['opset']}"),
    ]
    engines = bundle.manifest.get("engines") or ()
    tiles += [
        (f"{engine['attention_fused']} of {engine['attention_expected']}", f"attentions fused in {engine['path']}")
        for engine in engines[:1]
    ]
    own = rows_of_bundle(bundle, entries)
    if not own:
        return Tiles((*tiles, ("not measured", "latency, accuracy, energy")))
    row, which = own[0].row, f" ({own[0].tag})" if own[0].where else ""
    if row.get("speedup"):
        tiles.append((f"{row['speedup']:.2f}x", f"as fast as {row['against']}{which}"))
    metric = main_metric(row)
    if metric:
        tiles.append((text_of_metric(row, metric).partition(" ")[0], f"{metric_title(metric)} on {row.get('data')}"))
    else:
        tiles.append(("not measured", "accuracy"))
    energy = row.get("energy_item_mj")
    tiles.append(("not measured", "energy") if energy is None else (f"{energy:.3g} mJ", f"energy an item, above idle{which}"))
    return Tiles(tuple(tiles))
