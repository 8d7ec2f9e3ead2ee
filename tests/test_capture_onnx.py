"""ONNX files: the nine networks that ship with the package onnx, hand-made graphs of ops with a formula, and ways in which a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fourfold.errors import InputError  # noqa: E402
from fourfold.frontends.capture import capture as captured  # noqa: E402
from fourfold.frontends.onnx import capture  # noqa: E402
from fourfold.graph import PARAMETER  # noqa: E402

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))
PARAMETERS = {"resnet50": 25.610, "squeezenet": 1.235, "vgg19": 143.667, "densenet121": 8.146, "shufflenet": 1.420, "inception_v1": 6.999}  # 10^6
FLOAT = TensorProto.FLOAT


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def write(path: Path, nodes: list, inputs: dict, outputs: dict, weights: dict[str, np.ndarray] | None = None, opset: int = 18, **options) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in options.get("domains", ()))]
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())
    return path


def whole(path: Path, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = runtime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, given)


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.stem.removeprefix("light_"))
def test_networks_of_the_wheel(path: Path):
    found = capture(path)
    graph = found.graph
    assert graph.validate() == [] and graph.unknown == () and found.note == ()
    assert "ConstantOfShape" not in graph.kinds and "Constant" not in graph.kinds                    # weights, not operations
    name = path.stem.removeprefix("light_")
    if name in PARAMETERS:
        assert round(graph.size[graph.role == PARAMETER].sum() / 4e6, 3) == pytest.approx(PARAMETERS[name], abs=2e-3)
    expected = 0
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    for node in model.graph.node:                                      # counted again, from the file alone
        if node.op_type == "Conv":
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            kernel = next(a.ints for a in node.attribute if a.name == "kernel_shape")
            expected += 2 * int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][1] // groups * int(np.prod(kernel))
        if node.op_type == "Gemm":
            expected += 2 * int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][1]
    assert graph.flops.sum() == expected > 0


def test_nodes_one_by_one_equal_the_network():
    path = next(p for p in LIGHT if "squeezenet" in p.name)
    found = capture(path)
    given = {n: draw(*found.program.spec[n][0]) for n in found.program.inputs}
    for got, want in zip(found.run(given).values(), whole(path, given), strict=True):
        np.testing.assert_array_equal(got, want)


CASES = {
    "Gemm": ([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": (3, 4)}, {"w": draw(5, 4)}, 2 * 3 * 4 * 5),
    "MatMul": ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (2, 3, 4)}, {"w": draw(4, 5)}, 2 * 2 * 3 * 4 * 5),
    "Conv": (
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2])], {"x": (2, 4, 9, 9)}, {"w": draw(6, 2, 3, 3)}, 2 * 2 * 6 * 16 * 18
    ),
    "ConvTranspose": ([helper.make_node("ConvTranspose", ["x", "w"], ["y"])], {"x": (1, 4, 5, 5)}, {"w": draw(4, 3, 3, 3)}, 2 * 25 * 4 * 3 * 9),
    "Einsum": ([helper.make_node("Einsum", ["x", "w"], ["y"], equation="bij,jk->bik")], {"x": (2, 3, 4)}, {"w": draw(4, 5)}, 2 * 2 * 3 * 4 * 5),
    "LSTM": (
        [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=5)], {"x": (7, 2, 3)}, {"w": draw(1, 20, 3), "r": draw(1, 20, 5)},
        2 * 7 * 2 * 4 * 5 * 8,
    ),
    "GRU": (
        [helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=5, direction="bidirectional")], {"x": (7, 2, 3)},
        {"w": draw(2, 15, 3), "r": draw(2, 15, 5)}, 2 * 7 * 2 * 2 * 3 * 5 * 8,
    ),
    "MaxPool": ([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])], {"x": (1, 2, 5, 5)}, {}, 0),
    "Norm": ([helper.make_node("LayerNormalization", ["x", "w"], ["y"])], {"x": (3, 4)}, {"w": draw(4)}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_ops_are_counted_and_run(name: str, tmp_path: Path):
    nodes, inputs, weights, flops = CASES[name]
    path = write(tmp_path / "m.onnx", nodes, inputs, {"y": None}, weights)
    found = capture(path)
    given = {n: draw(*s) for n, s in inputs.items()}
    assert found.graph.flops.sum() == flops and found.graph.unknown == ()
    np.testing.assert_allclose(found.run(given)["y"], whole(path, given)[0], rtol=1e-5, atol=1e-6)
    if name == "MaxPool":
        assert found.graph.steps.sum() == 1 * 2 * 4 * 4 * 4
    if name == "Norm":
        assert found.graph.steps.sum() == 8 * 12


def dynamic(path: Path) -> Path:
    return write(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ("batch", None, 4)}, {"y": ("batch", None, 5)}, {"w": draw(4, 5)})


def test_dynamic_dimensions_are_given_or_refused_by_name(tmp_path: Path):
    path = dynamic(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="without a value: batch, x.1") as caught:
        capture(path)
    assert "--dims batch=…,x.1=…" in str(caught.value)
    assert capture(path, dims={"batch": 2, "x.1": 3}).graph.flops.sum() == 2 * 2 * 3 * 4 * 5
    assert captured(str(path), {"x": draw(6, 7, 4)}).graph.shape_of(0) == (6, 7, 4)
    assert capture(path, dims={"x.0": 2, "x.1": 3}).graph.shape_of(0) == (2, 3, 4)
    for dims, word in (({"batch": 2, "x.1": 3, "width": 1}, "no dynamic dimension 'width'"), ({"batch": 0, "x.1": 3}, "cannot be batch=0")):
        with pytest.raises(InputError, match=word):
            capture(path, dims=dims)
    with pytest.raises(InputError, match="no input 'z'"):
        capture(path, {"z": draw(2)})


def test_unsorted_nodes_are_sorted_and_cycles_named(tmp_path: Path):
    relu = [helper.make_node("Relu", ["b"], ["y"], name="second"), helper.make_node("Neg", ["x"], ["b"], name="first")]
    assert capture(write(tmp_path / "m.onnx", relu, {"x": (3,)}, {"y": (3,)})).graph.names == ("first", "second")
    loop = [helper.make_node("Add", ["x", "c"], ["b"], name="left"), helper.make_node("Neg", ["b"], ["c"], name="right")]
    with pytest.raises(InputError, match="cycle: (left → right → left|right → left → right)"):
        capture(write(tmp_path / "c.onnx", loop, {"x": (3,)}, {"c": (3,)}))


def test_malformed_files_are_refused_in_words(tmp_path: Path):
    neg = helper.make_node("Neg", ["x"], ["y"], name="neg")
    for nodes, outputs, word in (
        ([helper.make_node("Neg", ["q"], ["y"], name="neg")], {"y": (3,)}, "node neg reads 'q', which nothing makes"),
        ([neg, helper.make_node("Abs", ["x"], ["y"], name="abs")], {"y": (3,)}, "'y' is made twice .by node abs"),
        ([neg], {"z": (3,)}, "output 'z' is made by nothing"),
        ([helper.make_node("Neg", ["x", "x"], ["y"])], {"y": (3,)}, "malformed"),
        ([helper.make_node("Nonsense", ["x"], ["y"])], {"y": (3,)}, "malformed"),
        ([helper.make_node("Reshape", ["x", "s"], ["y"])], {"y": (3,)}, "'s', which nothing makes"),
    ):
        with pytest.raises(InputError, match=word) as caught:
            capture(write(tmp_path / "m.onnx", nodes, {"x": (3,)}, outputs))
        assert len(str(caught.value).splitlines()) <= 2
    good = write(tmp_path / "g.onnx", [neg], {"x": (3,)}, {"y": (3,)}).read_bytes()
    for content in (b"", b"not a protobuf at all", good[: len(good) // 2]):
        (tmp_path / "b.onnx").write_bytes(content)
        with pytest.raises(InputError, match=r"damaged|no ONNX model|malformed|made by nothing"):
            capture(tmp_path / "b.onnx")
    with pytest.raises(InputError, match="There is no file"):
        capture(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="no backward pass"):
        capture(tmp_path / "g.onnx", train=True)


def test_shapes_that_do_not_fit(tmp_path: Path):
    path = write(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (2, 3)}, {"y": None}, {"w": draw(4, 5)})
    with pytest.raises(InputError, match="shapes do not fit"):
        capture(path)


@pytest.mark.parametrize("opset", [1, 6, 999])
def test_opsets_out_of_range(opset: int, tmp_path: Path):
    path = write(tmp_path / "m.onnx", [helper.make_node("Neg", ["x"], ["y"])], {"x": (3,)}, {"y": (3,)}, opset=opset)
    with pytest.raises(InputError, match=f"uses opset {opset}"):
        capture(path)


def external(folder: Path, location: str = "w.bin") -> Path:
    tensor = numpy_helper.from_array(draw(40, 50), "w")
    onnx.external_data_helper.set_external_data(tensor, location=location, offset=0, length=8000)
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [[helper.make_tensor_value_info(n, FLOAT, s)] for n, s in (("x", (2, 40)), ("y", (2, 50)))]
    model = helper.make_model(helper.make_graph([node], "g", *ends, [tensor]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_weights_beside_the_model(tmp_path: Path):
    path, x = external(tmp_path), draw(2, 40)
    found = capture(path)
    np.testing.assert_allclose(found.run(x)["y"], x @ draw(40, 50), rtol=1e-5, atol=1e-5)
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(InputError, match="w.bin has 5 bytes; weight 'w' ends at 8000"):
        capture(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(InputError, match="weights file w.bin is missing .weight 'w'"):
        capture(path)
    with pytest.raises(InputError, match="outside the model's folder"):
        capture(external(tmp_path, "../w.bin"))


def test_unknown_ops_are_listed(tmp_path: Path):
    nodes = [helper.make_node("Neg", ["x"], ["z"]), helper.make_node("Odd", ["z"], ["y"], domain="acme")]
    path = write(tmp_path / "m.onnx", nodes, {"x": (3, 4)}, {"y": (3, 4)}, domains=("acme",))
    graph = capture(path).graph
    assert graph.unknown == ("acme.Odd",) and graph.flops.sum() == 0 and graph.steps.tolist() == [12, 12] and graph.reads[1] == 48


def test_shapes_computed_by_the_program_and_branches(tmp_path: Path):
    from_shape = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    weights = {"zero": np.array([0], dtype=np.int64), "rest": np.array([-1], dtype=np.int64)}
    path = write(tmp_path / "m.onnx", from_shape, {"x": (2, 3, 4)}, {"y": None}, weights)
    found = capture(path)
    assert found.graph.shape_of(found.graph.outputs[0]) == (2, 12)
    np.testing.assert_array_equal(found.run(draw(2, 3, 4))["y"], draw(2, 3, 4).reshape(2, 12))


def test_a_torch_export_to_onnx_counts_alike(tmp_path: Path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5)).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.onnx.export(module, (x,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    found = capture(tmp_path / "m.onnx")
    assert found.graph.flops.sum() == captured(module, x).graph.flops.sum()
    (got,) = found.run(x.numpy()).values()
    np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)
