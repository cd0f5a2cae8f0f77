from collections import Counter

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from shallowvit import PlanConfig, plan, prune
from shallowvit.exporting import export_onnx
from shallowvit.exporting.zero_branches import drop_zero_branches

from . import half_models as kinds

TOKENS, WIDTH = 4, 8
STATE = ["batch", TOKENS, WIDTH]


def _graph(*nodes, constants=(), shapes=(), output="out"):
    """A graph from ``x`` to ``out``, both states; the shapes of what lies between are inferred, or given."""
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, STATE)]
    asked = [helper.make_tensor_value_info(output, TensorProto.FLOAT, STATE)]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
    known = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    graph = helper.make_graph([helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes], "g", given,
                              asked, stored, value_info=known)  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model))


def _kinds(model):
    return [node.op_type for node in model.graph]


def _answers(model, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads that wait for each other take far longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ZEROS = (("Shape", ["x"], ["size"]), ("ConstantOfShape", ["size"], ["zeros"]))


def test_drop_zero_branches_leaves_the_state_alone():
    model = _graph(
        ("Relu", ["x"], ["before"]),
        *ZEROS,
        ("Add", ["before", "zeros"], ["after"]),
        ("Neg", ["after"], ["out"]),
        shapes=[("zeros", STATE)],
    )
    assert drop_zero_branches(model) == 1
    assert _kinds(model) == ["Relu", "Neg"]
    x = np.random.default_rng(0).standard_normal((3, TOKENS, WIDTH)).astype(np.float32)
    assert np.array_equal(_answers(model, x), -np.maximum(x, 0))


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([("Mul", ["zeros", "scale"], ["moved"])], [("scale", np.full(WIDTH, 3, np.float32))]),
        ([("MatMul", ["zeros", "scale"], ["moved"])], [("scale", np.ones((WIDTH, WIDTH), np.float32))]),
        ([("Transpose", ["zeros"], ["t"], {"perm": [0, 2, 1]}), ("Transpose", ["t"], ["moved"], {"perm": [0, 2, 1]})], []),
        ([("Split", ["zeros"], ["a", "b"], {"axis": 1, "num_outputs": 2}), ("Concat", ["b", "a"], ["moved"], {"axis": 1})], []),
        ([("Add", ["zeros", "zeros"], ["moved"])], []),
        ([("Cast", ["zeros"], ["half"], {"to": TensorProto.FLOAT16}), ("Cast", ["half"], ["moved"], {"to": 1})], []),
    ],
)
def test_drop_zero_branches_follows_zeros(nodes, constants):
    steps = [("Relu", ["x"], ["before"]), *ZEROS, *nodes, ("Add", ["moved", "before"], ["sum"]), ("Neg", ["sum"], ["out"])]
    model = _graph(*steps, constants=constants, shapes=[("zeros", STATE), ("moved", STATE)])
    assert drop_zero_branches(model) == 1
    assert _kinds(model) == ["Relu", "Neg"]


def test_drop_zero_branches_expanded_scalar():
    model = _graph(
        ("Shape", ["x"], ["size"]), ("Expand", ["nothing", "size"], ["zeros"]), ("Sub", ["x", "zeros"], ["s"]),
        ("Neg", ["s"], ["out"]), constants=[("nothing", np.float32(0))], shapes=[("zeros", STATE)],
    )  # fmt: skip
    assert drop_zero_branches(model) == 1
    assert _kinds(model) == ["Neg"]


def test_drop_zero_branches_output_keeps_its_name():
    model = _graph(("Relu", ["x"], ["before"]), *ZEROS, ("Add", ["before", "zeros"], ["out"]), shapes=[("zeros", STATE)])
    assert drop_zero_branches(model) == 1
    assert _kinds(model) == ["Relu"]
    assert [value.name for value in model.graph.outputs] == ["out"]
    assert (_answers(model, np.full((1, TOKENS, WIDTH), -1, np.float32)) == 0).all()


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        # ones; a bias of zeros; zeros from which something is taken; what might be infinite times zero
        ([("Shape", ["x"], ["size"]), ("Expand", ["one", "size"], ["y"])], [("one", np.float32(1))]),
        ([("Relu", ["x"], ["r"]), ("Add", ["r", "bias"], ["y"])], [("bias", np.zeros(WIDTH, np.float32))]),
        ([*ZEROS, ("Sub", ["zeros", "x"], ["y"])], []),
        ([*ZEROS, ("Exp", ["x"], ["e"]), ("Mul", ["zeros", "e"], ["y"])], []),
        ([*ZEROS, ("MatMul", ["zeros", "w"], ["y"])], [("w", np.full((WIDTH, WIDTH), np.inf, np.float32))]),
    ],
)
def test_drop_zero_branches_anything_else_stays(nodes, constants):
    steps = [*nodes, ("Relu", ["x"], ["state"]), ("Add", ["state", "y"], ["sum"]), ("Neg", ["sum"], ["out"])]
    model = _graph(*steps, constants=constants, shapes=[("zeros", STATE), ("y", STATE)])
    before = _kinds(model)
    assert drop_zero_branches(model) == 0
    assert _kinds(model) == before


def test_drop_zero_branches_that_enlarge_the_state_stay():
    model = _graph(
        ("ReduceMax", ["x", "axes"], ["small"]), *ZEROS, ("Add", ["small", "zeros"], ["out"]),
        constants=[("axes", np.array([1]))], shapes=[("zeros", STATE)],
    )  # fmt: skip
    assert drop_zero_branches(model) == 0


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize(
    "model",
    [
        kinds.blocks_of_kind(kinds.Windows, 2, tokens=6),
        kinds.loaded(kinds.Lists(False, 2), torch.zeros(1, 5, kinds.WIDTH), seed=0),
    ],
    ids=["windows", "lists"],
)
def test_export_half_leaves_no_node_of_it(model, part, tmp_path):
    pruned = prune(model, plan(model, config=PlanConfig(remove="1", granularity=part)))
    exported = export_onnx(pruned, tmp_path / "graph.onnx")  # compares with torch
    found = Counter(node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node)
    assert exported.blocks == 2
    assert exported.attention_nodes == found["Attention"] == (1 if part == "attention" else 2)
    assert not found["ConstantOfShape"] + found["Expand"]
    assert found["LayerNormalization"] == 3
    # of each half two layers' biases and the branch itself, and the head's bias
    assert found["Add"] == 3 * 3 + 1
