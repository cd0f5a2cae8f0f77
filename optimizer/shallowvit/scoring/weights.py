"""Read a model's blocks as matrices: from the loaded model, or straight from a checkpoint without building the model.

A matrix is read when it is asked for, and a ``.safetensors`` file is mapped anew for each, so that no more of it stays in
memory than is worked on. A newcomer's trap: a rank-2 weight isn't always a matrix that multiplies the hidden states. Tables of
relative positions look like one, and so does the small network that makes them in Swin v2; they are left out by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch

from ..errors import ShallowvitError
from ..models.checkpoints import unchunked
from ..models.halves import find_halves
from ..models.weights import check_safetensors, read_state_dict
from .records import BlockWeights, Matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..models import LoadedModel

__all__ = ["chunks_of", "dot", "hash_blocks", "map_blocks", "open_checkpoint", "weights_from_model"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_CHUNK = 1 << 19  # weights: large enough that a table of 65,536 counters a chunk costs little, small enough for the caches
_BUDGET = 1 << 30  # bytes that the threads together may work on, each on one block in fp32 and a copy of it
_FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
_NUMBERED = re.compile(r"(|.*_)(\d+)")  # "0"; torchvision's "encoder_layer_0"

# Rank 2, but added to attention logits or to positions instead of multiplying the hidden states.
_TABLES = (
    "relative_position_bias",  # Swin, BEiT, Data2Vec, MaxViT: a table, or a module that holds one
    "rel_pos",  # MViT, ViTDet, SAM: rel_pos_h, rel_pos_w, rel_pos_t
    "continuous_position_bias_mlp",  # Swin v2 of transformers
    "cpb_mlp",  # Swin v2 of timm and torchvision
    "meta_mlp",  # Swin v2 CR of timm
    "attention_bias",  # LeViT, EfficientFormer, TinyViT
    "pos_embed",
    "position_embedding",
)
# Computed, not learned: some checkpoints hold them, some don't, and the first block may lack one.
_BUFFERS = ("attn_mask", "relative_position_index", "relative_coords_table", "attention_bias_idxs", "num_batches_tracked")


class _Stored(NamedTuple):
    """A tensor of a checkpoint, not yet read."""

    shape: tuple[int, ...]
    floating: bool
    read: Callable[[], torch.Tensor]


class _Stack(NamedTuple):
    """Blocks found by name: their common path, and each block's path with its tensors by their names within it."""

    path: str
    blocks: dict[str, dict[str, _Stored]]

    @property
    def weights(self) -> int:
        return sum(int(np.prod(stored.shape)) for block in self.blocks.values() for stored in block.values() if stored.floating)


def weights_from_model(model: LoadedModel, granularity: str = "block") -> tuple[BlockWeights, ...]:
    """Return the matrices of the model's chosen blocks, or of their ``attention`` or ``mlp`` alone; nothing is copied."""
    halves = find_halves(model, granularity) if granularity != "block" else None
    return tuple(
        BlockWeights(
            block.index,
            block.stack,
            block.path,
            tuple(
                Matrix(name, shape, partial(_viewed, parameter, shape))
                for name, parameter in model.block(block.index).named_parameters()
                if parameter.is_floating_point()
                and (halves is None or name in halves[block.index].weights)
                and (shape := _matrix_shape(name, tuple(parameter.shape)))
            ),
        )
        for block in model.blocks
    )


def open_checkpoint(path: str | Path, stacks: Sequence[str] = ()) -> tuple[BlockWeights, ...]:
    """Find the blocks of a checkpoint by its weights' names; the numbers are read later, matrix by matrix.

    Blocks are siblings ``prefix.0``, ``prefix.1`` and so on whose weights have the same names and shapes. Without ``stacks``,
    the prefix of the most blocks is taken, of equals that of the most weights, as ``load`` does.

    Args:
        path: A ``.safetensors`` file, the ``.index.json`` of a sharded checkpoint, a folder that holds one of them, or a
            ``.pt`` or ``.pth`` file (which is mapped as a whole).
        stacks: Prefixes to take instead, in this order.

    Raises:
        ShallowvitError: a file is missing or damaged, or no blocks are found; reading a matrix raises it for NaN and Inf.
    """
    path = Path(path)
    stored = _stored_tensors(path)
    plain = unchunked(stored)
    found = _stacks_by_name({plain[name]: tensor for name, tensor in stored.items()})
    if not stacks:
        usable = [stack for stack in found.values() if len(stack.blocks) > 1]
        if not usable:
            raise ShallowvitError(
                f"score: no blocks found in {path}: no weights are named alike under prefix.0, prefix.1 and so on; give the "
                "model instead of its weights"
            )
        stacks = [max(usable, key=lambda stack: (len(stack.blocks), stack.weights)).path]
    for place, name in enumerate(stacks):
        if name not in found:
            raise ShallowvitError(
                f"score: no blocks under {name} in {path}; found: {', '.join(sorted(found)) or 'none'}; give one of these"
            )
        for other in stacks[:place]:
            if name == other or name.startswith(f"{other}.") or other.startswith(f"{name}."):
                raise ShallowvitError(f"score: {name} stands beside {other}, so some blocks would count twice; give one")
    chosen = [(stack, *item) for stack in stacks for item in found[stack].blocks.items()]
    return tuple(
        BlockWeights(index, stack, block, tuple(_matrices(path, block, tensors)))
        for index, (stack, block, tensors) in enumerate(chosen)
    )


def hash_blocks(blocks: Sequence[BlockWeights]) -> str:
    """Return the sha256 over the blocks in order, each by its matrices' shapes and fp32 numbers, whatever they are called."""
    matrices = [matrix for block in blocks for matrix in block.matrices]
    digests = iter(_in_threads(_hash, matrices, _cores()))
    whole = hashlib.sha256()
    for block in blocks:
        own = sorted(next(digests) for _ in block.matrices)
        whole.update(len(own).to_bytes(8, "little") + b"".join(own))
    return whole.hexdigest()


def map_blocks(
    function: Callable[[BlockWeights], _Result], blocks: Sequence[BlockWeights], at_once: int | None = None
) -> list[_Result]:
    """Apply a function to each block, one block a thread, on as many cores as there is room for blocks.

    Args:
        function: Called in a thread in which torch uses no further threads.
        blocks: The blocks.
        at_once: How many blocks at most.
    """
    largest = 4 * max((block.numel for block in blocks), default=0)
    return _in_threads(function, blocks, min(at_once or _cores(), _BUDGET // max(2 * largest, 1)))


def chunks_of(matrices: Iterable[torch.Tensor]) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """Yield the matrices' weights as flat fp32 arrays of a bounded size; not to be written to."""
    for matrix in matrices:
        flat = matrix.detach().reshape(-1)
        for start in range(0, len(flat), _CHUNK):
            yield flat[start : start + _CHUNK].float().numpy()


def dot(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Return the sum of products; not by BLAS, which would start threads of its own in each of ours."""
    return float(np.einsum("i,i->", one, other))


def _in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item], count: int) -> list[_Result]:
    """Map in threads of our own, with torch's off in them: on a busy machine each wait for those takes milliseconds."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(max(count, 1), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        # set for the calling thread and for threads yet to come; ours have ended
        torch.set_num_threads(before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hash(matrix: Matrix) -> bytes:
    digest = hashlib.sha256(f"{matrix.shape[0]} {matrix.shape[1]}\n".encode())
    for chunk in chunks_of([matrix.read()]):
        digest.update(chunk.data)
    return digest.digest()


def _matrix_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The shape as a matrix, [out, in]; None for what is none."""
    if any(part.startswith(_TABLES) for part in name.split(".")):
        return None
    if len(shape) == 2:
        return shape[0], shape[1]
    # a convolution of size 1 is a matrix, unless it works on each channel by itself
    if len(shape) in (4, 5) and shape[1] > 1 and all(size == 1 for size in shape[2:]):
        return shape[0], shape[1]
    return None


def _viewed(tensor: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return tensor.detach().reshape(shape)


def _matrices(path: Path, block: str, tensors: dict[str, _Stored]) -> Iterator[Matrix]:
    for name, stored in tensors.items():
        shape = _matrix_shape(name, stored.shape)
        if shape and stored.floating:
            yield Matrix(name, shape, partial(_read_checked, stored, shape, f"{path}: {block}.{name}"))


def _read_checked(stored: _Stored, shape: tuple[int, int], where: str) -> torch.Tensor:
    tensor = stored.read()
    # a sum is finite only if all its terms are; the other way round it may overflow
    if not torch.isfinite(tensor.sum(dtype=torch.float32)):
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise ShallowvitError(
                f"score: {where} holds {bad} of {tensor.numel()} weights that are NaN or Inf; train or download it again"
            )
    return tensor.reshape(shape)


def _stacks_by_name(tensors: dict[str, _Stored]) -> dict[str, _Stack]:
    """Every prefix under which all children are numbered from 0 and alike, hold matrices, and are more than single layers."""
    members: dict[tuple[str, str], dict[int, dict[str, _Stored]]] = {}
    under: dict[str, set[str]] = {}
    for name, stored in tensors.items():
        parts = name.split(".")
        for place, part in enumerate(parts[:-1]):
            prefix = ".".join(parts[:place])
            under.setdefault(prefix, set()).add(part)
            if numbered := _NUMBERED.fullmatch(part):
                blocks = members.setdefault((prefix, numbered[1]), {})
                blocks.setdefault(int(numbered[2]), {})[".".join(parts[place + 1 :])] = stored
    found = {}
    for (prefix, text), blocks in members.items():
        if sorted(blocks) != list(range(len(blocks))) or len(under[prefix]) != len(blocks) or not _alike(list(blocks.values())):
            continue
        paths = {".".join(filter(None, (prefix, f"{text}{number}"))): blocks[number] for number in sorted(blocks)}
        found[prefix] = _Stack(prefix, paths)
    return found


def _alike(blocks: Sequence[dict[str, _Stored]]) -> bool:
    shapes = [
        {name: stored.shape for name, stored in block.items() if name.rpartition(".")[2] not in _BUFFERS} for block in blocks
    ]
    layers = any("." in name for name in shapes[0])
    matrices = any(_matrix_shape(name, shape) for name, shape in shapes[0].items())
    return layers and matrices and all(other == shapes[0] for other in shapes)


def _stored_tensors(path: Path) -> dict[str, _Stored]:
    """List the tensors of a checkpoint without reading their numbers."""
    if path.is_dir():
        path = _file_in(path)
    if path.suffix == ".json":
        return _sharded(path)
    if path.suffix == ".safetensors":
        return _mapped(path)
    # a .pt file's tensors are views of one mapping, which the system may drop from memory when it needs the room
    state = read_state_dict(path, mapped=True)
    return {
        name: _Stored(tuple(value.shape), value.is_floating_point(), partial(_same, value)) for name, value in state.items()
    }


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _file_in(folder: Path) -> Path:
    for pattern in ("*.safetensors.index.json", "model.safetensors", "*.safetensors"):
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(file.name for file in files[:4])
            raise ShallowvitError(f"score: {folder} holds {len(files)} of {pattern} ({names}); give one of these files")
    raise ShallowvitError(f"score: no .safetensors file in {folder}; give the file of weights itself")


def _sharded(index: Path) -> dict[str, _Stored]:
    if not index.is_file():
        raise ShallowvitError(f"score: no file {index}; check the path")
    try:
        names: dict[str, str] = json.loads(index.read_text())["weight_map"]
        shards = {shard: index.parent / shard for shard in sorted(set(names.values()))}
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ShallowvitError(
            f"score: {index} is no index of a sharded checkpoint (no weight_map of names to files); copy or download it again"
        ) from err
    for shard, file in shards.items():
        if not file.is_file():
            raise ShallowvitError(f"score: {index.name} names the shard {shard}, which isn't in {index.parent}; copy it there")
    tensors = {shard: _mapped(file) for shard, file in shards.items()}
    for name, shard in names.items():
        if name not in tensors[shard]:
            raise ShallowvitError(
                f"score: {index.name} says that {name} is in {shard}, where it isn't; copy or download both again"
            )
    return {name: tensors[shard][name] for name, shard in names.items()}


def _mapped(file: Path) -> dict[str, _Stored]:
    from safetensors import safe_open

    if not file.is_file():
        raise ShallowvitError(f"score: no file {file}; check the path")
    if file.stat().st_size == 0:
        raise ShallowvitError(f"score: {file} is empty (0 bytes); copy or download it again")
    check_safetensors(file)
    with safe_open(file, framework="pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it isn't a dict)
        return {
            name: _Stored(tuple(part.get_shape()), part.get_dtype() in _FLOATS, partial(_read_mapped, file, name))
            for name, part in slices.items()
        }


def _read_mapped(file: Path, name: str) -> torch.Tensor:
    """Map the file for this tensor alone: the pages leave the memory with it, where one mapping would gather them all."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    return tensor
