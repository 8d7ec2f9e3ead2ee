"""Nothing is called saved before a fresh process has loaded it and answered alike: every kind of origin, in every engine, alone and in a cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import origins
import pytest
import served

import fourfold
from fourfold.datasets.examples import Examples
from fourfold.datasets.task import Task, default_metric
from fourfold.errors import ArtefactError, ModelError
from fourfold.gate import Gate
from fourfold.runtime.artefact import Assembly
from fourfold.runtime.saving import save, trusted

ENGINES = ("torch", "onnxruntime", "openvino")
TASK = Task("classification", ["a", "b", "c"], default_metric("classification"))
FACTS: dict[str, Any] = {"fingerprint": "", "lengths": [8]}


def kept(parts: list[Any], folder: Path, gates: int = 0) -> fourfold.Model:
    """The artefact of these members, confirmed by a fresh process, as this process loads it; it answers as they do."""
    name = parts[0].subject.inputs[0]
    examples, new = Examples({name: origins.rows()}), Examples({name: origins.rows(40, 1)})
    made = Assembly("small", parts, [Gate(1.0, 0.45)] * gates)
    save(made, TASK, folder, FACTS, examples=examples)
    wanted = made.outputs(new, TASK)
    if gates:
        assert 0 < sum(np.allclose(a, b) for a, b in zip(wanted, parts[0].outputs(new, TASK), strict=True)) < 40, "both members are asked"
    loaded = fourfold.load(folder, trust=trusted(made))
    np.testing.assert_allclose(loaded.assembly.outputs(new, TASK), wanted, atol=1e-4)
    made.close()
    return loaded


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", origins.KINDS)
def test_a_network_alone(kind: str, engine: str, tmp_path: Path) -> None:
    part = origins.part(kind, engine, tmp_path / "files")
    assert part.subject.origin["kind"] == {"class": "tree"}.get(kind, kind)
    if (kind, engine) == ("opaque", "torch"):
        with pytest.raises(ModelError, match="cannot be made again in another process"):
            kept([part], tmp_path / "cheap")
        assert not (tmp_path / "cheap").exists()
        return
    kept([part], tmp_path / "cheap")
    if kind in ("class", "factory"):
        assert trusted(Assembly("small", [part])) == ("origins",)
        with pytest.raises(ArtefactError, match="origins"):
            assert fourfold.load(tmp_path / "cheap").module


@pytest.mark.parametrize("first, last", [                              # every kind and engine once; `make slow` takes other pairs too
    (("class", "torch"), ("tree", "onnxruntime")), (("opaque", "onnxruntime"), ("factory", "torch")), (("onnx", "openvino"), ("onnx", "onnxruntime")),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (
        (("factory", "openvino"), ("class", "openvino")), (("tree", "torch"), ("opaque", "openvino")))),
])  # fmt: skip
def test_a_cascade(first: tuple[str, str], last: tuple[str, str], tmp_path: Path) -> None:
    members = [origins.part(*first, tmp_path / "one", name="one", seed=1), origins.part(*last, tmp_path / "two", name="two", seed=2)]
    kept(members, tmp_path / "cheap", gates=1)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_transformers_model_behind_counted_words(engine: str, tmp_path: Path) -> None:
    from fourfold.datasets.tokenise import tokenised

    part = served.part(tmp_path / "files", engine)
    assert part.subject.origin["kind"] == "transformers"
    texts = served.texts(24, 3)
    columns, _ = tokenised(texts, None, part.subject, None)
    made = Assembly("small", [served.words(), part], [Gate(1.0, 0.5)])
    examples = Examples(columns, raw=list(texts))
    save(made, served.task(), tmp_path / "cheap", FACTS, examples=examples)
    wanted = [f"class {int(row.argmax())}" for row in made.outputs(examples, served.task())]
    assert fourfold.load(tmp_path / "cheap").predict(texts) == wanted


def test_what_answers_otherwise_in_a_fresh_process_is_not_saved_and_the_old_artefact_stays(tmp_path: Path) -> None:
    kept([origins.part("tree", "torch", tmp_path / "good")], tmp_path / "cheap")
    before = {path: path.read_bytes() for path in (tmp_path / "cheap").rglob("*") if path.is_file()}
    for members in ([origins.part("fickle", "torch", tmp_path / "bad")],
                    [origins.part("tree", "torch", tmp_path / "good", name="one"), origins.part("fickle", "torch", tmp_path / "bad", name="two")]):
        with pytest.raises(ModelError, match="answers otherwise"):
            kept(members, tmp_path / "cheap", gates=len(members) - 1)
    assert {path: path.read_bytes() for path in (tmp_path / "cheap").rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".cheap.part-*"))
