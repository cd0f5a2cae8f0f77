"""The options that several commands share, their defaults read from the configuration records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Arch",
    "Blocks",
    "Criterion",
    "Force",
    "Json",
    "Keep",
    "MantissaBits",
    "Out",
    "PruneRatio",
    "Quiet",
    "Remove",
    "Seed",
    "Source",
]

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
Criterion = Annotated[
    str, typer.Option(help="What ranks the blocks: entropy, l1, depth or random; the lowest scores go first.")
]
MantissaBits = Annotated[
    int,
    typer.Option(help="Of entropy: mantissa bits the weights are rounded to; 23 counts exact values, as the released code."),
]
Seed = Annotated[int, typer.Option(help="Of random.")]
PruneRatio = Annotated[
    float | None,
    typer.Option(help="Share of the blocks to remove, 0 <= ratio < 1; the nearest whole number, a half rounded down."),
]
Remove = Annotated[str | None, typer.Option(metavar="BLOCKS", help="Blocks to remove, counted from 0: 3,7 or 8-11.")]
Keep = Annotated[str | None, typer.Option(metavar="BLOCKS", help="Blocks to keep, counted from 0: 0-5; all others go.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder to write; it appears only when whole.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output folder whole if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
