"""The page of an adaptive bundle, for the person who receives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .manifest import AdaptiveManifest

__all__ = ["readme_text"]


def readme_text(manifest: AdaptiveManifest) -> str:
    """Return what stands in ``README.md``."""
    names = [depth.path for depth in manifest.depths]
    rows = ["| | shares | cost | " + manifest.measure + " | drop |", "|---|---|---|---|---|"]
    for way, mix in manifest.expected.items():
        shares = ", ".join(f"{share:.0%}" for share in mix.shares)
        rows.append(f"| {way} | {shares} | {mix.cost:.3f} | {mix.accuracy:.1%} | {mix.drop:.1%} ± {mix.drop_error:.1%} |")
    judged = manifest.items["judged"]
    lines = [
        f"# {manifest.name}",
        "",
        f"Depths of one model ({', '.join(names)}), and a gate that chooses among them for each input. Every folder here is a "
        "bundle of its own, with its graph, its manifest and its page.",
        "",
        "For an input: run `gate/model.onnx`, take the softmax of its logits (one a depth, in the order above), add them up "
        "from the left, and run the first depth whose sum reaches its threshold, else the last. Thresholds: "
        f"{', '.join(f'{one:.4f}' for one in manifest.thresholds)}.",
        "",
        f"Expected, on {judged:,} items of {manifest.settings['data']} that neither trained the gate nor set its thresholds; "
        "costs are shares of the deepest model's FLOPs, the gate's included:",
        "",
        *rows,
        "",
        *(f"- {text}" for text in manifest.remarks),
    ]
    return "\n".join(lines).rstrip() + "\n"
