"""Write one self-contained HTML page from bundles and benchmark rows: what was removed and why, and what it brought.

The page loads nothing: CSS and charts are inline, so it can be mailed. The newest row of each side stands for that side.
"""

from __future__ import annotations

import os
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .bundles import BundleInfo, read_bundle
from .errors import BenchError
from .figures import FIGURES, busy_text, metric_of
from .measurement import read_rows
from .report_charts import draw_accuracy, draw_distributions, draw_scores, series_colour

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["check_report_paths", "html_from_results", "write_report"]

_Row = dict[str, Any]
_CONDITIONS = {
    "device": "device",
    "cores": "usable cores",
    "threads": "threads",
    "governor": "governor",
    "load_average": "load before the start",
    "os": "system",
    "python": "Python",
    "time_utc": "time, UTC",
    "commit": "commit",
}


def write_report(sources: Sequence[Path], out: Path, force: bool = False) -> None:
    """Write the page ``out``; it appears under that name only when whole.

    Args:
        sources: Bundle folders and files of rows; rows beside a bundle (``BUNDLE.bench.jsonl``) are found by themselves.
        out: The page to write.
        force: Replace ``out`` if it is a file.

    Raises:
        BenchError: a source can't be read, or ``out`` exists or can't be written.
    """
    check_report_paths(sources, out, force)
    bundles = [read_bundle(path) for path in sources if path.is_dir()]
    row_files = [path for path in sources if not path.is_dir()]
    beside = [path.resolve().with_name(path.resolve().name + ".bench.jsonl") for path in sources if path.is_dir()]
    listed = {path.resolve() for path in row_files}
    row_files += [path for path in beside if path.is_file() and path not in listed]
    rows = [row for path in row_files for row in read_rows(path)]
    page = html_from_results(bundles, rows)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    except OSError as err:
        raise BenchError(f"report: could not write {out} ({err.strerror}); choose another --out") from err
    finally:
        partial.unlink(missing_ok=True)


def check_report_paths(sources: Sequence[Path], out: Path, force: bool) -> None:
    """Check that every source exists and ``out`` may be written, before anything is read.

    Raises:
        BenchError: says which and what to do.
    """
    for path in sources:
        if not path.exists():
            raise BenchError(
                f"report: no bundle or file of rows at {path}; write one with shallowvit export or shallowvit bench"
            )
    if out.is_dir():
        raise BenchError(f"report: {out} is a folder; give the page's file name with --out")
    if out.exists() and not force:
        raise BenchError(f"report: {out} exists; choose another --out or replace it with --force")
    if not out.parent.is_dir():
        raise BenchError(f"report: no folder {out.parent} to write {out.name} into; create it first")


def html_from_results(bundles: Sequence[BundleInfo], rows: Sequence[_Row]) -> str:
    """Return the page as text."""
    newest = _newest(rows)
    body = [*(_bundle_part(bundle, newest) for bundle in bundles)]
    if not bundles:
        body.append("<h1>Benchmark</h1>")
    body += [_measured_part(newest, len(rows)), _conditions_part(newest), _reproduce_part(bundles, newest)]
    title = ", ".join(bundle.name for bundle in bundles) or "benchmark"
    css = (files("shallowvit_bench") / "data" / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}: shallowvit report</title>\n<style>\n{css}</style></head>\n"
        f"<body>\n{''.join(body)}</body></html>\n"
    )


def _newest(rows: Sequence[_Row]) -> list[_Row]:
    """The last row of each side under the same circumstances, in the order they first came."""
    last: dict[tuple[Any, ...], _Row] = {}
    for row in rows:
        key = (
            row["side"],
            row.get("backend"),
            row["model_sha256"],
            row["batch"],
            row["conditions"].get("device"),
            row["conditions"].get("threads"),
        )
        last[key] = row
    return list(last.values())


def _bundle_part(bundle: BundleInfo, rows: Sequence[_Row]) -> str:
    plan, source, scores = (bundle.manifest[key] for key in ("plan", "source", "scores"))
    total = len(plan["removed"]) + len(plan["kept"])
    row = next((row for row in rows if row["model_sha256"] == bundle.model_sha256 and row.get("speedup")), None)
    tiles = [
        (f"{len(plan['kept'])} of {total}", "blocks kept"),
        (f"{plan['parameters_after'] / 1e6:.3g} M", f"parameters, from {plan['parameters_before'] / 1e6:.3g} M"),
        (f"{bundle.flops_after / 1e9:.3g} G", f"FLOPs an item, from {bundle.flops_before / 1e9:.3g} G"),
        (f"{bundle.precision}", f"ONNX opset {bundle.manifest['graph']['opset']}"),
    ]
    if row:
        tiles.append((f"{row['speedup']:.2f}x", f"faster than {row['against']}"))
    if row and (top1 := metric_of(row, "top1")):
        tiles.append((f"{top1['value']:.1%}", f"top-1 on {row['data']}"))
    parts = [
        f"<h1>{escape(bundle.name)}</h1><p class=soft>{escape(source['architecture'])} from "
        f"<code>{escape(source['spec'])}</code>, weights {escape(source['weights_sha256'][:12])}</p><div class=tiles>",
        *(f"<div class=tile><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in tiles),
        "</div>",
        f"<h2>What was removed, and why</h2><p>{_removed_text(plan)} {escape(_sentence(plan['reason']))}</p>",
        _scores_figure(scores, plan) if scores and scores["blocks"] else "<p class=soft>The blocks were not scored.</p>",
        _blocks_table(plan, scores),
        "<h2>Is the graph the model?</h2>" + _parity_text(bundle.manifest["parity"]),
    ]
    return "".join(parts)


def _removed_text(plan: dict[str, Any]) -> str:
    if not plan["removed"]:
        return "No block was removed."
    return f"Removed: {'block' if len(plan['removed']) == 1 else 'blocks'} {', '.join(map(str, plan['removed']))}."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def _scores_figure(scores: dict[str, Any], plan: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in scores["settings"].items())
    caption = (
        f"Score of each block{' in ' + scores['unit'] if scores.get('unit') else ''}, higher means keep. "
        f"Criterion {scores['criterion']}{f' ({settings})' if settings else ''}; data needed: {scores['needs']}. "
        "The axis doesn't start at 0."
    )
    legend = _legend([("var(--keep)", "kept"), ("var(--gone)", "removed (hollow)")])
    return (
        f"<figure>{legend}{draw_scores(scores['blocks'], plan['removed'])}<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _blocks_table(plan: dict[str, Any], scores: dict[str, Any] | None) -> str:
    found = {block["block"]: f"{block['score']:.6g}" for block in scores["blocks"]} if scores else {}
    lines = [
        [str(index), path, "removed" if index in plan["removed"] else "kept", found.get(index, "")]
        for index, path in enumerate(plan["paths"])
    ]
    table = _table(["block", "module", "", "score"], lines, {3})
    return f"<details><summary>Every block with its module path</summary>{table}</details>"


def _parity_text(parity: dict[str, Any]) -> str:
    agree = parity.get("top1_agreement")
    return (
        f"<p>On {parity['inputs']} inputs the {escape(parity['precision'])} graph's outputs differ from torch's by at most "
        f"{parity['max_abs_error']:.3g}, {parity['relative_error']:.2g} of the largest output; "
        f"{parity['tolerance']:.2g} is allowed."
        f"{f' Both predict the same class on {agree:.1%} of them.' if agree is not None else ''}</p>"
    )


def _measured_part(rows: Sequence[_Row], count: int) -> str:
    if not rows:
        return "<h2>What it brought</h2><p class=soft>Not measured yet. Run <code>shallowvit bench</code> on the bundle.</p>"
    timed = [row for row in rows if row.get("samples_ms")]
    # sides with an accuracy first, so that a side has the same colour in both charts
    timed.sort(key=lambda row: metric_of(row, "top1") is None)
    scored = [row for row in timed if metric_of(row, "top1")]
    parts = ["<h2>What it brought</h2>"]
    if scored:
        caption = "Top-1 with its 95 % interval over the median latency of a batch; up and left is better."
        parts += ["<h3>Accuracy against latency</h3>", _figure(scored, draw_accuracy(scored), caption)]
    if timed:
        caption = (
            "Share of runs at or below each latency; dots are medians. The slowest 0.5 % may lie beyond the right edge; "
            "no run was dropped from the figures below."
        )
        parts += ["<h3>Latency</h3>", _figure(timed, draw_distributions(timed), caption)]
    lines = []
    for figure in FIGURES:
        cells = [figure.text(row) for row in rows]
        if any(cells):
            lines.append([figure.title, *cells])
    parts.append(_table(["", *(_side_text(row) for row in rows)], lines, set(range(1, len(rows) + 1))))
    parts += [f"<p class=failed>{escape(row['side'])} failed: {escape(row['reason'])}</p>" for row in rows if row.get("reason")]
    busy = dict.fromkeys(f"{row['side']}: {text}" for row in rows if (text := busy_text(row["conditions"])))
    parts += [f"<p class=failed>{escape(text)}</p>" for text in busy]
    if count > len(rows):
        parts.append(f"<p class=soft>{count - len(rows)} older rows of the same sides are not shown.</p>")
    return "".join(parts)


def _conditions_part(rows: Sequence[_Row]) -> str:
    if not rows:
        return ""
    lines = [[title, *(_plain(row["conditions"].get(key)) for row in rows)] for key, title in _CONDITIONS.items()]
    packages = sorted({name for row in rows for name in row["conditions"].get("packages", {})})
    lines += [[name, *(_plain(row["conditions"].get("packages", {}).get(name)) for row in rows)] for name in packages]
    lines.append(["model sha256", *(row["model_sha256"][:12] for row in rows)])
    lines = [[line[0], line[1]] if len(set(line[1:])) == 1 else line for line in lines]
    shared, apart = [line for line in lines if len(line) == 2], [line for line in lines if len(line) > 2]
    table = _table(["", "all sides" if len(rows) > 1 else _side_text(rows[0])], shared, set())
    if apart:
        table += _table(["", *(_side_text(row) for row in rows)], apart, set())
    return f"<h2>Conditions and versions</h2>{table}"


def _reproduce_part(bundles: Sequence[BundleInfo], rows: Sequence[_Row]) -> str:
    commands = []
    for bundle in bundles:
        source, plan = bundle.manifest["source"], bundle.manifest["plan"]
        parts = ["shallowvit export", source["spec"]]
        parts += [f"--arch {source['arch']}"] if source["arch"] else []
        parts += [f"--blocks {path}" for path in source["blocks"] or ()]
        parts += [f"--remove {','.join(map(str, plan['removed']))}"] if plan["removed"] else []
        parts += [f"--precision {bundle.precision} --opset {bundle.manifest['graph']['opset']} -o {bundle.name}"]
        commands.append(" ".join(parts))
    commands += dict.fromkeys(row["conditions"]["command"] for row in rows if row["conditions"].get("command"))
    tools = [
        [name, *(bundle.manifest["tools"].get(name, "") for bundle in bundles)]
        for name in (bundles[0].manifest["tools"] if bundles else ())
    ]
    table = _table(["exported with", *(bundle.name for bundle in bundles)], tools, set()) if tools else ""
    return f"<h2>How to reproduce</h2><pre>{escape(chr(10).join(commands))}</pre>{table}"


def _side_text(row: _Row) -> str:
    """The side with all that makes it another line of the table than its like."""
    threads = row["conditions"].get("threads")
    return f"{row['side']}, {row.get('backend')} {row.get('precision')}, batch {row['batch']}, {threads or 'default'} threads"


def _plain(value: object) -> str:
    return "not known" if value is None else str(value)


def _figure(rows: Sequence[_Row], chart: str, caption: str) -> str:
    legend = _legend([(series_colour(index), _side_text(row)) for index, row in enumerate(rows)])
    return f"<figure>{legend}{chart}<figcaption>{caption}</figcaption></figure>"


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><i style="background:{colour}"></i>{escape(text)}</li>' for colour, text in entries)
    return f"<ul class=legend>{items}</ul>"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], figures: set[int]) -> str:
    """An HTML table; columns in ``figures`` are set flush right."""

    def cell(tag: str, column: int, text: str) -> str:
        return f"<{tag}{' class=figure' if column in figures else ''}>{escape(text)}</{tag}>"

    top = "".join(cell("th", column, text) for column, text in enumerate(head))
    rows = "".join("<tr>" + "".join(cell("td", column, text) for column, text in enumerate(line)) + "</tr>" for line in lines)
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>"
