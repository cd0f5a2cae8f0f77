"""From a torch module to an ONNX model in memory, by the plain exporter or, where that fails, by the rungs of a ladder.

A newcomer's trap: a step that fixes something in place (a random mask, the trip count of a loop, the batch) says so in its
record; whoever compares the graph with torch has to fix the same thing there.
"""

from __future__ import annotations

import functools
import io
import logging
import random
import re
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import ShallowvitError
from .conversions import DataDependent, FixedValues, PutInPlace, fixed_values
from .dft import dft_to_matmul
from .mends import AttentionInFourDimensions, ComplexAsReal, weights_without_gradients
from .model_lines import first_line, line_of_error
from .records import ExportStep
from .settled import SEED, functionals_seen_through, random_operators, settled_random

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx_ir
    from torch import nn

__all__ = ["RUNGS", "export_program"]

RUNGS = ("plain", "attention", "random numbers", "recorded values", "complex numbers", "strict capture", "fixed batch")
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError)
_ATTENTION = re.compile(r"only 4D query|Cannot view a tensor|scaled_dot_product|aten_attention|Attention", re.IGNORECASE)
_VALUES = re.compile(
    r"data.dependent|unbacked|\.numpy\(\)|\.item\(\)|tolist|FakeTensor|meta tensor|\bu\d+\b|DataDependent", re.IGNORECASE
)
_BATCH = re.compile(r"specialized|constraint|symbolic|Sym(Int|Float|Bool)|\bs\d+\b|batch", re.IGNORECASE)


class _Unusable(RuntimeError):
    """A traced program that isn't what was asked for; ``kind`` is the rung that may mend it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class _Job:
    module: nn.Module
    example: tuple[torch.Tensor, ...]
    dynamic_shapes: tuple[Any, ...]
    opset: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    samples: tuple[tuple[torch.Tensor, ...], ...]

    @property
    def with_batch(self) -> tuple[bool, ...]:
        """Which inputs have a dynamic first dimension."""
        return tuple(bool(shapes) and 0 in shapes and shapes[0] is not None for shapes in self.dynamic_shapes)

    def of_items(self, count: int, run: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the inputs with ``count`` items, repeated where there are fewer."""
        return tuple(
            one[torch.arange(count) % len(one)] if batched else one for one, batched in zip(run, self.with_batch, strict=True)
        )


@dataclass
class _Found:
    """What an attempt fixed in place, by rung."""

    told: dict[str, str] = field(default_factory=dict)
    fixed: FixedValues | None = None
    stage: str = "capture"


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

    Returns:
        The graph, and one step for each rung of ``RUNGS`` and for what is settled after every export.

    Raises:
        ShallowvitError: no rung of the ladder can export it; the sentence names the line of the model's own code.
    """
    job = _Job(
        module, tuple(example_args), tuple(dynamic_shapes), opset, tuple(input_names), tuple(output_names), tuple(samples)
    )
    training = {one: one.training for one in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            model, steps = _climb(job)
    finally:
        for one, was in training.items():
            one.training = was
    return model, (*steps, *_settle_graph(model))


def _climb(job: _Job) -> tuple[onnx_ir.Model, list[ExportStep]]:
    active: tuple[str, ...] = ("plain",)
    failures: dict[str, str] = {}
    while True:
        found = _Found()
        try:
            model = _attempt(job, active, found)
            break
        except (DataDependent, *_FAILURES) as err:
            failures[active[-1]] = _reason(err)
            following = None if isinstance(err, ShallowvitError) else _next_rung(err, found, active, failures, job)
            if following is None:
                raise _error(job, err, found) from err
            if active[-1] == "strict capture":
                active = active[:-1]
            active = (*active, following)
    steps = []
    for rung in RUNGS:
        if rung in active and not (rung == "plain" and len(active) > 1):
            steps.append(ExportStep(rung, "used", found.told.get(rung, "")))
        elif rung in failures:
            steps.append(ExportStep(rung, "failed", failures[rung]))
        else:
            steps.append(ExportStep(rung, "not needed"))
    return model, steps


def _reason(err: BaseException) -> str:
    line = line_of_error(err)
    return f"{line.short}: {first_line(err)}" if line else first_line(err)


def _error(job: _Job, err: BaseException, found: _Found) -> ShallowvitError:
    names = f"export: torch can't export {', '.join(job.input_names)} -> {', '.join(job.output_names)}"
    if isinstance(err, ShallowvitError):
        return ShallowvitError(f"{names}: {str(err).removeprefix('export: ')}")
    if found.fixed is not None and found.fixed.live and _VALUES.search(_text(err)):
        return ShallowvitError(f"{names}: {found.fixed.refusal()}")
    line = line_of_error(err)
    return ShallowvitError(f"{names}: {line}: {first_line(err)}" if line else f"{names}: {first_line(err)}")


def _text(err: BaseException | None) -> str:
    texts = []
    while err is not None:
        texts.append(f"{type(err).__name__}: {err}")
        err = err.__cause__
    return "\n".join(texts)


def _next_rung(err: BaseException, found: _Found, active: tuple[str, ...], failures: dict[str, str], job: _Job) -> str | None:
    """The first rung not tried that addresses the failure; the last two are for captures that failed for any reason."""
    text = _text(err)
    capture = found.stage == "capture"
    kind = err.kind if isinstance(err, _Unusable) else None
    by_modes = {"random numbers", "recorded values"} & set(active)
    addresses = {
        "attention": kind is None and not capture and _ATTENTION.search(text),
        "random numbers": kind == "random numbers",
        "recorded values": kind is None and capture and _VALUES.search(text),
        "complex numbers": kind is None and "complex" in text.lower(),
        "strict capture": kind is None and capture and not by_modes,
        "fixed batch": kind == "fixed batch" or (kind is None and any(job.dynamic_shapes) and (capture or _BATCH.search(text))),
    }
    return next((rung for rung, does in addresses.items() if does and rung not in active and rung not in failures), None)


def _attempt(job: _Job, active: tuple[str, ...], found: _Found) -> onnx_ir.Model:
    """Capture and translate once, with the mends of the active rungs."""
    if "fixed batch" in active:
        found.told["fixed batch"] = "the batch is fixed at 1" + (
            "" if all(set(shapes or ()) <= {0} for shapes in job.dynamic_shapes) else ", every other size at its example's"
        )
        samples = tuple(job.of_items(1, run) for run in job.samples)
        fixed = tuple(None for _ in job.dynamic_shapes)
        trace = replace(job, example=job.of_items(1, job.example), dynamic_shapes=fixed, samples=samples)
    else:
        trace = job
    with ExitStack() as stack:
        if "attention" in active:
            stack.enter_context(weights_without_gradients(job.module))
        if "recorded values" in active:
            found.fixed = _recorded(job, trace)
            found.told["recorded values"] = "; ".join(found.fixed.told)
        program = _captured(trace, active, found)
        found.stage = "translation"
        return _translated(program, trace)


def _recorded(job: _Job, trace: _Job) -> FixedValues:
    if any(set(shapes or ()) - {0} for shapes in trace.dynamic_shapes):
        raise _Unusable("fixed batch", "values that the model takes from its tensors may change with a dynamic size")
    if trace is not job:
        return fixed_values(job.module, [job.of_items(1, run) for run in _inputs(job)])
    runs = _inputs(job)
    fixed_values(job.module, runs)
    try:
        return fixed_values(job.module, [*runs, job.of_items(3, runs[0])])
    except DataDependent as err:
        raise _Unusable("fixed batch", f"values that the model takes from its tensors change with the batch: {err}") from err


def _inputs(job: _Job) -> list[tuple[torch.Tensor, ...]]:
    """Real inputs where there are some, and random ones in place of the example's zeros; whole numbers stay as they are."""
    runs = [job.of_items(2, run) for run in job.samples]
    for seed in (0, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        of = job.samples[0] if job.samples else job.example
        runs.append(job.of_items(2, tuple(_random(one, generator) for one in of)))
    return runs


def _random(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if like.dtype == torch.uint8:
        return torch.randint(0, 256, like.shape, generator=generator, dtype=torch.uint8)
    return torch.randn(like.shape, generator=generator).to(like.dtype) if like.is_floating_point() else like


@contextmanager
def _patched(job: _Job, active: tuple[str, ...], found: _Found, drawn: list[str]) -> Iterator[None]:
    """Run the module's forward within the modes of the active rungs; numpy's and Python's random numbers show by their state.

    The modes go inside of the forward: torch.export enters modes of its own around it, and names what it traces by the module.
    """
    forward: Callable[..., Any] = job.module.forward
    own = job.module.__dict__.get("forward")

    @functools.wraps(forward)
    def within(*args: Any, **kwargs: Any) -> Any:
        attention, numbers = AttentionInFourDimensions(), ComplexAsReal()
        with ExitStack() as stack:
            settled = stack.enter_context(settled_random()) if "random numbers" in active else None
            before = _random_states()
            if len(active) > 1:
                stack.enter_context(functionals_seen_through())
            if "attention" in active:
                stack.enter_context(attention)
            if "complex numbers" in active:
                stack.enter_context(numbers)
            if "recorded values" in active and found.fixed is not None:
                stack.enter_context(PutInPlace(found.fixed))
            answer = forward(*args, **kwargs)
            drawn.extend(name for name, state in _random_states().items() if state != before[name])
        if settled is not None:
            kinds = ", ".join(dict.fromkeys((*settled.drawn, *drawn)))
            found.told["random numbers"] = f"{kinds}: drawn once with seed {SEED} for one item, constants of the graph"
        if attention.mended:
            found.told["attention"] = f"{attention.mended} attentions in four dimensions"
        else:
            found.told["attention"] = "weights traced as not trainable"
        found.told["complex numbers"] = f"on real and imaginary parts: {', '.join(sorted(numbers.mended))}"
        return answer

    job.module.__dict__["forward"] = within
    try:
        yield
    finally:
        del job.module.__dict__["forward"]
        if own is not None:
            job.module.__dict__["forward"] = own


def _random_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {"numpy": (kind, np.asarray(keys).tobytes(), *rest), "python": random.getstate()}


def _captured(job: _Job, active: tuple[str, ...], found: _Found) -> torch.export.ExportedProgram:
    drawn: list[str] = []
    strict = "strict capture" in active
    with ExitStack() as stack:
        if strict:
            found.told["strict capture"] = "traced from the bytecode"
        else:
            stack.enter_context(_patched(job, active, found, drawn))
        try:
            program = _exported(job, job.dynamic_shapes, strict)
        except torch._dynamo.exc.UserError as err:
            program = _exported(job, _narrowed(job.dynamic_shapes, err), strict)
    drawing = random_operators(program)
    if "random numbers" in active and drawing:
        raise RuntimeError(f"{', '.join(drawing)} can't be drawn in advance")
    if "random numbers" not in active and (drawing or drawn):
        raise _Unusable("random numbers", f"the graph would draw random numbers ({', '.join((*drawing, *drawn))})")
    _check_batch(job, program)
    return program


def _exported(job: _Job, dynamic_shapes: tuple[Any, ...], strict: bool) -> torch.export.ExportedProgram:
    # a first dimension of 1 in the example or at run time is no case of its own, as in torch.onnx.export
    config: Any = torch.fx.experimental._config
    with config.patch(backed_size_oblivious=True), _unprinted():
        return torch.export.export(
            job.module,
            job.example,
            dynamic_shapes=dynamic_shapes,
            strict=strict,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


@contextmanager
def _unprinted() -> Iterator[None]:
    """A capture that fails prints the graph it had and logs its guards; what matters of it is in the exception."""
    loggers = [logging.getLogger(name) for name in ("torch._guards", "torch.fx.experimental.symbolic_shapes", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _narrowed(dynamic_shapes: tuple[Any, ...], err: Any) -> tuple[Any, ...]:
    """Return the shapes with the ranges torch asks for; a size that it makes a constant raises ``err``."""
    if "Suggested fixes" not in str(err):
        raise err
    try:
        refined = torch.export.dynamic_shapes.refine_dynamic_shapes_from_suggested_fixes(str(err), dynamic_shapes)
    except (ValueError, AssertionError):  # a fix that isn't one of a size
        raise err from None
    for before, after in zip(dynamic_shapes, refined, strict=True):
        for place, dim in (before or {}).items():
            if type(after[place]) is not type(dim):
                raise err
    return tuple(refined)


def _check_batch(job: _Job, program: torch.export.ExportedProgram) -> None:
    """An output whose first dimension is the example's batch, as a number, follows the batch in torch alone."""
    if not any(job.with_batch):
        return
    count = next(len(one) for one, batched in zip(job.example, job.with_batch, strict=True) if batched)
    values = [getattr(node, "meta", {}).get("val") for node in program.graph.output_node().args[0]]
    tensors = [value for value in values if isinstance(value, torch.Tensor) and value.ndim]
    if not any(isinstance(value.shape[0], int) and value.shape[0] == count for value in tensors):
        return
    with settled_random(batch=count + 1):
        answer = job.module(*job.of_items(count + 1, job.example))
    from torch.utils._pytree import tree_iter

    found = [one for one in tree_iter(answer) if isinstance(one, torch.Tensor) and one.ndim]
    for one, value in zip(found, tensors, strict=True):
        if isinstance(value.shape[0], int) and value.shape[0] != one.shape[0]:
            raise _Unusable("fixed batch", f"the batch of an output was traced as a constant, {value.shape[0]}")


def _translated(program: torch.export.ExportedProgram, job: _Job) -> onnx_ir.Model:
    try:
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=job.opset,
            input_names=list(job.input_names),
            output_names=list(job.output_names),
            dynamic_shapes=job.dynamic_shapes if any(job.dynamic_shapes) else None,  # for the names of the sizes
            verbose=False,
            external_data=False,
        )
    except torch.onnx.OnnxExporterError as err:
        # the message names the operator; where the model calls it stands on the operator's node
        operators = re.findall(r"op='([\w.]+)'|target=torch\.ops\.([\w.]+)", _text(err))
        names = {name.removesuffix(".default") for pair in operators for name in pair if name}
        for node in program.graph.nodes:
            if str(node.target).removesuffix(".default") in names and node.stack_trace:
                err.add_note(node.stack_trace)
                break
        raise
    assert onnx_program is not None
    return onnx_program.model


def _settle_graph(model: onnx_ir.Model) -> tuple[ExportStep, ExportStep]:
    """Inline what was left a function and rewrite the transforms that engines lack, in place."""
    from onnx_ir.passes import common

    functions = len(model.functions)
    if functions:
        common.InlinePass()(model)
    found = sum(node.op_type == "DFT" for node in model.graph.all_nodes())
    replaced = dft_to_matmul(model) if found else 0
    left = f"; {found - replaced} of no fixed length stay" if found > replaced else ""
    return (
        ExportStep("functions inlined", "used", f"{functions}") if functions else ExportStep("functions inlined", "not needed"),
        ExportStep("DFT as MatMul", "used" if replaced else "failed", f"{replaced} of {found}{left}")
        if found
        else ExportStep("DFT as MatMul", "not needed"),
    )
