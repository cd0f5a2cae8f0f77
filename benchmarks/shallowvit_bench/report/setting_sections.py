"""The sections about the circumstances: MLPerf scenarios, the providers that were tried, conditions, how to reproduce."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .blocks import Block, Code, Heading, Paragraph, Table, table
from .entries import in_parts, tags_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..bundles import BundleInfo
    from .entries import Entry

__all__ = ["conditions_blocks", "providers_blocks", "reproduce_blocks", "scenario_blocks"]

# in this order; what is not listed follows under its own name
_TITLES = {
    "device": "device",
    "board": "board",
    "jetpack": "JetPack",
    "l4t": "L4T",
    "power_mode": "power mode",
    "clocks_locked": "clocks locked",
    "governor": "governor",
    "turbo": "turbo",
    "fan": "fan",
    "gpu": "GPU",
    "gpu_sm": "compute capability",
    "gpu_driver": "GPU driver",
    "cuda": "CUDA",
    "cores": "usable cores",
    "threads": "threads",
    "load_average": "load before the start",
    "os": "system",
    "python": "Python",
    "time_utc": "time, UTC",
    "commit": "commit",
}
_ALWAYS = ("device", "power_mode", "clocks_locked", "governor")  # said even where they aren't known
_ELSEWHERE = ("packages", "command")


def scenario_blocks(entries: Sequence[Entry]) -> list[Block]:
    """Return what MLPerf LoadGen reported; nothing when it wasn't run."""
    parts: list[Block] = [Heading("MLPerf scenarios")] if entries else []
    if entries:
        parts.append(Paragraph("Run by MLPerf LoadGen with this harness's runner; not a submission.", "soft"))
    for entry in entries:
        row = entry.row
        parts.append(Heading(f"{entry.tag}: {row['scenario']} of {row['side']} on {entry.device}", 3))
        if row.get("reason"):
            parts.append(Paragraph(f"{row['status']}: {row['reason']}", "warning"))
        results = dict(row.get("scenario_results") or {})
        if "metric" in results:
            parts += _verdict_blocks(results)
        lines = [[name, text] for name, text in _flat(results).items()]
        if lines:
            parts.append(table(f"figures of {row['scenario']}, {entry.title}", ["figure", "value"], lines, [1]))
    return parts


def _verdict_blocks(results: dict[str, Any]) -> list[Block]:
    """The scenario's own metric and LoadGen's verdict; takes what it tells out of ``results``."""
    told = {name: results.pop(name, None) for name in ("metric", "unit", "value", "valid", "reasons", "shortened", "remarks")}
    results.pop("scenario", None)
    value = "too few queries to tell" if told["value"] is None else f"{told['value']:,.4g} {told['unit']}"
    verdict = "valid" if told["valid"] else "not valid"
    text = f"{told['metric']}: {value}. LoadGen calls the run {verdict}"
    text += f": {'; '.join(told['reasons'])}." if told["reasons"] else "."
    parts: list[Block] = [Paragraph(text, "plain" if told["valid"] else "warning")]
    if told["shortened"]:
        parts.append(Paragraph("It ran for less time than MLPerf asks for.", "warning"))
    return parts + [Paragraph(remark, "warning") for remark in told["remarks"] or ()]


def providers_blocks(entries: Sequence[Entry]) -> list[Block]:
    """Return what ``--provider auto`` tried, and why it took what it took; nothing when it wasn't used."""
    tried: dict[str, tuple[list[dict[str, Any]], list[Entry]]] = {}
    for entry in entries:
        if trials := list(entry.row.get("provider_trials") or ()):
            tried.setdefault(json.dumps([entry.letter, trials]), (trials, []))[1].append(entry)
    parts: list[Block] = [Heading("Providers tried")] if tried else []
    for trials, about in tried.values():
        keys = list(dict.fromkeys(key for trial in trials for key in trial))
        lines = [[_cell(trial.get(key)) for key in keys] for trial in trials]
        numbers = [place for place, key in enumerate(keys) if any(isinstance(trial.get(key), float) for trial in trials)]
        title = f"{tags_of(about)}: {about[0].family}" + (f", {about[0].where}" if about[0].where else "")
        parts.append(Heading(title, 3))
        parts.append(table(f"providers tried for {title}", [key.replace("_", " ") for key in keys], lines, numbers))
    return parts


def _cell(value: object) -> str:
    if value is None:
        return ""
    return "; ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else _plain(value)


def conditions_blocks(entries: Sequence[Entry]) -> list[Block]:
    """Return where and with what was measured: once what all share, then what differs."""
    if not entries:
        return []
    lines = _condition_lines(entries)
    shared = [line[:2] for line in lines if len(set(line[1:])) == 1]
    apart = [line for line in lines if len(set(line[1:])) > 1]
    parts: list[Block] = [Heading("Conditions and versions")]
    if shared:
        parts.append(table("conditions of all sides", ["", "all sides" if len(entries) > 1 else entries[0].name], shared))
    place = 1
    for part in in_parts(entries) if apart else ():
        lines = [[line[0], *line[place : place + len(part)]] for line in apart]
        place += len(part)
        parts.append(table(f"conditions of {tags_of(part)} that differ", ["", *(entry.title for entry in part)], lines))
    return parts


def _condition_lines(entries: Sequence[Entry]) -> list[list[str]]:
    conditions = [entry.row["conditions"] for entry in entries]
    names = [*_TITLES, *(name for each in conditions for name in each if name not in _TITLES and name not in _ELSEWHERE)]
    lines = []
    for name in dict.fromkeys(names):
        values = [each.get(name) for each in conditions]
        if name in _ALWAYS or any(value is not None for value in values):
            lines.append([_TITLES.get(name, name.replace("_", " ")), *map(_plain, values)])
    packages = sorted({name for each in conditions for name in each.get("packages") or {}})
    lines += [[name, *(str((each.get("packages") or {}).get(name, "")) for each in conditions)] for name in packages]
    lines.append(["model sha256", *(entry.row["model_sha256"][:12] for entry in entries)])
    return lines


def reproduce_blocks(bundles: Sequence[BundleInfo], entries: Sequence[Entry]) -> list[Block]:
    """Return the commands behind the page, and the versions that exported the bundles."""
    commands = [_export_command(bundle) for bundle in bundles]
    for bundle in bundles:
        commands += [
            f"shallowvit build {bundle.name} --engine {engine['flavour']}"
            + (f" --target {engine['target']}" if engine["target"] else "")
            for engine in bundle.manifest.get("engines") or ()
        ]
    commands += dict.fromkeys(entry.row["conditions"]["command"] for entry in entries if entry.row["conditions"].get("command"))
    parts: list[Block] = [Heading("How to reproduce")]
    if commands:
        parts.append(Code("\n".join(commands)))
    if bundles:
        parts.append(_tools_table(bundles))
    return parts


def _export_command(bundle: BundleInfo) -> str:
    source, plan = bundle.manifest["source"], bundle.manifest["plan"]
    parts = ["shallowvit export", source["spec"]]
    parts += [f"--arch {source['arch']}"] if source["arch"] else []
    parts += [f"--blocks {path}" for path in source["blocks"] or ()]
    parts += [f"--remove {','.join(map(str, plan['removed']))}"] if plan["removed"] else []
    parts += [f"--precision {bundle.precision} --opset {bundle.manifest['graph']['opset']} -o {bundle.name}"]
    return " ".join(parts)


def _tools_table(bundles: Sequence[BundleInfo]) -> Table:
    names = dict.fromkeys(name for bundle in bundles for name in bundle.manifest["tools"])
    lines = [[name, *(str(bundle.manifest["tools"].get(name, "")) for bundle in bundles)] for name in names]
    lines.append(["weights sha256", *(bundle.manifest["source"]["weights_sha256"][:12] for bundle in bundles)])
    return table("what exported the bundles", ["exported with", *(bundle.name for bundle in bundles)], lines)


def _plain(value: object) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return str(value)


def _flat(values: dict[str, Any], before: str = "") -> dict[str, str]:
    """Nested results as one list of names and texts."""
    texts: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            texts |= _flat(value, f"{before}{name} ")
        else:
            texts[f"{before}{name}".replace("_", " ")] = _cell(value)
    return texts
