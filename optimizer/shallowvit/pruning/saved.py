"""Save a pruned model so that its own library loads it again: transformers by ``from_pretrained``, timm by ``create_model``.

Beside the stock files stands ``shallowvit.json`` with the lineage. Where no stock configuration builds the pruned model, the
folder holds ``model.safetensors`` and the removed blocks, and ``load`` takes it with ``arch``.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..files import folder_when_whole
from ..models.outputs import tensors_in
from ..models.probes import random_like
from ..models.rebuild import LINEAGE_FILE, read_lineage, removals_of, schema_for
from ..models.sizes import processor_settings
from ..models.weights import align_safetensors
from .stock import STOCK_FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import LoadedModel
    from ..models.removals import Removal
    from ..models.zero_branch import HalfRemoval
    from .surgery import PrunedModel

__all__ = ["PrunedFolder", "arch_of", "save_pruned"]

_COPIED = ("preprocessor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class PrunedFolder:
    """A saved pruned model: where, whether the stock library loads it alone, and the line of Python that does."""

    path: Path
    stock: bool
    reload: str
    blocks_removed: int


def save_pruned(pruned: PrunedModel, out: str | Path, *, force: bool = False) -> PrunedFolder:
    """Write the pruned model to the folder ``out``, atomically.

    It is saved in its library's form if that library, asked to load it, gives bit-identical outputs; else in our own.

    Raises:
        ShallowvitError: ``out`` exists without ``force``, or can't be written.
    """
    out, model, plan = Path(out), pruned.model, pruned.plan
    with folder_when_whole(out, "prune", force) as folder, _as_oserror():
        stock = model.origin.family in STOCK_FAMILIES and model.recipe.get("stock", True)
        if stock:
            _write_stock(model, folder)
            stock = _reloads(model, folder)
        if not stock:
            # a list whose blocks differ by their place (shifted and unshifted windows) has no stock form without some of them
            for file in folder.iterdir():
                file.unlink()
            tensors = {name: tensor.contiguous().clone() for name, tensor in model.module.state_dict().items()}
            save_file(tensors, folder / "model.safetensors")
        for file in folder.glob("*.safetensors"):
            align_safetensors(file)
        for name in _COPIED:
            if model.folder and (model.folder / name).is_file():
                _copy_processor(model, model.folder / name, folder / name)
        lineage = {
            "schema_version": schema_for(tokens=pruned.tokens is not None),
            "stock": stock,
            "source": asdict(model.origin),
            "plan": asdict(plan),
            "removals": [asdict(one) for one in (*(() if stock else _before(model)), *pruned.removals, *pruned.halves)],
        }
        if pruned.tokens:
            lineage["tokens"] = asdict(pruned.tokens)
        if pruned.recovery:
            lineage["recovery"] = list(pruned.recovery)
        (folder / LINEAGE_FILE).write_text(json.dumps(lineage, indent=1) + "\n")
    return PrunedFolder(out, stock, _reload_line(model, out, stock), len(plan.removed))


def _copy_processor(model: LoadedModel, source: Path, target: Path) -> None:
    """The checkpoint's own settings as they are; of a model that was resized, with its sizes."""
    preprocessing = model.input_spec.preprocessing
    if model.origin.image_size is None or preprocessing is None:
        shutil.copyfile(source, target)
        return
    target.write_text(json.dumps(processor_settings(json.loads(source.read_text()), preprocessing), indent=2) + "\n")


@contextmanager
def _as_oserror() -> Iterator[None]:
    """Safetensors tells of a full disk in the text of its own error only."""
    try:
        yield
    except SafetensorError as err:
        code = re.search(r"os error (\d+)", str(err))
        if code is None:
            raise
        raise OSError(int(code[1]), str(err)) from err


def _reload_line(model: LoadedModel, out: Path, stock: bool) -> str:
    if not stock:
        return f"shallowvit.load({str(out)!r}, arch={arch_of(model)!r})"
    if model.origin.family == "timm":
        return f"timm.create_model({f'local-dir:{out}'!r}, pretrained=True)"
    return f"transformers.{model.origin.architecture}.from_pretrained({str(out)!r})"


def arch_of(model: LoadedModel) -> str:
    """Return what builds the unpruned model again: a plain folder of transformers needs its prefix there."""
    spec = model.origin.arch or model.origin.spec
    prefix = {"transformers": "hf", "timm": "timm"}.get(model.origin.family)
    return f"{prefix}:{spec}" if prefix and model.folder is not None and spec == str(model.folder) else spec


def _before(model: LoadedModel) -> tuple[Removal | HalfRemoval, ...]:
    """What had gone from the model that ``arch`` builds, if this one was itself such a pruned folder."""
    if model.folder is None or not (model.folder / LINEAGE_FILE).is_file() or (model.folder / "config.json").is_file():
        return ()
    return removals_of(read_lineage(model.folder))


def _write_stock(model: LoadedModel, folder: Path) -> None:
    if model.origin.family == "transformers":
        model.module.save_pretrained(folder)  # type: ignore[operator]
    else:
        import timm.models

        arguments = model.recipe["arguments"] or None
        timm.models.save_for_hf(model.module, str(folder), model_args=arguments, safe_serialization=True)


def _reloads(model: LoadedModel, folder: Path) -> bool:
    """Whether the stock library loads the folder into a model with bit-identical outputs."""
    if model.origin.family == "transformers":
        again = type(model.module).from_pretrained(folder, dtype=torch.float32)  # type: ignore[attr-defined]
    else:
        import timm

        again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    example = random_like(model.example)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a masked autoencoder draws its mask in forward
        before = tensors_in(_aligned(model.module)(**example))
        torch.manual_seed(0)
        after = tensors_in(_aligned(again.eval())(**example))
    return len(before) == len(after) and all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def _aligned(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose weights start where torch's allocator puts them: mapped from a file they may start anywhere, and a product
    of
    a matrix with one vector then adds up in another order (a difference of one unit in the last place, seen on the demo).
    """
    return copy.deepcopy(module)
