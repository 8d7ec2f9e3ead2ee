"""The registry lists every technique under its own id, whatever other rooms call theirs, and says what it cannot list."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourfold import registry
from fourfold.errors import InputError

SOLVER = '''"""{title}, as a paper of 1983 has it."""

from fourfold.problem import Budget, Solver, SolverAnswer


class {name}(Solver):
    title = "{title}"
    lever = "machine"
    answers = "{question}"
    cites = ("kirkpatrick1983",)
    {more}

    def solve(self, problem, budget: Budget, seed: int = 0):
        return SolverAnswer("{title}")
'''


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder beside ours in which the questions tile and floorplan are answered by names that `schedule` has too."""
    for question, name in (("tile", "anneal"), ("floorplan", "anneal"), ("tile", "exact")):
        write(tmp_path, question, name, SOLVER.format(title=f"{name} of {question}", name=name.title(), question=question, more=""))
    monkeypatch.syspath_prepend(str(tmp_path))
    with registry.including(tmp_path, ""):
        yield tmp_path
    for module in [m for m in sys.modules if m == "decisions" or m.startswith(("decisions.", "prototype."))]:
        del sys.modules[module]


def write(root: Path, question: str, name: str, text: str, kind: str = "decisions") -> Path:
    folder = root / kind / question
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    return folder / f"{name}.py"


def test_ours_are_listed_whole() -> None:
    assert registry.faults() == []
    known = registry.techniques()
    assert len(known) >= 45 and all(id.count("/") == 1 for id in known)
    assert {"schedule/anneal", "compress/matrix_pruning", "carbon_aware/milp", "pipeline/ideals"} <= set(known)
    public = {f"{f.parent.name}/{f.stem}" for room in ("rewrites", "decisions") for f in (Path(registry.__file__).parent / room).glob("*/[a-z]*.py")}
    assert public - set(known) == {id for id in public if id.split("/")[1] in registry.SHARED}, "a public file is a technique or a shared part"


def test_a_question_stands_for_its_techniques() -> None:
    whole = registry.chosen(["route", "static", "route/sparse_mlp"])
    assert whole == [*registry.techniques("route"), "compress/static"] and "route/sparse_mlp" in whole
    with pytest.raises(InputError, match="Did you mean"):
        registry.chosen(["statik"])
    known = registry.conversions()
    assert known and all(name in registry.facts(id).converts for name, id in known.items())


def test_one_technique_is_what_engines_do_in_fewer_bits() -> None:
    assert [one.name for one in map(registry.facts, registry.techniques()) if one.precision] == [registry.of_precision()] == ["quantise"]


def test_one_name_in_three_questions(room: Path) -> None:
    known = registry.techniques()
    assert {"schedule/anneal", "tile/anneal", "floorplan/anneal", "schedule/exact", "tile/exact"} <= set(known)
    assert registry.faults() == [] and registry.names("tile") == ["anneal", "exact"]
    assert registry.technique("floorplan/anneal").title == "anneal of floorplan"
    assert registry.technique("schedule/anneal").__module__ == "fourfold.decisions.schedule.anneal"
    assert registry.resolve("anneal", "tile") == "tile/anneal" and registry.resolve("heft") == "schedule/heft"
    with pytest.raises(InputError, match="technique of 3 questions.*\n.*floorplan/anneal, schedule/anneal, tile/anneal") as caught:
        registry.facts("anneal")
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(InputError, match="Did you mean tile/exact"):
        registry.resolve("exakt", "tile")


def test_the_planner_is_not_confused_by_them(room: Path) -> None:
    from fourfold.jobs import planning

    assert {"anneal", "exact", "heft"} <= set(planning.names())
    planning.check("anneal", "latency")
    planning.check("schedule/anneal", "latency")


def test_a_class_behind_a_shared_base_is_found(room: Path) -> None:
    shared = SOLVER.format(title="all bases", name="Base", question="tile", more='needs = ("numpy",)')
    write(room, "tile", "_base", shared)
    write(room, "tile", "derived",
          '"""Derived: 1999."""\nfrom decisions.tile._base import Base\n\n\nclass Derived(Base):\n    title = "derived"\n')
    with registry.including(room, ""):
        found = registry.facts("tile/derived")
        assert (found.title, found.lever, found.needs) == ("derived", "machine", ("numpy",))
        assert registry.technique("tile/derived").title == "derived" and registry.faults() == []


@pytest.mark.parametrize("name, text, said", [
    ("nothing", "X = 1\n", "holds 0 techniques"),
    ("two", SOLVER.format(title="a", name="A", question="tile", more="") + "\n\nclass B(Solver):\n    title = 'b'\n", "holds 2 techniques"),
    ("odd", SOLVER.format(title="odd", name="Odd", question="tile", more="needs = tuple(sorted([]))"), "Odd.needs in odd.py is not a literal"),
])
def test_what_cannot_be_listed_is_a_fault(room: Path, name: str, text: str, said: str) -> None:
    write(room, "tile", name, text)
    with registry.including(room, ""):
        assert any(said in fault for fault in registry.faults())


def test_a_base_in_a_public_file_is_a_fault(room: Path) -> None:
    write(room, "tile", "child", '"""1999."""\nfrom decisions.tile.exact import Exact\n\n\nclass Child(Exact):\n    title = "child"\n')
    with registry.including(room, ""):
        assert any("exact.py is the base of child.py" in fault for fault in registry.faults())


def test_two_files_with_one_id_are_an_error_at_listing(room: Path) -> None:
    write(room, "tile", "exact", SOLVER.format(title="again", name="Again", question="tile", more=""), kind="rewrites")
    with registry.including(room, ""), pytest.raises(InputError, match="Two techniques are called tile/exact"):
        registry.techniques()


def test_prototypes_are_listed_only_where_asked_for(room: Path) -> None:
    write(room, "tile", "young", SOLVER.format(title="young", name="Young", question="tile", more=""), kind="prototype")
    with registry.including(room, ""):
        assert "tile/young" not in registry.techniques() and "tile/young" in registry.techniques(prototypes=True)
        assert registry.facts("tile/young").status == "prototype"
