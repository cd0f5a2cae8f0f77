"""The page in a bundle for the person who receives it, with a snippet that runs as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .manifest import Manifest

__all__ = ["readme_text"]


def readme_text(manifest: Manifest) -> str:
    """Return the bundle's ``README.md``."""
    plan, graph, source = manifest.plan, manifest.graph, manifest.source
    output = graph.outputs[0]
    removed = (
        f"blocks {_listed(plan.removed)} of {len(plan.paths)} removed" if plan.removed else f"all {len(plan.paths)} blocks"
    )
    return f"""# {manifest.name}

{source.architecture} from `{source.spec}`, {removed} (plan: {plan.reason}).

| | |
|---|---|
| size | {plan.parameters_before:,} parameters became {plan.parameters_after:,} |
| work | {plan.flops_before:,} floating-point operations an item became {plan.flops_after:,} |
| graph | `model.onnx`, opset {graph.opset}, computes in {graph.precision} |
| input | `{graph.input.name}`, {graph.input.dtype} [batch, {_listed(graph.input.shape)}] ({graph.input.layout}) |
| output | `{output.name}`, {output.dtype} [{_listed(output.shape)}] |
| checked | {_checked(manifest)} |
{_engine_rows(manifest)}
`manifest.json` holds the hash of every file, the lineage, the preprocessing and the labels. To check the folder:
`shallowvit verify .`; to measure it: `shallowvit bench .`.

## Run it

Needs `numpy` and `onnxruntime`; run in this folder.

```python
{_snippet(manifest)}
```
"""


def _checked(manifest: Manifest) -> str:
    parity = manifest.parity
    agreement = "" if parity.top1_agreement is None else f", top-1 agreement {parity.top1_agreement:.1%}"
    error = f"relative error {parity.relative_error:.1e} (tolerance {parity.tolerance:g})"
    return f"{parity.inputs} inputs against torch: {error}{agreement}"


def _engine_rows(manifest: Manifest) -> str:
    """Rows on what was quantised, the engines and the recipe; nothing where the bundle is a float graph alone."""
    rows = []
    if manifest.quantization:
        check = manifest.quantization.check
        drop = "" if check.drop is None else f", top-1 {check.top1_reference:.2%} became {check.top1:.2%}"
        rows.append(f"| quantised | {manifest.quantization.quantized} products; against fp32 on {check.items} items{drop} |")
    for engine in manifest.engines:
        sm = ", ".join(f"{number / 10:.1f}" for number in engine.sm)
        made = f"for compute capability {sm}" if sm else "portable"
        rows.append(
            f"| engine | `{engine.path}`, {engine.flavour} {engine.version}, {made}, attention fused {engine.attention_fused} "
            f"of {engine.attention_expected} |"
        )
    if manifest.recipe:
        rows.append(
            f"| recipe | for {manifest.target}: run `shallowvit build .` there, or `cd recipe && python3 build_engine.py "
            "recipe.json` with TensorRT alone |"
        )
    return "".join(f"{row}\n" for row in rows)


def _snippet(manifest: Manifest) -> str:
    settings = manifest.preprocessing
    lines = [
        "import json",
        "import numpy as np",
        "import onnxruntime",
        'manifest = json.load(open("manifest.json"))',
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
    ]
    if settings is None:
        lines.append(
            f"x = np.zeros((1, *{manifest.graph.input.shape}), np.{manifest.graph.input.dtype})  # your input, prepared as in "
            "training"
        )
    else:
        lines.append(f"x = np.zeros((1, *{settings.frame_shape}), np.uint8)  # your RGB frames")
        if not settings.in_graph:
            lines.append('p = manifest["preprocessing"]')
            lines.append('x = ((x * p["rescale"] - p["mean"]) / p["std"]).astype(np.float32)')
            lines.append(f"x = np.moveaxis(x, -1, -3)  # {manifest.graph.input.layout}")
    lines.append(f'output = session.run(None, {{"{manifest.graph.input.name}": x}})[0]')
    classes = '(manifest["labels"] or range(output.shape[-1]))[int(output[0].argmax())]'
    lines.append(f"print({classes})" if manifest.graph.outputs[0].name == "logits" else "print(output.shape)")
    return "\n".join(lines)


def _listed(values: tuple[int | str, ...] | tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
