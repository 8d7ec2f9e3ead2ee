"""The printed command asks the same question again; a configuration file is the same options; a hub id is looked for on this machine alone."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from invented import report

import fourfold
from fourfold.cli import main
from fourfold.errors import ModelError
from fourfold.frontends.hub import resolved
from fourfold.jobs.optimize.command import spelled


class Asked(Exception):
    """Stands for the run: carries what `fourfold.optimize` was asked."""


def asked(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> dict[str, Any]:
    """What the command line asks of `fourfold.optimize`, with units and roles in one spelling."""
    found: dict[str, Any] = {}

    def optimize(model: Any, data: Any, **options: Any) -> Any:
        found.update(model=model, data=data, **options)
        raise fourfold.InputError("asked", "")

    monkeypatch.setattr(fourfold, "optimize", optimize)
    assert main.run(words) == 2 and "model" in found
    return {key: value for key, value in found.items() if key not in ("progress", "command", "fresh")}


EVERYTHING: dict[str, Any] = {
    "columns": {"text": "the text", "pair": "other; rm -rf", "label": "$label", "split": "side"}, "objective": "latency", "out": "my out/che'ap",
    "metric": "f1", "task": "classification", "seed": 7, "engines": ["torch", "openvino"], "threads": 2, "max_length": 48, "site": "tokyo",
    "to_site": "FR", "hall": "1.58:1.10", "agree": "95%",
}  # fmt: skip


@pytest.mark.parametrize(
    "model, data, options",
    [
        ("model", "reviews.csv", {}),
        ("a folder/model", {"train": "a b.csv", "search": "s.csv", "test": "t.csv"}, EVERYTHING),
        ("package.module:factory", {"train": "x.csv", "test": "y.csv"}, {"seed": 3, "pue": "1.2"}),
    ],
)
def test_the_printed_command_asks_the_same_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, data: Any, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    command = spelled(model, data, floor=0.9725, budget=90.5, **options)
    words = shlex.split(command)
    assert words[:2] == ["fourfold", "optimize"]
    found = asked(monkeypatch, words[1:])
    assert found["model"] == model and found["data"] == data
    assert fourfold.Workload(model, "d", found["floor"], budget=found["budget"]) == fourfold.Workload(model, "d", 0.9725, budget=90.5)
    wanted = {"objective": "energy", "seed": 0, **options}
    for key, value in wanted.items():
        assert (str(found[key]) if key == "out" else found[key]) == value, key
    assert all(found[key] is None for key in ("metric", "task", "columns", "engines", "threads", "max_length", "site", "hall") if key not in options)


def test_what_only_a_session_holds_is_told_as_a_call() -> None:
    text = spelled(object(), ([1.0], [2.0]), floor=0.97, budget=60.0, metric=len, seed=1)
    assert text.startswith("fourfold.optimize(<object>, ([1.0], [2.0]), floor=0.97") and "metric=<len>" in text and "seed=1" in text


def test_a_configuration_file_is_the_options_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "fourfold.toml"
    file.write_text(
        'model = "m"\ndata = "d.csv"\nfloor = "95%"\nseed = 4\ntext-column = ["a", "b"]\n'
        'engines = ["torch", "openvino"]\n[optimize]\nbudget = "30s"\n'
    )
    monkeypatch.chdir(tmp_path)
    for name in ("m", "other"):
        (tmp_path / name).mkdir()
    found = asked(monkeypatch, ["optimize", "--config", str(file), "--seed", "9"])
    assert (found["model"], found["data"], found["floor"], found["budget"], found["seed"]) == ("m", "d.csv", "95%", "30s", 9)
    assert found["columns"] == {"text": "a", "pair": "b"} and found["engines"] == ["torch", "openvino"]
    assert asked(monkeypatch, ["optimize", "other", "--config", str(file)])["model"] == "other"


@pytest.mark.parametrize("content", ["floor = ", 'flor = "97%"', None])
def test_a_faulty_configuration_file_is_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None) -> None:
    file = tmp_path / "fourfold.toml"
    if content is not None:
        file.write_text(content)
    assert main.run(["optimize", "m", "--data", "d", "--config", str(file)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


@pytest.mark.parametrize("words", [["-h"], ["optimize", "-h"], ["verify", "-h"], ["ledger", "-h"], ["meter", "-h"]])
def test_h_is_help_everywhere(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main.run(words) == 0
    assert "Usage" in capsys.readouterr().out


def test_a_shell_is_told_what_may_come_next() -> None:
    script = "import os, sys; sys.argv = ['fourfold']; from fourfold.cli.main import main; main()"
    env = {"_FOURFOLD_COMPLETE": "complete_bash", "COMP_WORDS": "fourfold ver", "COMP_CWORD": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=Path(__file__).parent.parent)
    assert "verify" in done.stdout, done.stderr


def test_names_of_a_list_are_whole_at_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fourfold.registry import techniques

    monkeypatch.setenv("COLUMNS", "80")
    assert main.run(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(name.split("/")[1] in line.split() for line in lines) for name in techniques()) and max(map(len, lines)) <= 80


def test_an_unforeseen_error_keeps_the_users_words_to_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourfold.report.json.read", lambda path: float("my secret diary"))
    monkeypatch.delenv("FOURFOLD_DEBUG", raising=False)
    assert main.run(["report", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "ValueError" in said and "diary" not in said and len(said.strip().splitlines()) == 2


def test_a_hub_id_is_looked_for_on_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    script = (
        "import sys; from fourfold.frontends.hub import resolved; print(resolved('owner/name'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={"HF_HUB_CACHE": str(tmp_path), "PATH": "/usr/bin"},
                          cwd=Path(__file__).parent.parent)  # fmt: skip
    assert done.stdout.strip() == str(snapshot), done.stderr
    with pytest.raises(ModelError, match="local Hugging Face cache"):
        resolved("nobody/nothing")
    assert resolved("pkg.mod:make") == "pkg.mod:make" and resolved(str(tmp_path)) == str(tmp_path)


def test_the_reports_command_is_a_whole_line() -> None:
    assert shlex.split(report()["command"])[:2] == ["fourfold", "optimize"]
