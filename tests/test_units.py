"""Quantities: units, grades, intervals that cancel where errors are shared."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.errors import InputError
from fourfold.units import GRADES, UNITS, Quantity

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
