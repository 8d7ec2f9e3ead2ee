"""`fourfold plan --memory` and `fourfold run` of such a plan: within the limit, verified, carried out, and every mistake in two lines."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch

import fourfold
from fourfold import plans
from fourfold.cli import main
from fourfold.errors import ArtefactError, Infeasible, InputError
from fourfold.jobs.memory import QUESTION, limit_of, plan_memory
from fourfold.runtime.arena.check import MemoryPlan, arena_of, check
from fourfold.runtime.arena.ready import Eager, ready
from fourfold.runtime.local.compare import compared
from fourfold.runtime.source import recapture

QUICK: dict[str, Any] = {"budget": 1.0, "evaluations": 300}
TRUSTED = ("--trust", "small_models")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(Path(small_models.__file__).parent), *sys.path])
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main.run([str(one) for one in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def planned(name: str, out: Path, share: float, train: bool) -> dict[str, Any]:
    """A plan for a share of what offsets alone need; the solution."""
    model, x = small_models.MODELS[name]()
    model.train(train)
    loose = plan_memory(model, (x,), memory="1GiB", train=train, out=out, **QUICK).solutions[QUESTION]
    limit = loose["outside"] + int(share * loose["peaks"]["offsets"])
    return dict(plan_memory(model, (x,), memory=limit, train=train, out=out, **QUICK).solutions[QUESTION])


SLOWER = [pytest.param(*case, marks=pytest.mark.slow)
          for case in (("gpt", True, 0.75), ("resnet", True, 0.85), ("unet", True, 0.85), ("lstm", True, 0.97))]


@pytest.mark.parametrize(("name", "train", "share"), [("encoder", True, 0.7), ("mlp", True, 0.9), ("unet", False, 1.0), *SLOWER])
def test_a_limit_is_kept_and_the_answer_is_eager_s(name: str, train: bool, share: float, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    solution = planned(name, out, share, train)
    assert plans.verify(out) == {QUESTION: []}
    model, x = small_models.MODELS[name]()
    model.train(train)
    done = check(out, model=model, inputs=(x,), repeat=1)
    assert done.equal and done.within and sum(done.measured) <= solution["limit"]
    assert done.measured[1] == done.planned[1] and 0 <= sum(done.planned) - sum(done.measured) < 64, "as planned, but for rounding up to 64 bytes"
    plan = MemoryPlan.load(out)
    if train and share < 0.95:
        assert ", again (step " in (out / "plan.html").read_text(), "the map names what is computed again"
        assert solution["again"] and done.repeated and solution["arena"] < solution["peaks"]["offsets"]
        program = ready(recapture(plan, model, (x,)))
        arena = arena_of(plan, program, (x,), poison=True)
        want, got = Eager(program, (x,)).outputs()[0], arena.run().outputs
        assert all(compared("", got[v], want[v]).equal for v in want)


def test_the_library_call_hands_back_a_document(tmp_path: Path) -> None:
    model, x = small_models.mlp()
    document = fourfold.plan(model, (x,), memory="1MiB", train=True, out=tmp_path / "plan", **QUICK)
    solution = document.solutions[QUESTION]
    assert solution["solver"] in ("store_all", "reorder") and solution["limit"] == 2**20 and solution["peak"] <= 2**20
    assert solution["arena"] == MemoryPlan.load(tmp_path / "plan").arena
    told = plans.explain(tmp_path / "plan")
    assert told[0].startswith("Offsets alone need ") and any("write straight into the arena" in line for line in told)
    again = fourfold.plan(model, (x,), memory="1MiB", train=True, out=tmp_path / "plan", **QUICK).solutions[QUESTION]
    assert again["nodes"]["seconds"] == solution["nodes"]["seconds"], "the dry run is kept beside the plan"


def test_as_little_as_can_be_found_is_less_than_offsets_alone() -> None:
    model, x = small_models.mlp()
    found = plan_memory(model, (x,), memory="min", train=True, budget=0.5).solutions[QUESTION]
    assert found["limit"] is None and found["arena"] < 0.95 * found["peaks"]["offsets"] and found["again"] > 0
    with pytest.raises(Infeasible) as caught:
        plan_memory(model, (x,), memory=found["outside"] + 100, train=True, **QUICK)
    said = str(caught.value).splitlines()
    assert len(said) == 2 and "the least found is" in said[0] and "The op that needs most is" in said[0] and "--memory" in said[1]
    assert caught.value.exit_code == 3


def test_a_machine_that_is_elsewhere_is_planned_by_the_roofline_and_not_run(tmp_path: Path) -> None:
    model, x = small_models.mlp()
    solution = plan_memory(model, (x,), memory="1MiB", machine="p100x4", out=tmp_path / "plan", **QUICK).solutions[QUESTION]
    assert not solution["measured"] and solution["outside"] == 0 and solution["straight"] is None
    assert plans.verify(tmp_path / "plan") == {QUESTION: []}
    with pytest.raises(InputError, match="another machine"):
        check(tmp_path / "plan", model=model, inputs=(x,))


@pytest.mark.parametrize(("change", "says"), [
    (lambda s: s["answer"]["offset"].__setitem__(-1, s["answer"]["offset"][-1] + 1), "multiple of 64"),
    (lambda s: s["answer"]["sequence"].reverse(), "has not made"),
    (lambda s: s.update(cost=s["cost"] / 2), "counted again"),
    (lambda s: s.update(arena=s["arena"] - 64), "its arena takes"),
    (lambda s: s.update(limit=s["peak"] - 1), "above its limit"),
    (lambda s: s.update(room=s["arena"] - 64), "more than the limit"),
])
def test_verify_finds_what_was_altered(change: Any, says: str, tmp_path: Path) -> None:
    model, x = small_models.mlp()
    plan_memory(model, (x,), memory="1MiB", train=True, out=tmp_path, **QUICK)
    data = json.loads((tmp_path / "plan.json").read_text())
    change(data["solutions"][QUESTION])
    (tmp_path / "plan.json").write_text(json.dumps(data))
    wrong = plans.verify(tmp_path)[QUESTION]
    assert wrong and any(says in line for line in wrong), wrong


def test_a_damaged_plan_is_refused_in_words(tmp_path: Path) -> None:
    model, x = small_models.mlp()
    plan_memory(model, (x,), memory="1MiB", out=tmp_path, **QUICK)
    data = json.loads((tmp_path / "plan.json").read_text())
    del data["solutions"][QUESTION]["nodes"]["way"]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ArtefactError, match="is damaged"):
        MemoryPlan.load(tmp_path)


# ---- the commands

def test_plan_verify_run_and_explain(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("plan", "small_models:encoder", "--train", "--memory", "1MiB", "--evaluations", "200", "--progress", "none", "--out", "plan")
    code, out, err = ran(capsys, *asked)
    assert code == 0 and err == "" and "of 1 MiB asked for" in out and "fourfold run plan --check --trust small_models" in out
    code, out, _ = ran(capsys, "plan", "verify", "plan")
    assert code == 0 and out.startswith("rematerialise: sound.")
    code, out, _ = ran(capsys, "run", "plan", "--check", "--repeat", "1", *TRUSTED)
    assert code == 0 and "outputs equal the eager program's" in out and "write straight into the arena" in out
    code, out, _ = ran(capsys, "run", "plan", "--check", "--repeat", "1", "--json", *TRUSTED)
    document = json.loads(out)
    assert code == 0 and document["equal"] and document["within"] and document["measured"] == document["planned"]
    code, out, _ = ran(capsys, "explain", "plan")
    assert code == 0 and "Offsets alone need" in out
    code, out, _ = ran(capsys, *asked, "--json")
    assert code == 0 and json.loads(out)["question"] == QUESTION


def test_a_check_fails_where_the_limit_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(capsys, "plan", "small_models:mlp", "--memory", "1MiB", "--progress", "none", "--evaluations", "50")[0] == 0
    file = Path("plan/plan.json")
    data = json.loads(file.read_text())
    data["solutions"][QUESTION]["limit"] = 100
    file.write_text(json.dumps(data))
    code, out, _ = ran(capsys, "run", "plan", "--check", "--repeat", "1", *TRUSTED)
    assert code == 4 and "NOT kept" in out
    assert ran(capsys, "run", "plan", "--repeat", "1", *TRUSTED)[0] == 0


def test_a_check_fails_where_outputs_differ(capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(capsys, "plan", "small_models:encoder", "--memory", "1MiB", "--progress", "none", "--evaluations", "50")[0] == 0
    file = Path("plan/plan.json")
    data = json.loads(file.read_text())
    answer = data["solutions"][QUESTION]["answer"]
    answer["offset"] = [0] * len(answer["offset"])                      # everything in one place
    file.write_text(json.dumps(data))
    code, out, _ = ran(capsys, "run", "plan", "--check", "--repeat", "1", *TRUSTED)
    assert code == 4 and "differ" in out


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (("--memory", "4 apples"), 2, "apples"),
    (("--memory", "0"), 2, "1 or more"),
    (("--memory", "-5MiB"), 2, "1 or more"),
    (("--memory", "1MiB", "--question", "pipeline"), 2, "a question of its own"),
    (("--memory", "1MiB", "--objective", "throughput"), 2, "a question of its own"),
    (("--memory", "1MiB", "--far", "much@8GB/s"), 2, "size of --far"),
    (("--far", "64MiB@8GB/s",), 2, "Add --memory"),
    (("--memory", "1MiB", "--solver", "descend"), 2, "Did you mean 'descent'"),
    (("--memory", "4KiB", "--evaluations", "20"), 3, "the least found is"),
])
def test_mistakes_take_two_lines(arguments: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    given, out, err = ran(capsys, "plan", "small_models:mlp", "--progress", "none", *arguments)
    assert given == code and out == "" and says in err and len(err.strip().splitlines()) <= 2


def test_runs_of_other_folders_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ran(capsys, "run", "nowhere", "--memory")
    assert code == 2 and "no such folder" in err


def test_the_map_of_a_plan_is_a_sound_packing() -> None:
    from fourfold.decisions.rematerialise.problem import Rematerialise
    from fourfold.decisions.rematerialise.recompute_all import RecomputeAll
    from fourfold.problem import Budget
    from fourfold.report.memory import memory_map

    problem = Rematerialise.sample(1).within(None)
    answer = RecomputeAll().solve(problem, Budget(), 0).answer
    told = {"limit": None, "room": 0, "table": [{"solver": "recompute_all", "peak": problem.peak(answer), "cost": 1.0}], "solver": "recompute_all",
            "sentences": ["Said."], "notes": []}
    shown = memory_map(problem, answer, told)
    assert not shown.problem.violations(shown.offsets) and shown.solution.cost == problem.peak(answer)
    assert shown.solution.bound is not None and shown.solution.bound <= shown.solution.cost and shown.table[0]["cost"] == problem.peak(answer)


@pytest.mark.apart
def test_a_ctrl_c_keeps_the_best_so_far(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fourfold.decisions.rematerialise.reorder import Reorder

    inner = Reorder.solve

    def interrupted(self: Reorder, *asked: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return inner(self, *asked)

    monkeypatch.setattr(Reorder, "solve", interrupted)
    code, out, _ = ran(capsys, "plan", "small_models:mlp", "--memory", "1MiB", "--budget", "10min", "--progress", "none")
    assert code == 130 and "Interrupted" in out and plans.verify("plan") == {QUESTION: []}


@pytest.mark.parametrize(("text", "bytes_"), [("4MiB", 4 * 2**20), ("1.5 kB", 1500), (4096, 4096), ("min", None), ("MIN", None)])
def test_limits(text: int | str, bytes_: int | None) -> None:
    assert limit_of(text) == bytes_


def test_schedule_and_memory_stand_in_one_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(capsys, "plan", "small_models:mlp", "--solver", "expert", "--evaluations", "20", "--progress", "none")[0] == 0
    assert ran(capsys, "plan", "small_models:mlp", "--memory", "1MiB", "--progress", "none", "--evaluations", "20")[0] == 0
    assert plans.verify("plan") == {"schedule": [], QUESTION: []}
    again = ("plan", "plan", "--memory", "512KiB", "--progress", "none", "--evaluations", "20", *TRUSTED)
    assert ran(capsys, *again)[0] == 0, "a plan's folder is a model too"
    document = plans.read("plan")
    assert set(document.solutions) == {"schedule", QUESTION} and document.solutions[QUESTION]["limit"] == 512 * 1024
    code, out, _ = ran(capsys, "run", "plan", "--memory", "--check", "--repeat", "1", *TRUSTED)
    assert code == 0 and "one arena" in out


@pytest.mark.slow
def test_a_transformer_of_the_library_trains_in_two_thirds(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=4, n_embd=64, vocab_size=120, n_positions=64, attn_pdrop=0.0, embd_pdrop=0.1, resid_pdrop=0.1)
    model = transformers.GPT2LMHeadModel(config).train()
    ids = torch.randint(0, 120, (2, 32))
    inputs = {"input_ids": ids, "labels": ids}
    loose = plan_memory(model, inputs, memory="1GiB", train=True, **QUICK).solutions[QUESTION]
    limit = loose["outside"] + int(0.66 * loose["peaks"]["offsets"])
    found = plan_memory(model, inputs, memory=limit, train=True, budget=5.0, out=tmp_path).solutions[QUESTION]
    done = check(tmp_path, model=model, inputs=inputs, repeat=1)
    assert done.equal and done.within and found["again"] and np.isfinite(done.seconds)
