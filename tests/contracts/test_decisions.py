"""What every technique of a decision owes, whoever wrote it: facts that are true, a refusal in words, and on its problem's samples a valid answer at
the price claimed, alike for the same seed. The folder listing is the list of parameters: a new file is tested by being there.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from fourfold.cite import BIBLIOGRAPHY
from fourfold.errors import Infeasible
from fourfold.ledger.book import LEVERS
from fourfold.problem import Budget, Problem, Solver, solve
from fourfold.registry import facts, technique, techniques

NAMES = [name for name, module in techniques(prototypes=True).items() if module.startswith("fourfold.decisions.")]
CORE = {"numpy", "scipy", "numba"}


def problem_of(name: str) -> type[Problem[Any]]:
    """The problem that a technique answers, from the `problem.py` beside it."""
    module = importlib.import_module(techniques()[name].rsplit(".", 1)[0] + ".problem")
    found = [cls for cls in vars(module).values() if inspect.isclass(cls) and issubclass(cls, Problem) and not inspect.isabstract(cls)
             and cls.__module__ == module.__name__ and cls.question == technique(name).answers]
    assert len(found) == 1, f"{name} answers {technique(name).answers!r}, which {len(found)} problems of its folder ask"
    return found[0]


@pytest.mark.parametrize("name", NAMES)
def test_one_final_class_whose_facts_are_true(name: str) -> None:
    module = importlib.import_module(techniques()[name])
    own = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Solver) and value.__module__ == module.__name__]
    assert len(own) == 1, f"{name} must hold exactly one Solver, it holds {own}"
    cls = own[0]
    assert cls is technique(name) and not cls.__subclasses__() and not inspect.isabstract(cls)
    found = facts(name)
    assert (found.title, found.lever, found.cites, found.needs) == (cls.title, cls.lever, tuple(cls.cites), tuple(cls.needs))
    assert cls.lever in LEVERS and cls.lever == problem_of(name).lever and cls.title and len(cls.title) < 110 and found.summary


@pytest.mark.parametrize("name", NAMES)
def test_it_names_papers_that_are_in_the_bibliography_and_says_its_source(name: str) -> None:
    cls = technique(name)
    assert cls.cites and not [key for key in cls.cites if key not in BIBLIOGRAPHY]
    assert re.search(r"\b(19|20)\d\d\b", f"{inspect.getmodule(cls).__doc__} {cls.__doc__}"), "the docstring names its source with the year"


@pytest.mark.parametrize("name", NAMES)
def test_what_it_needs_can_be_imported_and_is_all_it_imports(name: str) -> None:
    cls = technique(name)
    assert all(importlib.util.find_spec(need) for need in cls.needs)
    tree = ast.parse(Path(inspect.getfile(cls)).read_text())
    heads = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    heads |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {head for head in heads if head and head not in ("fourfold", "__future__") and head not in sys.stdlib_module_names}
    assert foreign <= CORE | set(cls.needs), f"{name} imports {foreign - CORE - set(cls.needs)} without saying so in `needs`"


def plain(answer: Any) -> str:
    """An answer as text that two equal answers share."""
    return json.dumps(answer, default=lambda part: part.tolist() if hasattr(part, "tolist") else vars(part))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", NAMES)
def test_on_samples_it_declines_in_words_or_answers_validly_and_alike(name: str, seed: int) -> None:
    """`solve` itself rejects invalid answers, false bounds and prices; here they must not occur. Evaluations end the search, long before the
    seconds: a clock would end two runs of one seed at different moments.
    """
    problem = problem_of(name).sample(seed)
    solver = technique(name)()
    why = solver.declines(problem)
    if why:
        assert len(why.split()) > 3
        return
    try:
        first, second = (solve(problem, technique(name)(), Budget(seconds=600, evaluations=300), seed=1) for _ in range(2))
    except Infeasible as none:
        assert solver.ignores or problem.violations(problem.baseline()), f"{none}: yet the baseline is valid"
        return
    assert plain(first.answer) == plain(second.answer)
    assert problem.relaxed(solver.ignores).violations(first.answer) == []
    assert first.bound is None or first.bound <= first.cost
    assert not first.broken or solver.ignores
    if "optimum" in solver.gives and first.bound is not None and first.before is not None:
        assert first.cost <= first.before * (1 + 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_another_question_is_refused(name: str) -> None:
    from fourfold.errors import InputError

    other = next(cls for cls in {problem_of(other) for other in NAMES} if cls.question != technique(name).answers)
    with pytest.raises(InputError, match="answers"):
        solve(other.sample(0), technique(name)())
