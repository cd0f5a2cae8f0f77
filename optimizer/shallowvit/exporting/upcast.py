"""Keep named blocks or nodes of an fp16 or bf16 model in fp32.

Blocks are kept in torch, before the trace: there their weights are still whole (in the graph they are rounded already), and
torch itself settles the type of every operation inside. Single nodes have no counterpart in torch, so they are kept in the
graph, with the rounded weights. A newcomer's trap: fp32 attention doesn't fuse, so ``cast_attention`` has to follow.
"""

from __future__ import annotations

import difflib
import functools
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError
from .values import Emitter, constant_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir
    import torch
    from torch import nn

__all__ = ["upcast_blocks", "upcast_nodes"]

_TYPED_BY_MEANING = ("Cast", "Constant", "QuantizeLinear", "DequantizeLinear", "CastLike", "ConstantOfShape")


def upcast_blocks(module: nn.Module, original: nn.Module, paths: Sequence[str]) -> int:
    """Let the submodules at ``paths`` compute in fp32 with the original's weights, in place; return how many.

    What comes in is cast to fp32 and what goes out back to the model's type, by hooks that ``torch.export`` traces.

    Args:
        module: The model in fp16 or bf16.
        original: The model it was converted from, in fp32; left as it is.
        paths: Module paths such as ``blocks.11``; a path inside another one adds nothing.

    Raises:
        ShallowvitError: a path isn't a submodule, the model is in fp32, or a submodule shares weights with the rest.
    """
    import torch

    names = [name for name, _ in module.named_modules() if name]
    _check_names(paths, names, "no module of the model")
    kinds = {tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()}
    lower = [kind for kind in (torch.float16, torch.bfloat16) if kind in kinds]
    if paths and not lower:
        raise ShallowvitError(
            f"export: --keep-precise {paths[0]}: the model is in fp32 as a whole; use it with --precision fp16 or bf16"
        )
    outermost = [path for path in dict.fromkeys(paths) if not any(path.startswith(f"{other}.") for other in paths)]
    _check_unshared(module, outermost)
    for path in outermost:
        kept, source = module.get_submodule(path).float(), original.get_submodule(path)
        whole = dict([*source.named_parameters(), *source.named_buffers()])
        with torch.no_grad():
            for name, tensor in [*kept.named_parameters(), *kept.named_buffers()]:
                tensor.copy_(whole[name])
        kept.register_forward_pre_hook(_cast_in, with_kwargs=True)
        kept.register_forward_hook(functools.partial(_cast_out, lower[0]))
    return len(outermost)


def upcast_nodes(model: onnx_ir.Model, names: Sequence[str]) -> int:
    """Let the named nodes of an fp16 or bf16 graph compute in fp32, in place; return how many did not before.

    Between kept nodes nothing is rounded. Weights stay the numbers they were rounded to.

    Args:
        model: The graph in memory, with the types of its values.
        names: Names of nodes of the main graph.

    Raises:
        ShallowvitError: no node has the name, or the node has no precision to keep.
    """
    import onnx_ir.passes.common

    _check_names(names, [node.name for node in model.graph if node.name], "no node of the graph")
    lower, single = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16), onnx_ir.DataType.FLOAT
    wide: dict[onnx_ir.Value, onnx_ir.Value] = {}
    changed = 0
    for node in [node for node in model.graph if node.name in set(names)]:
        if node.op_type in _TYPED_BY_MEANING or not any(_is_float(value) for value in (*node.inputs, *node.outputs)):
            raise ShallowvitError(
                f"export: --keep-precise {node.name}: {node.op_type} has no precision of its own; name a node that computes"
            )
        emitter = Emitter(model.graph, node.metadata_props)
        for place, value in enumerate(node.inputs):
            if value is not None and value.dtype in lower:
                node.replace_input_with(place, wide.get(value) or _widened(emitter, value))
        emitter.insert_before(node)
        outputs = [value for value in node.outputs if value.dtype in lower]
        for output in outputs:
            wide[emitter.retype_output(node, output, single)] = output
        changed += bool(outputs)
    if changed:
        onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
    return changed


def _check_names(wanted: Iterable[str], names: Sequence[str], what: str) -> None:
    known = set(names)
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, names, n=4, cutoff=0.4) or list(names[:4])
            raise ShallowvitError(f"export: --keep-precise {name!r}: {what} has that name; near it are {', '.join(near)}")


def _check_unshared(module: nn.Module, paths: Sequence[str]) -> None:
    inside = {id(tensor) for path in paths for tensor in module.get_submodule(path).parameters()}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        if id(tensor) in inside and not any(name.startswith(f"{path}.") for path in paths):
            raise ShallowvitError(
                f"export: --keep-precise {', '.join(paths)}: shares the weight {name} with the rest; keep its module too"
            )


def _cast_in(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import torch

    return _cast(args, torch.float32), _cast(kwargs, torch.float32)


def _cast_out(dtype: torch.dtype, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    return _cast(output, dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast every float tensor in tuples, lists and dictionaries."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_cast(one, dtype) for one in value)
    if isinstance(value, dict):
        return type(value)({key: _cast(one, dtype) for key, one in value.items()})
    return value


def _is_float(value: onnx_ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def _widened(emitter: Emitter, value: onnx_ir.Value) -> onnx_ir.Value:
    import onnx_ir

    numbers = constant_of(value)
    if numbers is not None:
        return emitter.constant(numbers.astype("float32"))
    return emitter.cast(value, onnx_ir.DataType.FLOAT)
