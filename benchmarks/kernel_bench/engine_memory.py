"""How much memory an engine needs with TensorRT's own attention and with ours, from engines that TensorRT-RTX builds here.

The models and graphs are those of ``engines.py``'s rows by the number of tokens. A newcomer's trap: memory is what the builder
says an engine will take at the largest batch of its profile; no engine is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines import BATCHES, TOKENS, Graphs, Subject, described
from shallowvit.engines import BuildConfig, Flavour, build_engine
from shallowvit.engines.records import AttentionChoice
from shallowvit.errors import ShallowvitError
from shallowvit_kernels.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Row = dict[str, Any]

__all__ = ["PATTERNS", "memory_rows"]

# What the graph computes in and whether its probabilities are multiplied by ones, which no kernel of TensorRT's takes.
PATTERNS = {"fp32": "fp32", "fp16": "fp16", "fp16, gated": "gated"}
_OPSET = 18
_SETTINGS = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_hidden_layers": 4}


def memory_rows(tokens: int, work: Path, settings: dict[str, Any] | None = None) -> Iterator[Row]:
    """Yield a row for each pattern and each choice of who computes attention.

    Args:
        tokens: One of ``engines.TOKENS``.
        work: Models and graphs are kept there.
        settings: Of the model instead of a ViT-S's four blocks.
    """
    frames, side = TOKENS[tokens]
    model = (settings or _SETTINGS) | {"num_frames": frames, "image_size": side}
    name = f"VideoMAE, {model['num_hidden_layers']} blocks, {tokens} tokens"
    graphs = Graphs(Subject(name, "transformers", "VideoMAE", model), work)
    for pattern, precision in PATTERNS.items():
        for choice in (AttentionChoice.NATIVE, AttentionChoice.PLUGIN):
            row = {"kind": "engine-memory", "model": name, "width": model["hidden_size"], "tokens": tokens}
            row |= {
                "model_heads": model["num_attention_heads"],
                "pattern": pattern,
                "attention": str(choice),
                "batches": BATCHES,
            }
            yield row | _built(graphs, precision, choice)


def _built(graphs: Graphs, precision: str, choice: AttentionChoice) -> Row:
    out = graphs.folder / f"{precision}-{choice}"
    out.mkdir(exist_ok=True)
    config = BuildConfig(Flavour.RTX, allow_unfused=True, attention=choice)
    try:
        built = build_engine(graphs.path(precision, _OPSET), out, config)
    except (ShallowvitError, KernelError) as err:
        return {"status": "failed", "reason": str(err)}
    plugins = sum(row.kernel.startswith("shallowvit_") for row in built.fusion.attentions if row.kernel)
    return described(built) | {"plugins": plugins, "tensorrt": built.version}
