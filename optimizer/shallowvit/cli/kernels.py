"""``shallowvit kernels``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, Quiet

if TYPE_CHECKING:
    from shallowvit_kernels.ahead import Compiled

    from ..plugins.survey import Surveyed

__all__ = ["kernels"]


def kernels(
    path: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="A bundle or an ONNX file; without it the kernels are listed.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="KEY", help="Compile the kernels for this device, as shallowvit targets lists them.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Write each kernel's PTX, cubin and launch there.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List our attention kernels, or say of each attention of a bundle whether TensorRT fuses it and which of ours fits.

    With --target the kernels are compiled, which needs no GPU, and their registers, spills and shared memory are shown.
    """
    from ..errors import ShallowvitError
    from . import kernel_printing, printing

    if path is None:
        if target is not None or out is not None:
            raise ShallowvitError(
                "kernels: --target and --out are about a bundle's kernels; name it: shallowvit kernels BUNDLE"
            )
        kernel_printing.print_catalogue(json)
        return
    if out is not None and target is None:
        raise ShallowvitError("kernels: --out needs the device to compile for; name it with --target")
    if out is not None and out.exists():
        raise ShallowvitError(f"kernels: {out} exists; choose another --out")
    graph, blocks = _graph_of(path)
    from ..engines.targets import find_target
    from ..plugins.survey import compile_surveyed, survey_graph

    device = find_target(target) if target is not None else None
    with printing.progress(f"looking at the attentions of {path}", quiet):
        found = survey_graph(graph, blocks)
    compiled: tuple[Compiled, ...] = ()
    if device is not None:
        with printing.progress(f"compiling kernels for {device.key}", quiet):
            compiled = compile_surveyed(found, device.sm)
    if out is not None:
        _write(compiled, out)
    if json:
        printing.print_json(_record(path, found, compiled))
    else:
        kernel_printing.print_survey(path, found, compiled, device.title if device else None)


def _graph_of(path: Path) -> tuple[Path, dict[str, int]]:
    from ..bundle import verify
    from ..errors import ShallowvitError

    if path.is_dir():
        return path / "model.onnx", verify(path).manifest.plan.places_of_blocks
    if not path.is_file():
        raise ShallowvitError(f"kernels: no bundle and no ONNX file {path}; make one with shallowvit export")
    from ..engines.graph_check import check_graph

    check_graph(path)
    return path, {}


def _write(compiled: tuple[Compiled, ...], out: Path) -> None:
    from ..files import folder_when_whole

    with folder_when_whole(out, "kernels", False) as folder:
        for one in compiled:
            stem = folder / f"{one.launch.kernel}-sm{one.launch.sm}"
            stem.with_name(f"{stem.name}.json").write_text(one.launch.to_json())
            stem.with_name(f"{stem.name}.ptx").write_text(one.ptx)
            stem.with_name(f"{stem.name}.cubin").write_bytes(one.cubin)


def _record(path: Path, found: tuple[Surveyed, ...], compiled: tuple[Compiled, ...]) -> dict[str, Any]:
    attentions = [
        asdict(one.site) | {"operator": one.variant.name if one.variant else None, "no_operator": one.reason} for one in found
    ]
    facts = [{"operator": one.launch.kernel, "sm": one.launch.sm} | asdict(one.facts) for one in compiled]
    return {"graph": str(path), "attentions": attentions, "kernels": facts}
