"""Turn a study's result into Markdown tables: the oracles' power, each criterion's agreement, accuracies by blocks removed.

Criteria stand in rows and numbers of blocks in columns, since two dozen criteria side by side can't be read. A newcomer's trap:
a spread after a mean is the standard deviation over replicates, an interval in brackets is the 95 % interval of the mean.
"""

from __future__ import annotations

from collections import Counter
from statistics import mean, stdev
from typing import TYPE_CHECKING

from ..pruning.selection import runs_text
from .outcomes import ORACLE
from .records import ORACLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .records import Agreement, Estimated, Measured, StudyResult

__all__ = ["markdown", "matrix"]

_FIGURES = {
    "finetuned_top1": "top-1 after finetuning",
    "zero_shot_top1": "top-1 at once (zero-shot)",
}
_NONE = ""  # not measured


def markdown(result: StudyResult) -> str:
    """Return the whole page of tables."""
    parts = [_head(result), _powers(result), _single_blocks(result)]
    parts += [_agreements(result, oracle) for oracle in _measured_oracles(result)]
    parts += [_accuracies(result, figure, title) for figure, title in _FIGURES.items()]
    parts += [_sets(result), _conditions(result)]
    return "\n".join(parts)


def matrix(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Return the head and rows of the shortest summary: Spearman of each criterion with each oracle, mean and interval."""
    oracles = _measured_oracles(result)
    found = {(row.criterion, row.oracle): row for row in result.agreements}
    rows = []
    for criterion in result.criteria:
        if criterion == ORACLE:
            continue
        own = [found.get((criterion, oracle)) for oracle in oracles]
        rows.append([criterion, *(_interval(row.spearman) if row else _NONE for row in own)])
    return ["Spearman with", *oracles], rows


def _head(result: StudyResult) -> str:
    config, first = result.config, result.models[0]
    seeds = config["seeds"]
    models = "\n".join(
        f"{number + 1}. {model.source} (weights {model.weights_sha256[:12]})"
        + (f", pretrained as {model.pretrained} ({model.pretrained_sha256[:12]})" if model.pretrained_sha256 else "")
        for number, model in enumerate(result.models)
    )
    test, train = result.data["test"], result.data["train"]
    shared = (
        f"{result.cells:,} finetunings stand behind {result.cells_named:,} choices of blocks, since criteria that name the "
        "same blocks share one."
    )
    notes = [f"- **{warning}**" for warning in result.warnings] + [f"- **failed**: {failure}" for failure in result.failures]
    return "\n".join(
        [
            "# Study",
            "",
            f"{first.architecture}, {len(first.blocks)} blocks counted from 0, {first.parameters:,} parameters. "
            f"{len(result.models)} model{'s' * (len(result.models) > 1)} x {seeds} finetuning seed{'s' * (seeds > 1)}:",
            "",
            models,
            "",
            f"Measured on {test['items']:,} items of {test['name']} ({test['sha256'][:12]}), finetuned on {train['items']:,} "
            f"of {train['name']} ({train['sha256'][:12]}), {config['finetune_epochs']} epoch"
            f"{'s' * (config['finetune_epochs'] > 1)}, learning rate {config['learning_rate']:g}. {shared}",
            "",
            *notes,
            *([""] if notes else []),
        ]
    )


def _powers(result: StudyResult) -> str:
    head = ["oracle", "spread between blocks", "noise of a value", "reliability", "best possible Spearman", "models agree"]
    rows = [
        [
            power.oracle,
            _number(power.spread, ".3g"),
            _number(power.noise, ".2g"),
            _number(power.reliability, ".2f"),
            _number(power.ceiling, ".2f"),
            _number(power.models_agree, "+.2f"),
        ]
        for power in result.powers
    ]
    sentences = "\n".join(f"- {power.sentence}." for power in result.powers)
    kinds = "\n".join(f"- {name}: {text}." for name, text in ORACLES.items() if name in _measured_oracles(result))
    return f"## Can the oracles tell blocks apart?\n\n{kinds}\n\n{_table(head, rows)}\n{sentences}\n"


def _single_blocks(result: StudyResult) -> str:
    oracles = _measured_oracles(result)
    lines = []
    for block in range(len(result.models[0].blocks)):
        cells = [[row.values[block] for row in result.oracles if row.name == oracle] for oracle in oracles]
        lines.append(
            [
                str(block),
                *(_spread(values, 2 if "accuracy" in name else 4) for name, values in zip(oracles, cells, strict=True)),
            ]
        )
    return f"## One block removed\n\nMean and standard deviation over replicates.\n\n{_table(['block', *oracles], lines)}"


def _agreements(result: StudyResult, oracle: str) -> str:
    rows = [row for row in result.agreements if row.oracle == oracle]
    best = max((row.spearman.mean for row in rows if row.spearman), default=None)
    head = ["criterion", "Spearman", "Kendall", "pooled Spearman (p)", "more than depth", "given depth"]
    replicates = max((row.spearman.replicates for row in rows if row.spearman), default=0)
    over = "models" if len(result.models) > 1 else "replicates"
    few = " A t interval of so few is wide whatever is true." if 1 < replicates < 6 else ""
    mean_of = f"Mean of {replicates} {over} with its 95 % interval" if replicates > 1 else "One replicate, so no intervals"
    text = f"{mean_of}.{few} Pooled: of scores and oracle averaged, p by permutation, not corrected for the number of criteria."
    return f"## Agreement with {oracle}\n\n{text}\n\n{_table(head, [_agreement(row, best) for row in rows])}"


def _agreement(row: Agreement, best: float | None) -> list[str]:
    spearman = _interval(row.spearman)
    if row.spearman and best is not None and row.spearman.mean == best:
        spearman = f"**{spearman}**"
    pooled = _number(row.pooled_spearman, "+.2f")
    if row.pooled_p is not None:
        pooled += f" ({row.pooled_p:.2g})"
    return [row.criterion, spearman, _interval(row.kendall), pooled, _interval(row.over_depth), _interval(row.given_depth)]


def _accuracies(result: StudyResult, figure: str, title: str) -> str:
    first = result.models[0]
    total = len(first.blocks)
    block_flops = mean(first.block_flops)
    head = [
        "criterion",
        *(
            f"{count} of {total} ({count / total:.1%}), {(first.flops - count * block_flops) / 1e9:.3g} GFLOPs"
            for count in result.counts
        ),
    ]
    means = {
        (criterion, count): _mean(result.measured, criterion, count, figure)
        for criterion in result.criteria
        for count in result.counts
    }
    best = {
        count: max(
            (value for (name, own), value in means.items() if own == count and name != ORACLE and value is not None),
            default=None,
        )
        for count in result.counts
    }
    lines = []
    for criterion in result.criteria:
        cells = [criterion]
        for count in result.counts:
            text = _percent(_of(result.measured, criterion, count, figure))
            wins = criterion != ORACLE and means[criterion, count] is not None and means[criterion, count] == best[count]
            cells.append(f"**{text}**" if wins else text)
        lines.append(cells)
    whole = _percent(_of(result.whole, "none", 0, figure))
    note = f"Per cent, mean and standard deviation over replicates; the whole model: {whole}. Best of the criteria in bold" + (
        f"; {ORACLE} ranks by the finetuned accuracy itself, on the same test items." if ORACLE in result.criteria else "."
    )
    return f"## {title[0].upper()}{title[1:]}\n\n{note}\n\n{_table(head, lines)}"


def _sets(result: StudyResult) -> str:
    lines = []
    for criterion in result.criteria:
        cells = [criterion]
        for count in result.counts:
            sets = Counter(
                runs_text(row.removed) for row in result.measured if row.criterion == criterion and row.count == count
            )
            several = len(sets) > 1
            cells.append("; ".join(f"{name} (x{times})" if several else name for name, times in sets.items()) or _NONE)
        lines.append(cells)
    head = ["criterion", *(f"{count} removed" for count in result.counts)]
    return f"## Which blocks go\n\nWith how many replicates name them, where they differ.\n\n{_table(head, lines)}"


def _conditions(result: StudyResult) -> str:
    lines = []
    for group in result.conditions:
        packages = ", ".join(f"{name} {version}" for name, version in sorted(group["packages"].items()))
        lines.append(
            f"- {group['cells']:,} cells in {group['seconds'] / 60:,.1f} core-minutes, {group['first_utc']} to "
            f"{group['last_utc']}: {group['device']}, {group['cores']} cores, {group['threads']} thread a worker, "
            f"{group['os']}, Python {group['python']}, {packages}, commit {group['commit'] or 'unknown'}"
        )
    return "## Conditions\n\n" + "\n".join(lines) + "\n"


def _measured_oracles(result: StudyResult) -> list[str]:
    return [power.oracle for power in result.powers]


def _of(rows: Iterable[Measured], criterion: str, count: int, figure: str) -> list[float]:
    """The values of a cell; without retraining, seeds of a model that name the same blocks are one value."""
    own = [row for row in rows if row.criterion == criterion and row.count == count]
    if figure.startswith("zero_shot"):
        own = list({(row.model, row.removed): row for row in own}.values())
    return [value for row in own if (value := getattr(row, figure)) is not None]


def _mean(rows: Iterable[Measured], criterion: str, count: int, figure: str) -> float | None:
    values = _of(rows, criterion, count, figure)
    return mean(values) if values else None


def _percent(values: Sequence[float]) -> str:
    return _spread([100 * value for value in values], 1)


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return _NONE
    beside = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{beside}"


def _interval(found: Estimated | None) -> str:
    if found is None:
        return _NONE
    if found.low is None or found.high is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
