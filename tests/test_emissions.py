"""The audit of CodeCarbon's emissions.csv: on a file that CodeCarbon wrote, and on what users do to such files."""

import csv
import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.carbon.codecarbon import cpu_watts, ram_watts
from fourfold.carbon.emissions_csv import COLUMNS, NUMBERS, audit
from fourfold.cli.main import run
from fourfold.errors import InputError
from fourfold.ledger import hash_chain
from fourfold.report.ledger import append_rows

REAL = Path(__file__).parent / "data" / "emissions.csv"


def rows() -> list[dict[str, str]]:
    with open(REAL, newline="") as file:
        return list(csv.DictReader(file))


def written(path: Path, changed: list[dict[str, str]], delimiter: str = ",") -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(changed[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(changed)
    return path


def said(path: Path, kind: str = "fault") -> list[str]:
    return [str(finding) for finding in audit(path).findings if finding.kind == kind]


# CodeCarbon's formulas
SIZES = {0.5: 10, 2: 10, 4: 10, 16: 10, 17: 20, 23.54: 20, 64: 20, 65: 38, 128: 38, 129: 42, 256: 38, 1024: 38, 2048: 70, 4096: 126}


@pytest.mark.parametrize("gigabytes, watts", SIZES.items())
def test_ram_is_a_step_function_of_guessed_modules(gigabytes: float, watts: float) -> None:
    assert ram_watts(gigabytes) == pytest.approx(watts)
    assert ram_watts(gigabytes, arm=True) == pytest.approx(0.3 * watts)


@given(st.floats(0, 1), st.floats(1, 500))
def test_cpu_goes_with_the_cube_of_the_load_of_a_machine_and_is_linear_for_a_process(load: float, tdp: float) -> None:
    assert cpu_watts(tdp, load) == pytest.approx(tdp * (0.1 + 0.9 * load**3)) and cpu_watts(tdp, load, "process") == pytest.approx(tdp * load)
    assert 2 * cpu_watts(tdp, 0.5) == pytest.approx(0.425 * tdp) and cpu_watts(85, load, "constant") == 42.5


def test_what_cannot_be_is_refused_by_the_formulas() -> None:
    for wrong in (lambda: ram_watts(-1), lambda: ram_watts(float("nan")), lambda: cpu_watts(10, 1.5), lambda: cpu_watts(10, 0.5, "town")):
        with pytest.raises(InputError):
            wrong()


# The real file
def test_the_real_file_reproduces_codecarbons_figures() -> None:
    with open(REAL) as file:
        assert file.readline().strip().split(",") == COLUMNS
    for row in rows():
        pue, size = float(row["pue"]), float(row["ram_total_size"])
        expected = ram_watts(size if row["tracking_mode"] == "machine" else 0.2)
        assert float(row["ram_power"]) == pytest.approx(expected * pue)
        parts = sum(float(row[name]) for name in ("cpu_energy", "gpu_energy", "ram_energy"))
        assert float(row["energy_consumed"]) == pytest.approx(parts)
    busy = rows()[3]
    assert float(busy["cpu_power"]) == pytest.approx(cpu_watts(4.0 * 2, 1.0) * 1.5) and float(busy["cpu_utilization_percent"]) == 100


def test_the_ram_constant_holds_its_true_share() -> None:
    found = audit(REAL)
    true = {row["project_name"]: float(row["ram_energy"]) / float(row["energy_consumed"]) for row in rows()}
    shares = {row["name"]: row["shares"]["memory"] for row in found.to_json()["rows"]}
    assert shares == pytest.approx(true) and shares["busy-pue"] == pytest.approx(20 / 28, abs=0.003) and 0.70 < shares["busy-machine"] < 0.73
    text = "\n".join(found.lines())
    assert "4 modules × 5 W, guessed from 23.5 GB" in text and "71% of the energy" in text and "floor of the model, 10 W" in text
    assert "4 W × 2 threads at full load" in text and "tracking mode process" in text and not said(REAL)


def test_the_recomputed_figure_has_an_interval_and_is_far_below() -> None:
    found = audit(REAL)
    stated = found.to_json()["stated_j"]
    assert found.energy is not None and found.energy.bounds[0] < found.energy.value < found.energy.bounds[1] < stated
    assert found.energy.grade == "assumed" and found.carbon is not None and found.carbon.signal == "average"
    process = found.entries[1]
    assert process.restated["memory"] is None and "not in the file" in process.why["memory"] and process.restated["gpu"] is None
    machine = found.entries[0].restated["memory"]
    assert machine is not None and machine.value == pytest.approx(0.3725 * 23.540576934814453 * 1.073741824 * float(rows()[0]["duration"]))


def test_rows_enter_a_ledger_once(tmp_path: Path) -> None:
    found, path = audit(REAL), tmp_path / "ledger.jsonl"
    assert append_rows(path, found.ledger_rows()) == 4 and append_rows(path, found.ledger_rows()) == 0
    assert hash_chain.verify(path) == [] and [row["kind"] for row in hash_chain.rows(path)] == ["import"] * 4
    assert hash_chain.rows(path)[0]["stated"] == rows()[0] and hash_chain.rows(path)[0]["source"]["line"] == 2


# What is done to such files
@pytest.mark.parametrize("column, change, word", [
    ("energy_consumed", lambda x: f"{float(x) * 1000}", "Wh in a column of kWh"),
    ("energy_consumed", lambda x: f"{float(x) * 3.6e6}", "J in a column of kWh"),
    ("energy_consumed", lambda x: f"-{x}", "negative"), ("ram_energy", lambda x: f"-{x}", "negative"), ("duration", lambda x: f"-{x}", "negative"),
    ("duration", lambda x: "0", "not above 0"), ("duration", lambda x: "fast", "not a number"), ("cpu_energy", lambda x: "inf", "not a number"),
    ("duration", lambda x: f"{float(x) * 1000}", "duration in ms"), ("duration", lambda x: f"{float(x) / 3600}", "in hours"),
    ("emissions", lambda x: f"{float(x) * 1000}", "grams in a column of kilograms"), ("emissions", lambda x: f"-{x}", "negative"),
    ("emissions", lambda x: f"{float(x) / 1000}", "tonnes"), ("pue", lambda x: "0.8", "PUE of 0.8"),
    ("tracking_mode", lambda x: "both", "not a tracking mode"),
    ("cpu_utilization_percent", lambda x: "130", "more than all"), ("ram_energy", lambda x: f"{float(x) * 2}", "add up"),
])
def test_wrong_figures_are_found_in_their_line(tmp_path: Path, column: str, change, word: str) -> None:
    changed = rows()
    changed[0][column] = change(changed[0][column])
    found = said(written(tmp_path / "emissions.csv", changed))
    assert any(word in text and "line 2" in text for text in found), found


@pytest.mark.parametrize("column, change, word", [
    ("pue", "4", "of no hall"), ("gpu_count", "2", "not metered"), ("cpu_energy", "0", "too short"), ("emissions_rate", "1", "emissions_rate"),
    ("timestamp", "yesterday", "no time"),
])
def test_misleading_figures_are_warned_of(tmp_path: Path, column: str, change: str, word: str) -> None:
    changed = rows()
    changed[0][column] = change
    assert any(word in text for text in said(written(tmp_path / "emissions.csv", changed), "warning"))


def test_doubled_cumulative_and_overlapping_rows_count_once(tmp_path: Path) -> None:
    first, second = rows()[0], rows()[0]
    ended = datetime.fromisoformat(first["timestamp"]) - timedelta(seconds=float(first["duration"]) - 3)
    second.update(duration="3", timestamp=ended.isoformat(), project_name="earlier")
    third = {**first, "run_id": "another", "project_name": "beside"}
    path = written(tmp_path / "emissions.csv", [first, first, second, third])
    found = audit(path)
    assert [entry.counts for entry in found.entries] == [True, False, False, True]
    text = "\n".join(found.lines())
    assert "the same as line 2" in text and "cumulative" in text and "each charges the whole machine" in text
    assert found.to_json()["stated_j"] == pytest.approx(2 * 3.6e6 * float(first["energy_consumed"]))


@pytest.mark.parametrize("gone", ["tracking_mode", "pue", "run_id", "emissions", "ram_total_size", "country_iso_code", "cpu_utilization_percent",
                                  "cpu_energy"])
def test_missing_columns_are_named_with_their_consequence(tmp_path: Path, gone: str) -> None:
    changed = [{name: cell for name, cell in row.items() if name != gone} for row in rows()]
    found = audit(written(tmp_path / "emissions.csv", changed))
    assert any(gone in str(finding) and finding.kind == "note" for finding in found.findings) and found.energy is not None


def test_only_the_whole_is_enough_and_other_delimiters_are_read(tmp_path: Path) -> None:
    changed = [{name: row[name] for name in ("duration", "energy_consumed")} for row in rows()]
    found = audit(written(tmp_path / "old.csv", changed, ";"))
    assert found.energy is not None and found.carbon is None and found.shares == {} and found.lines()


def test_a_constant_column_and_old_versions_are_seen(tmp_path: Path) -> None:
    changed = [{**rows()[0], "run_id": str(i), "timestamp": f"2026-01-0{i + 1}T00:00:00", "cpu_power": "42.5"} for i in range(3)]
    text = "\n".join(said(written(tmp_path / "emissions.csv", changed), "warning"))
    assert "CPU power is 42.5 W in all 3 rows" in text and "85 W × 50 %" in text and "RAM power is 20 W in all 3 rows" in text
    for row in changed:
        row["ram_power"] = str(0.375 * float(row["ram_total_size"]))
    assert "3 W for 8 GB" in "\n".join(said(written(tmp_path / "emissions.csv", changed), "warning"))


def test_gpu_energy_keeps_its_share(tmp_path: Path) -> None:
    changed = [{**rows()[0], "gpu_energy": "0.001", "gpu_count": "1", "energy_consumed": str(float(rows()[0]["energy_consumed"]) + 0.001)}]
    found = audit(written(tmp_path / "emissions.csv", changed))
    assert found.shares["gpu"] > 0.9 and found.energy is not None and found.energy.value > 3000


@pytest.mark.parametrize("data, word", [
    (b"", "missing"), (b"a,b\n1,2\n", "not CodeCarbon"), (b"duration,energy_consumed\n", "no rows"), (b"\xff\xfe\x00", "UTF-8"),
    (b"duration,duration,energy_consumed\n1,2,3\n", "twice"), (b"duration,cpu_model\n1,x\n", "not CodeCarbon"),
])
def test_what_is_not_such_a_file_is_refused(tmp_path: Path, data: bytes, word: str) -> None:
    path = tmp_path / "emissions.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=word) as caught:
        audit(path)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("form", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_unicode_form_reads_alike(tmp_path: Path, form: str) -> None:
    path = tmp_path / "emissions.csv"
    path.write_bytes(REAL.read_text(encoding="utf-8").encode(form))
    assert [entry.joules for entry in audit(path).entries] == [entry.joules for entry in audit(REAL).entries]


@pytest.mark.parametrize("change, code", [(lambda row: row, 0), (lambda row: {**row, "cpu_energy": "-1"}, 4)])
def test_import_exits_with_4_where_figures_are_wrong(tmp_path: Path, change, code: int, capsys) -> None:
    path = written(tmp_path / "emissions.csv", [change(row) for row in rows()[:1]])
    assert run(["ledger", "import", str(path), "--to", str(tmp_path / "book.jsonl"), "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert (found["faults"] > 0) == (code == 4) and found["appended"] == (tmp_path / "book.jsonl").exists()


def test_a_missing_file_and_ragged_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot read"):
        audit(tmp_path / "none.csv")
    path = tmp_path / "emissions.csv"
    path.write_text(REAL.read_text() + "1,2,3\n")
    assert any("3 cells under 38 columns" in text for text in said(path)) and len(audit(path).entries) == 4


def test_nothing_is_worked_out_from_joules_in_a_column_of_kilowatt_hours(tmp_path: Path) -> None:
    wrong = {**rows()[0], **{name: f"{3.6e6 * float(rows()[0][name])}" for name in ("cpu_energy", "ram_energy", "energy_consumed")}}
    found = audit(written(tmp_path / "emissions.csv", [wrong, rows()[3]]))
    assert found.entries[0].energy is None and "do not fit" in found.entries[0].why["cpu"] and found.carbon is None
    assert found.energy == found.entries[1].energy and "(1 of 2 rows)" in "\n".join(found.lines())


def test_rows_of_one_processor_share_its_error(tmp_path: Path) -> None:
    facts = {"gpu_energy": "0.001", "gpu_count": "1", "gpu_model": "1 x V100", "energy_consumed": str(float(rows()[0]["energy_consumed"]) + 0.001)}
    many = [{**rows()[0], **facts, "run_id": str(i), "timestamp": f"2026-01-{i + 1:02d}T00:00:00"} for i in range(20)]
    one, all_ = (audit(written(tmp_path / f"{len(kept)}.csv", kept)).energy for kept in (many[:1], many))
    assert one and all_ and all_.bounds[1] / all_.value == pytest.approx(one.bounds[1] / one.value, rel=0.02)


def test_times_with_offsets_overlap_where_they_do(tmp_path: Path) -> None:
    first = {**rows()[0], "timestamp": "2026-01-01T10:00:00+02:00"}
    same, apart = ({**first, "run_id": "other", "timestamp": text} for text in ("2026-01-01T08:00:00Z", "2026-01-01T10:00:00Z"))
    assert any("overlaps" in text for text in said(written(tmp_path / "a.csv", [first, same])))
    assert not said(written(tmp_path / "b.csv", [first, apart]))


def test_decimal_commas_and_files_without_a_usable_row(tmp_path: Path) -> None:
    comma = [{name: cell.replace(".", ",") if name in NUMBERS else cell for name, cell in row.items()} for row in rows()]
    assert audit(written(tmp_path / "semicolons.csv", comma, ";")).to_json()["stated_j"] == pytest.approx(audit(REAL).to_json()["stated_j"])
    assert audit(written(tmp_path / "commas.csv", comma)).lines()[0] == "None of 4 rows can be used."


# Rows that are several runs, and headers that are several


def runs(count: int, **cells: str) -> list[dict[str, str]]:
    """So many runs of the real file's kind, a day apart, each with an id and an energy of its own."""
    made = []
    for day in range(1, count + 1):
        row = {**rows()[0], "run_id": f"run-{day}", "timestamp": f"2026-03-{day:02d}T10:00:00"}
        for name in ("energy_consumed", "cpu_energy", "gpu_energy", "ram_energy", "emissions", "duration"):
            row[name] = repr(day * float(row[name] or 0))
        made.append({**row, **cells})
    return made


@pytest.mark.parametrize("word", ["None", "nan", "", "null", "one-id-for-all"])
def test_an_id_that_is_none_or_shared_drops_no_run(tmp_path: Path, word: str) -> None:
    path = written(tmp_path / "emissions.csv", runs(4, run_id=word))
    found = audit(path)
    assert [entry.counts for entry in found.entries] == [True] * 4 and not found.to_json()["faults"]
    assert found.to_json()["stated_j"] == pytest.approx(10 * 3.6e6 * float(rows()[0]["energy_consumed"]))
    assert any("both count" in text for text in said(path, "warning")) == (word == "one-id-for-all")
    book = tmp_path / "ledger.jsonl"
    assert append_rows(book, found.ledger_rows()) == 4 and len({row["run"] for row in hash_chain.rows(book)}) == 4
    longer = written(tmp_path / "emissions.csv", runs(5, run_id=word))
    assert append_rows(book, audit(longer).ledger_rows()) == 1, "the file grew by one run"


def test_rows_of_one_id_at_one_time_that_are_not_one_run_are_a_fault(tmp_path: Path) -> None:
    long, other = runs(2, run_id="same")
    long.update(duration="7200", timestamp="2026-03-01T12:00:00")
    inside = {**other, "duration": "600", "timestamp": "2026-03-01T11:30:00"}
    faults = said(written(tmp_path / "emissions.csv", [long, inside]))
    assert any("line 3" in text and "run_id of line 2" in text and "began at another time" in text for text in faults)
    more = {**long, "duration": "3600", "timestamp": "2026-03-01T11:00:00", "energy_consumed": repr(3 * float(long["energy_consumed"]))}
    assert any("more than that of the longer row" in text for text in said(written(tmp_path / "emissions.csv", [long, more])))


@pytest.mark.parametrize("change", ["order", "fewer", "more", "same"])
def test_rows_after_a_second_header_are_read_by_it(tmp_path: Path, change: str) -> None:
    made = runs(4)
    names = list(made[0])
    second = {"order": names[::-1], "fewer": [name for name in names if name not in ("gpu_count", "gpu_model")], "more": [*names, "site"],
              "same": names}[change]
    path = tmp_path / "emissions.csv"
    with open(path, "w", newline="") as file:
        for header, part in ((names, made[:2]), (second, made[2:])):
            writer = csv.DictWriter(file, header, extrasaction="ignore", restval="x")
            writer.writeheader()
            writer.writerows(part)
    found, plain = audit(path), audit(written(tmp_path / "plain.csv", made))
    assert not [finding for finding in found.findings if finding.kind == "fault"] and len(found.counted) == found.rows == 4
    assert [entry.stated for entry in found.entries] == [entry.stated for entry in plain.entries] and found.shares == plain.shares
    assert any("line 4 is a header again" in str(finding) for finding in found.findings)
    if change != "more":
        path.write_text(path.read_text() + written(tmp_path / "again.csv", made).read_text())
        assert len(audit(path).counted) == 4, "the same rows under any header count once"


def test_a_second_header_that_does_not_fit_is_refused_by_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "emissions.csv", runs(1))
    for header, words in (("timestamp,project_name,run_id,duration", "line 3: a second header there lacks energy"),
                          ("timestamp,duration,duration,energy_consumed", "line 3: a second header there has the column duration twice")):
        other = tmp_path / "other.csv"
        other.write_text(path.read_text() + header + "\nx,1,2,3\n")
        with pytest.raises(InputError, match=words):
            audit(other)
