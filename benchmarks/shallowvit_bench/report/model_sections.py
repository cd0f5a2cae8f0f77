"""The sections about the model: what was removed and why, attention in each engine, parity, layers of a profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .blocks import Block, Chart, Folded, Heading, Paragraph, Table, chart, table
from .drawing import draw_swatch
from .model_charts import Bar, EngineStrip, draw_bars, draw_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..bundles import BundleInfo
    from .profiles import LayerTime, Profile

__all__ = ["model_blocks", "profile_blocks"]

_TOP_LAYERS = 15


def model_blocks(bundles: Sequence[BundleInfo]) -> list[Block]:
    """Return what is to be said of each bundle's model."""
    parts: list[Block] = [Heading("What was removed, and why")] if bundles else []
    for bundle in bundles:
        manifest = bundle.manifest
        plan, scores = manifest["plan"], manifest["scores"]
        scored = bool(scores and scores["blocks"])
        parts += [Heading(bundle.name, 3)] if len(bundles) > 1 else []
        parts.append(Paragraph(f"{_removed_text(plan)} {_sentence(plan['reason'])}{_tokens_text(plan)}".strip()))
        if not scored:
            parts.append(Paragraph("The blocks were not scored.", "soft"))
        parts.append(_blocks_chart(bundle) if scored or manifest.get("engines") else _plain_blocks(bundle))
        parts += _engine_blocks(bundle)
        parts.append(Paragraph("Is the graph the model? " + _parity_text(manifest["parity"])))
    return parts


def _tokens_text(plan: dict[str, Any]) -> str:
    tokens = plan.get("tokens")
    if not tokens:
        return ""
    steps = ", ".join(f"{site['after']} behind block {site['block']}" for site in tokens["sites"])
    return f" Of {tokens['sites'][0]['before']} tokens {steps} stay, chosen by {tokens['scorer']}."


def _removed_text(plan: dict[str, Any]) -> str:
    if not plan["removed"]:
        return "No block was removed."
    return f"Removed: {'block' if len(plan['removed']) == 1 else 'blocks'} {', '.join(map(str, plan['removed']))}."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def _blocks_chart(bundle: BundleInfo) -> Chart:
    """Scores as bars, and a strip of attentions for each engine."""
    plan, scores = bundle.manifest["plan"], bundle.manifest["scores"]
    scored = scores["blocks"] if scores else []
    engines = bundle.manifest.get("engines") or ()
    strips = [EngineStrip(f"attention in {engine['path']}", _fused_of(engine)) for engine in engines]
    legend = [(draw_swatch("kept"), "kept"), (draw_swatch("gone"), "removed (hollow)")] if scored else []
    if engines:
        legend += [(draw_swatch("fused"), "✓ attention is one kernel"), (draw_swatch("unfused"), "✗ it isn't")]
    total = len(plan["paths"])
    return chart(
        lambda width: draw_blocks(total, plan["removed"], scored, strips, width),
        _scores_caption(scores) if scored else "The blocks of the model by their number.",
        "The axis doesn't start at 0." if scored else "",
        legend,
        _blocks_table(bundle),
    )


def _plain_blocks(bundle: BundleInfo) -> Folded:
    return Folded("The blocks as a table", (_blocks_table(bundle),))


def _blocks_table(bundle: BundleInfo) -> Table:
    engines = bundle.manifest.get("engines") or ()
    head = ["block", "module", "", "score", *(f"attention in {engine['path']}" for engine in engines)]
    scores = bundle.manifest["scores"]
    values = [block["score"] for block in scores["blocks"]] if scores else []
    low, high = min(values, default=0.0), max(values, default=0.0)
    # as in the drawing, bars start below the lowest score
    shares = [(value - low + 0.35 * (high - low)) / (1.35 * (high - low) or 1.0) for value in values]
    lines = _block_lines(bundle)
    return table(f"every block of {bundle.name}", head, lines, [3], shares if len(shares) == len(lines) else ())


def _block_lines(bundle: BundleInfo) -> list[list[str]]:
    plan, scores = bundle.manifest["plan"], bundle.manifest["scores"]
    found = {block["block"]: f"{block['score']:.6g}" for block in scores["blocks"]} if scores else {}
    engines = [_texts_of(engine) for engine in bundle.manifest.get("engines") or ()]
    return [
        [
            str(index),
            path,
            "removed" if index in plan["removed"] else "kept",
            found.get(index, ""),
            *(texts.get(index, "") for texts in engines),
        ]
        for index, path in enumerate(plan["paths"])
    ]


def _scores_caption(scores: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in scores["settings"].items())
    return (
        f"Score of each block{' in ' + scores['unit'] if scores.get('unit') else ''}, higher means keep. "
        f"Criterion {scores['criterion']}{f' ({settings})' if settings else ''}; data needed: {scores['needs']}."
    )


def _fused_of(engine: dict[str, Any]) -> dict[int, tuple[int, int]]:
    """How many attentions of each block are fused, and how many there are."""
    counts: dict[int, tuple[int, int]] = {}
    for attention in engine["attentions"]:
        if attention["block"] is not None:
            fused, total = counts.get(attention["block"], (0, 0))
            counts[attention["block"]] = (fused + attention["fused"], total + 1)
    return counts


def _texts_of(engine: dict[str, Any]) -> dict[int, str]:
    """What became of each block's attentions, in words."""
    texts: dict[int, list[str]] = {}
    for attention in engine["attentions"]:
        texts.setdefault(attention["block"], []).append(_attention_text(attention))
    return {block: "; ".join(dict.fromkeys(each)) for block, each in texts.items()}


def _attention_text(attention: dict[str, Any]) -> str:
    if attention["fused"]:
        return f"fused: {attention['kernel']} ({attention['dtype']})"
    return f"not fused: {attention['reason']}"


def _engine_blocks(bundle: BundleInfo) -> list[Block]:
    """A sentence an engine, with the reasons where attention isn't fused."""
    parts: list[Block] = []
    for engine in bundle.manifest.get("engines") or ():
        fused, expected = engine["attention_fused"], engine["attention_expected"]
        whole = fused == expected
        text = f"{engine['path']} ({engine['flavour']} {engine['version']}): attention is fused in {fused} of {expected}"
        text += f", as the {engine['fusion_source']} says."
        reasons: dict[str, int] = {}
        for attention in engine["attentions"]:
            if not attention["fused"]:
                reasons[attention["reason"]] = reasons.get(attention["reason"], 0) + 1
        if reasons:
            text += " Not fused: " + "; ".join(f"{reason} ({count})" for reason, count in reasons.items()) + "."
        outside = [attention for attention in engine["attentions"] if attention["block"] is None]
        if outside:
            text += f" {len(outside)} of them are outside of the blocks: " + "; ".join(
                f"{attention['path']} {_attention_text(attention)}" for attention in outside
            )
        parts.append(Paragraph(text, "plain" if whole else "warning"))
    return parts


def _parity_text(parity: dict[str, Any]) -> str:
    agree = parity.get("top1_agreement")
    return (
        f"On {parity['inputs']} inputs the {parity['precision']} graph's outputs differ from torch's by at most "
        f"{parity['max_abs_error']:.3g}, {parity['relative_error']:.2g} of the largest output; "
        f"{parity['tolerance']:.2g} is allowed."
        f"{f' Both predict the same class on {agree:.1%} of them.' if agree is not None else ''}"
    )


def profile_blocks(profiles: Sequence[Profile]) -> list[Block]:
    """Return the slowest layers of each profile; nothing when there is none."""
    parts: list[Block] = [Heading("Time per layer")] if profiles else []
    for profile in profiles:
        slowest = sorted(profile.layers, key=lambda layer: -layer.mean_ms)
        attention = sum(layer.share for layer in profile.layers if layer.attention)
        total = sum(layer.mean_ms for layer in profile.layers)
        parts.append(
            Paragraph(
                f"{profile.title}: {len(profile.layers)} layers take {total:.3f} ms together, {attention:.0%} of it in "
                f"attention (mean of {profile.runs:,} runs). Profiling times each layer by itself, so it is no latency."
            )
        )
        if not slowest:
            continue
        shown = slowest[:_TOP_LAYERS]
        parts.append(_layers_chart(shown))
        if len(slowest) > len(shown):
            parts.append(
                Folded(f"All {len(slowest)} layers", (table("all layers", _LAYER_HEAD, _layer_lines(slowest), [2, 3, 4]),))
            )
    return parts


_LAYER_HEAD = ["layer", "", "mean", "median", "share"]


def _layers_chart(layers: Sequence[LayerTime]) -> Chart:
    bars = [
        Bar(
            ("attention: " if layer.attention else "") + layer.name,
            layer.mean_ms,
            f"{layer.mean_ms:.3f} ms, {layer.share:.0%}",
            "f1" if layer.attention else "f0",
        )
        for layer in layers
    ]
    most = layers[0].mean_ms or 1.0
    return chart(
        lambda width: draw_bars(bars, "time of the slowest layers", width),
        f"The {len(layers)} slowest layers, by mean time.",
        "",
        [(draw_swatch("f1"), "attention"), (draw_swatch("f0"), "anything else")],
        table("the slowest layers", _LAYER_HEAD, _layer_lines(layers), [2, 3, 4], [layer.mean_ms / most for layer in layers]),
    )


def _layer_lines(layers: Sequence[LayerTime]) -> list[list[str]]:
    return [
        [
            layer.name,
            "attention" if layer.attention else "",
            f"{layer.mean_ms:.4f} ms",
            "" if layer.median_ms is None else f"{layer.median_ms:.4f} ms",
            f"{layer.share:.1%}",
        ]
        for layer in layers
    ]
