"""Graphs in onnxruntime, with one provider each. numpy arrays go in and come out without a copy of ours.

A newcomer's trap: onnxruntime hands a node that a provider doesn't know to the CPU and says nothing, so the nodes are counted
after loading, and what ran elsewhere is a remark.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import BenchError
from ..feeding import arrays_by_name, batch_size, described
from .protocol import Bound, Runner, RunnerFacts, RunnerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    import numpy as np

    from ..feeding import Batch

__all__ = ["Provider", "open_onnxruntime", "open_with_provider", "session_feed"]

_CPU = "CPUExecutionProvider"
_BATCH = "batch"  # what our exports call the first dimension
_HINTS = ("fp32", "bf16")  # what a provider is told to compute floats in
_FAILURES = (
    "EPFail",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoSuchFile",
    "NotFound",
    "NotImplemented",
    "RuntimeException",
)
# Unknown keys are ignored by versions that don't have them.
_RECORD_NODES = "session.record_ep_graph_assignment_info"


@dataclass(frozen=True)
class Provider:
    """A provider of onnxruntime's.

    Args:
        name: As onnxruntime calls it.
        facts: What is known before loading; what ran elsewhere is added.
        asked: What the session is given as ``providers``; None for one that comes as a package.
        attach: Adds one that comes as a package to the settings of a session.
        rewrite: Returns another graph than the file's and how many nodes it changed, where the provider needs one.
        fixes_batch: Whether it is faster when the batch's size is part of the graph; a bound batch then has its own session.
        bind: Makes a bound batch of a session, where the plain way isn't enough.
    """

    name: str
    facts: RunnerFacts
    asked: list[Any] | None = None
    attach: Callable[[Any], None] = lambda _: None
    rewrite: Callable[[Path], tuple[bytes, int] | None] = lambda _: None
    fixes_batch: bool = False
    bind: Callable[[Any, Batch], Bound] | None = None


class _BoundSession:
    """A batch and the outputs in memory of the session's own."""

    device_ms = None

    def __init__(self, session: Any, batch: Batch) -> None:
        self._run, self._binding, self._session = session.run_with_iobinding, session.io_binding(), session
        for name, array in session_feed(session, batch).items():
            self._binding.bind_cpu_input(name, array)
        # The first run allocates the outputs, and the binding keeps them for all later ones.
        self._names = [one.name for one in session.get_outputs()]
        for name in self._names:
            self._binding.bind_output(name)
        self._run(self._binding)

    def __call__(self) -> None:
        self._run(self._binding)

    def output(self) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._binding.get_outputs()[0].numpy()
        return found

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: value.numpy() for name, value in zip(self._names, self._binding.get_outputs(), strict=True)}


def session_feed(session: Any, batch: Batch) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a batch by the names of a session's inputs."""
    return arrays_by_name(batch, [one.name for one in session.get_inputs()], "infer")


class _OnnxRuntimeRunner:
    """A session with one provider; ``open_fixed`` makes one for a number of items, where that is faster."""

    def __init__(self, session: Any, where: str, provider: Provider, open_fixed: Callable[[int], Any] | None) -> None:
        self.facts, self.errors = provider.facts, _failures()
        self._session = session
        self._open_fixed = open_fixed
        self._where = where
        self._bind = provider.bind or _BoundSession

    def bind(self, batch: Batch) -> Bound:
        with self._refusals(batch):
            session = self._open_fixed(batch_size(batch)) if self._open_fixed is not None else self._session
            return self._bind(session, batch)

    def infer(self, batch: Batch) -> np.ndarray[Any, Any]:
        session = self._session
        with self._refusals(batch):
            output: np.ndarray[Any, Any] = session.run([session.get_outputs()[0].name], session_feed(session, batch))[0]
        return output

    def _refusals(self, batch: Batch) -> Any:
        return _refusals(f"infer: onnxruntime could not run {self._where} on a batch {described(batch)}")

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_onnxruntime(model_path: Path, options: RunnerOptions) -> Runner:
    """Load an ONNX graph into onnxruntime's CPU provider.

    Raises:
        BenchError: the file is missing or onnxruntime can't load it.
    """
    facts = RunnerFacts("onnxruntime", "cpu", "as the graph")
    return open_with_provider(model_path, options, lambda _: Provider(_CPU, facts, asked=[_CPU]))


def open_with_provider(model_path: Path, options: RunnerOptions, provider_here: Callable[[Any], Provider]) -> Runner:
    """Load an ONNX graph into onnxruntime with a provider.

    Args:
        model_path: The graph.
        options: How to load it.
        provider_here: Takes the module ``onnxruntime`` and returns the provider, or raises why it can't be had here.

    Raises:
        BenchError: the file is missing, onnxruntime can't load it, or the provider isn't here or takes no node of the graph.
    """
    if not model_path.is_file():
        raise BenchError(f"open_onnxruntime: no file {model_path}")
    try:
        import onnxruntime
    except ImportError as err:
        raise BenchError("open_onnxruntime: onnxruntime is not installed here. Run: pip install onnxruntime") from err
    provider = provider_here(onnxruntime)

    with_name = "" if provider.name == _CPU else f" with {provider.name}"

    def load(batch: int | None) -> tuple[Any, int]:
        content, changed = provider.rewrite(model_path) or (str(model_path), 0)
        settings = _settings(onnxruntime, options, batch)
        provider.attach(settings)
        with _refusals(f"open_onnxruntime: onnxruntime {onnxruntime.__version__} could not load {model_path}{with_name}"):
            # Without the last, onnxruntime prints a failure, goes on with the CPU and answers as if nothing had been.
            return onnxruntime.InferenceSession(content, settings, providers=provider.asked, enable_fallback=0), changed

    session, changed = load(None)
    if changed:
        facts = provider.facts
        provider = replace(provider, facts=replace(facts, options=facts.options | {"attention_written_out": changed}))
    provider = replace(provider, facts=_facts_of(session, provider, model_path, onnxruntime.__version__))
    open_fixed = (lambda items: load(items)[0]) if provider.fixes_batch else None
    return _OnnxRuntimeRunner(session, str(model_path), provider, open_fixed)


def _settings(onnxruntime: Any, options: RunnerOptions, batch: int | None) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors; warnings would land in the middle of the table
    # Idle workers of a session spin on a core for milliseconds after a run, which the other side then lacks: on 2 cores the
    # demo's p99 rose from 1.4 to 5.5 ms and its speed-up fell from 1.94x to 1.64x. Stopping costs a side alone 2 %.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.add_session_config_entry(_RECORD_NODES, "1")
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
    if batch is not None:
        settings.add_free_dimension_override_by_name(_BATCH, batch)
    return settings


def _facts_of(session: Any, provider: Provider, model_path: Path, version: str) -> RunnerFacts:
    """Return the facts after loading; refuse a provider that took nothing."""
    facts = replace(provider.facts, version=provider.facts.version or version)
    if provider.fixes_batch:
        facts = replace(facts, options=facts.options | {"batch_in_graph": _BATCH in session.get_inputs()[0].shape[:1]})
    if provider.name == _CPU:
        return facts
    if provider.name not in session.get_providers():
        raise BenchError(
            f"open_onnxruntime: {provider.name} could not start and left {model_path} to the CPU; run with --provider cpu"
        )
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before 1.24
        remark = f"onnxruntime {version} doesn't tell which nodes ran in {provider.name}; 1.24 and later do"
        return replace(facts, remarks=(*facts.remarks, remark))
    parts = session.get_provider_graph_assignment_info()
    mine = [[node.op_type for node in part.get_nodes()] for part in parts if part.ep_name == provider.name]
    others = Counter(node.op_type for part in parts if part.ep_name != provider.name for node in part.get_nodes())
    if not mine:
        raise BenchError(f"open_onnxruntime: {provider.name} took none of the nodes of {model_path}; run with --provider cpu")
    if facts.precision in _HINTS and any("DequantizeLinear" in kinds for kinds in mine):
        facts = replace(facts, precision=f"int8 and {facts.precision}")
    return replace(facts, remarks=(*facts.remarks, *_elsewhere(provider.name, mine, others)))


def _elsewhere(name: str, mine: list[list[str]], others: Counter[str]) -> tuple[str, ...]:
    """Say which nodes another provider took."""
    if not others:
        return ()
    total = others.total() + sum(map(len, mine))
    listed = ", ".join(f"{number} {kind}" for kind, number in others.most_common(4))
    advice = "; install onnx here, or export with --opset 18, which has no such node" if others["Attention"] else ""
    return (
        f"{others.total()} of {total} nodes ran in onnxruntime's CPU provider, as {name} doesn't take them ({listed}), "
        f"which cut the graph into {len(mine)} parts{advice}",
    )


def _failures() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    return tuple(getattr(states, name) for name in _FAILURES if hasattr(states, name))


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn onnxruntime's own exceptions, which share no base but ``Exception``, into a ``BenchError``."""
    try:
        yield
    except _failures() as err:
        raise BenchError(f"{what}: {str(err).strip().splitlines()[0]}") from err
