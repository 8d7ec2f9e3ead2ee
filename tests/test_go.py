"""GO: devices and nodes may be renumbered, segments see what they may, gradients reach all parts, repair makes anything valid, links of heads matter,
fine-tuning reaches a brute-forced optimum, any number of devices, objectives and fixed parts.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fourfold.cost.simulate import play_many
from fourfold.decisions.schedule._go.features import DEVICE, GRAPH, NODE, PAIR, GraphFeatures
from fourfold.decisions.schedule._go.imitate import labels, renumbered
from fourfold.decisions.schedule._go.network import LEVELS, Action, Batch, GraphAttention, PolicyNetwork, Sizes, read, write
from fourfold.decisions.schedule._go.policy import Case, GraphPolicy, plans, rollouts
from fourfold.decisions.schedule._go.repair import joined, mended
from fourfold.decisions.schedule._go.tune import tune
from fourfold.decisions.schedule.go import Go
from fourfold.decisions.schedule.problem import Schedule, random_graph
from fourfold.errors import Infeasible, InputError
from fourfold.graph import CONTRACTION, ELEMENTWISE, OPAQUE, Builder, Graph
from fourfold.machine import Device, Link, Machine
from fourfold.problem import Budget, solve
from fourfold.solvers.ppo import Ppo, Rates
from fourfold.zoo.graphs import FAMILIES, make

SMALL = Sizes(width=16, heads=2, sage=2, layers=2, segment=16)


def network(seed: int = 0) -> PolicyNetwork:
    torch.manual_seed(seed)
    return PolicyNetwork(SMALL).eval()


def devices(*speeds: float, memory: float = 1e9, bandwidth: float = 1e7, unsupported: tuple[tuple[str, ...], ...] = ()) -> Machine:
    made = tuple(Device(f"d{speed:g}.{i}", "fake", {"float32": speed}, speed / 2, 1e-6, memory, 1.0, 10.0, unsupported=bans)
                 for i, (speed, bans) in enumerate(itertools.zip_longest(speeds, unsupported, fillvalue=())) if isinstance(speed, float))
    return Machine("fake", made, tuple(Link(a.name, b.name, 1e-6, bandwidth) for a, b in itertools.combinations(made, 2)))


def permuted(system: Machine, order: list[int]) -> Machine:
    return replace(system, devices=tuple(system.devices[d] for d in order))


# ---- symmetries

@pytest.mark.parametrize("order", [[1, 2, 0], [2, 1, 0]])
def test_permuting_device_labels_permutes_the_answer(order: list[int]) -> None:
    graph, system, net = make("gnmt", 120, 1, True), devices(1e9, 2e9, 5e8), network()
    one, other = (Case.of(Schedule(graph, chosen)) for chosen in (system, permuted(system, order)))
    with torch.inference_mode():
        (first, a), (second, b) = net(one.batch), net(other.batch)
    assert torch.equal(first.place, torch.tensor(order)[second.place])
    assert torch.allclose(a.log, b.log, atol=1e-4) and torch.equal(first.join, second.join)
    found = [plans(net, case, Budget(1e9), samples=0) for case in (one, other)]
    assert found[0] is not None and found[1] is not None and found[0].cost == pytest.approx(found[1].cost, rel=1e-12)


def test_alike_devices_are_told_apart_by_slots_and_any_numbering_costs_the_same() -> None:
    graph = make("inception", 100, 1, True)
    system, net = devices(1e9, 1e9, 1e9), network()
    reading = GraphFeatures.of(Schedule(graph, system))
    assert sorted(reading.slot.tolist()) == [0, 1, 2] and len(set(reading.alike.tolist())) == 1
    assert len({tuple(row) for row in reading.device.tolist()}) == 3
    costs = set()
    for order in ((0, 1, 2), (1, 2, 0), (2, 1, 0)):
        plan = plans(net, Case.of(Schedule(graph, permuted(system, [*order]))), Budget(1e9), samples=0)
        assert plan is not None
        costs.add(round(plan.cost, 15))
    assert len(costs) == 1


def branches(order: tuple[int, ...]) -> Graph:
    """Three chains between a split and a join, put down in `order`."""
    build = Builder("branches")
    x = build.input((8, 64), "float32")
    (first,) = build.node("aten.relu", [x], [((8, 64), "float32")], fusion=ELEMENTWISE)
    ends = {}
    for branch in order:
        value = first
        for step in range(branch + 1):
            weight = build.parameter((64, 64 + branch), "float32")
            (value,) = build.node("aten.mm", [value, weight], [((8, 64), "float32")], flops=1e4 * (branch + 1 + step), fusion=CONTRACTION)
        ends[branch] = value
    (out,) = build.node("aten.cat", [ends[b] for b in sorted(ends)], [((8, 192), "float32")], fusion=OPAQUE)
    build.output(out)
    return build.build()


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0)])
def test_renumbering_nodes_changes_nothing(order: tuple[int, ...]) -> None:
    net, system = network(), devices(1e9, 2e9)
    one, other = (Case.of(Schedule(branches(way), system)) for way in ((0, 1, 2), order))
    assert np.allclose(one.reading.node, other.reading.node) and np.array_equal(one.reading.src, other.reading.src)
    with torch.inference_mode():
        (first, a), (second, b) = net(one.batch), net(other.batch)
    assert torch.equal(first.place, second.place) and torch.allclose(a.log, b.log, atol=1e-5)
    costs = [[plan.cost for plan in case.mend(action) if plan is not None] for case, action in ((one, first), (other, second))]
    assert costs[0] == pytest.approx(costs[1])


def test_a_reading_is_in_topological_order_and_as_wide_as_the_network_expects() -> None:
    for family in FAMILIES:
        reading = GraphFeatures.of(Schedule(make(family, 150, 2, True), Machine.read("p100x4")))
        assert (reading.src < reading.dst).all() and sorted(reading.order.tolist()) == list(range(len(reading)))
        assert (reading.node.shape[1], reading.pair.shape[2], reading.device.shape[1], len(reading.graph)) == (NODE, PAIR, DEVICE, GRAPH)
        assert np.isfinite(reading.node).all() and np.isfinite(reading.pair).all() and np.abs(reading.node).max() < 20


# ---- the network

def test_segments_with_a_cache_give_what_all_at_once_gives() -> None:
    """In order, keeping only the states of the segment before: the same as the pass over all segments at once."""
    torch.manual_seed(0)
    layer, x = GraphAttention(16, 2, 8).eval(), torch.randn(2, 29, 16)
    whole = layer(x)
    for begin in range(0, 29, 8):
        before = max(0, begin - 8)
        part = layer(x[:, before:begin + 8])[:, begin - before:]
        assert torch.allclose(part, whole[:, begin:begin + 8], atol=1e-5)


def test_a_segment_sees_itself_and_the_one_before_and_nothing_else() -> None:
    torch.manual_seed(0)
    layer, x = GraphAttention(16, 2, 8).eval(), torch.randn(1, 32, 16)
    whole = layer(x)
    for segment in range(4):
        other = x.clone()
        other[:, 8 * segment:8 * segment + 8] += torch.randn(8, 16)
        changed = ((layer(other) - whole).abs() > 1e-6).any(2)[0].view(4, 8).any(1).tolist()
        assert changed == [s in (segment, segment + 1) for s in range(4)]


def test_the_cached_segment_is_not_differentiated_and_no_place_in_it_is_known() -> None:
    torch.manual_seed(0)
    layer, x = GraphAttention(16, 2, 8).eval(), torch.randn(1, 16, 16, requires_grad=True)
    layer(x)[:, 8:].sum().backward()
    assert x.grad is not None and (x.grad[:, :8] == 0).all() and (x.grad[:, 8:] != 0).any()
    shuffled = x.detach()[:, [*range(7, -1, -1), *range(8, 16)]]
    assert torch.allclose(layer(shuffled)[:, 8:], layer(x)[:, 8:], atol=1e-5)   # no positional encoding: a segment is a set


def test_padding_is_never_attended_to() -> None:
    torch.manual_seed(0)
    layer, x = GraphAttention(16, 2, 8).eval(), torch.randn(1, 5, 16)
    wide = GraphAttention(16, 2, 5).eval()
    wide.load_state_dict(layer.state_dict())
    assert torch.allclose(layer(x), wide(x), atol=1e-5)


def test_gradients_reach_every_part_from_every_head() -> None:
    net = network().train()
    case = Case.of(Schedule(make("moe", 120, 1, True), Machine.read("p100x4")))
    action, _ = net(case.batch)
    plan = [plan for plan in case.mend(action) if plan is not None]
    look = case.look(action, plan)
    units, nodes = len(case.reading.mask), len(case.reading)
    names = ("sage.0.up.weight", "sage.0.down.weight", "kind.weight", "enter.weight", "trunk.0.q.weight", "scale.0.weight", "across.kv.weight",
             "echo.0.weight")
    for part in (slice(0, units), slice(units, units + nodes), slice(units + nodes, None)):
        net.zero_grad()
        net(case.batch.after(look), action)[1].log[:, part].sum().backward()
        for name in names:
            grad = net.get_parameter(name).grad
            assert grad is not None and bool((grad != 0).any()), f"nothing reaches {name}"


def test_log_probabilities_are_those_of_what_was_sampled() -> None:
    net, case = network(), Case.of(Schedule(make("cnn", 80, 1, True), Machine.read("p100x2")))
    with torch.no_grad():
        action, scores = net(case.batch, samples=3, heat=1.0, generator=torch.Generator().manual_seed(0))
        again = net(case.batch, action)[1]
    assert torch.allclose(scores.log, again.log, atol=1e-5) and scores.log.shape[0] == 3 and (scores.log <= 0).all()
    units, nodes = len(case.reading.mask), len(case.reading)
    assert (scores.log[:, units + nodes:][:, case.reading.candidate < 0] == 0).all()   # nothing to decide


def test_devices_that_cannot_are_never_chosen() -> None:
    system = devices(1e9, 2e9, unsupported=((), ("aten.mm",)))
    case = Case.of(Schedule(make("rnnlm", 80, 1), system))
    action, _ = network()(case.batch, samples=20, heat=3.0, generator=torch.Generator().manual_seed(0))
    banned = np.unique(case.reading.unit[~case.problem.able[case.reading.order, 1]])
    assert len(banned) and (action.place[:, banned] == 0).all()


# ---- repair

@pytest.mark.parametrize("seed", range(12))
def test_any_choice_at_all_becomes_a_valid_plan(seed: int) -> None:
    dice = np.random.default_rng(seed)
    problem = Schedule.sample(seed) if seed < 6 else Schedule(random_graph(dice, 60), devices(1e9, 2e9, 5e8))
    reading = GraphFeatures.of(problem)
    for _ in range(10):
        place = dice.integers(problem.able.shape[1], size=len(reading.mask))
        try:
            plan = mended(reading, place, dice.integers(LEVELS, size=len(reading)), dice.random(len(reading)) < 0.7)
        except Infeasible:
            assert seed < 6
            continue
        assert problem.violations(plan.answer) == [] and problem.cost(plan.answer) == pytest.approx(plan.cost)


def test_a_plan_taken_as_an_action_and_mended_is_that_plan() -> None:
    problem = Schedule(make("gnmt", 150, 1, False), Machine.read("p100x4"))
    found = solve(problem, Go(polish=True), Budget(1e9, 400))
    case = Case.of(problem)
    plan = case.mend(labels(case.reading, found.answer, found.answer.place.astype(np.int64)[case.reading.order]))[0]
    assert plan is not None and plan.cost <= 1.25 * found.cost


def test_like_devices_are_renumbered_by_where_their_work_lies_or_to_agree() -> None:
    problem = Schedule(make("cnn", 120, 1), Machine.read("p100x4"))
    reading = GraphFeatures.of(problem)
    along = np.minimum(3, (4 * reading.node[:, 5]).astype(int))
    mixed = np.array([2, 0, 3, 1])[along]
    assert np.array_equal(renumbered(reading, mixed, None), np.searchsorted(np.unique(along), along))
    assert np.array_equal(renumbered(reading, mixed, along), along)


# ---- answers

@pytest.mark.parametrize("family, train, system", [("cnn", True, "p100x2"), ("inception", True, "p100x4"), ("rnnlm", False, "p100x8"),
                                                   ("moe", True, "v100x4"), ("wavenet", True, "cpux2")])
def test_zero_shot_plans_are_valid_and_not_above_the_default(family: str, train: bool, system: str) -> None:
    problem = Schedule(make(family, 200, 3, train), Machine.read(system))
    found = solve(problem, Go(polish=False), Budget(1e9, 10**6))
    assert found.before is not None and found.cost < found.before and found.gap is not None
    again = solve(problem, Go(polish=False), Budget(1e9, 10**6))
    assert np.array_equal(found.answer.place, again.answer.place) and found.cost == again.cost


@pytest.mark.parametrize("objective", ["throughput", "energy", "memory"])
def test_other_objectives(objective: str) -> None:
    found = solve(Schedule(make("moe", 100, 1), Machine.read("p100x4"), objective), Go(), Budget(1e9, 300))
    assert found.before is not None and found.cost <= found.before


def test_fixed_parts_stay() -> None:
    problem = Schedule(make("gnmt", 100, 1, True), Machine.read("p100x2"))
    answer = solve(problem, Go(), Budget(1e9, 200)).answer
    for name in ("group", "place", "priority"):
        fixed = problem.replace(**{name: getattr(answer, name)})
        found = solve(fixed, Go(), Budget(1e9, 200))
        assert found.cost > 0 and (name == "group" or np.array_equal(getattr(found.answer, name), getattr(answer, name)))


def test_one_device_and_one_op() -> None:
    build = Builder("one")
    (y,) = build.node("aten.relu", [build.input((4,), "float32")], [((4,), "float32")], fusion=ELEMENTWISE)
    build.output(y)
    assert solve(Schedule(build.build(), devices(1e9)), Go(), Budget(1e9, 50)).cost > 0


def test_polish_never_makes_it_worse() -> None:
    problem = Schedule(make("inception", 150, 2, True), Machine.read("p100x4"))
    plain = solve(problem, Go(polish=False), Budget(1e9, 10**6)).cost
    assert solve(problem, Go(), Budget(1e9, 2_000)).cost <= plain * (1 + 1e-12)


# ---- learning

def eight() -> Schedule:
    """Two chains of a product, a map, a product and a map, of unequal sizes, on two unequal devices."""
    build, ends = Builder("eight"), []
    for wide in (96, 160):
        value = build.input((8, wide), "float32")
        for step in range(2):
            (value,) = build.node("aten.mm", [value, build.parameter((wide, wide), "float32")], [((8, wide), "float32")],
                                  flops=1e5 * wide * (1 + step), fusion=CONTRACTION)
            (value,) = build.node("aten.relu", [value], [((8, wide), "float32")], fusion=ELEMENTWISE)
        ends.append(value)
    for value in ends:
        build.output(value)
    return Schedule(build.build(), devices(1e12, 1.5e12, bandwidth=1e9))


def brute(problem: Schedule) -> float:
    """The least over all placements, fusions that joins can reach, and orders."""
    least, nodes = np.inf, len(problem.graph)
    places = np.array([*itertools.product(range(len(problem.system)), repeat=nodes)])
    for join in itertools.product((False, True), repeat=4):
        wanted = np.zeros(nodes, bool)
        wanted[problem.graph.fusion == ELEMENTWISE] = join
        group, _ = joined(problem, np.zeros(nodes, np.int64), wanted)
        a, tasks = problem.plain(group), problem.tasks(group).group
        first = np.unique(tasks, return_index=True)[1]
        same = (places == places[:, first[tasks]]).all(1)              # what is one task is on one device
        where = places[same][:, first].astype(np.int16)
        for chosen in itertools.combinations(range(len(first)), (tasks[:nodes // 2].max() + 1)):   # where the first chain stands in the order
            rank = np.empty(len(first))
            rank[:len(chosen)] = -np.array(chosen)
            rank[len(chosen):] = -np.array([k for k in range(len(first)) if k not in chosen])
            least = min(least, float(play_many(a, where, np.tile(rank, (len(where), 1)), False)[0].min()))
    return least


def test_fine_tuning_reaches_the_optimum_of_eight_nodes() -> None:
    problem = eight()
    best, told = tune(network().train(), Case.of(problem), Budget(1e9, 10**6), 0, updates=20, rates=Rates(step=3e-3))
    assert best is not None and best.cost == pytest.approx(brute(problem), rel=1e-9) and "20 updates" in told
    assert best.cost < 0.9 * problem.cost(problem.baseline())


def coupled() -> Schedule:
    """A small op p, a large opaque one o that only the first device can run, and n that reads both: if n joins p on the first device nothing large is
    sent; if it joins p on the second, all of it must follow."""
    build = Builder("coupled")
    x, big = build.input((8, 1), "float32"), build.input((8, 4096), "float32")
    (p,) = build.node("aten.relu", [x], [((8, 1), "float32")], fusion=ELEMENTWISE)
    (o,) = build.node("aten.sort", [big], [((8, 4096), "float32")], fusion=OPAQUE)
    (n,) = build.node("aten.add", [o, p], [((8, 4096), "float32")], fusion=ELEMENTWISE)
    build.output(n)
    system = devices(1e12, 1e12, bandwidth=1e9, unsupported=((), ("aten.sort",)))
    return Schedule(build.build(), replace(system, devices=tuple(replace(one, launch=3e-5) for one in system.devices)))


def test_a_head_that_does_not_hear_of_the_task_before_does_worse() -> None:
    """For every place of p and n the simulator says whether n should join; linked heads can learn it, cut ones answer all alike."""
    case, costs = Case.of(coupled()), {}
    place = torch.tensor([[0, p, n] for p in (0, 1) for n in (0, 1)])
    level, none = torch.full((4, 3), LEVELS // 2), torch.zeros(4, 3, dtype=torch.int64)
    both = []
    for join in (none, none + torch.tensor([0, 0, 1])):
        both.append([plan.cost for plan in case.mend(Action(place, level, join)) if plan is not None])
    table = np.array(both)
    better = none + torch.from_numpy((table[1] < table[0]).astype(np.int64))[:, None] * torch.tensor([0, 0, 1])
    for linked in (True, False):
        net = network().train()
        adam = torch.optim.Adam(net.parameters(), 4e-3)
        for step in range(240):
            adam.param_groups[0]["lr"] = 4e-3 * (1 - step / 240)
            adam.zero_grad()
            (-net(case.batch, Action(place, level, better), linked=linked)[1].log[:, 6:].sum()).backward()
            adam.step()
        with torch.no_grad():
            yes = [net(case.batch, Action(place, level, none + torch.tensor([0, 0, k])), linked=linked)[1].log[:, 8] for k in (0, 1)]
        chosen = (yes[1] > yes[0]).long().numpy()
        costs[linked] = table[chosen, np.arange(4)].mean()
    assert costs[True] == table.min(0).mean() and costs[True] < 0.9 * costs[False]


def test_rollouts_are_rewarded_by_the_simulator_and_teach() -> None:
    net = network().train()
    case = Case.of(Schedule(make("rnnlm", 80, 1), Machine.read("p100x2")))
    steps, best, spent = rollouts(net, case, 6, 2, torch.Generator().manual_seed(0))
    assert len(steps) == 2 and spent == 2 * 7 + 1 and best is not None
    for one in steps:
        assert one.reward.max() <= -np.sqrt(best.cost / case.reading.scale) + 1e-9
        plan = case.mend(Action(*(part[:1] for part in one.action)))[0]
        assert plan is not None and one.reward[0] == pytest.approx(-np.sqrt(plan.cost / case.reading.scale))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    Ppo(net.parameters()).update(GraphPolicy(net), steps)
    assert any(not torch.equal(value, before[name]) for name, value in net.state_dict().items() if name.startswith("sage"))


# ---- weights

def test_shipped_weights_are_small_and_say_how_they_were_made() -> None:
    import fourfold.decisions.schedule as folder

    assert (Path(folder.__file__).parent / "go.safetensors").stat().st_size < 10_000_000
    facts = read()[1]
    assert {"seed", "corpus", "updates", "families", "held_out", "sizes", "check"} <= set(facts) and len(facts["corpus"]) == 64


def test_weights_go_through_a_file_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    net = network()
    write(net, str(tmp_path / "one.safetensors"), {"updates": "3"})
    again, facts = read(str(tmp_path / "one.safetensors"))
    assert facts["updates"] == "3" and again.sizes == SMALL
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name, what in (("bad", "holds no weights"), ("none", "no weights at")):
        with pytest.raises(InputError, match=what):
            Go(weights=tmp_path / f"{name}.safetensors").solve(Schedule.sample(0), Budget(10, 10))


def test_a_batch_keeps_edges_in_both_orders() -> None:
    batch = Batch.of(GraphFeatures.of(Schedule(make("cnn", 60, 0, True), Machine.read("p100x2"))))
    assert (batch.dst.diff() >= 0).all() and (batch.src_by.diff() >= 0).all()
    assert sorted(zip(batch.src.tolist(), batch.dst.tolist(), strict=True)) == sorted(zip(batch.src_by.tolist(), batch.dst_by.tolist(), strict=True))


@pytest.mark.slow
def test_eighty_thousand_nodes_on_eight_devices() -> None:
    problem = Schedule(make("gnmt", 80_000, 0, True), Machine.read("p100x8"))
    found = solve(problem, Go(polish=False), Budget(1e9, 10**6))
    assert found.before is None or found.cost < found.before
