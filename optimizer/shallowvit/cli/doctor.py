"""``shallowvit doctor``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .options import Json, Quiet

__all__ = ["doctor"]


def doctor(
    target: Annotated[
        str | None, typer.Option(metavar="KEY", help="Say also whether engines for this target can be built and run here.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what this machine can do, and for each missing thing the one command that gets it.

    Exits with 0 whatever is missing; with --target, with 1 where this machine can neither prepare a bundle for the target nor
    build its engine.
    """
    from ..engines.doctor import diagnose
    from . import printing

    with printing.progress("looking at this machine", quiet):
        found = diagnose(target)
    if json:
        printing.print_json(asdict(found))
    else:
        for finding in found.findings:
            note = f" ({finding.note})" if finding.note and finding.value else finding.note
            printing.print_line(f"{finding.status:<8} {finding.name:<17} {finding.value or ''}{note}")
            if finding.fix:
                printing.print_line(f"{'':<26} -> {finding.fix}")
        if found.answer:
            printing.print_line(f"for {found.answer.target}")
            for name in ("prepare", "build", "run"):
                answer = getattr(found.answer, name)
                printing.print_line(f"  {'can' if answer.possible else 'cannot'} {name}: {answer.reason}")
                if answer.fix:
                    printing.print_line(f"{'':<26} -> {answer.fix}")
    if found.answer and not found.answer.possible:
        raise typer.Exit(1)
