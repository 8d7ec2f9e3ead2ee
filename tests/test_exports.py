"""Files of carbon intensity as other tools export them: the right column, the right unit, the right grid, or a refusal that says what to say."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fourfold.carbon.hourly import read_hours
from fourfold.cli.main import run
from fourfold.errors import InputError

START = datetime(2024, 6, 1, tzinfo=UTC)
POUND = 0.45359237                                                      # g/kWh in one lb/MWh


def export(folder: Path, head: str, row: str, count: int = 48, step: int = 30) -> Path:
    """A file of `count` rows; `{t}` is the time and `{v}` a figure that grows by one each row, from 800."""
    file = folder / "hours.csv"
    rows = (row.format(t=f"{START + timedelta(minutes=step * k):%Y-%m-%dT%H:%M:%SZ}", v=800 + k, w=100 + k) for k in range(count))
    file.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("head, row, first, name, signal", [
    ("timestamp,MOER,MOER version,frequency", "{t},{v},3.2,300", 800.5 * POUND, "site", "marginal"),
    ("timestamp,ba,AOER (lb/MWh)", "{t},CAISO,{v}", 800.5 * POUND, "CAISO", "average"),
    ("point_time,value", "{t},{v}", 800.5 * POUND, "site", "marginal"),
    (",point_time,value,region,signal_type", "0,{t},{v},ERCOT,co2_aoer", 800.5 * POUND, "ERCOT", "average"),
    ("point_time,value,frequency,market,ba,datatype,version", "{t},{v},300,RTM,PJM,MOER,3.2", 800.5 * POUND, "PJM", "marginal"),
    ("datetime,forecast,actual", "{t},{w},{v}", 800.5, "GB", "average"),
    ("from,to,forecast,actual,index", "{t},x,{w},{v},moderate", 800.5, "GB", "average"),
    ("Datetime (UTC),Actual Carbon Intensity (gCO2/kWh),Forecast Carbon Intensity (gCO2/kWh),Index", "{t},{v},{w},high", 800.5, "GB", "average"),
    ("DATETIME,GAS,COAL,NUCLEAR,CARBON_INTENSITY,WIND_perc", "{t},9000,5,4000,{v},40", 800.5, "GB", "average"),
    ("datetime,North Scotland,London", "{t},0,{v}", 0.0, "North Scotland", "average"),
    ("zone,carbonIntensity,datetime,updatedAt,emissionFactorType,isEstimated", "DE,{v},{t},{t},lifecycle,false", 800.5, "DE", "average"),
    ("datetime_utc,datetime_local,FR gCO2/kWh,DE_lb_per_mwh", "{t},2024-06-01 05:00,{v},{w}", 800.5, "FR", "average"),
])
def test_known_headers(tmp_path: Path, head: str, row: str, first: float, name: str, signal: str) -> None:
    hours = read_hours(export(tmp_path, head, row))
    assert hours.names[0] == name and hours.signal == signal and hours.start == START
    assert hours.values[0, 0] == pytest.approx(first) and len(hours.names) == (2 if "London" in head or "FR" in head else 1)
    if "DE_lb" in head:
        assert hours.names[1] == "DE" and hours.values[1, 0] == pytest.approx(100.5 * POUND)


@pytest.mark.parametrize("head, row, words, way_out", [
    ("time,MOER version,frequency", "{t},3.2,300", "no sites: MOER version, frequency", "--sites"),
    ("time,FR,DE", "{t},{v},{w}", "in which unit FR, DE are", "--unit"),
    ("time,site,carbon_intensity", "{t},FR,{v}", "in which unit carbon_intensity is", "--unit"),
    ("time,FR g/kWh,renewable %", "{t},{v},{w}", "no sites: renewable %", "--sites"),
    ("time,FR g/kWh,load_mw", "{t},{v},{w}", "no sites: load_mw", "--sites"),
    ("timestamp,MOER,AOER", "{t},{v},{w}", "different questions", "--signal"),
    ("point_time,value,signal_type", "{t},{v},health_damage", "no rate of CO2", "co2_moer"),
    ("MTU (UTC),time,Biomass - Actual Aggregated [MW]", "x,{t},{v}", "ENTSO-E's: generation", "g_per_kwh"),
    ("time,site,g_per_kwh", "{t},FR,3{v}", "no grid is above 2000", "--unit"),
])
def test_what_is_refused_names_the_columns_and_an_option(tmp_path: Path, head: str, row: str, words: str, way_out: str) -> None:
    with pytest.raises(InputError) as caught:
        read_hours(export(tmp_path, head, row))
    assert words in caught.value.message and way_out in caught.value.mend and "='" not in str(caught.value)


def test_an_index_in_percent_is_no_intensity(tmp_path: Path) -> None:
    file = export(tmp_path, "point_time,value", "{t},37")
    with pytest.raises(InputError, match="in percent"):
        read_hours(file)
    assert read_hours(file, unit="lb/MWh").values[0, 0] == pytest.approx(37 * POUND)


def test_what_a_person_says_goes_first(tmp_path: Path) -> None:
    file = export(tmp_path, "timestamp,MOER,AOER,frequency", "{t},{v},{w},300")
    assert read_hours(file, signal="average").values[0, 0] == pytest.approx(100.5 * POUND)
    assert read_hours(export(tmp_path, "point_time,value", "{t},{v}"), unit="g/kWh").values[0, 0] == 800.5
    picked = read_hours(export(tmp_path, "time,FR,frequency,DE", "{t},{v},300,{w}"), unit="kg/MWh", sites=("de", "fr"))
    assert picked.names == ("FR", "DE") and any("frequency" in note for note in picked.notes)
    assert read_hours(export(tmp_path, "timestamp,MOER", "{t},{v}"), sites=("CAISO",)).names == ("CAISO",)
    high = read_hours(export(tmp_path, "time,FR", "{t},2{v}"), unit="g/kWh")
    assert any("more than any grid's average" in note for note in high.notes)


def test_map_counts_pounds_and_zero_grams(tmp_path: Path, capsys) -> None:
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("name,hours,kw,release,slack\nnightly,3,1,2024-06-01T00:00Z,6h\n")
    moer = export(tmp_path, "timestamp,MOER,MOER version,frequency", "{t},1000,3.2,300")
    assert run(["map", str(jobs), "--intensity", str(moer), "--pue", "1", "--quick"]) == 0
    assert "1.36078 kgCO2e" in capsys.readouterr().out
    calm = export(tmp_path, "time,site,g_per_kwh", "{t},North Scotland,0\n{t},London,{w}")
    assert run(["map", str(jobs), "--intensity", str(calm), "--pue", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("0 kgCO2e; lower bound 0 kgCO2e, gap 0.0e+00 (optimal")


def test_a_zone_said_on_the_command_line_holds_for_the_hours(tmp_path: Path, capsys) -> None:
    file, jobs = tmp_path / "local.csv", tmp_path / "jobs.csv"
    file.write_text("time,DE\n" + "".join(f"2025-01-24 0{k}:00,{300 + k}\n" for k in range(5)))
    jobs.write_text("name,hours,kw,release,slack\nnightly,3,1,2025-01-23T23:00Z,2h\n")
    arguments = ["map", str(jobs), "--intensity", str(file), "--unit", "g/kWh", "--quick"]
    assert run([*arguments]) == 2 and "--zone" in capsys.readouterr().err
    assert run([*arguments, "--zone", "Europe/Berlin"]) == 0
    local = read_hours(file, unit="g/kWh", local="Europe/Berlin")
    assert local.start == datetime(2025, 1, 23, 23, tzinfo=UTC) and np.array_equal(local.values[0], np.arange(5) + 300.0)
    file.write_text("# zone: UTC\n" + file.read_text())
    assert read_hours(file, unit="g/kWh", local="Europe/Berlin").start == datetime(2025, 1, 24, tzinfo=UTC), "the file's own word goes first"


def test_advice_names_options_that_the_command_line_has() -> None:
    """In what is said of hours, jobs, plans, meters and ledgers: every option exists, and none is written as an argument of Python."""
    import ast
    import re

    import typer

    from fourfold.cli.main import app

    known: set[str] = {"--help"}
    commands = [typer.main.get_command(app)]
    while commands:
        command = commands.pop()
        known |= {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        commands += list(getattr(command, "commands", {}).values())
    root = Path(__file__).parent.parent / "fourfold"
    seen = 0
    for folder in ("ingest", "decisions/carbon_aware", "measure", "cost"):
        for file in sorted((root / folder).glob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("InputError", "Infeasible", "Missing"):
                    said = " ".join(part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))
                    options = re.findall(r"--[a-z][a-z-]+", said)
                    seen += len(options)
                    assert set(options) <= known, f"{file.name}, line {node.lineno}: {said}"
                    assert not re.search(r"\b(unit|zone|signal|sites|budget)='", said), f"{file.name}, line {node.lineno}: {said}"
    assert seen > 5
