"""Intra-operator sharding: reader, validator, bound and solvers against enumeration, and the command."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from fourfold.cli import main
from fourfold.decisions.shard._contest import read_contest, written
from fourfold.decisions.shard.greedy import GreedyDescent
from fourfold.decisions.shard.instance import FORBIDDEN, StrategyGraph
from fourfold.decisions.shard.problem import ShardProblem, invented
from fourfold.errors import Infeasible, InputError
from fourfold.problem import solve

TINY = {"problem": {"name": "tiny", "nodes": {"intervals": [[0, 4], [1, 3], []], "costs": [[3, 1], [5, 5, 2], [0, 7]],
                                              "usages": [[4, 9], [3, 2, 8], [50, 60]]},
                    "edges": {"nodes": [[0, 1], [2, 1], [0, 1]], "costs": [[1, 2, 3, 4, 5, 6], [9, 0, 1, 0, 3, 2], [0, 0, 1, 0, 0, 1]]},
                    "usage_limit": 12}}


def by_hand(g: StrategyGraph, chosen: tuple[int, ...]) -> float | None:
    """The cost by the definition, one sum at a time; None where a rule is broken. Knows neither validator nor solver."""
    value = 0
    for i, s in enumerate(chosen):
        value += g.cost[g.ptr[i] + s]
        if g.cost[g.ptr[i] + s] >= FORBIDDEN:
            return None
    for e, (a, b) in enumerate(g.edge.tolist()):
        entry = g.table[g.table_ptr[e] + chosen[a] * int(g.strategies[b]) + chosen[b]]
        if entry >= FORBIDDEN:
            return None
        value += entry
    for when in range(int(g.lower.min()), int(g.upper.max()) + 1):
        live = [i for i in range(len(g)) if g.lower[i] <= when < g.upper[i]]
        if g.limit is not None and sum(int(g.usage[g.ptr[i] + chosen[i]]) for i in live) > g.limit:
            return None
    return float(value)


def least(g: StrategyGraph) -> float:
    """The optimum by enumeration; infinity where there is no answer."""
    costs = (by_hand(g, chosen) for chosen in itertools.product(*(range(int(k)) for k in g.strategies)))
    return min((cost for cost in costs if cost is not None), default=math.inf)


@pytest.mark.parametrize("seed", range(40))
def test_the_validator_and_the_cost_equal_the_definition(seed: int) -> None:
    problem = ShardProblem(invented(seed, 4))
    g = problem.graph
    for chosen in itertools.product(*(range(int(k)) for k in g.strategies)):
        expected = by_hand(g, chosen)
        assert (problem.violations(np.array(chosen)) == []) == (expected is not None)
        if expected is not None:
            assert problem.cost(np.array(chosen)) == pytest.approx(expected, rel=1e-12) and problem.bound() <= expected + 1e-9


def test_an_answer_of_another_shape_is_refused_in_words() -> None:
    problem = ShardProblem(StrategyGraph.of([[1, 2], [3]], [[0, 0], [0]]))
    assert "3 choices for 2 nodes" in problem.violations(np.zeros(3, int))[0]
    assert "numbered from 0" in problem.violations(np.array([2, 0]))[0]
    assert "whole numbers" in problem.violations(np.zeros(2))[0]


def test_the_public_format_is_read_plain_and_compressed_and_written_again(tmp_path: Path) -> None:
    text = json.dumps(TINY).encode()
    (tmp_path / "a.json").write_bytes(text)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text))
    (tmp_path / "b.json").write_bytes(written(read_contest(tmp_path / "a.json")))
    first, *others = (read_contest(tmp_path / name) for name in ("a.json", "a.json.gz", "b.json"))
    assert (len(first), first.edges, first.limit, first.whole) == (3, 3, 12, True)
    assert first.lower[2] == first.upper[2] and by_hand(first, (0, 1, 0)) == 3 + 5 + 0 + 2 + 0 + 0
    assert all(other.hash == first.hash for other in others)


def test_sums_beyond_64_bits_are_exact() -> None:
    large = 9 * 10**17
    g = StrategyGraph.of([[large]] * 40, [[0]] * 40, [(0, 1)], [[7]])
    assert ShardProblem(g).total(np.zeros(40, int)) == 40 * large + 7


@pytest.mark.parametrize(("change", "words"), [
    ({"nodes": {"intervals": [], "costs": [], "usages": []}, "edges": {"nodes": [], "costs": []}}, "no node"),
    ({"edges": {"nodes": [[0, 1]], "costs": [[1, 2]]}}, r"Edge 0 has 2 costs.*2 × 3"),
    ({"edges": {"nodes": [[0, 9]], "costs": [[1, 2]]}}, "Edge 0 joins"),
    ({"nodes": {"intervals": [[0, 1]], "costs": [[1]], "usages": [[-4]]}, "edges": {"nodes": [], "costs": []}}, "usage -4"),
    ({"nodes": {"intervals": [[0, 1]], "costs": [[1, 2]], "usages": [[4]]}, "edges": {"nodes": [], "costs": []}}, "2 costs and 1 usages"),
    ({"nodes": {"intervals": [[0, 1], []], "costs": [[1]], "usages": [[4]]}, "edges": {"nodes": [], "costs": []}}, "2 intervals"),
    ({"nodes": 3}, "not of the contest's format"),
])
def test_a_file_that_does_not_fit_is_refused_in_two_lines(tmp_path: Path, change: dict[str, object], words: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"problem": TINY["problem"] | change}))
    with pytest.raises(InputError, match=words) as caught:
        read_contest(tmp_path / "a.json")
    assert len(str(caught.value).splitlines()) == 2


def test_what_is_no_json_and_what_no_choice_fits_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{nodes")
    with pytest.raises(InputError, match="is not JSON"):
        read_contest(tmp_path / "a.json")
    tight = ShardProblem(StrategyGraph.of([[1, 2], [1]], [[9, 7], [4]], lives=[[0, 5], [3, 9]], limit=10))
    with pytest.raises(Infeasible, match=r"at time 3 .* at least 11 bytes, whatever is chosen, 1 more than the limit of 10"):
        solve(tight, GreedyDescent())


def test_the_command_chooses_says_the_bound_and_writes_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(TINY))
    assert main.run(["shard", str(tmp_path / "a.json"), "--json", "--budget", "2s", "--out", str(tmp_path / "plan")]) == 0
    told = json.loads(capsys.readouterr().out)
    graph = read_contest(tmp_path / "a.json")
    assert told["total"] == by_hand(graph, tuple(told["strategies"])) and told["bound"] <= told["cost"]
    assert main.run(["plan", "verify", str(tmp_path / "plan")]) == 0
    document = json.loads((tmp_path / "plan" / "plan.json").read_text())
    document["solutions"]["shard"]["bound"] = told["cost"] + 1.0
    document["solutions"]["shard"]["cost"] = told["cost"] + 1.0
    (tmp_path / "plan" / "plan.json").write_text(json.dumps(document))
    assert main.run(["plan", "verify", str(tmp_path / "plan")]) != 0
