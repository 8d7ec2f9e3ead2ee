"""Four factors and their product: the published table comes out, parts multiply exactly whatever is asked, contradictions are refused."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.cli.main import run as command
from fourfold.cost.footprint import KEYS
from fourfold.cost.whatif import WhatIf, read, whatif
from fourfold.errors import InputError
from fourfold.ledger.attribution import Attribution

EXAMPLES = Path(__file__).parent.parent / "examples"
RUN = {"name": "old", "chips": 8, "chip": "P100", "hours": 84, "watts": 296, "pue": 1.58, "intensity": 0.429}


def exact(found: Attribution) -> None:
    """Factors multiply to before / after, amounts sum to before - after."""
    assert math.prod(factor.value for factor in found.factors.values()) == pytest.approx(found.before.value / found.after.value, rel=1e-12)
    whole = found.before.value - found.after.value
    assert sum(amount.value for amount in found.amounts.values()) == pytest.approx(whole, abs=1e-10 * max(found.before.value, found.after.value))


def factors(found: WhatIf, account: str) -> list[float]:
    return [factor.value for factor in found.splits[account].factors.values()]


def test_patterson_table_1() -> None:
    found = read(EXAMPLES / "run.toml")
    assert factors(found, "net") == pytest.approx([1.563107, 4.709270, 1.432432, 5.362500], abs=1e-6)
    assert found.splits["net"].total.value == pytest.approx(56.5436, abs=1e-4)
    assert factors(found, "net + embodied") == pytest.approx([1.563107, 4.495820, 1.345920, 4.152221], abs=1e-6)
    assert found.splits["net + embodied"].total.value == pytest.approx(39.2733, abs=1e-4)
    kilograms = [amount.to("kgCO2e").value for amount in found.splits["net + embodied"].amounts.values()]
    assert kilograms == pytest.approx([19.920912, 52.841376, 15.050490, 51.191941], abs=1e-6)
    assert found.splits["energy"].total.value == pytest.approx(10.544, abs=1e-3)
    assert set(found.splits) == {"energy", "gross", "gross + embodied", "net", "net + embodied"}
    for one in found.splits.values():
        exact(one)
    assert found.splits["net"].factors["model"].grade == "counted" and found.splits["net"].factors["machine"].grade == "published"


def test_model_against_machine_depends_on_the_convention_and_all_are_told() -> None:
    told = {one.name: one for one in read(EXAMPLES / "run.toml").conventions}
    assert [round(one.model.value, 3) for one in told.values() if one.model] == [1.563, 1.195, 1.318, 1.255]
    for one in told.values():
        assert one.model and one.machine and one.model.value * one.machine.value == pytest.approx(1.563107 * 4.709270, rel=1e-6)
    unmeasured = whatif({**RUN, "work": 2}, {"work": 1, "hours": 50}).conventions[1]
    assert unmeasured.model is None and "new_model_old_machine" in unmeasured.why


def test_the_issue_s_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[run]\nchips = 8\nhours = 84\n")
    line = ["whatif", str(path), "--model", "4", "--machine", "P100:TPUv4", "--hall", "1.58:1.10", "--site", "US:gcp:us-central1"]
    assert command([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    got = {lever: factor["value"] for lever, factor in document["splits"]["gross"]["factors"].items()}
    assert got["model"] == 4 and got["mechanization"] == pytest.approx(1.58 / 1.10) and 10 < got["machine"] < 15
    assert math.prod(got.values()) == pytest.approx(document["splits"]["gross"]["total"]["value"], rel=1e-12)
    assert command(line) == 0
    told = capsys.readouterr()
    assert "mechanization" in told.out and "convention" in told.out and "same share of its peak" in told.err


def test_four_by_fifteen_by_one_point_four_by_nine() -> None:
    found = whatif({**RUN, "pue": 1.54, "intensity": "792 g/kWh"}, model=4, machine=15, hall="1.54:1.10", site="792g/kWh:88g/kWh")
    assert factors(found, "gross") == pytest.approx([4, 15, 1.4, 9]) and found.splits["gross"].total.value == pytest.approx(756)


def test_what_did_not_change_has_the_factor_one_and_no_interval() -> None:
    found = whatif(RUN, model="4 [3, 5]")
    for account in ("energy", "gross"):
        for lever, factor in found.splits[account].factors.items():
            assert factor.value == (4 if lever == "model" else 1) and (lever == "model") == (factor.bounds[0] < factor.bounds[1]), (account, lever)
    assert found.splits["gross"].total.bounds == pytest.approx((4 / math.sqrt(5 / 3), 4 * math.sqrt(5 / 3)), rel=0.01)


def test_a_machine_by_its_peak_carries_a_wide_interval_and_says_so() -> None:
    found = whatif(RUN, machine="P100:TPUv4")
    factor = found.splits["energy"].factors["machine"]
    assert factor.value == pytest.approx((275 / 19) * (296 / 326), rel=1e-6) and factor.grade == "assumed"
    assert factor.bounds[1] / factor.bounds[0] > 3 and "measured time is better" in found.notes[0]
    timed = whatif(RUN, {"chip": "TPUv4", "hours": 6}).splits["energy"].factors["machine"]
    assert timed.value == pytest.approx(84 * 296 / (6 * 326)) and timed.bounds[1] / timed.bounds[0] < 1.6


def test_runs_paid_stay_outside_the_four() -> None:
    found = whatif({**RUN, "runs_paid": 1}, {"runs_paid": 20}, model=4)
    assert found.runs_paid == (1, 20) and found.splits["gross"].total.value == pytest.approx(4)


SITES = [{"share": 0.5, "name": "a", "pue": 1.6, "intensity": 0.5}, {"share": 0.5, "name": "b", "pue": 1.2, "intensity": 0.1}]


def test_several_sites() -> None:
    after = {"sites": [{"share": 0.2, "name": "a", "pue": 1.5, "intensity": 0.4}, {"share": 0.8, "name": "c", "pue": 1.1, "intensity": 0.05}]}
    found = whatif({**{key: RUN[key] for key in ("chips", "chip", "hours", "watts")}, "sites": SITES, "embodied": "luccioni"}, after, model=2)
    hours = 8 * 84 * 296 / 1000
    assert found.splits["gross"].before.to("kgCO2e").value == pytest.approx(hours * (0.5 * 1.6 * 0.5 + 0.5 * 1.2 * 0.1))
    assert found.splits["gross"].after.to("kgCO2e").value == pytest.approx(hours / 2 * (0.2 * 1.5 * 0.4 + 0.8 * 1.1 * 0.05))
    for one in found.splits.values():
        exact(one)
    assert found.splits["gross"].factors["model"].value == pytest.approx(2) and found.splits["gross"].factors["map"].value > 1


amount = st.floats(0.05, 20)


@settings(max_examples=30)
@given(amount, amount, st.floats(1, 3), st.floats(1, 3), st.floats(0.01, 1.5), st.floats(0.01, 1.5), st.booleans())
def test_any_four_changes_multiply_exactly(model: float, machine: float, old: float, new: float, dirty: float, clean: float, made: bool) -> None:
    found = whatif({**RUN, "pue": old, "intensity": dirty}, {"pue": new, "intensity": clean}, model=model, machine=machine,
                   embodied="luccioni" if made else None)
    for one in found.splits.values():
        exact(one)
    assert factors(found, "gross") == pytest.approx([model, machine, old / new, dirty / clean], rel=1e-9)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(1, 2), st.floats(0.01, 1)), min_size=1, max_size=4), amount)
def test_any_sites_multiply_exactly(rows: list[tuple[float, float, float]], model: float) -> None:
    whole = math.fsum(share for share, _, _ in rows)
    sites = [{"share": share / whole, "name": str(n), "pue": pue, "intensity": intensity} for n, (share, pue, intensity) in enumerate(rows)]
    found = whatif({key: RUN[key] for key in ("chips", "chip", "hours", "watts")} | {"sites": SITES}, {"sites": sites}, model=model)
    for one in found.splits.values():
        exact(one)


@pytest.mark.parametrize("run, after, changes, word", [
    (RUN, {}, {"machine": "V100:TPUv4"}, "file says chip"), (RUN, {}, {"machine": "P100:TPUv9"}, "tpu-v4"), (RUN, {}, {"machine": "TPUv5e"}, "watts"),
    (RUN, {}, {"hall": "1.4:1.1"}, "file says pue"), (RUN, {}, {"hall": "0.9"}, "less than its machines"),
    (RUN, {}, {"hall": "1.5:0.9"}, "less than its machines"),
    (RUN, {}, {"site": "0.3:0.1"}, "elsewhere"), (RUN, {}, {"site": "Swedn"}, "Sweden"), (RUN, {}, {"site": "FR:Swedn"}, "Sweden"),
    (RUN, {}, {"model": 0}, "above zero"), (RUN, {}, {"model": "lots"}, "not a figure"), (RUN, {"work": 3}, {}, "[run] has none"),
    (RUN, {"hours": 3}, {"machine": "V100"}, "Give one of them"), (RUN, {"wats": 3}, {}, "'watts'"),
    ({**RUN, "work": 4}, {"work": 3}, {"model": 2}, "both"),
    ({**RUN, "sites": SITES[:1]}, {}, {}, "not to 1"), ({**RUN, "sites": [{"share": 2, "pue": 1.1}]}, {}, {}, "0 to 1"),
    ({"energy": "5 MWh", "intensity": 0.4}, {}, {"model": 2}, "PUE"),
    ({"chips": 8, "hours": 84, "pue": 1.1}, {}, {"machine": "V100"}, "from which chip"),
])
def test_contradictions_are_refused_in_two_lines(run: dict, after: dict, changes: dict, word: str) -> None:
    with pytest.raises(InputError) as caught:
        whatif(run, after, **changes)
    assert word in str(caught.value) and len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("site", ["US:gcp:us-central1", "US->gcp:us-central1", "US → gcp:us-central1"])
def test_names_with_colons_are_cut_where_both_halves_are_sites(site: str) -> None:
    bare = {key: value for key, value in RUN.items() if key != "intensity"}
    found = whatif(bare, site=site)
    assert found.after.places[0].name == "gcp:us-central1" and found.splits["gross"].factors["map"].value > 0
    assert any("give --hall" in note for note in found.notes)


def test_energy_metered_at_the_hall_can_be_compared_too() -> None:
    found = whatif({"energy": "456 MWh", "pue": 1.11, "net_intensity": 0.088}, {"pue": 1.5, "net_intensity": 0.4})
    assert factors(found, "net") == pytest.approx([1, 1, 1.11 / 1.5, 0.22]) and "gross" not in found.splits


def test_energy_after_is_the_hall_s_and_leaves_embodied_carbon_out() -> None:
    found = whatif({**RUN, "embodied": "luccioni"}, {"energy": "100 kWh"})
    assert found.splits["energy"].after.to("kWh").value == pytest.approx(100) and "gross + embodied" not in found.splits
    assert any("left out" in note for note in found.notes)
    moved = whatif(RUN, {"energy": "100 kWh", "pue": 1.1}).splits["energy"]
    assert moved.after.to("kWh").value == pytest.approx(100) and moved.factors["mechanization"].value == pytest.approx(1.58 / 1.1)


ODD = ([1], {}, True, None, "", "nan", "1e999", "9" * 400, 10**400, "[1,2]", "5 ±", "5 ± 200%", ":", "1:", "->", "gcp:", b"5", "½", "a\nb")


@pytest.mark.parametrize("key", [*KEYS, "work", "sites"])
def test_odd_values_in_a_file_are_input_errors_or_fine(key: str) -> None:
    for value in ODD:
        for run, after in (({**RUN, key: value}, {}), ({**RUN, "work": 3}, {key: value})):
            try:
                whatif(run, after)
            except InputError as error:
                assert len(str(error).splitlines()) <= 2, (key, value)


@pytest.mark.parametrize("option", ["model", "machine", "hall", "site", "embodied"])
def test_odd_options_are_input_errors_or_fine(option: str) -> None:
    for value in ODD:
        try:
            whatif(RUN, **{option: value})  # type: ignore[arg-type]
        except InputError as error:
            assert len(str(error).splitlines()) <= 2, (option, value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for text, word in (("[run]\nchips = 8\n[afer]\nwork = 1\n", "after"), ("[after]\nwork = 1\n", "no table"), ("[[run]]\nchips = 8\n", "no table")):
        path.write_text(text)
        with pytest.raises(InputError, match=word):
            read(path)
    with pytest.raises(InputError, match="Cannot read"):
        read(tmp_path / "none.toml")
