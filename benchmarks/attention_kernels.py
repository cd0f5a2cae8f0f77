"""Measure the attention kernels: on a GPU their speed, memory and error; anywhere what the compiler makes of them.

    python benchmarks/attention_kernels.py [--parts compile memory speed] [--only plain positions] [--quick]

On a GPU every side of a case runs in alternation: our kernel, the decomposed graph in torch, SDPA with each of its backends,
and FlexAttention through ``torch.compile``; beside each stand its error against fp32 and the floors of bytes and operations.
Without a GPU there are compile-time facts and the memory that engines of TensorRT-RTX need. A newcomer's trap: a row of
``speed`` that isn't ``measured`` is a finding too, and says why. Rows go to ``benchmarks/results/attention_kernels.jsonl``; the
tables read the last of a kind, and the goals are judged at the end on the rows of this run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import random
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel_bench.cases import CASES, Shape
from kernel_bench.floors import goals_of
from shallowvit_bench.conditions import read_conditions
from shallowvit_kernels.records import Dtype
from shallowvit_kernels.tiles import TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results" / "attention_kernels.jsonl"
PARTS = ("compile", "memory", "speed")
TOKENS = (196, 784, 1568, 3136)
_PACKAGES = ("torch", "triton", "tensorrt_rtx_cu13")
# So small that a test runs it: 196 tokens in a model of two narrow blocks, and one kernel for one GPU.
_QUICK_MODEL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}


@dataclass(frozen=True)
class Sizes:
    """The grid of ``speed``."""

    dtypes: tuple[str, ...] = tuple(Dtype)
    head_sizes: tuple[int, ...] = (64, 32, 80)
    tokens: tuple[int, ...] = TOKENS
    batches: tuple[int, ...] = (1, 8)


class Rows:
    """The rows of this run, each appended to the file as soon as it is there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.taken: list[Row] = []
        path.parent.mkdir(parents=True, exist_ok=True)

    def take(self, rows: Iterable[Row]) -> None:
        """Append rows with the conditions they were taken under."""
        conditions = asdict(read_conditions(None))
        conditions["packages"] |= {name: importlib.metadata.version(name) for name in _PACKAGES if _installed(name)}
        for row in rows:
            self.taken.append(row)
            say(json.dumps(row)[:240])
            whole = row | {"machine": platform.machine(), "conditions": conditions}
            with self._path.open("a") as file:
                file.write(json.dumps(whole) + "\n")


def say(text: str) -> None:
    """Write a line to stdout at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def shapes_of(names: Sequence[str], sizes: Sizes) -> Iterator[Shape]:
    """Yield the shapes of ``speed``, of cases with these names."""
    cases = [case for case in CASES if case.name in names]
    for case, *rest in itertools.product(cases, sizes.dtypes, sizes.head_sizes, sizes.tokens, sizes.batches):
        dtype, head_size, tokens, batch = rest
        yield Shape(case, Dtype(dtype), head_size, tokens, batch)


def device_of(asked: str) -> str | None:
    """Return the CUDA device to measure on, None for none.

    Args:
        asked: ``auto``, ``none``, or torch's name of a device.
    """
    if asked != "auto":
        return None if asked == "none" else asked
    import torch

    return "cuda:0" if torch.cuda.is_available() else None


def measure_compile(rows: Rows, given: argparse.Namespace) -> None:
    """Compile-time facts."""
    from kernel_bench.compiled import compile_rows, planned

    groups = planned(given.only, given.sm)
    for group in groups[:1] if given.quick else groups:
        rows.take(compile_rows(group))


def measure_memory(rows: Rows, given: argparse.Namespace) -> None:
    """What engines of TensorRT-RTX take; without TensorRT-RTX a line says so."""
    if not _installed("tensorrt_rtx_cu13"):
        say("memory: TensorRT-RTX isn't installed, and no engine is built; pip install '.[tensorrt]'")
        return
    from kernel_bench.alone_memory import alone_rows
    from kernel_bench.engine_memory import memory_rows

    with tempfile.TemporaryDirectory() as name:
        work = given.work or Path(name)
        for tokens in given.tokens[:1] if given.quick else given.tokens:
            rows.take(memory_rows(tokens, work, _QUICK_MODEL if given.quick else None))
            with tempfile.TemporaryDirectory() as alone:
                rows.take(alone_rows(tokens, Path(alone), ("soft_cap",) if given.quick else given.only))


def measure_speed(rows: Rows, given: argparse.Namespace, device: str) -> None:
    """Every side of every shape on a GPU."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("speed: TRITON_INTERPRET=1 would run our kernels on the CPU; unset it and start again")
    from kernel_bench.speed import CudaClock, measure

    clock = CudaClock(device)
    sizes = Sizes(tuple(given.dtypes), tuple(given.head_sizes), tuple(given.tokens), tuple(given.batches))
    shapes = list(shapes_of(given.only, sizes))
    for shape in shapes[:1] if given.quick else shapes:
        rows.take(measure(shape, clock, 3 if given.quick else given.rounds, random.randrange(2**31)))
        clock.release()


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    sizes = Sizes()
    parser.add_argument("--device", default="auto", help="auto, none, or torch's name of a CUDA device")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--sm", nargs="+", type=int, choices=TARGETS, default=TARGETS, help="compile for these alone")
    parser.add_argument("--dtypes", nargs="+", choices=list(Dtype), default=sizes.dtypes)
    parser.add_argument("--head-sizes", nargs="+", type=int, default=sizes.head_sizes)
    parser.add_argument("--tokens", nargs="+", type=int, choices=TOKENS, default=sizes.tokens)
    parser.add_argument("--batches", nargs="+", type=int, default=sizes.batches)
    parser.add_argument("--rounds", type=int, default=30, help="timed runs a side")
    parser.add_argument(
        "--work", type=Path, help="keep models, graphs and engines in this folder, and use those that are there"
    )
    parser.add_argument("--append", type=Path, default=RESULTS, metavar="FILE", help="where rows go")
    parser.add_argument("--quick", action="store_true", help="the first of everything, in a tiny model")
    return parser


def main() -> None:
    """Measure."""
    given = _parser().parse_args()
    device = device_of(given.device)
    rows = Rows(given.append)
    if "speed" in given.parts and device is None:
        say("speed: no GPU here, so nothing is timed; compile-time facts and the memory of engines are recorded alone")
    if "compile" in given.parts:
        measure_compile(rows, given)
    if "memory" in given.parts:
        measure_memory(rows, given)
    if "speed" in given.parts and device is not None:
        measure_speed(rows, given, device)
        for goal in goals_of(rows.taken):
            say(str(goal))


if __name__ == "__main__":
    main()
