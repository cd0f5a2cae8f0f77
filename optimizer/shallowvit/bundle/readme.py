"""The page in a bundle for the person who receives it, with a snippet that runs as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .manifest import Graph, Input, Manifest

__all__ = ["readme_text"]


def readme_text(manifest: Manifest) -> str:
    """Return the bundle's ``README.md``."""
    plan, graph, source = manifest.plan, manifest.graph, manifest.source
    what = "blocks" if plan.granularity == "block" else f"the {plan.granularity} of blocks"
    removed = (
        f"{what} {_listed(plan.removed)} of {len(plan.paths)} removed" if plan.removed else f"all {len(plan.paths)} blocks"
    )
    done = _tokens_row(manifest) + _recovery_row(manifest)
    return f"""# {manifest.name}

{source.architecture} from `{source.spec}`, {removed} (plan: {plan.reason}).

| | |
|---|---|
| size | {plan.parameters_before:,} parameters became {plan.parameters_after:,} |
| work | {plan.flops_before:,} floating-point operations an item became {plan.flops_after:,} |
{done}| graph | `model.onnx`, opset {graph.opset}, computes in {graph.precision}{_own_nodes(graph)} |
{_input_rows(graph)}{_output_rows(graph)}| checked | {_checked(manifest)} |
{_engine_rows(manifest)}
`manifest.json` holds the hash of every file, the lineage, the preprocessing and the labels. To check the folder:
`shallowvit verify .`; to measure it: `shallowvit bench .`.

## Run it

Needs `numpy` and `onnxruntime`; run in this folder.

```python
{_snippet(manifest)}
```
"""


def _tokens_row(manifest: Manifest) -> str:
    tokens = manifest.plan.tokens
    if tokens is None:
        return ""
    steps = ", ".join(f"{site.after} behind block {site.block}" for site in tokens.sites)
    return f"| tokens | {tokens.sites[0].before}, then {steps} (by {tokens.scorer}) |\n"


def _recovery_row(manifest: Manifest) -> str:
    steps = [f"{step['method']} on {step['inputs']} items of `{step['data']}`" for step in manifest.recovery]
    return f"| recovered | {', then '.join(steps)} |\n" if steps else ""


def _own_nodes(graph: Graph) -> str:
    count = len(graph.attention_plugins)
    return f"; {count} attentions are nodes of the domain `shallowvit`, with a body for every runtime" if count else ""


def _input_rows(graph: Graph) -> str:
    rows = []
    for one in graph.inputs:
        sizes = [str(graph.batch).replace("dynamic", "batch")] if one.batch else []
        sizes += [str(size) for size in one.shape]
        ranges = [f"{name} {low} to {high} by {step}" for name, (low, high, step) in one.ranges.items()]
        rows.append(f"| input | `{one.name}`, {one.dtype} [{', '.join(sizes)}] ({'; '.join((one.layout, *ranges))}) |")
    return "".join(f"{row}\n" for row in rows)


def _output_rows(graph: Graph) -> str:
    rows = []
    for one in graph.outputs:
        of = f", of `{one.source}`" if one.source not in ("", "output", one.name) else ""
        rows.append(f"| output | `{one.name}`, {one.dtype} [{_listed(one.shape)}]{of} |")
    return "".join(f"{row}\n" for row in rows)


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
    main, *others = manifest.graph.inputs
    if others:
        lines.append('samples = np.load("inputs.npz")  # a few items of every input: put yours in their place')
    if settings is None:
        value = f'samples["{main.name}"][:1]' if others else f"np.zeros({_zero_shape(main)}, np.{_numpy(main.dtype)})"
        lines.append(f"x = {value}  # your input, prepared as in training")
    else:
        lines.append(f"x = np.zeros((1, *{settings.frame_shape}), np.uint8)  # your RGB frames")
        if not settings.in_graph:
            lines.append('p = manifest["preprocessing"]')
            lines.append('x = ((x * p["rescale"] - p["mean"]) / p["std"]).astype(np.float32)')
            lines.append(f"x = np.moveaxis(x, -1, -3)  # {main.layout}")
    if manifest.graph.batch not in ("dynamic", 1):
        lines.append(f"x = np.repeat(x, {manifest.graph.batch}, axis=0)  # the graph takes this many items and no others")
    lines += _run_lines(manifest)
    classes = '(manifest["labels"] or range(output.shape[-1]))[int(output[0].argmax())]'
    lines.append(f"print({classes})" if manifest.graph.outputs[0].name == "logits" else "print(output.shape)")
    return "\n".join(lines)


def _run_lines(manifest: Manifest) -> list[str]:
    main, *others = manifest.graph.inputs
    feeds = [f'"{main.name}": x']
    feeds += [f'"{one.name}": samples["{one.name}"]' + ("[: len(x)]" if one.batch else "") for one in others]
    outputs = manifest.graph.outputs
    if len(outputs) == 1:
        return [f"output = session.run(None, {{{', '.join(feeds)}}})[0]"]
    return [
        "outputs = dict(zip([one.name for one in session.get_outputs()],",
        f"                   session.run(None, {{{', '.join(feeds)}}})))",
        f'output = outputs["{outputs[0].name}"]',
    ]


def _zero_shape(one: Input) -> str:
    return str((1, *one.least_shape)) if one.batch else str(one.least_shape)


def _numpy(dtype: str) -> str:
    return "bool_" if dtype == "bool" else dtype


def _listed(values: tuple[int | str, ...] | tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
