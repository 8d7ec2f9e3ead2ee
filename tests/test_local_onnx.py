"""ONNX programs executed: every translation against ONNX's reference, whole networks, engines, devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fourfold.engines.onnx import Foreign, call  # noqa: E402
from fourfold.frontends.capture import capture  # noqa: E402
from fourfold.machine import Machine  # noqa: E402
from fourfold.plans import Plan  # noqa: E402
from fourfold.program import Captured  # noqa: E402
from fourfold.runtime.local.check import check  # noqa: E402
from fourfold.runtime.local.executor import execute  # noqa: E402
from fourfold.runtime.local.race import race  # noqa: E402

CODE = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}


def array(*shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(len(shape) + sum(shape)).uniform(low, high, shape).astype(np.float32)


def single(folder: Path, op: str, inputs: dict[str, np.ndarray], weights: dict[str, np.ndarray], opset: int, outputs: int = 1,
           **attributes: Any) -> Path:
    """A model of one node."""
    made = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, [*inputs, *weights], made, **attributes)
    given = [helper.make_tensor_value_info(name, CODE[str(a.dtype)], a.shape) for name, a in inputs.items()]
    code = attributes.get("to", TensorProto.FLOAT)
    graph = helper.make_graph([node], op, given, [helper.make_tensor_value_info(name, code, None) for name in made],
                              [numpy_helper.from_array(a, name) for name, a in weights.items()])
    path = folder / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(path))
    return path


X = array(1, 4, 9, 9)
CASES: list[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray], int, dict[str, Any]]] = [
    ("Conv", {"x": X}, {"w": array(6, 4, 3, 3), "b": array(6)}, 13, {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", {"x": X}, {"w": array(6, 4, 3, 3)}, 13, {"pads": [0, 1, 2, 1]}),
    ("Conv", {"x": X}, {"w": array(4, 1, 3, 3)}, 13, {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", {"x": X}, {"w": array(6, 4, 2, 2)}, 13, {"auto_pad": "SAME_LOWER"}),
    ("Conv", {"x": array(2, 3, 17)}, {"w": array(5, 3, 4)}, 13, {"dilations": [2]}),
    ("MaxPool", {"x": X}, {}, 13, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", {"x": X}, {}, 13, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    ("MaxPool", {"x": X}, {}, 13, {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", {"x": X}, {}, 13, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", {"x": X}, {}, 13, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", {"x": X}, {}, 13, {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}),
    ("GlobalAveragePool", {"x": X}, {}, 13, {}), ("GlobalMaxPool", {"x": X}, {}, 13, {}),
    ("BatchNormalization", {"x": X}, {"s": array(4), "b": array(4), "m": array(4), "v": array(4, low=0.5, high=1.5)}, 14, {"epsilon": 1e-3}),
    ("LayerNormalization", {"x": array(2, 5, 8)}, {"s": array(8), "b": array(8)}, 17, {}),
    ("LRN", {"x": X}, {}, 13, {"size": 3, "alpha": 0.1, "beta": 0.75, "bias": 2.0}), ("LRN", {"x": X}, {}, 13, {"size": 5}),
    ("Gemm", {"x": array(3, 4)}, {"w": array(5, 4), "b": array(5)}, 13, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", {"x": array(4, 3)}, {"w": array(4, 5)}, 13, {"transA": 1}),
    ("MatMul", {"x": array(2, 3, 4)}, {"w": array(4, 5)}, 13, {}),
    ("Softmax", {"x": array(2, 3, 4)}, {}, 11, {"axis": 1}), ("Softmax", {"x": array(2, 3, 4)}, {}, 13, {"axis": 1}),
    ("LogSoftmax", {"x": array(2, 3, 4)}, {}, 13, {}),
    ("Clip", {"x": X}, {"low": np.float32(-0.5).reshape(()), "high": np.float32(0.25).reshape(())}, 13, {}),
    ("Clip", {"x": X}, {}, 7, {"min": -0.1, "max": 0.2}),
    ("Concat", {"x": X, "y": X}, {}, 13, {"axis": 1}), ("Transpose", {"x": array(2, 3, 4)}, {}, 13, {}),
    ("Sum", {"a": X, "b": X, "c": X}, {}, 13, {}), ("Mean", {"a": X, "b": X}, {}, 13, {}), ("Max", {"a": X, "b": X * 2}, {}, 13, {}),
    ("ReduceMean", {"x": X}, {}, 13, {"axes": [2, 3], "keepdims": 0}), ("ReduceMean", {"x": X}, {}, 13, {}),
    ("ReduceSum", {"x": X}, {"axes": np.array([1], np.int64)}, 13, {}), ("ReduceMax", {"x": X}, {}, 13, {"axes": [1]}),
    ("Pad", {"x": X}, {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0], np.int64), "v": np.float32(0.5).reshape(())}, 13, {}),
    ("Pad", {"x": X}, {"p": np.array([0, 0, -1, 0, 0, 0, 0, -2], np.int64)}, 13, {}),
    ("Slice", {"x": X}, {"s": np.array([1, -5], np.int64), "e": np.array([9, 100], np.int64), "a": np.array([2, 3], np.int64),
                         "t": np.array([2, 1], np.int64)}, 13, {}),
    ("Gather", {"x": array(5, 6)}, {"i": np.array([[0, -1], [2, 2]], np.int64)}, 13, {"axis": 0}),
    ("Gather", {"x": array(5, 6)}, {"i": np.array(3, np.int64)}, 13, {"axis": 1}),
    ("Cast", {"x": X}, {}, 13, {"to": TensorProto.DOUBLE}), ("Flatten", {"x": X}, {}, 13, {}), ("LeakyRelu", {"x": X}, {}, 13, {"alpha": 0.2}),
    ("Gelu", {"x": X}, {}, 20, {"approximate": "tanh"}), ("Pow", {"x": array(3, low=0.1)}, {"e": np.float32(2.5).reshape(())}, 13, {}),
    ("Where", {"c": X > 0, "x": X, "y": -X}, {}, 13, {}), ("Unsqueeze", {"x": X}, {"a": np.array([0], np.int64)}, 13, {}),
    ("Div", {"x": X}, {"d": array(9, low=0.5)}, 13, {}), ("Sigmoid", {"x": X}, {}, 13, {}), ("Erf", {"x": X}, {}, 13, {}),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]}-{k}" for k, case in enumerate(CASES)])
def test_a_translation_answers_as_onnx_does(case: Any, tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    op, inputs, weights, opset, attributes = case
    path = single(tmp_path, op, inputs, weights, opset, **attributes)
    found = capture(str(path))
    made = call(found.program, found.graph, 0, 0)
    assert not isinstance(made.target, Foreign)
    ours = execute(planned(found), found.program, inputs, repeat=1).outputs["y0"]
    if op in ("LRN", "AveragePool", "Pad") or op == "Softmax" and opset < 13:     # these the reference in numpy reads otherwise than ONNX Runtime
        pytest.importorskip("onnxruntime")
        (theirs,) = found.run(**inputs).values()
    else:
        (theirs,) = ReferenceEvaluator(onnx.load(str(path))).run(None, inputs)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_what_has_no_translation_runs_in_a_session(tmp_path: Path) -> None:
    path = single(tmp_path, "CumSum", {"x": array(4, 5)}, {"axis": np.array(1, np.int64)}, 14)
    found = capture(str(path))
    assert isinstance(call(found.program, found.graph, 0, 0).target, Foreign)
    done = execute(planned(found), found.program, {"x": array(4, 5)}, repeat=1)
    np.testing.assert_allclose(done.outputs["y0"], np.cumsum(array(4, 5), 1), rtol=1e-5)


def test_a_split_hands_on_its_parts(tmp_path: Path) -> None:
    path = single(tmp_path, "Split", {"x": array(2, 6)}, {"s": np.array([1, 5], np.int64)}, 13, outputs=2, axis=1)
    found = capture(str(path))
    done = execute(planned(found), found.program, {"x": array(2, 6)}, repeat=1)
    np.testing.assert_array_equal(done.outputs["y1"], array(2, 6)[:, 1:])


def planned(found: Captured, place: Any = None) -> Plan:
    count = len(found.graph)
    where = np.zeros(count, np.int16) if place is None else np.asarray(place, np.int16)
    return Plan(found.graph, Machine.here(2), "latency", np.arange(count), where, -np.arange(count, dtype=float), "test", 1.0, "s")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> tuple[Captured, dict[str, np.ndarray]]:
    """Convolution, normalisation, pooling, an op without translation, a head."""
    weights = {"w": array(6, 3, 3, 3), "s": array(6, low=0.5), "b": array(6), "m": array(6), "v": array(6, low=0.5, high=1.5), "h": array(6, 4),
               "axis": np.array(1, np.int64)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
             helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], name="norm"),
             helper.make_node("Relu", ["n"], ["r"], name="relu"),
             helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"), helper.make_node("Flatten", ["g"], ["f"], name="flat"),
             helper.make_node("CumSum", ["f", "axis"], ["k"], name="sum"), helper.make_node("MatMul", ["k", "h"], ["y"], name="head")]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in (("x", (2, 3, 8, 8)), ("y", (2, 4)))]
    graph = helper.make_graph(nodes, "net", *ends, [numpy_helper.from_array(a, name) for name, a in weights.items()])
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), str(path))
    return capture(str(path)), {"x": array(2, 3, 8, 8)}


def test_a_network_runs_whole_and_over_two_processes(net: Any) -> None:
    found, inputs = net
    (want,) = found.run(**inputs).values()
    for place in (None, np.arange(len(found.graph)) % 2):
        done = execute(planned(found, place), found.program, inputs, repeat=1)
        np.testing.assert_allclose(done.outputs["y"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_of_whole_regions_answer_alike(net: Any, engine: str) -> None:
    pytest.importorskip(engine)
    found, inputs = net
    (want,) = found.run(**inputs).values()
    done = execute(planned(found), found.program, inputs, repeat=1, engines=engine)
    np.testing.assert_allclose(done.outputs["y"], want, rtol=1e-4, atol=1e-5)
    assert done.regions[0].engine == engine


def test_a_file_without_inputs_gets_some(net: Any) -> None:
    found, _ = net
    assert found.inputs is None
    told = check(planned(found), model=found, repeat=1)
    assert told.equal and told.outputs[0].name == "y"


def test_inductor_declines_what_is_no_torch_op(net: Any) -> None:
    found, inputs = net
    result = race(planned(found), found.program, inputs, engines=("inductor",), rounds=5)
    assert result.engines["0"] == "eager" and any("no torch operation" in row["why"] or "C++ compiler" in row["why"] for row in result.rows)
