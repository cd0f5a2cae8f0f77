"""The entry point ``shallowvit``: finds the command, runs it, and turns what the user can fix into one sentence and exit code
1.

Only the file of the command that was asked for is imported, so that ``shallowvit --help`` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

__all__ = ["COMMANDS", "main"]

# name -> (module, what it does); the function has the command's name
COMMANDS = {
    "inspect": ("shallowvit.cli.inspect", "Look at a model: stacks, inputs, outputs, and what removing each block would do."),
    "score": ("shallowvit.cli.score", "Score the blocks of a model: which matter, which could go."),
    "prune": ("shallowvit.cli.prune", "Remove blocks and save a model that stock transformers or timm loads."),
    "recover": ("shallowvit.cli.recover", "Make good some of what removing blocks cost, in seconds and without labels."),
    "tune": ("shallowvit.cli.tune", "Search the cheapest bundle that meets budgets of latency, accuracy, energy and size."),
    "export": ("shallowvit.cli.export", "Run the line: score, plan, prune, export to ONNX, check, and write a bundle."),
    "adapt": ("shallowvit.cli.adapt", "Write a bundle that chooses for each input how deep the model goes."),
    "build": ("shallowvit.cli.build", "Build a TensorRT engine into a bundle and prove that its attention is fused."),
    "kernels": ("shallowvit.cli.kernels", "List our attention kernels, or say which a bundle's attentions would get."),
    "study": ("shallowvit.cli.study", "Ask which criterion foresees what removing blocks costs: remove, finetune, compare."),
    "verify": ("shallowvit.cli.verify", "Recheck a bundle and name the first thing wrong with it."),
    "bench": ("shallowvit.cli.bench", "Measure a bundle's latency, energy, memory and accuracy, here or on a device."),
    "targets": (
        "shallowvit.cli.targets",
        "List the devices engines are built for, or explain one and estimate a bundle on it.",
    ),
    "doctor": ("shallowvit.cli.doctor", "Say what this machine can do, and how to get what is missing."),
    "devices": ("shallowvit.cli.devices", "Name the devices that bundles are measured on over SSH, and look at them."),
    "selfcheck": ("shallowvit.cli.selfcheck", "Check on this machine that what is claimed holds: answers, speed, energy."),
    "report": ("shallowvit.cli.report", "Write one page, HTML or Markdown, about bundles and their measurements."),
}

_INTERRUPTED = 130  # typer turns Ctrl-C into this exit code by itself, without a word


def main() -> None:
    """Run the command line."""
    from shallowvit_bench.errors import BenchError
    from shallowvit_kernels.errors import KernelError

    from ..errors import ShallowvitError

    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    try:
        _app(asked)()
    except (ShallowvitError, BenchError, KernelError) as err:
        sys.stderr.write(f"shallowvit: {err}\n")
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != _INTERRUPTED:
            raise
        sys.stderr.write("shallowvit: interrupted; what was finished is kept, and nothing is half-written\n")
        sys.exit(_INTERRUPTED)


def _app(asked: str | None) -> typer.Typer:
    app = typer.Typer(
        help="Make a vision transformer shallow and ship it. Start with: shallowvit export demo --prune-ratio 0.25 -o shallow",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name, (module, summary) in COMMANDS.items():
        function = getattr(importlib.import_module(module), name) if name == asked else _stand_in
        if isinstance(function, typer.Typer):
            app.add_typer(function, name=name, short_help=summary)
        else:
            app.command(name, help=None if name == asked else summary, short_help=summary)(function)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Take what stands before the command; a version asked for has been printed by now."""


def _stand_in() -> None:
    """Stand for a command in the list of commands; the one that runs is always the real one."""
