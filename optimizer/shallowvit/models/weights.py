"""Read weight files without running anything in them, check the numbers, and hash them.

A newcomer's trap: a ``.pt`` file is a pickle. It is read with ``weights_only=True`` here, so one with code in it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from .key_maps import WRAPPERS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "Checkpoint",
    "align_safetensors",
    "check_finite",
    "check_safetensors",
    "hash_state",
    "load_state",
    "read_checkpoint",
    "read_state_dict",
]

_ALIGNMENT = 64  # bytes: what torch's allocator gives, and the widest vector a CPU loads at once


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors by name, the keys they lay under, and further state dicts beside them that were not taken."""

    state: dict[str, torch.Tensor]
    taken: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def read_state_dict(path: Path, *, mapped: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of ``read_checkpoint`` alone."""
    return read_checkpoint(path, mapped=mapped).state


def read_checkpoint(path: Path, *, mapped: bool = False) -> Checkpoint:
    """Read a ``.safetensors``, ``.pt`` or ``.pth`` file into tensors by name on the CPU, unwrapping ``{"model": {...}}``.

    Args:
        path: The file.
        mapped: Leave the numbers of a ``.pt`` file on the disk until they are used, where its format allows (torch 1.6 on).

    Raises:
        ShallowvitError: the file is missing, empty, truncated, holds code, or holds no tensors.
    """
    if not path.is_file():
        raise ShallowvitError(f"load: no file {path}. Check the path")
    if path.stat().st_size == 0:
        raise ShallowvitError(f"load: {path} is empty (0 bytes). Copy or download it again")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        check_safetensors(path)
        return Checkpoint(load_file(path))
    try:
        with torch.serialization.safe_globals(_harmless_types()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as err:
        raise ShallowvitError(
            f"load: {path} holds Python objects or code beside tensors, which is never run here. Save it again as a state "
            "dict, best as .safetensors"
        ) from err
    except (RuntimeError, EOFError, KeyError, ValueError) as err:
        first = str(err).partition("\n")[0]
        raise ShallowvitError(f"load: {path} can't be read as PyTorch weights ({first}). Copy or download it again") from err
    return _unwrapped(content, path)


def _harmless_types() -> list[Any]:
    """What official checkpoints hold beside tensors: the training script's arguments and figures. None of them can run code."""
    import argparse

    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")]
    return [argparse.Namespace, np.dtype, *kinds, *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]


def _unwrapped(content: Any, path: Path) -> Checkpoint:
    taken: list[str] = []
    others: tuple[str, ...] = ()
    while isinstance(content, dict) and (wrapped := [name for name in WRAPPERS if isinstance(content.get(name), dict)]):
        taken.append(wrapped[0])
        others += tuple(name for name in wrapped[1:] if _holds_tensors(content[name]))
        content = content[wrapped[0]]
    if not isinstance(content, dict):
        raise ShallowvitError(f"load: {path} holds a {type(content).__name__}, expected a dict of tensors by name")
    state = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise ShallowvitError(f"load: {path} holds no tensors; its keys: {', '.join(map(str, list(content)[:8])) or 'none'}")
    if all(name.startswith("module.") for name in state):  # saved from DistributedDataParallel
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return Checkpoint(state, tuple(taken), others)


def _holds_tensors(content: dict[Any, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in content.values())


def check_safetensors(path: Path) -> None:
    """Open the file's header, so that a truncated file fails with a sentence before a library fails without one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except SafetensorError as err:
        raise ShallowvitError(
            f"load: {path} ({path.stat().st_size:,} bytes) is truncated or not a safetensors file ({err}). Copy or download "
            "it again"
        ) from err


def align_safetensors(path: Path) -> None:
    """Pad the file's header, in place, so that as many matrices as possible start at a multiple of 64 bytes.

    A file is mapped into memory as it stands, and a product of a matrix with one vector adds up in another order where the
    matrix starts at an odd address: the same weights would answer differently in the last bit than in memory of torch's own.
    The format allows spaces at the end of the header, and no other change.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length).rstrip(b" ")
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        starts = [entry["data_offsets"][0] for entry in tensors if len(entry["shape"]) > 1]
        base = -(-(8 + len(header)) // 8) * 8
        best = max(range(base, base + _ALIGNMENT, 8), key=lambda begin: sum((begin + s) % _ALIGNMENT == 0 for s in starts))
        padded = header.ljust(best - 8)
        beside = path.with_name(f".{path.name}.aligned")
        with beside.open("wb") as out:
            out.write(len(padded).to_bytes(8, "little") + padded)
            shutil.copyfileobj(file, out, 1 << 24)
    os.replace(beside, path)


def load_state(module: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load the weights into the module in place; every name and shape must match.

    Raises:
        ShallowvitError: names the first missing, unexpected or misshapen weight.
    """
    own = module.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or unexpected:
        first = f"{missing[0]} is missing" if missing else f"{unexpected[0]} has no place"
        raise ShallowvitError(
            f"load: the weights of {source} don't fit {type(module).__name__}: {len(missing)} missing, {len(unexpected)} "
            f"without a place; the first: {first}. Check --arch"
        )
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise ShallowvitError(
                f"load: {name} in {source} has shape {tuple(value.shape)}, but {type(module).__name__} has "
                f"{tuple(own[name].shape)}. Check --arch"
            )
    module.load_state_dict(dict(state))


def check_finite(module: torch.nn.Module, source: str) -> None:
    """Refuse NaN and infinite weights, naming the first parameter that holds one."""
    for name, tensor in module.state_dict().items():
        # a sum is finite only if all its terms are; the other way round it may overflow
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
            continue
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            kind = "NaN" if bool(torch.isnan(tensor).any()) else "Inf"
            raise ShallowvitError(
                f"load: {source}: {name} holds {bad} of {tensor.numel()} weights that are NaN or Inf (first kind: {kind}). "
                "Train or download it again"
            )


def hash_state(module: torch.nn.Module) -> str:
    """Return the sha256 over all weights and buffers: name, dtype, shape and bytes of each, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
