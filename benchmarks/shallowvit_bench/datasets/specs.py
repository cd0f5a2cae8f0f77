"""Take apart what ``--data`` says: ``demo``, a path, or ``form:path?option=value&...``.

A newcomer's trap: a form in front always wins; without one the path alone decides, and takes no options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl

from ..demo_clips import SPLITS
from ..errors import BenchError
from .sampling import Views, views_from_text

__all__ = ["DEMO", "FORMS", "DataSpec", "check_spec", "parse_spec"]

DEMO = {  # accuracy is measured on clips that no training has seen
    "demo": "test",
    "demo:train": "train",
    "demo:validation": "validation",
    "demo:report": "report",
}
assert set(DEMO.values()) <= set(SPLITS)
_VIDEO = ("root", "classes", "views", "sampling", "stride")
# form -> the options it takes
FORMS: Mapping[str, tuple[str, ...]] = {
    "images": ("classes", "list"),
    "kinetics": _VIDEO,
    "ssv2": _VIDEO,
    "ucf101": _VIDEO,
    "hmdb51": (*_VIDEO, "split", "part"),
    "market1501": (),
    "audio": ("root", "classes", "mean", "std"),
    "binary": (),  # its options are those of the form behind it
}
_HELP = (
    f"give {', '.join(map(repr, DEMO))}, a .npz file, a folder of .npz files or of class folders of images, or one of "
    + ", ".join(f"{form}:..." for form in FORMS)
)


@dataclass(frozen=True)
class DataSpec:
    """A form ("" for a plain path, ``demo``), what it is at, and its options; ``binary`` where one score of two classes is
    measured.
    """

    form: str
    path: Path
    options: Mapping[str, str] = field(default_factory=dict)
    binary: bool = False

    @property
    def root(self) -> Path:
        """The folder of the files that a list names: that of the list unless ``root`` says otherwise."""
        if "root" in self.options:
            return Path(self.options["root"])
        return self.path if self.path.is_dir() else self.path.parent

    def option_path(self, name: str) -> Path | None:
        """Return the file an option names, looked for beside the data where it isn't found from here."""
        if name not in self.options:
            return None
        given = Path(self.options[name])
        return given if given.exists() else self.root / given

    def number(self, name: str, default: float, kind: Callable[[str], float] = float) -> float:
        """Return an option as a number.

        Raises:
            BenchError: it is none.
        """
        if name not in self.options:
            return default
        try:
            return kind(self.options[name])
        except ValueError as err:
            raise BenchError(f"open_dataset: {name}={self.options[name]} is no number; give it as {name}={default:g}") from err

    def views(self) -> Views:
        """Return how clips are taken from a video: dense unless the form is ``ssv2``, which is sampled uniformly."""
        stride = self.number("stride", Views().stride, int)
        sampling = self.options.get("sampling", "uniform" if self.form == "ssv2" else "dense")
        return views_from_text(self.options.get("views", "1x1"), sampling, int(stride))


def parse_spec(spec: str) -> DataSpec:
    """Take a specification apart.

    Raises:
        BenchError: an option that the form doesn't take, or one twice.
    """
    if spec in DEMO:
        return DataSpec("demo", Path(spec))
    form, colon, rest = spec.partition(":")
    if not colon or form not in FORMS:
        return DataSpec("", Path(spec))
    if form == "binary":
        inner = parse_spec(rest)
        return DataSpec(inner.form, inner.path, inner.options, binary=True)
    path, mark, query = rest.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    for name, _value in pairs:
        if name not in FORMS[form]:
            taken = ", ".join(FORMS[form]) or "none"
            raise BenchError(f"open_dataset: {form}: takes no option {name!r}; its options are: {taken}")
    if len(dict(pairs)) != len(pairs) or (mark and not pairs):
        raise BenchError(f"open_dataset: the options {query!r} of {form}: name one twice or none; write them as name=value&...")
    return DataSpec(form, Path(path), dict(pairs))


def check_spec(spec: str) -> DataSpec:
    """Take a specification apart and check what can be checked without reading the data.

    Raises:
        BenchError: a path isn't there, an option is wrong, or a package that the form needs is missing.
    """
    parsed = parse_spec(spec)
    if parsed.form != "demo" and (not str(parsed.path) or not parsed.path.exists()):
        raise BenchError(f"open_dataset: no data at {parsed.path}; {_HELP}")
    if "root" in parsed.options and not parsed.root.is_dir():
        raise BenchError(f"open_dataset: no folder {parsed.root}, which root= names; give the folder that holds the files")
    for name in ("classes", "list"):
        found = parsed.option_path(name)
        if found is not None and not found.is_file():
            raise BenchError(f"open_dataset: no file {parsed.options[name]}, which {name}= names; give its path")
    if FORMS.get(parsed.form, ())[: len(_VIDEO)] == _VIDEO:
        parsed.views()
        _need("av", "videos need PyAV")
        _need("PIL", "videos need Pillow")
    elif parsed.form in ("images", "market1501"):
        _need("PIL", "images need Pillow")
    return parsed


def _need(module: str, what: str) -> None:
    if find_spec(module) is None:
        raise BenchError(f"open_dataset: {what}, which is not installed here. Run: pip install 'shallowvit[video]'")
