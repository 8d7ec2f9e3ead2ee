"""What `fourfold export` writes is opened by others alone and answers as the artefact does; what cannot be written is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served

import fourfold
from fourfold.errors import InputError, ModelError
from fourfold.runtime.export import export


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("exported")
    served.saved(at / "torch", [served.part(at / "a", "torch")])
    served.saved(at / "onnxruntime", [served.part(at / "b", "onnxruntime")])
    served.saved(at / "cascade", [served.words(), served.part(at / "c", "torch")], [0.5])
    return at


def fed(folder: Path, texts: list[str]) -> dict[str, Any]:
    import transformers

    return dict(transformers.AutoTokenizer.from_pretrained(folder)(texts, truncation=True, padding=True, return_tensors="np"))


def test_transformers_pipelines_open_it(room: Path, tmp_path: Path) -> None:
    import transformers

    texts = served.texts(6, 51)
    done = export(room / "torch", "hf", tmp_path / "hf")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(done["files"]) and done["off"] < 1e-4
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "hf"), tokenizer=str(tmp_path / "hf"))
    assert [row["label"] for row in pipe(texts, truncation=True)] == fourfold.load(room / "torch").predict(texts)
    assert "input_ids" in (tmp_path / "hf" / "README.md").read_text()


@pytest.mark.parametrize("source", ["onnxruntime", pytest.param("torch", marks=pytest.mark.slow)])
def test_onnx_runtime_opens_it_alone(source: str, room: Path, tmp_path: Path) -> None:
    import onnxruntime

    texts = served.texts(6, 52)
    export(room / source, "onnx", tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    given = fed(tmp_path / "onnx", texts)
    found = session.run(None, {port.name: given[port.name] for port in session.get_inputs()})[0]
    np.testing.assert_allclose(found, fourfold.load(room / source).records(texts), atol=1e-3)


def test_openvino_opens_it_alone(room: Path, tmp_path: Path) -> None:
    import openvino

    texts = served.texts(6, 53)
    export(room / "torch", "openvino", tmp_path / "ov")
    compiled = openvino.Core().compile_model(tmp_path / "ov" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given = fed(tmp_path / "ov", texts)
    found = np.array(compiled({port.get_any_name(): given[port.get_any_name()] for port in compiled.inputs})[0])
    np.testing.assert_allclose(found, fourfold.load(room / "torch").records(texts), atol=1e-3)


def test_a_cascade_and_words_are_refused_and_a_member_is_not(room: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a cascade of bag-of-words, net"):
        export(room / "cascade", "hf", tmp_path / "no")
    with pytest.raises(InputError, match="counts words"):
        export(room / "cascade", "hf", tmp_path / "no", member="bag-of-words")
    assert export(room / "cascade", "hf", tmp_path / "yes", member="net")["class"] == "BertForSequenceClassification"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export(room / "torch", "hf", tmp_path / "full")
    with pytest.raises(InputError, match="onnx"):
        export(room / "torch", "gguf", tmp_path / "no")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "yes"]


def test_uniform_shapes_become_a_configuration_and_others_are_refused() -> None:
    import torch
    from torch import nn

    from fourfold.runtime.export import expressed

    def narrow(layer: Any, width: int) -> None:
        for linear, axis in ((layer.intermediate.dense, 0), (layer.output.dense, 1)):
            linear.weight = nn.Parameter(linear.weight.narrow(axis, 0, width).clone())
        layer.intermediate.dense.bias = nn.Parameter(layer.intermediate.dense.bias[:width].clone())

    net = served.network(3)
    for layer in net.bert.encoder.layer:
        narrow(layer, 40)
    del net.bert.encoder.layer[2]
    named = expressed(net)
    assert (named.config.intermediate_size, named.config.num_hidden_layers) == (40, 2)
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(named(ids).logits, net(ids).logits)
    narrow(net.bert.encoder.layer[0], 24)
    with pytest.raises(ModelError, match="one size for all blocks"):
        expressed(net)


def test_what_answers_otherwise_is_not_kept(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was altered between writing and checking."""
    from fourfold.runtime import export as home

    real = home._companions

    def spoil(model: Any, part: Any, made: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(made / "model.safetensors")
        weights["classifier.weight"] = weights["classifier.weight"] * 2
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        real(model, part, made)

    monkeypatch.setattr(home, "_companions", spoil)
    with pytest.raises(ModelError, match="spread off"):
        export(room / "torch", "hf", tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_the_command(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fourfold.cli.main import run

    assert run(["export", str(room / "onnxruntime"), "--to", "onnx", "--out", str(tmp_path / "out")]) == 0
    assert "answers alike" in capsys.readouterr().out and (tmp_path / "out" / "model.onnx").is_file()


def test_formats_are_told_by_engines() -> None:
    from fourfold.engines import engine, formats
    from fourfold.runtime.export import TRANSFORMERS, targets

    assert formats() == {"onnx": "onnxruntime", "openvino": "openvino"} and targets() == (TRANSFORMERS, *formats())
    for name in formats().values():
        kind = engine(name)
        compile(kind.answering, name, "exec")
        assert "`" in kind.opened and kind.name == name
