"""Training-run arithmetic: published runs come out as published, figures read as people write them, impossible ones are refused in two lines."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from fourfold.cli.main import run
from fourfold.cost.footprint import footprint, read
from fourfold.errors import InputError
from fourfold.units.parse import EMBODIED, ENERGY, FACTOR, INTENSITY, POWER, PRICE, PUE, TIME, count, given

GPT3 = {"chips": 10000, "chip": "V100", "watts": 330, "days": 14.8, "pue": 1.1, "intensity": 0.429}


def test_gpt3_is_1287_megawatt_hours_and_552_tonnes() -> None:
    found = footprint(name="GPT-3", **GPT3)
    assert found.energy.to("MWh").value == pytest.approx(1287, rel=0.02)
    assert found.gross and found.gross.to("tCO2e").value == pytest.approx(552.1, rel=0.02)
    assert (found.energy.boundary, found.energy_it and found.energy_it.boundary, found.gross.signal) == ("hall", "host", "average")
    assert found.energy.grade == "assumed" and found.energy.bounds[0] < found.energy.value < found.energy.bounds[1]
    assert found.net is None and "market" in found.why["net"] and found.cost is None and found.embodied is None


positive = st.floats(0.1, 1e4)


@drawn(st.integers(1, 100_000), st.floats(1, 2000), positive, st.floats(1, 3), st.floats(0.001, 1.5))
def test_the_formula_is_patterson_s(chips: int, watts: float, hours: float, pue: float, intensity: float) -> None:
    found = footprint(chips=chips, watts=watts, hours=hours, pue=pue, intensity=intensity)
    kwh = chips * hours * watts * pue / 1000
    assert found.energy.to("kWh").value == pytest.approx(kwh, rel=1e-12)
    assert found.gross and found.gross.to("kgCO2e").value == pytest.approx(kwh * intensity, rel=1e-12)
    by_chip_hours = footprint(chip_hours=chips * hours, watts=watts, pue=pue)
    by_energy = footprint(energy=f"{kwh!r} kWh", intensity=intensity)
    assert by_chip_hours.energy.value == pytest.approx(kwh, rel=1e-9)
    assert by_energy.gross and by_energy.gross.value == pytest.approx(kwh * intensity * 1e3)


def test_gross_and_net_are_kept_apart() -> None:
    found = footprint(**GPT3 | {"net_intensity": "80 g/kWh"})
    assert found.gross and found.net and (found.gross.signal, found.net.signal) == ("average", "market")
    with pytest.raises(InputError, match="signal"):
        found.gross + found.net


def test_embodied_carbon_of_a_million_gpu_hours() -> None:
    found = footprint(chip_hours=1e6, watts=300, pue=1.1, intensity=0.4, embodied="luccioni")
    assert found.embodied and found.embodied.to("tCO2e").value == pytest.approx(10.3523, abs=1e-4) and found.total and found.gross
    low, high = found.embodied.bounds
    assert low < found.embodied.value / 2 and high > 2 * found.embodied.value
    assert found.total.value == pytest.approx(found.gross.value + found.embodied.value)
    assert found.embodied_rate and found.embodied_rate.value == pytest.approx(10.3523144, abs=1e-6)
    own = footprint(chip_hours=1e6, watts=300, pue=1.1, embodied="0.01 kg/h")
    assert own.embodied and own.embodied.to("tCO2e").value == pytest.approx(10) and own.total is None


def test_money_and_the_runs_paid_for() -> None:
    found = footprint(**GPT3 | {"price": "80 USD/MWh", "runs_paid": 4})
    assert found.cost and found.cost.value == pytest.approx(found.energy.to("kWh").value * 0.08)
    assert found.to_json()["paid"]["energy"]["value"] == pytest.approx(4 * found.energy.value)


def test_a_chip_and_a_site_fill_in_what_was_not_given() -> None:
    found = footprint(chips=1024, chip="TPUv3", days=3.1, site="gcp:us-east1")
    assert found.watts and found.watts.value == 283 and found.watts.grade == "published" and not found.warnings
    assert found.intensity and found.intensity.signal == "average" and found.pue and found.pue.value < 1.3 and found.gross
    unknown = footprint(chips=8, chip="H100", days=1, site="FR")
    assert "PUE" in unknown.warnings[0] and "TDP" in unknown.warnings[1] and unknown.energy.bounds[1] > 1.5 * unknown.energy.bounds[0]
    assert footprint(**GPT3 | {"pue": None}).pue.bounds == (1.1, 2.0)  # type: ignore[union-attr]


@pytest.mark.parametrize("watts, chip, word", [
    ("450", "TPUv3", "never its average"), ("tdp", "TPUv3", "never its average"), ("tdp", "V100", "325"), ("2640 W", "V100", "several"),
    ("0.33 W", "V100", "kW"), (None, "A100", "not a measured mean"),
])
def test_strange_watts_are_warned_of(watts: str | None, chip: str, word: str) -> None:
    assert any(word in warning for warning in footprint(chips=8, chip=chip, watts=watts, days=1, pue=1.1).warnings)


@pytest.mark.parametrize("kind, text, value, low, high", [
    (POWER, "330", 330, 300, 363), (POWER, "0.33 kW", 330, 300, 363), (POWER, "330 watts ± 10", 330, 320, 340), (POWER, "330W±5%", 330, 313.5, 346.5),
    (POWER, "330 [300, 360]", 330, 300, 360), (POWER, " 3.3e2W ", 330, 300, 363), (PUE, "1.1", 1.1, 1.1 / 1.03, 1.1 * 1.03), (PUE, "1", 1, 1, 1.03),
    (TIME, "14.8 days", 355.2, 355.2, 355.2), (TIME, "2 weeks", 336, 336, 336), (TIME, "90 min", 1.5, 1.5, 1.5), (INTENSITY, "0.429", 429, 429, 429),
    (INTENSITY, "429g/kWh", 429, 429, 429), (INTENSITY, "429 gCO2e/kWh", 429, 429, 429), (INTENSITY, "0.429 t/MWh", 429, 429, 429),
    (INTENSITY, "1000 lb/MWh", 453.59, 453.59, 453.6), (INTENSITY, "429 g per kWh", 429, 429, 429), (PRICE, "8 ct/kWh", 0.08, 0.08, 0.08),
    (ENERGY, "1287 MWh", 1287e3, 1287e3, 1287e3), (ENERGY, "3.6 GJ", 1000, 1000, 1000), (FACTOR, "4x", 4, 4, 4), (EMBODIED, "10 g/h", 10, 10, 10),
])
def test_figures_read_as_people_write_them(kind, text: str, value: float, low: float, high: float) -> None:
    found = given(kind, text, source="x")
    assert (found.value, *found.bounds) == pytest.approx((value, low, high), rel=1e-4) and found.grade == "assumed"


@pytest.mark.parametrize("change, word", [
    ({"watts": "330 J"}, "energy, not of power"), ({"watts": -1}, "negative"), ({"watts": 0}, "above zero"), ({"watts": "nan"}, "not a figure"),
    ({"watts": math.inf}, "not a figure"), ({"watts": "330 mW"}, "not a unit"), ({"watts": "33 MW"}, "rack"), ({"watts": "330,5"}, "decimal point"),
    ({"watts": True}, "not a figure"), ({"watts": "330 [340, 350]"}, "does not hold"), ({"pue": 0.9}, "less than its machines"),
    ({"pue": "1.1 [0.9, 1.2]"}, "less than its machines"), ({"pue": 110}, "cannot be"), ({"intensity": 429}, "429g/kWh"),
    ({"intensity": "429 kg"}, "not of carbon intensity"), ({"intensity": -0.1}, "negative"), ({"days": 0}, "above zero"), ({"days": -3}, "negative"),
    ({"days": "5 kWh"}, "not of time"), ({"hours": 3}, "not both"), ({"days": None}, "how long"), ({"chips": None}, "number of chips"),
    ({"chips": 0}, "whole number"), ({"chips": 2.5}, "whole number"), ({"chips": "10,00"}, "whole number"), ({"chip": "V1O0"}, "v100-sxm2"),
    ({"chip": None, "watts": None}, "watts per chip"), ({"chip": "TPUv5e", "watts": None}, "published"), ({"site": "Atlantis City"}, "no site"),
    ({"price": "0.08 EUR/kWh"}, "not a unit"), ({"price": -1}, "negative"), ({"embodied": "dowser"}, "luccioni"), ({"runs_paid": 0}, "at least 1"),
    ({"energy": "5 MWh"}, "both given"), ({"chip_hours": 5}, "together"), ({"grade": "sure"}, "not a grade"),
])
def test_what_cannot_be_is_refused_in_two_lines(change: dict, word: str) -> None:
    with pytest.raises(InputError) as caught:
        footprint(**GPT3 | change)
    assert word in str(caught.value) and len(str(caught.value).splitlines()) == 2


@drawn(st.text(max_size=12))
def test_any_text_is_a_figure_or_an_input_error(text: str) -> None:
    for kind in (POWER, PUE, TIME, INTENSITY):
        try:
            found = given(kind, text, source="x")
        except InputError:
            continue
        assert math.isfinite(found.value) and found.value >= kind.least


def test_counts() -> None:
    assert [count("chips", value) for value in ("10,000", "10000", 1e4, 8)] == [10000, 10000, 10000, 8]


def test_a_file_of_runs(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[[run]]\nname = "a"\nchips = 8\nchip = "P100"\nhours = 84\nwatts = "296 W"\npue = 1.59\nintensity = "429 g/kWh"\n'
                    'grade = "published"\nsource = "Patterson 2021"\n[[run]]\nname = "b"\nchip_hours = "155.52 h"\nwatts = 229\npue = 1.11\n'
                    'intensity = 0.478\nnet_intensity = 0.08\n')
    first, second = read(path)
    assert first.energy.to("kWh").value == pytest.approx(316.3, abs=0.1) and first.energy.grade == "published"
    assert second.net and second.net.to("kgCO2e").value == pytest.approx(3.16, abs=0.01)
    assert run(["footprint", "--toml", str(path)]) == 0 and "316.3" in capsys.readouterr().out
    path.write_text("[run]\nchips = 8\nwats = 3\n")
    with pytest.raises(InputError, match="watts"):
        read(path)
    path.write_text("[run]\nchips = 8\nhours = 3\nwatts = -3\n")
    with pytest.raises(InputError, match="run 1"):
        read(path)
    path.write_text("[run\n")
    with pytest.raises(InputError, match="not TOML"):
        read(path)
    path.write_text("chips = 3\n")
    with pytest.raises(InputError, match="no table"):
        read(path)


def test_the_command_line_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    line = "footprint --chips 10000 --chip V100 --watts 330 --days 14.8 --pue 1.1 --intensity 0.429".split()
    assert run(line) == 0
    out = capsys.readouterr().out
    assert "1,289" in out and "553" in out and "assumed" in out
    assert run([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["runs"][0]["energy"]["value"] == pytest.approx(1289376) and document["runs"][0]["why"]["net"]
    assert run(["footprint", "--chips", "8", "--toml", "x.toml"]) == 2 and run(["footprint"]) == 2


PAGE = Path(__file__).parent.parent / "docs" / "footprint.md"


@pytest.mark.parametrize("code", re.findall(r"^<!-- runs -->\n```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S))
def test_python_of_the_page_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, PAGE.name, "exec"), {"__name__": "page"})
    out = capsys.readouterr().out
    assert ("1289 MWh" in out and "553.1 tCO2e" in out) or ("15.0" in out and "machine" in out)


@pytest.mark.parametrize("line", [line for block in re.findall(r"^<!-- runs -->\n```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
                                  for line in block.splitlines()])
def test_commands_of_the_page_run(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PAGE.parent.parent)
    assert run(shlex.split(line)[1:]) == 0, capsys.readouterr().err
