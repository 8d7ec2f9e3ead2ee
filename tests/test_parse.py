"""The one grammar of figures with units: every unit and prefix, compound durations, what was always accepted, and no text that breaks it."""

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.carbon.jobs import span
from fourfold.errors import InputError
from fourfold.units.dimension import BINARY, DECIMAL, SYMBOLS, WORDS, scale, spellings
from fourfold.units.parse import DIMENSIONS, ENERGY, INTENSITY, POWER, TIME, duration, figure, quantity, size_of
from fourfold.units.parse import given as figures
from fourfold.workload import fraction, seconds

numbers = st.floats(1e-6, 1e9)
BASES = {"J": "energy", "Wh": "energy", "W": "power", "s": "time", "B": "size", "bit": "size", "FLOP": "work"}
POUND = 453.59237

# What the tables of machine files, footprints, budgets, slacks, intensity files, WattTime and wall meters held before they became one: unit → factor.
BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
ALWAYS: dict[tuple[str, str], dict[str, float]] = {
    ("time", "s"): {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0,
                    "minutes": 60.0, "h": 3600.0, "hr": 3600.0, "hrs": 3600.0, "hour": 3600.0, "hours": 3600.0, "d": 86400.0, "day": 86400.0,
                    "days": 86400.0, "w": 604800.0, "week": 604800.0, "weeks": 604800.0},
    ("time", "h"): {"s": 1 / 3600, "sec": 1 / 3600, "min": 60 / 3600, "h": 1.0, "hr": 1.0, "hour": 1.0, "d": 24.0, "day": 24.0,
                    "week": 168.0, "wk": 168.0, "month": 730.0, "y": 8760.0, "yr": 8760.0, "year": 8760.0},
    ("size", "B"): BYTES,
    ("rate", "B/s"): {f"{unit}/s": size for unit, size in BYTES.items()}
    | {f"{prefix}bit/s": size / 8 for prefix, size in PREFIXES.items() if prefix},
    ("speed", "FLOP/s"): {f"{prefix}FLOP/s": size for prefix, size in PREFIXES.items()},
    ("work", "FLOP"): {f"{prefix}FLOP": size for prefix, size in PREFIXES.items()} | {"gflop": 1e9, "tflops": 1e12, "eflop": 1e18, "zflop": 1e21},
    ("power", "W"): {"W": 1.0, "mW": 1e-3, "kW": 1e3, "MW": 1e6, "w": 1.0, "watt": 1.0, "watts": 1.0, "kw": 1e3, "kilowatt": 1e3},
    ("energy per byte", "J/B"): {"J/B": 1.0, "mJ/B": 1e-3, "uJ/B": 1e-6, "nJ/B": 1e-9, "pJ/B": 1e-12},
    ("energy", "kWh"): {"J": 1 / 3.6e6, "kJ": 1e3 / 3.6e6, "MJ": 1e6 / 3.6e6, "GJ": 1e9 / 3.6e6, "Wh": 1e-3, "kwh": 1.0, "kWh": 1.0, "MWh": 1e3,
                        "GWh": 1e6, "TWh": 1e9},
    ("energy", "J"): {"J": 1.0, "KJ": 1e3, "WH": 3600.0, "KWH": 3.6e6},
    ("carbon intensity", "gCO2e/kWh"): {
        **{f"{mass}{gas}{per}{energy}": grams / kwh for mass, grams in (("g", 1.0), ("kg", 1e3), ("t", 1e6), ("lb", POUND), ("lbs", POUND))
           for gas in ("", "co2", "CO2e", "co2eq", "co₂", "co₂e") for per in ("/", " per ", "_per_")
           for energy, kwh in (("kWh", 1.0), ("kwh", 1.0), ("MWh", 1e3), ("mwh", 1e3), ("Wh", 1e-3), ("gwh", 1e6), ("mj", 1 / 3.6))},
        "lbs_co2_per_mwh": 0.45359237, "lbs_co2e_per_mwh": 0.45359237},
    ("price of energy", "USD/kWh"): {
        f"{coin}/{energy}": size / kwh for coin, size in (("USD", 1.0), ("usd", 1.0), ("$", 1.0), ("cent", 0.01), ("ct", 0.01))
        for energy, kwh in (("kWh", 1.0), ("MWh", 1e3))},
    ("carbon per hour", "gCO2e/h"): {f"{mass}{gas}/{time}": grams for mass, grams in (("g", 1.0), ("kg", 1e3)) for gas in ("", "co2", "co2e")
                                     for time in ("h", "hour", "chip-hour", "chiphour")},
    ("carbon", "gCO2e"): {"g": 1.0, "kg": 1e3, "t": 1e6, "kgco2": 1e3, "kgCO2e": 1e3},
    ("factor", "1"): {"x": 1.0, "×": 1.0, "times": 1.0},
}


@pytest.mark.parametrize("dimension, base", ALWAYS)
def test_what_the_old_tables_accepted_means_the_same(dimension: str, base: str) -> None:
    for unit, size in ALWAYS[dimension, base].items():
        for number in (0.3, 1.25, 17.0, 3e5):
            for text in (f"{number!r} {unit}", f" {number!r}{unit} "):
                assert quantity(text, dimension, to=base) == pytest.approx(number * size, rel=1e-15), text


@given(numbers, st.sampled_from([(dimension, unit, size) for (dimension, base), units in ALWAYS.items() for unit, size in units.items()
                                 if base == DIMENSIONS[dimension].base and dimension not in ("energy", "price of energy", "carbon intensity")]))
def test_figures_of_machine_files_and_budgets_are_the_same_to_the_last_bit(number: float, unit: tuple[str, str, float]) -> None:
    dimension, name, size = unit
    assert quantity(f"{number!r} {name}", dimension) == number * size


@given(numbers, st.sampled_from(sorted(spellings())))
def test_every_unit_with_every_prefix_comes_back(number: float, spelling: str) -> None:
    symbol = next(name for name in sorted(SYMBOLS, key=len, reverse=True) if spelling.endswith(name))
    prefix, dimension = spelling.removesuffix(symbol), BASES[symbol]
    found = figure(f"{number!r} {spelling}", dimension)
    assert math.isclose(found.value, number * SYMBOLS[symbol][0] * (DECIMAL | BINARY)[prefix], rel_tol=1e-15)
    assert found.unit == spelling and found.number == number
    assert quantity(f"{found.value!r} {DIMENSIONS[dimension].base}", dimension, to=spelling) == pytest.approx(number, rel=1e-14)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_the_units_that_errors_tell_of_are_known(name: str) -> None:
    kind = DIMENSIONS[name]
    assert all(size_of(unit, name) for unit in kind.known) and size_of(kind.base, name) == 1.0
    for example in kind.example.replace(" or ", ", ").split(", "):
        assert figure(example, name, bare="1" if kind.base == "1" else None).value > 0


@given(st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from([name for name, (_, powers) in WORDS.items() if powers == (0, 1, 0, 0, 0, 0)])),
                min_size=2, max_size=5), st.sampled_from(["", " ", "  "]))
def test_compound_durations_add_up(parts: list[tuple[int, str]], blank: str) -> None:
    text = " ".join(f"{number}{blank}{unit}" for number, unit in parts)
    assert duration(text) == pytest.approx(sum(duration(f"{number} {unit}") for number, unit in parts))
    assert duration(text, to="h") == pytest.approx(duration(text) / 3600)


@pytest.mark.parametrize("text, length", [
    ("2d", 172800), ("90s", 90), ("1h 30min", 5400), ("1h30min", 5400), ("1.5h", 5400), ("500ms", 0.5), ("2 weeks", 1209600),
    ("1 day 12 hours", 129600), (".5 min", 30), ("1_000s", 1000), ("1e3s", 1000), ("2 MIN", 120), ("1 month", 2628000), ("1yr", 31536000),
    ("250us", 250e-6), ("0s", 0),
])
def test_every_option_that_takes_a_duration_takes_the_same(text: str, length: float) -> None:
    assert duration(text) == pytest.approx(length) and span(text) == timedelta(seconds=duration(text))
    if length:
        assert seconds(text) == duration(text) and figures(TIME, text, source="x").value == pytest.approx(length / 3600)
        assert quantity(text, "time", "launch of device 'a'") == duration(text)


def test_a_bare_number_is_what_each_caller_says() -> None:
    assert seconds("90") == seconds(90) == 90 and span("12") == span(12) == timedelta(hours=12) and figures(TIME, "3", source="x").value == 3
    assert duration("4", bare="yr", to="yr") == 4 and duration("30 months", bare="yr", to="yr") == pytest.approx(2.5)
    for value in ("3", 3, True, None, [3]):
        with pytest.raises(InputError, match="no unit"):
            quantity(value, "rate", "bandwidth")


@pytest.mark.parametrize("text, share", [("97%", 0.97), ("97 %", 0.97), ("97", 0.97), ("0.97", 0.97), ("0,97", 0.97), ("97,5%", 0.975), ("57%", 0.57),
                                         ("97 per cent", 0.97), (".5", 0.5), (",5", 0.5)])
def test_shares_take_a_per_cent_and_a_decimal_comma(text: str, share: float) -> None:
    assert fraction(text) == share


@pytest.mark.parametrize("text, dimension, said", [
    ("12 GB", "rate", "unit of size, not of rate"), ("3 W", "rate", "unit of power, not of rate"),
    ("12 Gb/s", "rate", "'Gb/s' is not a unit known"), ("3 mw", "power", "'mw' is not a unit known"),
    ("3 mwh", "energy", "'mwh' is not a unit known"), ("fast", "speed", "not a figure"), ("", "time", "not a length of time"),
    ("-2h", "time", "or more"),
    ("1h 30", "time", "not a length of time"), ("1:30:00", "time", "not a length of time"), ("1h-30min", "time", "not a length of time"),
    ("1h 5 parsecs", "time", "'parsecs' is not a unit known"), ("330,5", "power", "decimal point"), ("1e999 W", "power", "out of range"),
    ("9" * 400, "time", "out of range"), ("12 KB", "size", "not a unit known"), ("5 kWh", "time", "unit of energy, not of time"),
    ("inf s", "time", "not a"),
    ("1__0 s", "time", "not a length of time"), ("5²", "time", "not a length of time"), ("1 000 s", "time", "not a length of time"),
])
def test_one_error_text_says_what_was_given_and_what_is_known(text: str, dimension: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        figure(text, dimension, "The figure", bare=DIMENSIONS[dimension].base, least=0.0)
    first, second = str(caught.value).splitlines()
    assert first.startswith("The figure is ") and said in str(caught.value)
    assert f"a number with a unit of {dimension}, such as {DIMENSIONS[dimension].example} (known: {DIMENSIONS[dimension].known[0]}" in second


def test_texts_of_files_that_others_may_read_are_not_told() -> None:
    with pytest.raises(InputError) as caught:
        span("password1")
    assert "password" not in str(caught.value) and "a word" in str(caught.value)
    with pytest.raises(InputError) as caught:
        span("3 passwords")
    assert "password" not in str(caught.value)


anything: st.SearchStrategy[Any] = st.one_of(
    st.text(max_size=20), st.text(alphabet="0123456789.,_eE+-±[]% /hmsdwkMGTiBJWgpPertoCO2x×µ", max_size=24), st.integers(), st.floats(), st.none(),
    st.booleans(), st.lists(st.integers(), max_size=2), st.just(10**400),
    st.tuples(numbers.map(repr), st.sampled_from([*spellings(), *WORDS]), st.sampled_from(["", "/", " per "]),
              st.sampled_from([*spellings(), ""])).map("".join))


@settings(max_examples=300, deadline=None)
@given(anything, st.sampled_from(list(DIMENSIONS)), st.booleans())
def test_anything_is_a_finite_figure_or_refused_in_two_lines(text: Any, dimension: str, bare: bool) -> None:
    calls = [lambda: figure(text, dimension, "It", bare=DIMENSIONS[dimension].base if bare else None).value, lambda: duration(text),
             lambda: span(text).total_seconds(), lambda: seconds(text), lambda: fraction(text),
             *(lambda kind=kind: figures(kind, text, source="x").value for kind in (POWER, ENERGY, TIME, INTENSITY))]
    for call in calls:
        try:
            assert math.isfinite(call())
        except InputError as error:
            assert len(str(error).splitlines()) == 2


@given(st.text(max_size=12), st.sampled_from([kind.base for kind in DIMENSIONS.values()]))
def test_any_text_is_a_unit_or_none(text: str, base: str) -> None:
    size = scale(text, base)
    assert size is None or size > 0


def test_intervals_carry_units_of_their_own() -> None:
    for text in ("0.33 kW ± 10 W", "330 ± 10 W", "330W ± 0.01kW", "0.33 kW [320 W, 340 W]"):
        found = figures(POWER, text, source="x")
        assert (found.value, *found.bounds) == pytest.approx((330, 320, 340)), text
    for text in ("330 mW", "3 m W"):                                   # a chip of milliwatts is one of megawatts ill written
        with pytest.raises(InputError, match="not a unit"):
            figures(POWER, text, source="x")


def test_case_decides_where_it_must() -> None:
    assert quantity("3 MW", "power") == quantity("3 Mw", "power") == 3e6 and quantity("3 mW", "power") == 3e-3
    assert size_of("lb/mwh", "carbon intensity") == size_of("lb/MWh", "carbon intensity") and size_of("mwh", "energy") is None
    assert size_of("w", "time") == 604800 and size_of("W", "power") == size_of("w", "power") == 1
    assert size_of("gb/s", "rate") is None and size_of("GBs", "size") is None and size_of("PJ", "energy") == 1e15 and size_of("pJ", "energy") == 1e-12
