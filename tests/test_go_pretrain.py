"""Training GO: the same seed the same weights, resumed to the bit, refusals in words, the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fourfold.decisions.schedule._go.imitation import Instance, draw, teach
from fourfold.errors import ArtefactError, InputError
from fourfold.jobs.pretrain import Settings, pretrain

SIZES = {"width": 8, "heads": 2, "sage": 1, "layers": 1, "segment": 16}
TINY = Settings(updates=6, imitation=0.5, evaluations=60, count=4, low=30, high=50, batch=2, samples=3, every=2, check=2, hold_out=("wavenet", "moe"),
                sizes=SIZES)


class Stop(Exception):
    pass


def weights(folder: Path) -> bytes:
    state = json.loads((folder / "state.json").read_text())
    return (folder / state["checkpoint"]).read_bytes()


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = pretrain(tmp_path / "whole", TINY)
    assert whole.updates == 6 and whole.weights.exists() and whole.unseen is not None and [row["phase"] for row in whole.history] == [0.0, 1.0, 1.0]

    def stop(text: str) -> None:
        if "update 4" in text:
            raise Stop

    with pytest.raises(Stop):
        pretrain(tmp_path / "parts", TINY, stop)                       # dies before the checkpoint of update 4 is written
    told: list[str] = []
    parts = pretrain(tmp_path / "parts", TINY, told.append)
    assert told[0] == "Going on from update 2." and parts.best == whole.best
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    first, second = (load_file(done.weights) for done in (whole, parts))
    assert all(first[name].equal(second[name]) for name in first)
    assert len(list((tmp_path / "parts").glob("checkpoint-*"))) == 1 and not list((tmp_path / "parts").glob("*.part"))


def test_other_settings_and_damage_are_told(tmp_path: Path) -> None:
    short = Settings(**{**TINY.__dict__, "updates": 1, "every": 1, "hold_out": (), "imitation": 1.0})
    pretrain(tmp_path, short)
    with pytest.raises(InputError, match="begun with seed"):
        pretrain(tmp_path, Settings(**{**short.__dict__, "seed": 5}))
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / state["checkpoint"]).write_bytes(b"short")
    with pytest.raises(ArtefactError, match="damaged"):
        pretrain(tmp_path, short)


def test_settings_that_cannot_be_are_refused() -> None:
    cases = (({"updates": 0}, "needs an end"), ({"hold_out": ("vgg",)}, "no family"), ({"low": 5}, "30 nodes"), ({"batch": 0}, "positive"))
    for change, what in cases:
        with pytest.raises(InputError, match=what):
            Settings(**{**TINY.__dict__, **change})
    with pytest.raises(InputError, match="no family left"):
        draw(3, (), 0)


def test_instances_are_the_same_for_the_same_seed_and_plans_are_kept(tmp_path: Path) -> None:
    one, other = draw(20, TINY.families, 3), draw(20, TINY.families, 3)
    assert one == other and one != draw(20, TINY.families, 4) and not {"wavenet", "moe"} & {instance.family for instance in one}
    assert {len(instance.speed) for instance in draw(60, TINY.families, 0)} > {0}
    first, again = (teach(Instance("cnn", 40, 1, True, "p100x2", (1.0, 2.0), 0.5), tmp_path, 50) for _ in range(2))
    assert first is not None and again is not None and first[2] == again[2] and len(list(tmp_path.iterdir())) == 1


def test_a_captured_graph_is_learnt_from_too(tmp_path: Path) -> None:
    from fourfold.zoo.graphs import make

    make("cnn", 40, 9).save(tmp_path / "mine.npz")
    found = draw(40, TINY.families, 0, files=[str(tmp_path / "mine.npz")])
    assert any(instance.file and len(instance.problem().graph) == len(make("cnn", 40, 9)) for instance in found)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fourfold.cli import main

    assert main.run(["pretrain", "--out", str(tmp_path), "--nodes", "40"]) == 2
    assert "no range" in capsys.readouterr().err
    assert main.run(["pretrain", "--out", str(tmp_path)]) == 2
    assert "needs an end" in capsys.readouterr().err
