"""The table of chips: every figure has unit, grade and source; peaks are dense unless said; names are found as people and drivers write them."""

import csv
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from fourfold.cli.main import run
from fourfold.errors import InputError
from fourfold.host import Chip, chip, chips
from fourfold.report.hardware_table import figures, overview
from fourfold.units import GRADES

FOLDER = resources.files("fourfold").joinpath("machines")
SHARED = Path(__file__).parents[2] / "shared" / "data" / "energy" / "accelerators.csv"
ALL = chips()
PRECISIONS = {"fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8"}


def test_there_are_at_least_thirty_of_every_kind() -> None:
    assert len(ALL) >= 30 and {"gpu", "tpu", "asic", "cpu"} == {one.kind for one in ALL}
    assert len({one.vendor for one in ALL}) >= 5 and len({one.name for one in ALL}) == len(ALL)


@pytest.mark.parametrize("file", sorted(file.name for file in FOLDER.iterdir() if file.name.endswith(".toml")))
def test_every_figure_in_the_files_says_unit_grade_and_source(file: str) -> None:
    data = tomllib.loads(FOLDER.joinpath(file).read_text(encoding="utf-8"))
    assert data["title"] and ("chips" in data or {"busy", "idle", "source"} <= set(data))
    for name, facts in data.get("chips", {}).items():
        tables = [facts, facts.get("peak", {}), facts.get("sparse", {})]
        found = [figure for table in tables for figure in table.values() if isinstance(figure, dict) and "value" in figure]
        assert found and facts["vendor"] and facts["year"] >= 2012, name
        for figure in found:
            assert figure["grade"] in GRADES and len(figure["source"]) > 3 and figure["unit"], (name, figure)
            assert ("remembered" in figure["source"].split(";")[0].split(",")[0]) <= (figure["grade"] == "assumed"), (name, figure)


ADDRESS = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:10\.|\b[\w.-]+\.(com|net|org|io|gov|edu|eu|de)\b")


def graded(table: dict) -> list[tuple[str, str]]:
    """(grade, source) of every figure anywhere in a file; a figure without a source of its own has the file's."""
    found = [(table["grade"], table.get("source", ""))] if "grade" in table else []
    for part in table.values():
        if isinstance(part, dict):
            found += [(grade, source or table.get("source", "")) for grade, source in graded(part)]
    return found


@pytest.mark.parametrize("file", sorted(file.name for file in FOLDER.iterdir() if file.name.endswith(".toml")))
def test_every_published_figure_has_an_address(file: str) -> None:
    for grade, source in graded(tomllib.loads(FOLDER.joinpath(file).read_text(encoding="utf-8"))):
        assert grade != "published" or ADDRESS.search(source), source


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_units_and_sizes_are_right(one: Chip) -> None:
    assert set(one.peak) <= PRECISIONS and set(one.sparse) <= set(one.peak)
    for figure in [*one.peak.values(), *one.sparse.values()]:
        assert figure.unit == "FLOP/s" and 1e12 < figure.value < 2e16
    assert one.bandwidth is not None and one.bandwidth.unit == "B/s" and 1e11 < one.bandwidth.value < 1e13
    assert one.memory is None or (one.memory.unit in ("GB", "GiB") and 8 <= one.memory.value <= 400)
    for figure in (one.tdp, one.system, one.chip):
        assert figure is None or (figure.unit == "W" and 50 <= figure.value <= 1500)
    assert one.tdp is not None or one.why.get("tdp"), "a missing TDP has a reason"
    assert one.memory is not None or one.why.get("memory")


@pytest.mark.parametrize("one", [one for one in ALL if one.sparse], ids=lambda one: one.name)
def test_sparse_peaks_are_twice_the_dense(one: Chip) -> None:
    for precision, figure in one.sparse.items():
        assert figure.value / one.peak[precision].value == pytest.approx(2, rel=0.01), precision


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_narrower_numbers_are_never_slower(one: Chip) -> None:
    order = [one.peak[name].value for name in ("fp32", "tf32", "bf16", "fp8") if name in one.peak]
    assert order == sorted(order)


@pytest.mark.parametrize("said, name", [
    ("V100", "v100-sxm2"), ("v100-sxm2-16gb", "v100-sxm2-16gb"), ("Tesla V100-SXM2-32GB", "v100-sxm2"), ("H100", "h100-sxm"), ("TPUv4", "tpu-v4"),
    ("TPU v4", "tpu-v4"), ("tpu-v3", "tpu-v3"), ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"), ("A100-SXM-80GB", "a100-sxm4-80gb"),
    ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("NVIDIA GeForce RTX 3090", "rtx-3090"), ("P100", "p100-sxm2"), ("AMD EPYC 7763", "epyc-7763"),
    ("AMD Instinct MI300X", "mi300x"), ("Gaudi2", "gaudi2"), ("Google TPU v2", "tpu-v2"), ("a100_pcie_80gb", "a100-pcie-80gb"),
])
def test_names_are_found_as_people_and_drivers_write_them(said: str, name: str) -> None:
    assert chip(said).name == name


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_every_name_title_and_alias_leads_to_its_chip(one: Chip) -> None:
    assert {chip(said).name for said in (one.name, one.title, *one.aliases)} == {one.name}


@pytest.mark.parametrize("said, offered", [
    ("H10", "h100-sxm"), ("A1000", "a100-sxm4-80gb"), ("TPUv9", "tpu-v4"), ("RTX 4091", "rtx-4090"), ("MI300", "mi300x"),
])
def test_an_unknown_chip_is_answered_with_the_nearest(said: str, offered: str) -> None:
    with pytest.raises(InputError) as caught:
        chip(said)
    assert offered in str(caught.value) and len(str(caught.value).splitlines()) == 2


def test_watts_are_measured_means_where_published_and_a_wide_tdp_where_not() -> None:
    assert chip("V100").power.value == 325 and chip("TPUv3").power.value == 283 and chip("P100").power.bounds[0] == pytest.approx(222, abs=0.5)
    stand_in = chip("H100").power
    assert stand_in.grade == "assumed" and stand_in.bounds == pytest.approx((420, 805)) and "TDP" in stand_in.source
    with pytest.raises(InputError, match="watts"):
        _ = chip("TPUv5e").power


def test_two_measured_means_of_one_paper_do_not_cancel() -> None:
    low, high = (chip("P100").power / chip("TPUv2").power).bounds
    assert high / low > 1.3


@pytest.mark.skipif(not SHARED.exists(), reason="the project's data folder is not here")
def test_the_table_agrees_with_the_evidence_it_was_made_from() -> None:
    """Every row is here; what its evidence calls remembered is not graded published unless the file names another source."""
    for row in csv.DictReader(SHARED.open()):
        one = chip(row["name"])
        for column, figure, scale in (("tdp_w", one.tdp, 1), ("avg_system_w_measured", one.system, 1), ("mem_gb", one.memory, 1),
                                      ("mem_bw_gb_s", one.bandwidth, 1e9), ("peak_fp32_tflops", one.peak.get("fp32"), 1e12)):
            if row[column] and "-" not in row[column] and figure is not None:
                assert figure.value / scale == pytest.approx(float(row[column]), rel=0.01), (row["name"], column)
        if row["peak_dense_16bit_tflops"] and "-" not in row["peak_dense_16bit_tflops"]:
            best = max(figure.value for name, figure in one.peak.items() if name in ("fp16", "bf16")) / 1e12
            assert best == pytest.approx(float(row["peak_dense_16bit_tflops"]), rel=0.01), row["name"]
        if row["evidence"] == "remembered":
            assert all(figure.grade != "published" or "remembered" not in figure.source for figure in one.peak.values())


def test_rows_for_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert overview(chip("H100"))["TFLOP/s"] == "989.4 bf16" and overview(chip("MI325X"))["TDP"] == "~1,000 W"
    rows = {row["figure"]: row for row in figures(chip("TPUv4"))}
    assert "[280.8, 378.5]" in rows["measured mean, system per chip"]["value"] and "publishes no TDP" in rows["TDP"]["source"]
    assert run(["machines"]) == 0 and "tpu-v4" in capsys.readouterr().out
    assert run(["machines", "H100"]) == 0 and "sparse" in capsys.readouterr().out
    assert run(["machines", "none-such"]) == 2
