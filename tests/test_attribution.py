"""The split of a saving: exact, the same in any order, equal to plain ratios where the cost is a product, and right on published numbers."""

import math
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.errors import InputError
from fourfold.ledger.attribution import logs, product, shapley, shares, split
from fourfold.units import Quantity

LEVERS = ("model", "machine", "mechanization", "map")
EMBODIED = 0.0103523144                                                # kg per chip-hour: Luccioni et al. 2022, eight GPUs a server

# Patterson et al. 2021, Table 1, first and last row: work, chip-hours, W, PUE, kg per kWh
BEFORE = {"work": 1.61e19, "hours": 8 * 84.0, "watts": 296.0, "pue": 1.59, "kg": 0.429}
AFTER = {"work": 1.03e19, "hours": 8 * 14.88, "watts": 227.0, "pue": 1.11, "kg": 0.080}

positive = st.floats(1e-3, 1e3)
sides = st.fixed_dictionaries({lever: positive for lever in LEVERS})


def patterson(embodied: float):
    """cost(pulled) of Table 1: kg = work × hours per work × (W × PUE × kg/kWh + embodied per hour)."""
    def cost(pulled: frozenset[str]) -> float:
        work = (AFTER if "model" in pulled else BEFORE)["work"]
        machine = AFTER if "machine" in pulled else BEFORE
        hours = work * machine["hours"] / machine["work"]
        pue, kg = (AFTER if "mechanization" in pulled else BEFORE)["pue"], (AFTER if "map" in pulled else BEFORE)["kg"]
        return hours * (machine["watts"] * pue * kg / 1000 + embodied)
    return cost


def test_four_by_fifteen_by_one_point_four_by_nine_is_756() -> None:
    before = {"model": 4.0, "machine": 15.0, "mechanization": 1.4, "map": 9.0}
    factors = logs(before, dict.fromkeys(before, 1.0))
    assert math.prod(factors.values()) == pytest.approx(756, rel=1e-12)
    again = shapley(lambda pulled: math.prod(value for lever, value in before.items() if lever not in pulled), LEVERS, log=True)
    assert again == pytest.approx(before, rel=1e-12) and math.prod(again.values()) == pytest.approx(756, rel=1e-12)


def test_patterson_operational() -> None:
    got = shapley(patterson(0.0), LEVERS, log=True)
    assert list(got.values()) == pytest.approx([1.563107, 4.709270, 1.432432, 5.362500], abs=1e-6)
    assert math.prod(got.values()) == pytest.approx(56.5436, abs=1e-4)
    by_ratio = logs({"model": BEFORE["work"], "machine": BEFORE["hours"] * BEFORE["watts"] / BEFORE["work"], "mechanization": 1.59, "map": 0.429},
                    {"model": AFTER["work"], "machine": AFTER["hours"] * AFTER["watts"] / AFTER["work"], "mechanization": 1.11, "map": 0.080})
    assert got == pytest.approx(by_ratio, rel=1e-12)


def test_patterson_with_embodied_carbon() -> None:
    cost = patterson(EMBODIED)
    got = shapley(cost, LEVERS, log=True)
    assert list(got.values()) == pytest.approx([1.563107, 4.495820, 1.345920, 4.152221], abs=1e-6)
    assert math.prod(got.values()) == pytest.approx(39.2733, abs=1e-4)
    kilograms = shapley(cost, LEVERS)
    assert list(kilograms.values()) == pytest.approx([19.920912, 52.841376, 15.050490, 51.191941], abs=1e-6)
    assert math.fsum(kilograms.values()) == pytest.approx(139.004719, abs=1e-6)


@given(sides, sides, st.dictionaries(st.sets(st.sampled_from(LEVERS)).map(frozenset), st.floats(0, 10)))
def test_parts_multiply_and_add_to_the_whole_in_any_order(before: dict[str, float], after: dict[str, float], extra: dict) -> None:
    def cost(pulled: frozenset[str]) -> float:                         # any positive function of the set, products among them
        return math.prod((after if lever in pulled else before)[lever] for lever in LEVERS) + extra.get(pulled, 0.0)

    nothing, everything = cost(frozenset()), cost(frozenset(LEVERS))
    factors, amounts = shapley(cost, LEVERS, log=True), shapley(cost, LEVERS)
    assert math.prod(factors.values()) == pytest.approx(nothing / everything, rel=1e-12)
    largest = max(cost(frozenset(order)) for size in range(5) for order in permutations(LEVERS, size))
    assert math.fsum(amounts.values()) == pytest.approx(nothing - everything, abs=1e-12 * largest)
    for order in permutations(LEVERS):
        assert shapley(cost, order, log=True) == factors and shapley(cost, order) == amounts
    if not extra:
        assert factors == pytest.approx(logs(before, after), rel=1e-12)


def test_the_cost_is_asked_sixteen_times() -> None:
    asked = []
    shapley(lambda pulled: asked.append(pulled) or 1.0, LEVERS)
    assert len(asked) == len(set(asked)) == 16


def figure(value: float, source: str, sigma: float, unit: str = "1", grade: str = "modelled") -> Quantity:
    return Quantity(value, unit, grade, errors={source: sigma} if sigma else {})


def test_intervals_shared_errors_cancel_and_others_stay() -> None:
    factors = logs({"machine": figure(300, "meter", 0.1, "W"), "map": figure(400, "grid A", 0.1, "gCO2e/kWh", "published")},
                   {"machine": figure(100, "meter", 0.1, "W"), "map": figure(100, "grid B", 0.2, "gCO2e/kWh", "assumed")})
    assert factors["machine"].bounds == pytest.approx((3, 3)) and factors["machine"].unit == "1"
    assert math.log(factors["map"].bounds[1] / 4) == pytest.approx(1.6448536 * math.hypot(0.1, 0.2))
    assert factors["map"].grade == "assumed" and product(factors).value == pytest.approx(12)


@given(sides, sides, st.lists(st.floats(0, 0.3), min_size=8, max_size=8))
def test_shapley_of_a_product_has_the_intervals_of_the_ratios(before: dict[str, float], after: dict[str, float], sigmas: list[float]) -> None:
    old = {lever: figure(before[lever], f"{lever} old", sigma) for lever, sigma in zip(LEVERS, sigmas, strict=False)}
    new = {lever: figure(after[lever], f"{lever} new", sigma) for lever, sigma in zip(LEVERS, sigmas[4:], strict=False)}

    def cost(pulled: frozenset[str]) -> Quantity:
        return product({lever: (new if lever in pulled else old)[lever] for lever in LEVERS})

    found = split(cost, LEVERS)
    for lever, factor in logs(old, new).items():
        assert found.factors[lever].value == pytest.approx(factor.value, rel=1e-9)
        assert found.factors[lever].bounds == pytest.approx(factor.bounds, rel=1e-9)
    assert product(found.factors).value == pytest.approx(found.total.value, rel=1e-12)
    assert product(found.factors).bounds == pytest.approx(found.total.bounds, rel=1e-9)
    assert sum(amount.value for amount in found.amounts.values()) == pytest.approx(found.saved.value, abs=1e-9 * max(
        found.before.value, found.after.value, *(amount.bounds[1] for amount in found.amounts.values())))


def test_a_part_has_the_grade_of_what_makes_it_uncertain() -> None:
    """The grid is assumed and holds the map's error; the machine's error is the meter's; the model did not change."""
    def cost(pulled: frozenset[str]) -> Quantity:
        use = figure(0.1 if "machine" in pulled else 0.3, "meter after" if "machine" in pulled else "meter", 0.1, grade="measured")
        grid = figure(1.0 if "map" in pulled else 4.0, "grid after" if "map" in pulled else "grid", 0.1, grade="assumed")
        return use * grid + figure(0.01, "", 0, grade="counted")

    found = split(cost, LEVERS)
    assert found.factors["machine"].grade == "measured" and found.factors["map"].grade == "assumed" and found.factors["model"].grade == "counted"
    assert found.factors["model"].value == 1 and found.amounts["model"].value == 0


def test_intervals_agree_with_drawing_the_errors() -> None:
    import numpy as np

    draws = np.random.default_rng(0).normal(size=(4000, 3))
    sigma = {"power": 0.1, "grid": 0.15, "embodied": 0.2}

    def values(pulled: frozenset[str], drawn=(0.0, 0.0, 0.0)) -> float:
        power, grid, embodied = (math.exp(sigma[name] * draw) for name, draw in zip(sigma, drawn, strict=True))
        hours = 100.0 / (5 if "machine" in pulled else 1)
        return hours * (0.3 * power * (0.1 if "map" in pulled else 0.5 * grid) + 0.05 * embodied)

    def cost(pulled: frozenset[str]) -> Quantity:
        hours = 100.0 / (5 if "machine" in pulled else 1)
        use = figure(hours * 0.3, "power", sigma["power"]) * (figure(0.1, "", 0) if "map" in pulled else figure(0.5, "grid", sigma["grid"]))
        return use + figure(hours * 0.05, "embodied", sigma["embodied"])

    found = split(cost, ("machine", "map"))
    drawn = [shapley(lambda pulled, row=tuple(row): values(pulled, row), ("machine", "map"), log=True) for row in draws]
    for lever in ("machine", "map"):
        low, high = np.quantile([row[lever] for row in drawn], [0.05, 0.95])
        low_, high_ = found.factors[lever].bounds
        assert math.log(high_ / low_) == pytest.approx(math.log(high / low), rel=0.06)         # first order against the whole curve
        amounts = [shapley(lambda pulled, row=tuple(row): values(pulled, row), ("machine", "map"))[lever] for row in draws[:1500]]
        low, high = np.quantile(amounts, [0.05, 0.95])
        assert found.amounts[lever].bounds[1] - found.amounts[lever].bounds[0] == pytest.approx(high - low, rel=0.1)


def test_shares_sum_to_one_and_an_unchanged_cost_has_none() -> None:
    parts = shares({"model": 4.0, "machine": 0.5, "map": 8.0})
    assert sum(value or 0 for value in parts.values()) == pytest.approx(1) and (parts["machine"] or 0) < 0
    assert shares({"model": 2.0, "machine": 0.5}) == {"model": None, "machine": None}


@pytest.mark.parametrize("call, word", [
    (lambda: logs({"a": 1.0}, {"b": 1.0}), "same levers"), (lambda: logs({"a": 0.0}, {"a": 1.0}), "above zero"),
    (lambda: logs({"a": math.nan}, {"a": 1.0}), "above zero"),
    (lambda: logs({"a": Quantity(1, "W", "measured")}, {"a": Quantity(1, "s", "measured")}), "unit"),
    (lambda: shapley(lambda pulled: 1.0, ["a", "a"]), "each once"), (lambda: shapley(lambda pulled: 1.0, []), "each once"),
    (lambda: shapley(lambda pulled: -1.0, ["a"], log=True), "above zero"), (lambda: shapley(lambda pulled: math.inf, ["a"]), "finite"),
    (lambda: split(lambda pulled: Quantity(1, "J", "measured", signal="marginal" if pulled else "average"), ["a"]), "signal"),
])
def test_what_cannot_be_split_is_refused_in_two_lines(call, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 2
