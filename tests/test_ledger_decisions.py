"""Decisions in a ledger: every job that decides books a row, and the levers' factors are found by id and multiply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fourfold.cli import main
from fourfold.errors import ArtefactError, InputError
from fourfold.ledger import decisions, hash_chain
from fourfold.ledger.book import Ledger
from fourfold.units import Quantity


def ran(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main.run([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def seconds(value: float) -> Quantity:
    return Quantity(value, "s", "modelled")


def booked(path: Path, lever: str = "machine", subject: str = "g1", evidence: str = "e1", **figures: Any) -> dict[str, Any]:
    return decisions.book(path, lever, "a step", job="plan", question="schedule", subject=subject, name=f"name {subject}", evidence=evidence,
                          **figures)


def test_factors_multiply_and_the_last_decision_on_a_subject_stands(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    booked(path, before=seconds(3.0), after=seconds(2.0), evidence="first")
    row = booked(path, before=seconds(3.0), after=seconds(1.0), evidence="second")
    booked(path, "map", "jobs", "third", factor=Quantity(4.0, "1", "published", 3.0, 5.0))
    assert hash_chain.verify(path) == [] and row["evidence"] == "second"
    found = decisions.levers(hash_chain.rows(path))
    assert found is not None and [one.stands for one in found.rows] == [False, True, True]
    assert found.factors["machine"].value == pytest.approx(3.0) and found.total is not None and found.total.value == pytest.approx(12.0)
    assert found.total.grade == "published" and found.total.bounds[0] < 12 < found.total.bounds[1]
    assert "3 (machine, modelled) × 4 (map, published) = 12" in found.lines()[0] and "replaced by a later one" in found.lines()[1]


def test_what_does_not_multiply_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    booked(path, before=seconds(3.0), after=seconds(2.0))
    booked(path, subject="g2", evidence="e2", before=seconds(3.0), after=seconds(2.0))
    booked(path, "map", "jobs", "e3", why="running now is impossible")
    found = decisions.levers(hash_chain.rows(path))
    assert found is not None and found.total is None and "No lever has a factor." in found.lines()[0]
    assert any("do not multiply" in note for note in found.notes) and any("impossible" in note for note in found.notes)
    assert decisions.levers([]) is None
    with pytest.raises(InputError, match="not a lever"):
        booked(path, "magic", factor=Quantity(2.0, "1", "modelled"))
    with pytest.raises(InputError, match="not a factor"):
        booked(path, factor=seconds(2.0))
    hash_chain.append(path, {"kind": "decision", "lever": "map"})
    with pytest.raises(ArtefactError, match="row 3 of the ledger is damaged: [a-z]+ is missing"):
        decisions.levers(hash_chain.rows(path))


def test_an_account_and_decisions_share_a_file(tmp_path: Path, capsys) -> None:
    path = tmp_path / "ledger.jsonl"
    book = Ledger(Quantity(12.0, "J", "measured", 11.0, 13.0, boundary="process"), "1,000 examples")
    book.book("model", "half the heads", Quantity(4.0, "J", "measured", 3.5, 4.5, boundary="process"))
    book.save(path)
    booked(path, before=seconds(3.0), after=seconds(2.0))
    booked(path, "model", "g1", "e2", factor=Quantity(9.0, "1", "modelled"))
    again = Ledger.load(path)
    assert again.factor().value == pytest.approx(3.0)
    found = decisions.levers(hash_chain.rows(path), again)
    assert found is not None and found.total is not None and found.total.value == pytest.approx(3.0 * 1.5)
    assert any("the account's own steps count" in note for note in found.notes)
    code, out, _ = ran(capsys, "ledger", "show", path)
    assert code == 0 and "All levers together" in out and "half the heads" in out
    code, out, _ = ran(capsys, "ledger", "show", path, "--json")
    assert json.loads(out)["levers"]["total"]["value"] == pytest.approx(4.5)
    assert ran(capsys, "ledger", "verify", path)[0] == 0


def test_where_nothing_may_be_booked(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="artefact"):
        decisions.may_book(tmp_path / "ledger.jsonl")
    with pytest.raises(InputError, match="folder"):
        decisions.may_book(tmp_path)
    deep = tmp_path / "deep"
    booked(deep / "ledger.jsonl", before=seconds(3.0), after=seconds(2.0))
    text = (deep / "ledger.jsonl").read_text()
    (deep / "ledger.jsonl").write_text(text.replace("3.0", "9.0"))
    with pytest.raises(ArtefactError, match="not sound"):
        decisions.may_book(deep / "ledger.jsonl")


def test_jobs_that_decide_book(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx = pytest.importorskip("onnx")
    import numpy as np
    from onnx import TensorProto, helper

    made = [helper.make_node("MatMul", ["x", "w"], ["a"], "first"), helper.make_node("Relu", ["a"], ["y"], "second")]
    graph = helper.make_graph(made, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
                              [onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")])
    Path("net.onnx").write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    Path("jobs.csv").write_text("name,hours,kw,release,slack,home\na,2,1,2022-05-01T00:00Z,2h,north\n")
    Path("hours.csv").write_text("# unit: g/kWh\ntime,north,south\n" + "".join(
        f"2022-05-01T0{t}:00Z,{500 - 10 * t},{100 + 50 * t}\n" for t in range(4)))
    asked = ("plan", "net.onnx", "--machine", "p100x2", "--solver", "expert", "--evaluations", 50, "--progress", "none", "--ledger", "book.jsonl")
    assert ran(capsys, *asked)[0] == 0
    assert ran(capsys, "map", "jobs.csv", "--intensity", "hours.csv", "--quick", "--out", "jobs", "--ledger", "book.jsonl")[0] == 0
    assert ran(capsys, "datacenter", "--it-kw", "800", "--pue", "1.58", "--ledger", "book.jsonl")[0] == 0
    code, out, _ = ran(capsys, "ledger", "show", "book.jsonl", "--json")
    levers = json.loads(out)["levers"]
    assert code == 0 and list(levers["factors"]) == ["machine", "mechanization", "map"], levers
    product = np.prod([factor["value"] for factor in levers["factors"].values()])
    assert levers["total"]["value"] == pytest.approx(product) and product > 1
    rows = {row["job"]: row for row in levers["decisions"]}
    from fourfold import plans

    assert rows["plan"]["evidence"] == plans.read("plan").solutions["schedule"]["hash"] and rows["plan"]["before"]["unit"] == "s"
    assert rows["map"]["evidence"] == plans.read("jobs").solutions["carbon_aware"]["hash"]
    code, out, _ = ran(capsys, "ledger", "show", "book.jsonl")
    assert "All levers together" in out and rows["plan"]["evidence"][:12] in out
    code, _, err = ran(capsys, *asked, "--objective", "memory")
    assert code == 2 and "bytes of memory" in err
