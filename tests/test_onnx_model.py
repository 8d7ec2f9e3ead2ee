"""An .onnx file through the main job's doors: read, run, made again from data, handed to engines; and other files that are no model for it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fourfold.errors import InputError, ModelError  # noqa: E402
from fourfold.frontends.model import load_model, load_state, rebuild, state  # noqa: E402
from fourfold.frontends.onnx_model import OnnxGraph  # noqa: E402
from fourfold.frontends.preprocessors import tokenizer_in  # noqa: E402

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def classifier(path: Path, rows: Any = "batch", ids: int = INT, **options: Any) -> Path:
    """Words embedded, averaged where the mask says so, and judged: two classes, and the mean beside them."""
    dice = np.random.default_rng(0)
    table = dice.standard_normal((30, 16)).astype(np.float32)
    weights = {"table": table, "W": dice.standard_normal((16, 16)).astype(np.float32), "V": dice.standard_normal((16, 2)).astype(np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["e"]), helper.make_node("Cast", ["attention_mask"], ["m"], to=FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["m3"]), helper.make_node("Mul", ["e", "m3"], ["em"]),
        helper.make_node("ReduceSum", ["em", "one"], ["sum"], keepdims=0), helper.make_node("ReduceSum", ["m3", "one"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]), helper.make_node("MatMul", ["mean", "W"], ["h"]), helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "V"], ["logits"]),
    ]
    small = [numpy_helper.from_array(np.array([-1]), "last"), numpy_helper.from_array(np.array([1]), "one")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, ids, [rows, "length"]) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("mean", FLOAT, [rows, 16]), helper.make_tensor_value_info("logits", FLOAT, [rows, 2])],
        [*small, *(numpy_helper.from_array(a, n) for n, a in weights.items())])
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path), **options)
    return path


def batch(rows: int = 3, length: int = 5) -> dict[str, np.ndarray]:
    mask = np.ones((rows, length), np.int64)
    mask[0, 3:] = 0
    return {"input_ids": np.random.default_rng(1).integers(0, 30, (rows, length)), "attention_mask": mask}


def wanted(path: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["logits"], given)[0]


def tensors(given: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(a) for name, a in given.items()}


@pytest.mark.parametrize("options", [{}, {"save_as_external_data": True, "location": "m.data", "size_threshold": 100}], ids=["inside", "beside"])
def test_it_answers_as_onnx_runtime_does_and_is_made_again_from_data(tmp_path: Path, options: dict[str, Any]) -> None:
    path, given = classifier(tmp_path / "m.onnx", **options), batch()
    subject = load_model(str(path))
    assert subject.inputs == ("input_ids", "attention_mask")
    np.testing.assert_allclose(subject.logits(subject.module, tensors(given)), wanted(path, given), rtol=1e-5)
    origin = json.loads(json.dumps(subject.origin))                     # what a manifest keeps
    again = load_state(rebuild(origin), state(subject.module))
    twin = copy.deepcopy(again)
    for module in (again, twin):
        np.testing.assert_allclose(subject.logits(module, tensors(given)), wanted(path, given), rtol=1e-5)
    assert sum(p.numel() for p in again.parameters()) == 30 * 16 + 16 * 16     # V, of 32 numbers, stays in the graph


def test_a_graph_written_for_one_row_takes_more(tmp_path: Path) -> None:
    path, given = classifier(tmp_path / "m.onnx", rows=1), batch()
    subject = load_model(path)
    single = np.concatenate([wanted(path, {k: v[i: i + 1] for k, v in given.items()}) for i in range(3)])
    np.testing.assert_allclose(subject.logits(subject.module, tensors(given)), single, rtol=1e-4, atol=1e-6)


def test_a_mask_that_nobody_gives_is_ones(tmp_path: Path) -> None:
    subject, given = load_model(classifier(tmp_path / "m.onnx")), batch()
    ones = {**given, "attention_mask": np.ones_like(given["attention_mask"])}
    bare = subject.logits(subject.module, tensors({"input_ids": given["input_ids"]}))
    np.testing.assert_allclose(bare, wanted(tmp_path / "m.onnx", ones), rtol=1e-5)


@pytest.mark.parametrize(("engine", "precision"), [("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32")])
@pytest.mark.parametrize("ids", [INT, TensorProto.INT32], ids=["int64", "int32"])
def test_engines_take_the_graph_as_it_is(tmp_path: Path, engine: str, precision: str, ids: int) -> None:
    from fourfold.engines import engine as engine_of
    from fourfold.engines.base import Signature
    from fourfold.engines.parity import parity, references

    pytest.importorskip(engine)
    subject, batches = load_model(classifier(tmp_path / "m.onnx", ids=ids)), [batch(), batch(2, 7)]
    wrapped, signature = subject.wrap(subject.module), Signature.of(subject.inputs, batches)
    kind = engine_of(engine)
    kind.export(wrapped, signature, batches, precision, tmp_path)
    session = kind.open(tmp_path, None, signature, precision, 1)
    noise, reason = parity(session, batches, references(wrapped, signature, batches), precision)
    session.close()
    assert reason is None and (noise < 1e-4 or precision != "fp32")


@pytest.mark.parametrize("engine", ["torch", "inductor"])
def test_engines_that_need_modules_say_why_not(tmp_path: Path, engine: str) -> None:
    from fourfold.engines import engine as engine_of
    from fourfold.engines.base import Signature
    from fourfold.errors import Declined

    subject = load_model(classifier(tmp_path / "m.onnx"))
    with pytest.raises(Declined, match="neither torch modules nor a gradient"):
        engine_of(engine).export(subject.wrap(subject.module), Signature.of(subject.inputs, [batch()]), [batch()], "bf16", tmp_path)


def test_a_damaged_origin_is_refused(tmp_path: Path) -> None:
    origin = load_model(classifier(tmp_path / "m.onnx")).origin
    for harm in ("", "AAAA", origin["graph"][:40]):
        with pytest.raises(ModelError, match="damaged"):
            rebuild({**origin, "graph": harm})


def test_the_wrong_shapes_are_told_in_words(tmp_path: Path) -> None:
    module = load_model(classifier(tmp_path / "m.onnx")).module
    assert isinstance(module, OnnxGraph)
    with pytest.raises(ModelError, match="cannot run the graph on"):
        module(torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long))


@pytest.mark.parametrize("suffix", [".pt2", ".bin", ".safetensors", ".h5", ".tflite", ".joblib", ".xml"])
def test_other_files_point_elsewhere(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"m{suffix}").write_bytes(b"x")
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path / f"m{suffix}")
    assert "is a" in caught.value.message and caught.value.mend


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        tokenizer_in(tmp_path / "none")
    with pytest.raises(InputError, match="no tokenizer"):
        tokenizer_in(tmp_path)


@pytest.mark.slow
def test_the_whole_job_on_a_file(tmp_path: Path) -> None:
    """Arrays in, an artefact out that a fresh process answers with alike."""
    import subprocess
    import sys

    import fourfold

    path, dice = classifier(tmp_path / "m.onnx"), np.random.default_rng(3)
    ids, mask = dice.integers(0, 30, (900, 12)), np.ones((900, 12), np.int64)
    labels = wanted(path, {"input_ids": ids, "attention_mask": mask}).argmax(1)
    np.savez(tmp_path / "rows.npz", input_ids=ids, attention_mask=mask, label=labels)
    front = fourfold.optimize(str(path), str(tmp_path / "rows.npz"), floor=0.9, budget=50, out=tmp_path / "cheap", objective="latency",
                              engines=["torch", "onnxruntime"], threads=1)
    assert any("structure stays as it is" in warning for warning in front.report_data["warnings"])
    assert {p.name for p in front.job.points} >= {"original · torch fp32"}
    chosen = front.best or front.points[0]
    chosen.save(tmp_path / "kept")
    code = ("import sys, json, numpy as np, fourfold; z = np.load(sys.argv[2]); rows = {n: z[n][:50] for n in ('input_ids', 'attention_mask')}; "
            "print(json.dumps([str(a) for a in fourfold.load(sys.argv[1]).predict(rows)]))")
    told = subprocess.run([sys.executable, "-c", code, tmp_path / "kept", tmp_path / "rows.npz"], capture_output=True, text=True, check=True)
    answers = json.loads(told.stdout.splitlines()[-1])
    assert np.mean([a == str(b) for a, b in zip(answers, labels[:50], strict=True)]) > 0.8
