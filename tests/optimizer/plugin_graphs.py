"""Graphs with nodes of our own, a few nodes long, and kernels for them whose code is made up: builds don't look into it."""

from pathlib import Path

import onnx_ir

from shallowvit_kernels.catalogue import definition_of
from shallowvit_kernels.functions import TYPES, function_of
from shallowvit_kernels.launching import launch_of
from shallowvit_kernels.records import Dtype, Kernel, Modifier, Operand, Variant
from shallowvit_kernels.tensors import inputs_of, outputs_of
from shallowvit_kernels.tiles import tile_for

HALF = Variant(Kernel.ATTENTION, Dtype.FP16, 16, scale=0.25)
FULL = Variant(Kernel.ATTENTION, Dtype.FP32, 16, scale=0.25)
MASKED = Variant(Kernel.ATTENTION, Dtype.FP16, 16, scale=0.25, operands=(Operand(Modifier.PROBABILITY_MASK, "bh"),))
HEADS = 2


def made_up_ptx(variant, sm=80, suffix=""):
    return f".version 8.0\n.target sm_{sm}{suffix}\n.visible .entry {variant.name}(\n)\n.reqntid 128\n{{ }}\n"


def made_up_launch(variant, sm=80, suffix="", shared_bytes=4096):
    names = definition_of(variant.kernel).kernel.arg_names
    return launch_of(variant, names, tile_for(variant, sm), made_up_ptx(variant, sm, suffix), shared_bytes)


def write_made_up(folder, *variants, sm=80):
    """The job's part for kernels that no GPU runs."""
    plugins = []
    for variant in variants:
        launch, ptx = folder / f"{variant.name}.json", folder / f"{variant.name}.ptx"
        launch.write_text(made_up_launch(variant, sm).to_json())
        ptx.write_text(made_up_ptx(variant, sm))
        plugins.append({"operator": variant.name, "launches": [{"launch": launch.name, "ptx": ptx.name}]})
    return {"plugins": plugins}


def save_graph(path: Path, *variants, functions=True, dtype=None, sizes=None, axes=None, attribute=None):
    """One node a variant, each between an addition and a Relu; its inputs are called as in the kernel, with its number.

    ``dtype``, ``sizes`` (by letter), ``axes`` (of every input) and ``attribute`` make inputs that don't fit.
    """
    letters = {"b": "batch", "h": HEADS, "n": "tokens", "m": "tokens", "3": 3} | (sizes or {})
    inputs, nodes, outputs = [], [], []
    for number, variant in enumerate(variants):
        known = {"d": variant.head_size, "e": variant.value_size} | letters
        given = []
        for spec in inputs_of(variant):
            shape = [1 if letter in spec.broadcast else known[letter] for letter in axes or spec.axes]
            given.append(_value(f"{spec.name}{number}", dtype or spec.dtype, shape))
        added = [onnx_ir.node("Add", [value, value], name=f"add_{value.name}") for value in given]
        attributes = {"variant": attribute or variant.to_json(), "plugin_namespace": "shallowvit", "plugin_version": "1"}
        handed = [node.outputs[0] for node in added]
        ours = onnx_ir.node(variant.name, handed, attributes, domain="shallowvit", name=f"attention{number}")
        last = onnx_ir.node("Relu", [ours.outputs[0]], name=f"relu{number}")
        out = outputs_of(variant)[0]
        last.outputs[0].name = f"out{number}"
        last.outputs[0].type, last.outputs[0].shape = onnx_ir.TensorType(TYPES[out.dtype]), _shape(out, known)
        inputs += given
        nodes += [*added, ours, last]
        outputs.append(last.outputs[0])
    graph = onnx_ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 18, "shallowvit": 1}, name="ours")
    bodies = [function_of(variant) for variant in dict.fromkeys(variants)] if functions else []
    onnx_ir.save(onnx_ir.Model(graph, ir_version=10, functions=bodies), path)
    return path


def profile_of(*variants, low=(1, 16), high=(4, 64)):
    """Shapes of every input, of the batch and tokens in ``low`` and in ``high``."""
    found = {}
    for number, variant in enumerate(variants):
        for spec in inputs_of(variant):
            ends = []
            for batch, tokens in (low, high):
                known = {"b": batch, "h": HEADS, "n": tokens, "m": tokens, "d": variant.head_size, "e": variant.value_size}
                ends.append([1 if letter in spec.broadcast else known[letter] for letter in spec.axes])
            found[f"{spec.name}{number}"] = [ends[0], ends[0], ends[1]]
    return found


def _value(name, dtype, shape):
    return onnx_ir.Value(name=name, type=onnx_ir.TensorType(TYPES[dtype]), shape=onnx_ir.Shape(shape))


def _shape(spec, known):
    return onnx_ir.Shape([known[letter] for letter in spec.axes])
