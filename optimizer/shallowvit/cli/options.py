"""The options that several commands share, their defaults read from the configuration records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..scoring.criteria import CRITERIA, GRANULARITIES, Scope
from ..scoring.records import Needs
from ..tokens.config import TokenScorer

__all__ = [
    "Arch",
    "Blocks",
    "Calibration",
    "Criterion",
    "Force",
    "Frames",
    "Granularity",
    "Head",
    "ImageSize",
    "Json",
    "Keep",
    "KeepTokens",
    "MantissaBits",
    "MaxGaps",
    "Mix",
    "Out",
    "Outputs",
    "PrefixTokens",
    "Protect",
    "PruneRatio",
    "Quiet",
    "Quota",
    "Remove",
    "Samples",
    "ScoresFile",
    "Seed",
    "Select",
    "Source",
    "SplitPairs",
    "TokenScoring",
]


def _criteria(needs: Needs | None = None) -> str:
    """The names of the criteria that need this, or of those made of others."""
    rows = CRITERIA.items()
    if needs is None:
        return ", ".join(name for name, row in rows if row.scope is Scope.COMPOSED)
    return ", ".join(name for name, row in rows if row.scope is not Scope.COMPOSED and row.needs is needs)


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="demo, hf:FOLDER_OR_ID, timm:NAME[?pretrained=true], torchvision:NAME, a folder that prune wrote, "
        "a .safetensors/.pt/.pth state dict (with --arch), module:function or file.py:function returning (module, example "
        "inputs).",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(help="What a state dict is the weights of: hf:DIR, timm:NAME, torchvision:NAME or module:function."),
]
Blocks = Annotated[
    str | None,
    typer.Option(metavar="PATHS", help="Module paths of the lists of blocks, with commas; found by structure by default."),
]
Head = Annotated[
    str | None,
    typer.Option(metavar="none|linear:N", help="Drop the output head (the output is what went into it), or draw a new one."),
]
ImageSize = Annotated[
    str | None,
    typer.Option(metavar="S|HxW", help="Rebuild for pictures of this size, its tables of positions interpolated once."),
]
Frames = Annotated[int | None, typer.Option(help="Rebuild a video model for this many frames, likewise.")]
Criterion = Annotated[
    str,
    typer.Option(
        help="What ranks the blocks; the lowest scores go first. From the weights alone: "
        f"{_criteria(Needs.NOTHING)}. With --calibration: {_criteria(Needs.UNLABELLED)}. With labels in it too: "
        f"{_criteria(Needs.LABELLED)}. Made of others: {_criteria()}."
    ),
]
MantissaBits = Annotated[
    int,
    typer.Option(help="Of entropy: mantissa bits the weights are rounded to; 23 counts exact values, as the released code."),
]
Seed = Annotated[int, typer.Option(help="Of random, and of which items of the calibration data are drawn.")]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Inputs for criteria that run the model, and of export for the ranges of int8 and fp8: demo:train, a .npz, or a "
        "folder of .npz files or of images (class folders where labels are needed). Best not what you measure accuracy on.",
    ),
]
Samples = Annotated[int, typer.Option(help="Items of the calibration data to use.")]
Mix = Annotated[
    str, typer.Option(metavar="CRITERION=WEIGHT,...", help="Of mix: the criteria whose ranks are averaged, and their weights.")
]
ScoresFile = Annotated[
    Path | None,
    typer.Option("--scores", metavar="FILE", help="Rank by scores saved with score --save; refused for other weights."),
]
PruneRatio = Annotated[
    float | None,
    typer.Option(help="Share of the blocks to remove, 0 <= ratio < 1; the nearest whole number, a half rounded down."),
]
Remove = Annotated[str | None, typer.Option(metavar="BLOCKS", help="Blocks to remove, counted from 0: 3,7 or 8-11.")]
Keep = Annotated[str | None, typer.Option(metavar="BLOCKS", help="Blocks to keep, counted from 0: 0-5; all others go.")]
KeepTokens = Annotated[
    str | None,
    typer.Option(
        metavar="BLOCK:SHARE,...",
        help="Keep this share of the tokens behind a block (3:0.7,6:0.5), of those that the model starts with; which ones "
        "follows from the input. Blocks are numbered as in the unpruned model.",
    ),
]
TokenScoring = Annotated[
    str,
    typer.Option(
        "--token-scorer",
        metavar="|".join(TokenScorer),
        help="Which tokens stay: the farthest from the mean of all, the longest, those most like the class token, evenly "
        "spaced ones, or the first of these with a linear score that recover trains.",
    ),
]
PrefixTokens = Annotated[
    int | None,
    typer.Option(help="Tokens in front that always stay: class, distillation, registers.  [default: found in the model]"),
]
Select = Annotated[
    str,
    typer.Option(
        help="How scores become a choice: prefix (the lowest), iterative (one at a time, scored again after each), interval "
        "(one run of neighbours) or gaps (the least sum that leaves few gaps)."
    ),
]
Protect = Annotated[
    str | None, typer.Option(metavar="BLOCKS", help="Blocks that must stay: first,last,3 or 0-2; first and last of each stack.")
]
Quota = Annotated[
    str | None,
    typer.Option(
        metavar="even|PATH=N,...", help="even: the same ratio of each stack. PATH=N: that many of each, in place of a ratio."
    ),
]
MaxGaps = Annotated[
    int, typer.Option(help="Of gaps: how many removed runs may have a kept block of their stack on both sides.")
]
Granularity = Annotated[
    str,
    typer.Option(
        metavar="|".join(GRANULARITIES),
        help="What goes: whole blocks, or of each chosen block its attention or its MLP alone, ranked by their own weights.",
    ),
]
SplitPairs = Annotated[
    bool,
    typer.Option("--split-pairs", help="Let blocks go singly that go together by default: windows and shifted windows."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder to write; it appears only when whole.")]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        metavar="NAME",
        help="What the graph gives, once for each: logits, features (the states before the head), an entry of the model's own "
        "output, a module's path as in the unpruned model (blocks.5), or PATH:queries|keys|values of a packed projection.  "
        "[default: the logits, else the first output]",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output folder whole if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
