"""The chiplet question: rules, propagator, SAMPLE and FIX against brute force; techniques, the stored plan and the command."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold import plans
from fourfold.cli import main
from fourfold.decisions.chiplets._evaluate import PartitionEvaluator, price
from fourfold.decisions.chiplets._propagate import ONE, narrow, propagate, undo
from fourfold.decisions.chiplets._sampler import Sampler
from fourfold.decisions.chiplets.contiguous import stages
from fourfold.decisions.chiplets.instance import ChipletWorkload, Csr, Package, of_graph
from fourfold.decisions.chiplets.problem import ChipletPartition, chain, drawn
from fourfold.errors import Infeasible, InputError
from fourfold.jobs.chiplets import chiplets, limits
from fourfold.machine import Machine
from fourfold.problem import Budget, solve
from fourfold.registry import technique
from fourfold.zoo.graphs import make


def small(seed: int, most: int = 7) -> ChipletPartition:
    """At most `most` ops on at most 4 chips, whose memory binds now and then."""
    rng = np.random.default_rng(seed)
    memory = float(rng.choice([3e4, 6e4, 1e9]))
    return ChipletPartition(drawn(rng, int(rng.integers(3, most + 1)), 0.4), chain(int(rng.integers(2, 5)), memory=memory))


def valid(problem: ChipletPartition) -> set[tuple[int, ...]]:
    """Every valid partition, by the checker of the problem."""
    every = itertools.product(range(problem.package.chips), repeat=len(problem.workload))
    return {chip for chip in every if not problem.broken(np.array(chip))}


def naive(problem: ChipletPartition, chip: tuple[int, ...]) -> bool:
    """The published rules once more, by walking all ways between chips."""
    w = problem.workload
    pairs = {(chip[u], chip[v]) for u, v in zip(w.source.tolist(), w.target.tolist(), strict=True)}
    joined = {(a, c) for a, c in pairs if a != c}

    def longest(a: int, c: int) -> int:
        return max((1 + longest(b, c) for x, b in joined if x == a and (b == c or longest(b, c) > 0)), default=0) if a != c else 0

    if any(a > c for a, c in pairs) or set(chip) != set(range(max(chip) + 1)):
        return False
    return all(longest(a, c) == 1 for a, c in joined)


def line(count: int) -> ChipletWorkload:
    return ChipletWorkload("line", np.ones(count) * 1e-6, np.zeros(count), np.arange(count - 1), np.arange(1, count), np.arange(count - 1),
                           np.full(count - 1, 1e3), _csr(count - 1, range(1, count)), _csr(count, [0] * count), np.array([8.0]), np.arange(count))


def _csr(rows: int, items: Iterable[int]) -> Csr:
    return Csr.of(rows, np.arange(rows), np.array(list(items), np.int64))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_the_checker_agrees_with_ways_walked_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = ChipletPartition(drawn(rng, int(rng.integers(3, 7)), 0.4), chain(int(rng.integers(2, 5))))
    every = list(itertools.product(range(problem.package.chips), repeat=len(problem.workload)))
    for i in rng.permutation(len(every))[:40]:
        assert (problem.broken(np.array(every[i])) == []) == naive(problem, every[i])


@pytest.mark.parametrize(("seed", "most"), [*((seed, 6) for seed in range(8)),
                                            *(pytest.param(seed, 8, marks=pytest.mark.slow) for seed in range(30))])
def test_the_propagator_never_removes_what_a_valid_partition_has(seed: int, most: int) -> None:
    problem = small(seed, most)
    every, rng = sorted(valid(problem)), np.random.default_rng(seed)
    sampler = Sampler(problem)
    before = [np.array(part) for part in (sampler.state.dom, sampler.state.fixed, sampler.state.used, sampler.state.held, sampler.state.joined)]
    for chip in [every[i] for i in rng.permutation(len(every))[:25]]:
        same = every
        for op in rng.permutation(len(chip)):                           # fix one op after the other as this partition has it
            narrow(sampler.state, int(op), ONE << np.uint64(chip[op]))
            assert propagate(sampler.net, sampler.state)
            same = [other for other in same if other[op] == chip[op]]
            kept = sampler.state.dom.tolist()
            assert all(kept[v] >> other[v] & 1 for other in same for v in range(len(chip)))
        undo(sampler.net, sampler.state, sampler.clean)
        after = (sampler.state.dom, sampler.state.fixed, sampler.state.used, sampler.state.held, sampler.state.joined)
        assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_sample_reaches_every_valid_partition_and_fix_keeps_them(seed: int) -> None:
    problem = small(seed, 5)
    every, sampler, rng = valid(problem), Sampler(problem), np.random.default_rng(seed)
    if not every:
        assert sampler.sample(None, 0) is None
        return
    seen = set()
    for k in range(60 * len(every)):
        found = sampler.sample(None, k, rng.permutation(len(problem.workload)) if k % 2 else None)
        assert found is not None
        seen.add(tuple(found.tolist()))
        if seen == every:
            break
    assert seen == every
    for chip in every:
        for order in (None, rng.permutation(len(chip))):
            fixed = sampler.fix(np.array(chip), order)
            assert fixed is not None and tuple(fixed.tolist()) == chip


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_whatever_fix_is_given_it_answers_validly_and_kernels_price_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = ChipletPartition(drawn(rng, int(rng.integers(5, 60)), 0.3), chain(int(rng.integers(2, 9)), copies=bool(rng.integers(2))))
    sampler = Sampler(problem)
    for found in (sampler.fix(rng.integers(0, problem.package.chips, len(problem.workload))), sampler.sample(None, seed)):
        assert found is not None and problem.violations(found) == []
        assert price(problem, found) == pytest.approx(problem.cost(found), rel=1e-12)
        assert problem.bound() <= problem.cost(found) * (1 + 1e-12)


def optimum(problem: ChipletPartition) -> float:
    return min(problem.cost(np.array(chip)) for chip in valid(problem))


@pytest.mark.parametrize("seed", range(4))
def test_cp_sat_finds_and_proves_the_optimum(seed: int) -> None:
    problem = small(seed, 6)
    if not valid(problem):
        with pytest.raises(Infeasible):
            solve(problem, technique("chiplets/cp_sat")(), Budget(20))
        return
    found = solve(problem, technique("chiplets/cp_sat")(), Budget(20))
    assert found.cost == pytest.approx(optimum(problem), rel=1e-9) and found.gap is not None and found.gap < 1e-4


def next_only(problem: ChipletPartition) -> Iterator[np.ndarray]:
    """All contiguous stages of the given order of which each sends to the next only."""
    n, w = len(problem.workload), problem.workload
    for cuts in range(problem.package.chips):
        for at in itertools.combinations(range(1, n), cuts):
            chip = np.searchsorted(np.array(at), np.arange(n), side="right")
            if (chip[w.target] - chip[w.source] <= 1).all() and not problem.broken(chip):
                yield chip


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("copies", [True, False])
def test_contiguous_stages_are_the_best_of_all_of_their_form(seed: int, copies: bool) -> None:
    rng = np.random.default_rng(seed)
    problem = ChipletPartition(drawn(rng, int(rng.integers(4, 11)), 0.3), chain(
        int(rng.integers(2, 5)), memory=float(rng.choice([5e4, 1e9])), copies=copies, rate=float(rng.choice([1e9, 5e10]))))
    every = [problem.cost(chip) for chip in next_only(problem)]
    found = stages(problem, np.arange(len(problem.workload)))
    assert (found is None) == (not every)
    if found is not None:
        assert problem.violations(found) == [] and problem.cost(found) == pytest.approx(min(every), rel=1e-8)


def test_a_compiler_is_asked_for_a_price_and_obeyed() -> None:
    asked: list[int] = []

    def compiler(chip: np.ndarray) -> str | None:
        asked.append(1)
        return "chip 0 holds more than 3 ops" if (chip == 0).sum() > 3 else None

    problem = ChipletPartition(line(12), chain(4), compiler, price=4)
    assert problem.violations(problem.baseline()) == ["the compiler refuses it: chip 0 holds more than 3 ops"]
    budget = Budget(60, 100)
    budget.restart()
    evaluator = PartitionEvaluator(problem, budget)
    assert np.isinf(evaluator.price(problem.baseline())) and budget.spent == 5
    asked.clear()
    found = solve(problem, technique("chiplets/random_sample")(), Budget(60, 100), seed=1)
    assert (found.answer == 0).sum() <= 3 and found.evaluations == 100 and len(asked) == 20 + 2     # and once by the check, once for the baseline
    assert found.before is None and "compiler" in found.why


def test_rules_are_told_in_words() -> None:
    problem = ChipletPartition(line(4), chain(4, memory=10.0))
    assert "sends back" in problem.violations(np.array([1, 0, 1, 2]))[0]
    assert problem.violations(np.array([0, 0, 2, 2])) == ["chip 1 is skipped"]
    assert "expected one whole number for each of 4 ops" in problem.violations(np.zeros(3, int))[0]
    assert "there are 4" in problem.violations(np.array([0, 1, 2, 4]))[0]
    tight = ChipletPartition(line(4), chain(4, memory=5.0))
    assert "holds 8 bytes, more than its 5" in tight.violations(np.zeros(4, int))[0]


def test_packages_of_the_shipped_machines() -> None:
    ring, mesh = (Package.of(Machine.read(name)) for name in ("mcm36", "mcm36-mesh"))
    assert ring.chips == mesh.chips == 36 and ring.copies[0, 5] and mesh.copies[0, 5]
    assert [len(np.arange(*ring.lanes.ptr[a * 36 + c: a * 36 + c + 2])) for a, c in ((0, 1), (0, 11), (3, 35))] == [1, 11, 32]
    assert [len(np.arange(*mesh.lanes.ptr[a * 36 + c: a * 36 + c + 2])) for a, c in ((0, 1), (0, 11), (5, 6), (0, 35))] == [1, 1, 1, 5]
    with pytest.raises(InputError, match="not alike"):
        from dataclasses import replace

        machine = Machine.read("mcm36")
        Package.of(replace(machine, devices=(*machine.devices[:-1], replace(machine.devices[-1], bandwidth=1.0))))


def test_the_kinds_of_link_lines_are_checked() -> None:
    text = 'name = "x"\nhubs = ["c*"]\n[[device]]\nnames = ["c0", "c1", "c2"]\nkind = "chiplet"\nbandwidth = "1 GB/s"\nmemory = "1 GB"\n' \
           'peak = { float32 = "1 TFLOP/s" }\nlaunch = "0 us"\n[[link]]\nlatency = "1 us"\nbandwidth = "1 GB/s"\nalong = '
    found = Machine.parse(text + '["c0", "c1", "c2"]')
    assert found.hubs == ("c0", "c1", "c2") and len(found.route(0, 2).lanes) == 2 and Machine.from_json(found.to_json()).hash == found.hash
    with pytest.raises(InputError, match="leads along 'c3'"):
        Machine.parse(text + '["c0", "c3"]')
    with pytest.raises(InputError, match="fewer than two"):
        Machine.parse(text + '["c0"]')


def test_what_depends_on_inputs_alone_is_done_everywhere() -> None:
    graph = make("encoder_decoder", 120, 1)
    workload = of_graph(graph, Machine.read("mcm36"))
    assert len(workload) <= len(graph) and (workload.source < workload.target).all()
    from fourfold.cost.roofline import seconds

    assert workload.seconds.sum() + workload.base_seconds == pytest.approx(seconds(graph, Machine.read("mcm36"))[:, 0].sum())


def test_a_plan_is_stored_verified_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = make("wavenet", 120, 5)
    graph.save(tmp_path / "graph.npz")
    out, books = tmp_path / "plan", tmp_path / "books.jsonl"
    assert main.run(["chiplets", str(tmp_path / "graph.npz"), "--budget", "40", "--out", str(out), "--ledger", str(books), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["question"] == "chiplets" and told["cost"] >= told["bound"] > 0 and len(told["stages"]) == 36
    assert plans.verify(out) == {"chiplets": []} and books.is_file()
    assert any("slowest stage" in line for line in plans.explain(out))
    assert "<svg" in (out / "chiplets.html").read_text()
    document = json.loads((out / "plan.json").read_text())
    document["solutions"]["chiplets"]["answer"]["chip"][0] = 5
    (out / "plan.json").write_text(json.dumps(document))
    assert plans.verify(out)["chiplets"]
    assert main.run(["chiplets", str(tmp_path / "graph.npz"), "--budget", "20", "--solver", "greedy_balance", "--machine", "mcm36-mesh"]) == 0
    assert "No partition can take less" in capsys.readouterr().out
    assert main.run(["chiplets", str(tmp_path / "graph.npz"), "--solver", "gredy_balance"]) == 2
    assert "Did you mean 'greedy_balance'" in capsys.readouterr().err


def test_the_same_seed_answers_alike_and_budgets_are_read() -> None:
    graph = make("inception", 80, 2)
    first, second = (chiplets(graph, budget=30, seed=3).solutions["chiplets"] for _ in range(2))
    assert first["answer"] == second["answer"] and first["evaluations"] <= 31
    assert limits(200)[0] == limits("200")[0] == 200 and limits("60s") == (None, 60.0)
    with pytest.raises(InputError, match="budget"):
        limits("0")


def test_the_policy_that_ships_beats_random_search_and_learns_the_same_for_a_seed() -> None:
    from fourfold.decisions.chiplets._invent import invented

    wins = []
    for seed in (11, 12):
        problem = invented(np.random.default_rng(1_000_000_000 + seed), 100, 160)               # another seed of chance than training's
        policy, random = (solve(problem, technique(f"chiplets/{name}")(), Budget(600, 25), seed=1) for name in ("policy", "random_sample"))
        assert problem.violations(policy.answer) == [] and policy.evaluations == 25
        wins.append(policy.cost / random.cost)
    assert np.exp(np.log(wins).mean()) < 0.9
    again = solve(problem, technique("chiplets/policy")(), Budget(600, 25), seed=1)
    assert again.answer.tolist() == policy.answer.tolist()


def test_weights_are_small_and_say_how_they_were_made() -> None:
    from fourfold.decisions.chiplets._network import FILE, read

    network, record = read()
    assert FILE.stat().st_size < 2_000_000 and record["command"].startswith("fourfold pretrain --question chiplets")
    assert all(bool(weight.isfinite().all()) for weight in network.parameters())


def test_chances_are_a_distribution_over_the_chips() -> None:
    import torch

    from fourfold.decisions.chiplets._features import SHARES, ChipletFeatures
    from fourfold.decisions.chiplets._learn import nearest
    from fourfold.decisions.chiplets._network import ChipletNetwork, ChipletPolicy, ChipletTensors, SplitAction, base, chances

    problem = ChipletPartition(drawn(np.random.default_rng(0), 40, 0.2), chain(6))
    sampler = Sampler(problem)
    tensors = ChipletTensors.of(ChipletFeatures.of(problem, sampler))
    torch.manual_seed(0)
    network = ChipletNetwork()
    with torch.no_grad():
        first, place = network(tensors, 0)
        assert first.exp().sum() == pytest.approx(1, abs=1e-5) and place.exp().sum(1).numpy() == pytest.approx(np.ones(40), abs=1e-5)
        found = chances(tensors.features, 0, place.numpy())
        assert found.shape == (40, 6) and (found > 0).all() and (found.sum(1) <= 1 + 1e-4).all()
        chip = base(tensors.features, 0)
        log, entropy = ChipletPolicy(network).score(tensors, SplitAction(np.array([0, 1]), np.stack([chip, chip])))
    assert log.shape == entropy.shape == (2, 41) and (log <= 0).all() and (entropy >= 0).all()
    assert nearest(tensors, base(tensors.features, len(SHARES) - 1)) in range(len(SHARES))


@pytest.mark.slow
def test_training_beforehand_lowers_what_graphs_unseen_cost(tmp_path: Path) -> None:
    from fourfold.decisions.chiplets._network import read
    from fourfold.jobs.pretrain_chiplets import ChipletTraining, pretrain

    said: list[str] = []
    file = pretrain(tmp_path, ChipletTraining(count=10, steps=600, groups=4, checks=4, evaluations=20, high=150), said.append)
    assert float(read(file)[1]["imitated"]) < 2.0 and any("imitation 500" in line for line in said)
