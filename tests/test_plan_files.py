"""The plan's folder: saved and loaded equal, whole or not at all, and damaged, foreign or newer folders refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fourfold.decisions.schedule.problem import Schedule
from fourfold.errors import ArtefactError, InputError
from fourfold.plans import Plan


def example(seed: int = 0) -> Plan:
    problem = Schedule.sample(seed)
    answer = problem.baseline()
    cost = problem.cost(answer)
    return Plan(problem.graph, problem.system, "latency", answer.group, answer.place, answer.priority, "default", cost, "s", before=cost,
                bound=problem.bound(), gap=0.5, seconds=0.1, evaluations=3, table=({"solver": "default", "cost": cost, "note": ""},),
                model={"ref": "m", "kind": "module"}, capture={"train": False, "dims": {}}, sentences=("one",), notes=("two",))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_saved_is_loaded(tmp_path: Path, seed: int) -> None:
    plan = example(seed)
    files = plan.save(tmp_path / "deep" / "plan")
    assert [file.name for file in files] == ["plan.json", "graph.npz", "system.toml"] and all(file.is_file() for file in files)
    again = Plan.load(tmp_path / "deep" / "plan")
    assert again.hash == plan.hash and again.graph == plan.graph and again.system == plan.system
    assert again.to_json() == plan.to_json() and again.explain() == ["one", "two"]
    assert again.timeline().makespan == pytest.approx(plan.cost)
    for name in ("group", "place", "priority"):
        assert np.array_equal(getattr(again, name), getattr(plan, name)) and getattr(again, name).dtype == getattr(plan, name).dtype
    assert Plan.load(tmp_path / "deep" / "plan" / "plan.json").hash == plan.hash
    assert sorted(p.name for p in (tmp_path / "deep" / "plan").iterdir()) == ["graph.npz", "plan.json", "system.toml"]


def test_a_plan_replaces_a_plan_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    example(0).save(tmp_path)
    second = example(1)
    second.save(tmp_path)
    assert Plan.load(tmp_path).hash == second.hash and (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "plan.json").write_text('{"sites": []}')
    with pytest.raises(InputError, match="written by something else"):
        second.save(tmp_path)
    assert (tmp_path / "plan.json").read_text() == '{"sites": []}'
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        second.save(tmp_path / "file")


def altered(folder: Path, change: object) -> None:
    """Change the document, its schedule or the schedule's answer, whichever has the key."""
    data = json.loads((folder / "plan.json").read_text())
    for key, value in dict(change).items():                            # type: ignore[call-overload]
        schedule = data["solutions"]["schedule"]
        next((part for part in (data, schedule, schedule["answer"]) if key in part), data)[key] = value
    (folder / "plan.json").write_text(json.dumps(data))


@pytest.mark.parametrize("harm, told", [
    (lambda f: (f / "plan.json").unlink(), "plan.json is missing"),
    (lambda f: (f / "plan.json").write_text("{"), "damaged"),
    (lambda f: (f / "plan.json").write_bytes(b"\xff\xfe"), "damaged"),
    (lambda f: (f / "plan.json").write_text("[1]"), "no plan of fourfold"),
    (lambda f: altered(f, {"format": "other"}), "no plan of fourfold"),
    (lambda f: altered(f, {"format": "fourfold.plan/99"}), "newer fourfold"),
    (lambda f: altered(f, {"format": "fourfold.plan/x"}), "schema 'x'"),
    (lambda f: altered(f, {"format": "fourfold plan", "schema": 99}), "newer fourfold"),
    (lambda f: (f / "graph.npz").unlink(), "graph.npz is missing"),
    (lambda f: (f / "graph.npz").write_bytes((f / "graph.npz").read_bytes()[:-9]), "graph.npz is not the file"),
    (lambda f: (f / "system.toml").write_text("name = 1"), "system.toml is not the file"),
    (lambda f: altered(f, {"place": [0]}), "shape"),
    (lambda f: altered(f, {"place": None}), "damaged"),
    (lambda f: altered(f, {"group": ["a"]}), "damaged"),
    (lambda f: altered(f, {"hash": "0"}), "hash differs"),
    (lambda f: altered(f, {"table": 3}), "damaged"),
])
def test_what_is_wrong_is_said(tmp_path: Path, harm, told: str) -> None:
    example().save(tmp_path)
    harm(tmp_path)
    with pytest.raises(ArtefactError, match=told) as caught:
        Plan.load(tmp_path)
    assert len(str(caught.value).splitlines()) == 2


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such folder"):
        Plan.load(tmp_path / "nowhere")


def test_arrays_that_do_not_fit_are_refused() -> None:
    plan = example()
    for change, told in (({"group": [0]}, "shape"), ({"place": np.full(len(plan.graph), 9)}, "device 9"),
                         ({"priority": np.full(len(plan.graph), np.nan)}, "finite")):
        with pytest.raises(InputError, match=told):
            plan.replace(**change)
