"""`fourfold race` on an artefact: the stored choice takes part, nothing is removed, another precision must be proved, each moment can be loaded."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import invented
import numpy as np
import pytest
import served

import fourfold
from fourfold.datasets.encode import load_labelled
from fourfold.errors import InputError
from fourfold.jobs.optimize.choices import keep, undo
from fourfold.jobs.race import Way, _proved, rerace
from fourfold.runtime.artefact import digest
from fourfold.runtime.loading import read_manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact in OpenVINO fp32 with a report, and ONNX Runtime's file of the same network beside it."""
    at = tmp_path_factory.mktemp("raced")
    served.part(at / "onnx", "onnxruntime")
    served.saved(at / "cheap", [served.part(at / "files", "openvino")])
    manifest = read_manifest(at / "cheap")
    report = invented.report()
    (at / "cheap" / "report.json").write_text(json.dumps(report))
    manifest["files"]["report.json"] = digest(at / "cheap" / "report.json")
    manifest |= {"floor": 0.9, "candidate": {"test_quality": {"value": 0.99, "low": 0.97, "high": 1.0, "n": 400}}}
    (at / "cheap" / "manifest.json").write_text(json.dumps(manifest))
    return at


@pytest.fixture
def cheap(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "cheap", tmp_path / "cheap"))


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def changed(made: Path, folder: Path) -> dict[str, Any]:
    """ONNX Runtime as the new choice."""
    spec = read_manifest(folder)["parts"][0]
    setting = spec["setting"] | {"engine": "onnxruntime", "batch": 16}
    file = "onnxruntime-fp32.onnx"
    return {spec["name"]: {"setting": setting, "signature": spec["signature"], "files": [(made / "onnx" / file, file)]}}


def test_a_new_choice_is_told_everywhere_and_can_be_undone(made: Path, cheap: Path) -> None:
    from fourfold.report.json import read
    from fourfold.report.summary import story

    before, texts = tree(cheap), served.texts(20, 1)
    wanted = fourfold.load(cheap).records(texts)
    keep(cheap, read_manifest(cheap), changed(made, cheap), "Raced again on a test: net from this to that.")
    model = fourfold.load(cheap)
    assert model.assembly.parts[0].open().describe()["engine"] == "onnxruntime" and model.warnings == []
    np.testing.assert_allclose(model.records(texts), wanted, atol=1e-4)
    model.close()
    now = tree(cheap)
    assert all(now[name] == sha for name, sha in before.items() if name not in ("manifest.json", "report.json"))
    report = read(cheap)
    assert report["candidates"][report["best"]]["setting"]["engine"] == "onnxruntime"
    assert "Raced again on a test: net from this to that." in story(report)
    manifest = read_manifest(cheap)
    assert [entry["parts"]["net"]["setting"]["engine"] for entry in manifest["choices"]] == ["openvino", "onnxruntime"]

    undone = undo(cheap)
    assert undone["parts"][0]["after"]["engine"] == "openvino"
    model = fourfold.load(cheap)
    assert model.assembly.parts[0].open().describe()["engine"] == "openvino"
    np.testing.assert_array_equal(model.records(texts), wanted)
    report = read(cheap)
    assert report["candidates"][report["best"]]["setting"]["engine"] == "openvino"
    assert not any(note.startswith("Raced again") for note in report["notes"])
    assert len(read_manifest(cheap)["choices"]) == 2
    with pytest.raises(InputError, match="no race has changed it"):
        undo(cheap)
    keep(cheap, read_manifest(cheap), changed(made, cheap), "Raced again, a third choice.")
    assert read_manifest(cheap)["choice"] == 2 and fourfold.load(cheap).assembly.parts[0].setting.engine == "onnxruntime"


KILLED = """
import json, os, sys
from pathlib import Path
from fourfold.jobs.optimize import choices
left, real = int(sys.argv[2]), {name: getattr(os, name) for name in ("replace", "rename")}
def dying(name):
    def step(*args, **kwargs):
        global left
        if left == 0:
            os._exit(9)                                                # as kill -9 would, just before a step
        left -= 1
        return real[name](*args, **kwargs)
    return step
os.replace, os.rename = dying("replace"), dying("rename")
root, new = Path(sys.argv[1]), json.loads(sys.argv[3])
for one in new.values():
    one["files"] = [(Path(path), name) for path, name in one["files"]]
choices.keep(root, json.loads((root / "manifest.json").read_text()), new, "Raced again.")
print(left)
"""


def test_killed_at_any_step_it_can_be_loaded_and_raced_again(made: Path, cheap: Path, tmp_path: Path) -> None:
    new, texts = changed(made, cheap), served.texts(4, 2)
    wanted = fourfold.load(cheap).predict(texts)
    given = json.dumps(new, default=str)
    steps = 0
    while True:
        folder = Path(shutil.copytree(cheap, tmp_path / f"step{steps}"))
        code = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(steps), given], capture_output=True, text=True).returncode
        assert fourfold.load(folder).predict(texts) == wanted
        keep(folder, read_manifest(folder), changed(made, folder), "Raced once more.")
        assert fourfold.load(folder).assembly.parts[0].setting.engine == "onnxruntime"
        if code == 0:
            break
        assert code == 9
        steps += 1
    assert steps == 4  # files, manifest, report, manifest


@pytest.mark.whole
def test_a_race_without_labels_keeps_the_precision_and_every_file(cheap: Path) -> None:
    before = tree(cheap)
    dry = rerace(cheap, served.texts(60, 3), budget=4, engines=["torch", "openvino"], dry_run=True)
    assert tree(cheap) == before and dry["stored"] is False
    found = rerace(cheap, budget=4, engines=["torch", "openvino"])
    part = found["parts"][0]
    assert part["before"]["engine"] == "openvino" and part["after"]["precision"] == "fp32"
    assert part["race"]["table"][0]["who"] == "stored" and sum(row["chosen"] for row in part["race"]["table"]) == 1
    assert any("only the stored precision may win" in text for text in dry["said"])
    assert any("only the stored precision may win" in text for text in found["said"])
    now = tree(cheap)
    assert all(now[name] == sha for name, sha in before.items() if name not in ("manifest.json", "report.json"))
    after = read_manifest(cheap)["parts"][0]["setting"]
    assert after == part["after"] and fourfold.load(cheap).warnings == []


@pytest.mark.slow
def test_without_the_package_the_stored_choice_and_its_files_stay(cheap: Path) -> None:
    before = tree(cheap)
    code = """
import json, sys
sys.modules["openvino"] = None                                         # as where it is not installed
from fourfold.jobs.race import rerace
print(json.dumps(rerace(sys.argv[1], budget=3, engines=["torch"])))
"""
    done = subprocess.run([sys.executable, "-c", code, str(cheap)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "not installed" in found["parts"][0]["stand_in"] and "stays recorded" in " ".join(found["said"])
    assert tree(cheap) == before


# ---- proof ---------------------------------------------------------------------------------------------------------------------------------------


def rows(path: Path, model: Any, count: int = 240) -> Path:
    """Texts labelled by the model's own answers."""
    texts = served.texts(count, 21)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(texts, model.predict(texts), strict=True))
    return path


def way(model: Any, net: Any, precision: str, folder: Path) -> Way:
    from fourfold.engines import engine
    from fourfold.engines.select import Contender, EngineChoice

    part = model.assembly.parts[0]
    wrapped = part.subject.wrap(net).eval()
    contender = Contender(engine("torch"), precision, wrapped, part.signature, None, folder, [])  # type: ignore[arg-type]
    return Way("other precisions", EngineChoice("torch", precision, 1, 8, True), contender, False)


def test_labels_are_numbered_as_the_task_numbers_them(cheap: Path, tmp_path: Path) -> None:
    model = fourfold.load(cheap)
    examples = load_labelled(rows(tmp_path / "rows.csv", model), model.task, model.assembly.reader())
    np.testing.assert_array_equal(examples.targets, model.assembly.outputs(examples, model.task).argmax(1))


def test_another_precision_must_clear_the_floor_on_labelled_rows(cheap: Path, tmp_path: Path) -> None:
    model = fourfold.load(cheap)
    proof = load_labelled(rows(tmp_path / "rows.csv", model), model.task, model.assembly.reader())
    passed, said = _proved(model, {"net": way(model, model.module, "fp32", tmp_path)}, proof, None)
    assert passed and "clears the floor of 90.0%" in said and "through the stored choice" in said

    part = model.assembly.parts[0]
    model.assembly.parts[0] = replace(part, module=served.network(seed=5), session=part.open())
    worse = way(model, served.network(seed=5), "bf16", tmp_path)
    passed, said = _proved(model, {"net": worse}, proof, None)
    assert not passed and "does not prove" in said
    model.manifest["candidate"] = {}
    assert _proved(model, {"net": worse}, proof, None)[0] is False  # nothing stated, nothing proved


def test_the_stored_shortfall_counts_too(cheap: Path, tmp_path: Path) -> None:
    """A member that equals the stored one inherits its bound: where that does not clear the floor, nothing new does."""
    model = fourfold.load(cheap)
    proof = load_labelled(rows(tmp_path / "rows.csv", model), model.task, model.assembly.reader())
    model.manifest["floor"] = 0.975
    assert _proved(model, {"net": way(model, model.module, "fp32", tmp_path)}, proof, None)[0] is False
    passed, said = _proved(model, {"net": way(model, model.module, "fp32", tmp_path)}, proof, served.network())
    assert "the original on" in said
    del passed


@pytest.mark.slow
def test_a_race_with_labels_says_what_was_proved(cheap: Path, tmp_path: Path) -> None:
    before = tree(cheap)
    found = rerace(cheap, rows(tmp_path / "rows.csv", fourfold.load(cheap)), budget=6, engines=["torch"])
    part = found["parts"][0]
    if part["after"]["precision"] != "fp32":
        assert any("clears the floor" in text for text in found["said"])
    now = tree(cheap)
    assert all(now[name] == sha for name, sha in before.items() if name not in ("manifest.json", "report.json"))
    fourfold.load(cheap).predict(["word1"])


def test_the_command(cheap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fourfold.cli.main import run

    assert run(["race", str(cheap), "--undo"]) == 2 or "no race has changed it" in capsys.readouterr().err
    assert run(["race", str(cheap), "--budget", "3s", "--engines", "torch", "--dry-run"]) == 0
    out = " ".join(capsys.readouterr().out.split())                    # a terminal's width breaks lines
    assert "Nothing was written." in out and "ratios to the stored choice" in out
