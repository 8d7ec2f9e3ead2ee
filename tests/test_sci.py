"""SCI scores and embodied carbon: the specification's example, published schemes, and what is barred."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.cost import embodied
from fourfold.cost.sci import operational, sci
from fourfold.errors import FourfoldError, Infeasible, InputError
from fourfold.units import Quantity

positive = st.floats(1e-6, 1e6)
GRID = Quantity(400.0, "gCO2e/kWh", "published", 350, 460, signal="average", source="grid")


def carbon(value: float, **facts: str) -> Quantity:
    return Quantity(value, "gCO2e", "modelled", **facts)


def test_the_specifications_example() -> None:
    whole = Quantity(1000, "kgCO2e", "published")
    owed = embodied.owed(whole, Quantity(1, "h", "counted"), Quantity(4, "yr", "assumed"))
    assert owed.value == pytest.approx(1e6 / 35040, rel=1e-12) and round(owed.value, 4) == 28.5388 and owed.unit == "gCO2e"


@pytest.mark.parametrize("scheme", ["luccioni", "ecologits"])
def test_card_and_server_of_one_source_are_known_to_three_times_together(scheme: str) -> None:
    parts = embodied.per_hour(scheme, 8)
    whole = embodied.together(parts.values())
    for figure in (*parts.values(), whole):
        low, high = figure.bounds
        assert high / figure.value == pytest.approx(3, rel=0.03) == pytest.approx(figure.value / low, rel=0.03)


def test_a_million_gpu_hours_by_luccioni() -> None:
    rates = embodied.per_hour("luccioni", 8)
    assert set(rates) == {"card", "server"}
    each = embodied.together(rates.values()) * 1e6
    assert each.to("tCO2e").value == pytest.approx(10.3523144, abs=5e-8)
    assert (rates["server"] * 1e6).to("tCO2e").value == pytest.approx(6.9948, abs=5e-5)
    assert (rates["card"] * 1e6).to("tCO2e").value == pytest.approx(3.3575, abs=5e-5)
    low, high = rates["card"].bounds
    assert low == pytest.approx(rates["card"].value / 3) and high == pytest.approx(3 * rates["card"].value)
    assert each.bounds == pytest.approx((each.value / 3, 3 * each.value), rel=0.03)   # one source's error, shared by card and server


def test_the_boundary_is_in_the_figure() -> None:
    die, card = embodied.made("llmcarbon-h100"), embodied.made("ecologits-h100")
    assert card.kilograms > 10 * die.kilograms and "boundary die" in die.total.method and "boundary card" in card.total.method
    assert {row.boundary for row in embodied.ROWS} == set(embodied.BOUNDARIES) and len({row.id for row in embodied.ROWS}) == len(embodied.ROWS)
    assert all(row.source and row.to_json()["total"]["grade"] in ("published", "assumed") for row in embodied.ROWS)
    assert all(embodied.per_hour(scheme) for scheme in embodied.SCHEMES)


@given(positive, positive, positive, st.floats(0.5, 1e6))
def test_the_score_is_o_plus_m_per_r(kwh: float, intensity: float, made: float, per: float) -> None:
    found = sci(operational(Quantity(kwh, "kWh", "modelled", boundary="hall"), Quantity(intensity, "gCO2e/kWh", "published", signal="average")),
                carbon(made), per, "request")
    assert found.score.value == pytest.approx((kwh * intensity + made) / per, rel=1e-12) and found.score.signal == "average"
    half = sci(found.operational, found.embodied, 2 * per, "request")
    assert half.score.value == pytest.approx(found.score.value / 2, rel=1e-12)


def test_scores_of_one_unit_add() -> None:
    first, second = (sci(carbon(value, signal="average"), carbon(1.0), 10, "request") for value in (5.0, 7.0))
    assert (first.score + second.score).value == pytest.approx(1.4)


def test_what_the_reader_must_know_is_said() -> None:
    found = sci(operational(Quantity(1, "Wh", "modelled", boundary="process"), GRID), embodied.of_server(3600, 2), 1, "run")
    text = " ".join(found.notes)
    assert "PUE" in text and "location-based" in text and "boundary server" in text and "per run" in str(found)
    assert found.to_json()["shares"] and found.score.grade == "assumed"


MARKET = Quantity(80, "gCO2e/kWh", "published", signal="market")


@pytest.mark.parametrize("make, word", [
    (lambda: operational(Quantity(1, "kWh", "measured"), MARKET), "market"),
    (lambda: sci(carbon(1, signal="market"), carbon(1)), "market"),
    (lambda: sci(carbon(1), carbon(1, signal="market")), "market"),
    (lambda: operational(Quantity(-1, "kWh", "measured"), GRID), "negative"),
    (lambda: operational(Quantity(1, "kWh", "measured"), Quantity(-1, "gCO2e/kWh", "assumed")), "negative"),
    (lambda: operational(Quantity(1, "s", "measured"), GRID), "different things"),
    (lambda: sci(carbon(-1), carbon(1)), "negative"), (lambda: sci(carbon(1), carbon(-1)), "negative"),
    (lambda: sci(carbon(1), carbon(1), 0), "no meaning"), (lambda: sci(carbon(1), carbon(1), math.nan), "no meaning"),
    (lambda: sci(carbon(1), carbon(1), 1, " "), "no name"), (lambda: sci(Quantity(1, "kWh", "measured"), carbon(1)), "different things"),
    (lambda: sci(None, carbon(1)), "operational"), (lambda: sci(carbon(1), None), "embodied"),
    (lambda: embodied.owed(carbon(1), Quantity(2, "yr", "counted"), Quantity(1, "yr", "counted")), "does not fit"),
    (lambda: embodied.owed(carbon(1), Quantity(-2, "h", "counted"), Quantity(1, "yr", "counted")), "negative"),
    (lambda: embodied.owed(carbon(-1), Quantity(2, "h", "counted"), Quantity(1, "yr", "counted")), "negative"),
    (lambda: embodied.owed(carbon(1), Quantity(2, "h", "counted"), Quantity(1, "yr", "counted"), 1.5), "more than the whole"),
    (lambda: embodied.owed(carbon(1, signal="market"), Quantity(2, "h", "counted"), Quantity(1, "yr", "counted")), "barred"),
    (lambda: embodied.owed(carbon(1), Quantity(0, "h", "counted"), Quantity(0, "yr", "counted")), "does not fit"),
    (lambda: embodied.made("abacus"), "no embodied total"), (lambda: embodied.per_hour("abacus"), "no way"),
    (lambda: embodied.per_hour("luccioni", 0), "at least one"),
])
def test_what_is_barred_or_absurd_is_refused(make, word: str) -> None:
    with pytest.raises(FourfoldError, match=word) as caught:
        make()
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_part_is_exit_code_three() -> None:
    with pytest.raises(Infeasible) as caught:
        sci(carbon(1), None)
    assert caught.value.exit_code == 3 and not issubclass(Infeasible, InputError)
