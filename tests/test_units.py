"""Quantities: units, grades, intervals that cancel where errors are shared."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.errors import InputError
from fourfold.units import GRADES, UNITS, Quantity, total

positive = st.floats(1e-6, 1e9)
grades = st.sampled_from(GRADES)


def joules(value: float, source: str = "meter", sigma: float = 0.1, **facts: str) -> Quantity:
    return Quantity(value, "J", "modelled", errors={source: sigma}, **facts)


@given(positive, positive, grades, grades)
def test_product_and_quotient_agree_and_take_the_weaker_grade(watts: float, time: float, first: str, second: str) -> None:
    energy = Quantity(watts, "W", first) * Quantity(time, "s", second)
    assert energy.unit == "J" and math.isclose(energy.value, watts * time)
    assert energy.grade == max(first, second, key=GRADES.index)
    assert (energy / Quantity(time, "s", second)).unit == "W"


@given(positive, st.floats(0.001, 0.5), st.floats(1.0, 100.0))
def test_a_shared_error_cancels_in_a_ratio_and_adds_up_in_a_sum(value: float, sigma: float, times: float) -> None:
    before, after = joules(value, sigma=sigma), joules(value / times, sigma=sigma)
    low, high = (before / after).bounds
    assert low == pytest.approx(high) and (before / after).value == pytest.approx(times)
    total = before + after
    assert math.log(total.bounds[1] / total.bounds[0]) == pytest.approx(2 * 1.6448536 * sigma)


def test_independent_errors_add_in_squares() -> None:
    ratio = joules(10, "a", 0.03) / joules(5, "b", 0.04)
    assert math.log(ratio.bounds[1] / ratio.value) == pytest.approx(1.6448536 * 0.05)


@given(st.floats(1.0, 1e6), st.floats(1.001, 5.0), st.floats(1.001, 5.0))
def test_an_interval_given_becomes_an_error_of_its_source(value: float, below: float, above: float) -> None:
    quantity = Quantity(value, "W", "published", value / below, value * above, source="a paper")
    assert quantity.bounds == (value / below, value * above)
    assert quantity.errors["a paper"] == pytest.approx(math.log(below * above) / 3.2897, rel=1e-4)


@pytest.mark.parametrize("unit", [unit for unit, (_, kind) in UNITS.items() if kind == UNITS["J"][1]])
def test_conversion_keeps_the_quantity(unit: str) -> None:
    energy = Quantity(3.6e6, "J", "measured", 3e6, 4e6)
    there = energy.to(unit)
    assert there.to("J").value == pytest.approx(3.6e6) and there.to("kWh").value == pytest.approx(1.0)
    assert (energy - there).value == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("other, word", [
    (Quantity(1, "s", "measured"), "different things"),
    (Quantity(1, "J", "measured", boundary="host"), "boundary"),
    (Quantity(1, "J", "measured", boundary="process", signal="marginal"), "signal"),
])
def test_unlike_quantities_are_not_added(other: Quantity, word: str) -> None:
    with pytest.raises(InputError, match=word):
        Quantity(1, "J", "measured", boundary="process") + other
    with pytest.raises(InputError, match="bare number"):
        Quantity(1, "J", "measured") + 1.0  # type: ignore[operator]


@pytest.mark.parametrize("make", [
    lambda: Quantity(1, "joule", "measured"), lambda: Quantity(1, "J", "guessed"), lambda: Quantity(math.nan, "J", "measured"),
    lambda: Quantity(1, "J", "measured", boundary="town"), lambda: Quantity(1, "J", "measured", 2, 3),
    lambda: Quantity(1, "J", "measured") / Quantity(0, "s", "measured"), lambda: Quantity(1, "J", "measured") * Quantity(1, "J", "measured"),
    lambda: Quantity(1, "J", "measured").to("s"),
])
def test_nonsense_is_refused_in_two_lines(make) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert len(str(caught.value).splitlines()) == 2


def test_a_difference_that_may_be_negative_has_a_linear_interval() -> None:
    low, high = (joules(10, "a", 0.3) - joules(9, "b", 0.3)).bounds
    assert low < 0 < high


@settings(max_examples=30)
@given(positive, grades, st.dictionaries(st.text(max_size=5), st.floats(-1, 1), max_size=3))
def test_json_gives_back_an_equal_quantity(value: float, grade: str, errors: dict[str, float]) -> None:
    quantity = Quantity(value, "gCO2e", grade, errors=errors, method="m", source="s", boundary="hall", signal="average")
    assert Quantity.from_json(json.loads(json.dumps(quantity.to_json()))) == quantity


def test_grams_and_money_from_energy() -> None:
    energy = Quantity(2, "kWh", "measured", boundary="hall")
    assert (energy * Quantity(400, "gCO2e/kWh", "published", signal="average")).to("kgCO2e").value == pytest.approx(0.8)
    assert (energy * Quantity(0.3, "USD/kWh", "published")).value == pytest.approx(0.6)


# What it was computed from
def test_inputs_are_kept_and_equality_does_not_ask_for_them() -> None:
    watts, time = Quantity(8, "W", "published", 6, 10, source="table"), Quantity(2, "s", "counted")
    energy = watts * time
    assert energy.inputs == (watts, time) and energy.op == "*" and Quantity.from_json(energy.to_json()) == energy
    assert "inputs" not in energy.to_json() and "the number 2" in (energy * 2).tree()
    assert energy.to("Wh").inputs == energy.inputs


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(positive, st.floats(0.0, 1.0), st.sampled_from("abc"), grades), min_size=1, max_size=6), st.floats(0.1, 10))
def test_deep_json_writes_shared_figures_once_and_gives_the_same_result(parts: list[tuple[float, float, str, str]], scale: float) -> None:
    leaves = [Quantity(value, "J", grade, errors={name: sigma}, source=name) for value, sigma, name, grade in parts]
    whole = total(leaves) * scale
    for _ in range(6):                                                # 2^6 paths lead to each leaf
        whole = whole + whole
    stored = json.loads(json.dumps(whole.to_json(deep=True)))
    assert len(stored["nodes"]) <= len(parts) + 6 + 3
    back = Quantity.from_json(stored)
    assert back == whole and back.to_json(deep=True) == whole.to_json(deep=True) and back.tree() == whole.tree()
    assert (back + back).grade == (whole + whole).grade


def test_a_sum_of_thousands_is_walked_without_recursion() -> None:
    whole = Quantity(1, "J", "measured", errors={"a": 0.6})
    step = whole / 2
    for _ in range(200):
        whole = whole + step
    assert Quantity.from_json(whole.to_json(deep=True)) == whole and whole.explain()
    long = Quantity(1, "J", "measured")
    for _ in range(5000):
        long = long + Quantity(1, "J", "measured")
    assert Quantity.from_json(long.to_json(deep=True)) == long and len(long.tree().splitlines()) == 5002


@pytest.mark.parametrize("data", [{"value": 1}, {"value": 1, "unit": "J", "grade": "measured", "inputs": ["x"]}, {}, {"nodes": {}},
                                  {"value": 1, "unit": "J", "grade": "measured", "inputs": ["x"], "nodes": {}},
                                  {"value": "1", "unit": "J", "grade": "measured"},
                                  {"value": 1, "unit": "J", "grade": "measured", "errors": {"a": "b"}}])
def test_what_is_not_a_stored_quantity_is_refused(data: dict) -> None:
    with pytest.raises(InputError):
        Quantity.from_json(data)


# Grades
@pytest.mark.parametrize("second, sigma, grade", [("assumed", 0.2, "measured"), ("assumed", 0.3, "assumed"), ("published", 0.3, "published"),
                                                  ("counted", 0.0, "measured"), ("assumed", 0.0, "assumed")])
def test_a_grade_weakens_where_it_holds_five_percent_of_the_variance(second: str, sigma: float, grade: str) -> None:
    meter = Quantity(10, "J", "measured", errors={"meter": 1.0})
    factor = Quantity(2, "1", second, errors={"factor": sigma} if sigma else {})
    assert (meter * factor).grade == (factor * meter).grade == grade


@given(st.permutations([("measured", 0.9), ("published", 0.19), ("assumed", 0.17)]))
def test_weak_grades_add_up_whatever_their_order(parts: list[tuple[str, float]]) -> None:
    result = Quantity(1, "1", "counted")
    for grade, sigma in parts:
        result = result * Quantity(1, "1", grade, errors={grade: sigma})
    assert result.grade == "published"                                 # 3 % assumed, 4 % published: together 7 %


def test_a_small_unstated_term_weakens_nothing() -> None:
    meter = Quantity(100, "J", "measured", 95, 105, source="meter")
    assert (meter + Quantity(1, "J", "assumed")).grade == "measured" and (meter + Quantity(20, "J", "assumed")).grade == "assumed"


# Ratios on one machine
@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=5), st.floats(0.01, 3.0))
def test_ratios_of_sums_on_one_machine_cancel_exactly(pairs: list[tuple[float, float]], sigma: float) -> None:
    watts = Quantity(5, "W", "assumed", errors={"watts": sigma})
    before, after = (total([watts * Quantity(pair[side], "s", "counted") for pair in pairs]) for side in (0, 1))
    ratio = before / after
    assert ratio.errors == {} and ratio.bounds[0] == pytest.approx(ratio.bounds[1])


# Shares
def test_shares_say_which_constant_holds_the_figure() -> None:
    cpu = Quantity(8, "W", "assumed", 4, 16, source="4 W a thread") * Quantity(10, "s", "counted")
    ram = Quantity(20, "W", "assumed", 10, 30, source="RAM constant") * Quantity(10, "s", "counted")
    carbon = total([cpu, ram]) * Quantity(400, "gCO2e/kWh", "published", 300, 500, signal="average", source="grid")
    first = carbon.shares()[0]
    assert first.source == "RAM constant" and first.value == pytest.approx(20 / 28) and "71% of the value" in carbon.explain()
    shares = {share.source: share for share in carbon.shares()}
    assert sum(share.variance for share in shares.values()) == pytest.approx(1) and shares["grid"].value is None
    assert sum(share.value or 0 for share in shares.values()) == pytest.approx(1)
    assert [share.source for share in carbon.to("kgCO2e").shares()] == [share.source for share in carbon.shares()]


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6), st.floats(0.05, 1))
def test_shares_of_a_sum_add_up_to_one(values: list[float], sigma: float) -> None:
    parts = [Quantity(value, "J", "modelled", errors={f"s{i}": sigma}, source=f"s{i}") for i, value in enumerate(values)]
    shares = (total(parts).to("Wh") - Quantity(0, "Wh", "counted", source="none")).shares()
    assert math.isclose(sum(share.value or 0 for share in shares), 1) and math.isclose(sum(share.variance for share in shares), 1)


# Draws
def test_a_wide_sum_is_drawn_the_same_everywhere() -> None:
    def made() -> Quantity:
        return Quantity(10, "kgCO2e", "published", errors={"die": 0.67}) + Quantity(20, "kgCO2e", "published", errors={"board": 0.67})

    import random

    low, high = made().bounds
    assert (low, high) == made().bounds and made().to("gCO2e").bounds == pytest.approx((low * 1000, high * 1000))
    draws = random.Random(1)
    sums = sorted(10 * math.exp(0.67 * draws.gauss(0, 1)) + 20 * math.exp(0.67 * draws.gauss(0, 1)) for _ in range(40000))
    assert low == pytest.approx(sums[2000], rel=0.03) and high == pytest.approx(sums[38000], rel=0.03)
    half = made() / 2
    assert half.bounds == pytest.approx((low / 2, high / 2)) and (made() / made()).bounds == pytest.approx((1, 1))


@settings(max_examples=25, deadline=None)
@given(st.floats(0.02, 0.2), st.floats(0.02, 0.2), st.floats(0.2, 5))
def test_first_order_agrees_with_draws_where_errors_are_small(first: float, second: float, value: float) -> None:
    import numpy as np

    a, b = Quantity(1, "J", "modelled", errors={"x": first}), Quantity(value, "J", "modelled", errors={"x": first / 2, "y": second})
    z = np.random.default_rng(0).standard_normal((2, 40000))
    drawn = np.quantile(np.exp(first * z[0]) + value * np.exp(first / 2 * z[0] + second * z[1]), [0.05, 0.95])
    assert (a + b).bounds == pytest.approx(tuple(drawn), rel=0.03)


def test_a_difference_keeps_its_interval_when_scaled_and_priced() -> None:
    saved = Quantity(10, "kWh", "modelled", errors={"a": 0.3}) - Quantity(9, "kWh", "modelled", errors={"b": 0.3})
    low, high = saved.bounds
    assert (saved * 2).bounds == pytest.approx((2 * low, 2 * high)) and (saved / 4).bounds == pytest.approx((low / 4, high / 4))
    priced = saved * Quantity(0.3, "USD/kWh", "published", 0.2, 0.4)
    assert priced.bounds[0] < 0 < priced.bounds[1]
    nothing = Quantity(5, "J", "modelled", errors={"a": 0.2}) - Quantity(5, "J", "modelled", errors={"b": 0.2})
    assert nothing.value == 0 and (nothing * 3).bounds[1] == pytest.approx(3 * nothing.bounds[1])
    assert (nothing + Quantity(1, "J", "counted")).bounds[0] < 1


# What it says no to
@pytest.mark.parametrize("wrong", [
    lambda q: float(q), lambda q: q == 1.0, lambda q: q < 1, lambda q: q >= 1.0, lambda q: 1 + q, lambda q: sum([q, q]), lambda q: q * "2",
    lambda q: q * True, lambda q: Quantity(True, "J", "counted"), lambda q: Quantity(1, "J/x", "counted"),
    lambda q: q < Quantity(1, "s", "counted"), lambda q: q < Quantity(1, "J", "counted", boundary="host"), lambda q: total([]),
    lambda q: Quantity(1, "gCO2e", "counted", signal="average") + Quantity(1, "gCO2e", "counted", signal="market"),
    lambda q: q * Quantity(1, "1", "counted", boundary="host") * Quantity(1, "1", "counted", boundary="hall"),
    lambda q: Quantity(1, "J", "counted", errors={"a": 1e9}), lambda q: Quantity(1, "J", "counted", errors={"a": math.inf}),
    lambda q: Quantity(1e300, "W", "counted") * Quantity(1e300, "s", "counted"),
])
def test_bare_numbers_and_mixtures_are_refused(wrong) -> None:
    with pytest.raises(InputError) as caught:
        wrong(Quantity(1, "J", "measured"))
    assert len(str(caught.value).splitlines()) == 2


def test_quantities_of_one_kind_are_ordered_and_ratios_of_units_are_units() -> None:
    assert Quantity(1, "kWh", "measured") > Quantity(1, "MWh", "measured") / 1001 and Quantity(1, "J", "measured") != "1 J"
    assert (Quantity(0.4, "W/GB", "published") * Quantity(24, "GB", "counted")).to("W").value == pytest.approx(9.6)
    assert (Quantity(0.4, "W/GB", "published") * Quantity(24, "GB", "counted")).unit == "W" and (2 / Quantity(4, "1", "counted")).value == 0.5
    assert len({Quantity(1, "J", "measured", 0.5, 2), Quantity(1, "J", "measured", 0.5, 2)}) == 1


def test_the_boundary_is_moved_in_words_only() -> None:
    it = Quantity(10, "kWh", "measured", 9, 11, boundary="host") * Quantity(1.2, "1", "published")
    hall = it.at("hall", "× PUE")
    assert hall.boundary == "hall" and hall.grade == it.grade == "published" and hall.inputs == it.inputs and hall.errors == it.errors


def test_numpy_numbers_scale_a_quantity() -> None:
    import numpy as np

    assert (np.float64(2) * Quantity(3, "J", "measured")).value == 6 == (Quantity(3, "J", "measured") * np.int64(2)).value
    with pytest.raises(InputError):
        np.ones(3) + Quantity(3, "J", "measured")


def test_what_rounding_leaves_of_equal_figures_is_nothing() -> None:
    tenth = Quantity(0.1, "kWh", "modelled", 0.09, 0.11, source="a")
    left = (tenth * 3.0 - tenth - tenth) - tenth                         # 2.8e-17 in floating point
    assert left.value == 0.0 and abs(left.bounds[1]) < 1e-15 and (tenth + tenth * 1e-9 - tenth).value == pytest.approx(1e-10)
