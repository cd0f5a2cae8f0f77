"""``shallowvit adapt``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..adaptive.settings import AdaptConfig
from ..errors import ShallowvitError
from .options import Force, Json, Out, Quiet

if TYPE_CHECKING:
    from ..adaptive import AdaptiveBundle
    from ..pruning import PrunedModel

__all__ = ["adapt"]


def adapt(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="DEEP [MIDDLE] SHALLOW",
            help="Two or three depths of one model: demo, any source of prune, folders that prune or recover wrote; each keeps "
            "a subset of the next deeper one's blocks. One source with --depths.",
        ),
    ],
    out: Out,
    data: Annotated[
        str,
        typer.Option(
            help="What the gate learns from and is judged on: demo:train, a .npz, or a folder; with labels, depths are judged "
            "by them. Best nothing that a depth was trained on."
        ),
    ],
    depths: Annotated[
        str | None,
        typer.Option(metavar="N,N[,N]", help="Make the depths of one source: pruned by entropy, repaired in closed form."),
    ] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="What the mix may lose against the deepest; 1% is a point.  [default: 1%]")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Instead: the mean cost of an input, as a share of the deepest's FLOPs.")
    ] = None,
    gate_blocks: Annotated[int, typer.Option(help="Blocks that the gate reads its features behind.")] = AdaptConfig.gate_blocks,
    gate_width: Annotated[int, typer.Option(help="Of the gate's hidden layer; 0 for a linear gate.")] = AdaptConfig.gate_width,
    tradeoff: Annotated[
        float, typer.Option(help="What the deepest's cost weighs beside a wrong answer, in what the gate learns.")
    ] = AdaptConfig.tradeoff,
    items: Annotated[int, typer.Option(help="Items to draw from the data at most.")] = AdaptConfig.items,
    samples: Annotated[int, typer.Option(help="Of --depths: items that each repair is fitted on.")] = AdaptConfig.samples,
    precision: Annotated[str, typer.Option(help="Of all graphs: fp32, fp16 or bf16.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = AdaptConfig.seed,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a bundle that chooses for each input how deep the model goes: depths of one model, and a small gate over them.

    The gate and each depth are graphs without control flow, and bundles of their own; verify, build and bench take the whole.
    """
    from shallowvit_bench.gates import parse_share

    from ..adaptive.settings import depths_from_text
    from ..files import check_out

    check_out(out, force, "adapt", sources[0])
    counts = depths_from_text(depths) if depths else ()
    _check_sources(sources, depths)
    drop = parse_share(max_drop, "--max-drop") if max_drop is not None else None
    if precision not in ("fp32", "fp16", "bf16"):
        raise ShallowvitError(f"adapt: unknown --precision {precision!r}; choose fp32, fp16 or bf16")
    config = AdaptConfig(
        data=data,
        max_drop=drop,
        budget=budget,
        gate_blocks=gate_blocks,
        gate_width=gate_width,
        tradeoff=tradeoff,
        items=items,
        samples=samples,
        seed=seed,
    )
    from ..adaptive import adapt as adapt_depths
    from ..exporting import ExportConfig, Precision
    from .bench_printing import progress_lines

    with progress_lines(json or quiet) as progress:
        progress("loading the depths")
        made = adapt_depths(
            _models(sources, counts, config), out, config, ExportConfig(Precision(precision)), force=force, progress=progress
        )
    _tell(made, json=json)


def _check_sources(sources: list[str], depths: str | None) -> None:
    if depths is not None and len(sources) != 1:
        raise ShallowvitError(
            f"adapt: --depths makes the depths of one source, {len(sources)} are given; give one, or no --depths"
        )
    if depths is None and len(sources) not in (2, 3):
        given = "one source is" if len(sources) == 1 else f"{len(sources)} sources are"
        raise ShallowvitError(f"adapt: {given} given; give two or three depths of a model, or one source and --depths 12,6,3")


def _models(sources: list[str], counts: tuple[int, ...], config: AdaptConfig) -> tuple[PrunedModel, ...]:
    from ..adaptive import depths_of, read_depths
    from ..models import load

    return depths_of(load(sources[0]), counts, config) if counts else read_depths(sources)


def _tell(made: AdaptiveBundle, *, json: bool) -> None:
    from rich.table import Table

    from . import printing

    manifest = made.manifest
    if json:
        expected = {way: mix.model_dump() for way, mix in manifest.expected.items()}
        printing.print_json(
            {
                "bundle": str(made.path),
                "depths": [one.path for one in manifest.depths],
                "thresholds": manifest.thresholds,
                "measure": manifest.measure,
                "expected": expected,
                "remarks": manifest.remarks,
            }
        )
        return
    table = Table("", *(one.path for one in manifest.depths), "cost", manifest.measure, "drop")
    for way, mix in manifest.expected.items():
        shares = [f"{share:.0%}" for share in mix.shares]
        table.add_row(way, *shares, f"{mix.cost:.3f}", f"{mix.accuracy:.1%}", f"{mix.drop:.1%} ± {mix.drop_error:.1%}")
    printing.print_table(table)
    judged = manifest.items["judged"]
    printing.print_line(
        f"on {judged:,} items that neither trained the gate nor set its thresholds; costs are shares of the deepest's FLOPs, "
        "the gate's included"
    )
    printing.print_warnings(manifest.remarks)
    printing.print_line(f"{made.path}: measure it with: shallowvit bench {made.path} --data DATA")
