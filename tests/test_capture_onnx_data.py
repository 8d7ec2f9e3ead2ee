"""ONNX files whose sizes depend on the data, and whose sub-graphs keep their weights beside the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fourfold.errors import InputError  # noqa: E402
from fourfold.frontends.capture import capture  # noqa: E402

FLOAT = TensorProto.FLOAT


def info(name: str, shape: list[Any], kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def saved(path: Path, graph: Any, **options: Any) -> Path:
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path), **options)
    return path


def nonzero(path: Path) -> Path:
    """Where it is positive, and what is there: the rows of both follow from the values of x."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("NonZero", ["r"], ["nz"]),
             helper.make_node("Transpose", ["nz"], ["where"], perm=[1, 0]),
             helper.make_node("GatherND", ["r", "where"], ["v"]), helper.make_node("Exp", ["v"], ["e"])]
    return saved(path, helper.make_graph(nodes, "g", [info("x", ["batch", 3])], [info("where", [None, 2], TensorProto.INT64), info("e", [None])]))


def test_sizes_of_the_data_are_not_taken_from_zeros(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"depends on the data \(NonZero\)") as caught:
        capture(nonzero(tmp_path / "m.onnx"), dims={"batch": 2})
    assert "--inputs" in caught.value.mend


def test_they_are_taken_from_the_example_and_run(tmp_path: Path) -> None:
    import fourfold
    from fourfold.runtime.local.check import check

    x = np.array([[1, -1, 2], [-1, -2, 3]], np.float32)
    file = nonzero(tmp_path / "m.onnx")
    found = capture(file, {"x": x})
    assert found.run(x)["e"].shape == (3,) and any("depend on the data" in note for note in found.note)
    np.savez(tmp_path / "batch.npz", x=x)
    fourfold.plan(str(file), tmp_path / "batch.npz", solver="default", out=tmp_path / "plan")
    assert check(tmp_path / "plan", repeat=1).equal


def test_sizes_that_follow_from_shapes_alone_are_planned(tmp_path: Path) -> None:
    """NonZero of ones of a shape: how exporters wrote arange. It depends on no value."""
    one = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("ConstantOfShape", ["s"], ["ones"], value=one),
             helper.make_node("NonZero", ["ones"], ["nz"]), helper.make_node("Cast", ["nz"], ["y"], to=FLOAT)]
    file = saved(tmp_path / "m.onnx", helper.make_graph(nodes, "g", [info("x", [4])], [info("y", [None, None])]))
    assert capture(file).run(np.zeros(4, np.float32))["y"].shape == (1, 4)


def branched(folder: Path) -> Path:
    """An If whose branches hold weights of their own, all of them in a file beside the model."""
    dice = np.random.default_rng(0)

    def weight(name: str) -> Any:
        return numpy_helper.from_array(dice.standard_normal((4, 4)).astype(np.float32), name)

    def side(out: str, held: str) -> Any:
        return helper.make_graph([helper.make_node("MatMul", ["h", held], [out])], out, [], [info(out, ["batch", 4])], [weight(held)])

    nodes = [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("ReduceSum", ["h"], ["s"], keepdims=0),
             helper.make_node("Greater", ["s", "zero"], ["c"]),
             helper.make_node("If", ["c"], ["y"], then_branch=side("yt", "WT"), else_branch=side("ye", "WE"))]
    held = [weight("W"), numpy_helper.from_array(np.float32(0), "zero")]
    graph = helper.make_graph(nodes, "g", [info("x", ["batch", 4])], [info("y", ["batch", 4])], held)
    folder.mkdir()
    return saved(folder / "m.onnx", graph, save_as_external_data=True, all_tensors_to_one_file=True, location="m.onnx.data", size_threshold=0)


def test_weights_of_subgraphs_are_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, x = branched(tmp_path / "model"), np.ones((2, 4), np.float32)
    monkeypatch.chdir(tmp_path)
    outside = capture("model/m.onnx", dims={"batch": 2})
    monkeypatch.chdir(tmp_path / "model")
    inside = capture("m.onnx", dims={"batch": 2})
    assert outside.graph.hash == inside.graph.hash
    monkeypatch.chdir(tmp_path.parent)
    import onnxruntime

    wanted = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(capture(file, dims={"batch": 2}).run(x)["y"], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("location", ["../secret.data", "/etc/hostname"])
def test_weights_of_subgraphs_stay_in_the_models_folder(tmp_path: Path, location: str) -> None:
    file = branched(tmp_path / "model")
    model = onnx.load(str(file), load_external_data=False)
    held = next(a for n in model.graph.node for a in n.attribute if a.name == "else_branch").g.initializer[0]
    next(e for e in held.external_data if e.key == "location").value = location
    file.write_bytes(model.SerializeToString())
    (tmp_path / "secret.data").write_bytes(bytes(1000))
    with pytest.raises(InputError, match="outside the model's folder"):
        capture(file, dims={"batch": 2})
