"""From what torch's exporter raised to the line of the model's own code that it stumbled over.

A newcomer's trap: the exporter wraps what went wrong twice or more, and where the trace was whole but its translation wasn't,
the model's line stands in the text, or in a note on the exception, not in the traceback.
"""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ModelLine", "first_line", "is_of_model", "line_of_error"]

_PACKAGES = ("torch", "onnxscript", "onnx_ir", "onnx", "numpy", "sympy")  # of others' code, timm's and transformers' are models
_STDLIB = sysconfig.get_paths()["stdlib"]
_OURS = str(Path(__file__).parent)
_IN_TEXT = re.compile(r'File "?(?P<file>[^"\n:]+\.py)"?(?:, line |:)(?P<line>\d+)')
_COLOURS = re.compile(r"\x1b?\[\d+m")


@dataclass(frozen=True)
class ModelLine:
    """A line of the model's code."""

    file: str
    number: int

    @property
    def source(self) -> str:
        """What the line says."""
        return linecache.getline(self.file, self.number).strip()

    @property
    def short(self) -> str:
        """File and number without what is of this machine alone."""
        parts = Path(self.file).parts
        inside = parts.index("site-packages") + 1 if "site-packages" in parts else max(len(parts) - 2, 0)
        return f"{'/'.join(parts[inside:])}:{self.number}"

    def __str__(self) -> str:
        return f"{self.file}:{self.number} `{self.source}`"


def is_of_model(file: str) -> bool:
    """Say whether a file may hold a model, being neither torch's, the exporter's, Python's nor this folder's."""
    if file.startswith(("<", _OURS)) or (file.startswith(_STDLIB) and "site-packages" not in file):
        return False
    return not any(f"site-packages/{package}/" in file for package in _PACKAGES)


def line_of_error(err: BaseException) -> ModelLine | None:
    """Return the innermost line of the model in the exception or what caused it; None where there is none."""
    for one in reversed(list(_chain(err))):
        lines = [ModelLine(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(one.__traceback__)]
        text = "\n".join((str(one), *getattr(one, "__notes__", ())))
        told = [ModelLine(found["file"], int(found["line"])) for found in _IN_TEXT.finditer(text)]
        for found in (lines, told):
            of_model = [line for line in found if is_of_model(line.file)]
            if of_model:
                return of_model[-1]
    return None


def first_line(err: BaseException) -> str:
    """What went wrong at the bottom, in one line and without colours."""
    innermost = list(_chain(err))[-1]
    text = _COLOURS.sub("", str(innermost)).strip().partition("\n")[0]
    return text or type(innermost).__name__


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__
