"""Layouts of serving: the published shares of peak and context lengths, the two simulators against each other, the rules in words, the command."""

from __future__ import annotations

import json
import math
import tomllib
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold import plans
from fourfold.cli import main
from fourfold.cost.serving import (
    ServingChips,
    ServingLayout,
    ServingPhase,
    collectives,
    crossover,
    longest_context,
    resident_bytes,
    serving_cost,
    wg_elements,
    ws_1d_elements,
    ws_2d_elements,
)
from fourfold.cost.serving_events import play, spans
from fourfold.decisions.layout._candidates import every
from fourfold.decisions.layout._front import front
from fourfold.decisions.layout.exhaustive import ExhaustiveLayout
from fourfold.decisions.layout.problem import ServingLayoutProblem, faults
from fourfold.errors import Infeasible, InputError, ModelError
from fourfold.jobs.serving_layout import serve
from fourfold.machine import Machine
from fourfold.problem import solve
from fourfold.report.claims import claims
from fourfold.sharding.mesh import Mesh
from fourfold.zoo.decoders import DecoderDims, decoder, decoder_names, named, of_config

CLAIMS = Path(__file__).parent.parent / "claims"
PALM = named("palm-540b")
TPU = ServingChips.of(Machine.read("tpu-v4x64"), Mesh.parse("4x4x4"))
READ = {file.stem: tomllib.loads(file.read_text(encoding="utf-8")) for file in sorted(CLAIMS.glob("layout-*.toml"))}
SHARES = [name for name, facts in READ.items() if "mfu_percent" in facts["published"]]
CONTEXTS = [name for name, facts in READ.items() if "context_128" in facts["published"]]


def phase_of(about: dict[str, object]) -> ServingPhase:
    batch, tokens, context = (int(str(about[key])) for key in ("batch", "tokens", "context"))
    return ServingPhase(str(about["phase"]), batch, tokens, context, {"int8": 1, "bfloat16": 2}[str(about["weights"])])


# ---- what was published

def test_dimensions_add_up_to_the_published_sizes() -> None:
    assert {name: round(named(name).parameters / 1e9) for name in decoder_names()} == {
        "palm-540b": 540, "palm-540b-multihead": 539, "palm-62b": 62, "palm-8b": 9}


@pytest.mark.parametrize("name", SHARES)
def test_published_shares_of_peak_within_15_per_cent_with_the_same_winner(name: str) -> None:
    about, phase = READ[name]["layout"], phase_of(READ[name]["layout"])
    best = solve(ServingLayoutProblem(PALM, TPU, (phase,)), ExhaustiveLayout()).answer[0]
    ours = 100 * serving_cost(PALM, phase, TPU, best).mfu
    assert best.title(TPU) == about["best"]
    assert ours == pytest.approx(READ[name]["published"]["mfu_percent"], rel=0.15)
    assert phase.kind == "prefill" or best.attention == "batch"
    claim = next(one for one in claims() if one.name == name)
    assert claim.met and claim.measured and claim.measured["mfu_percent"]["value"] == pytest.approx(ours)


@pytest.mark.parametrize("name", CONTEXTS)
def test_published_context_lengths_within_two_per_cent(name: str) -> None:
    about = READ[name]["layout"]
    for key, published in READ[name]["published"].items():
        ours = longest_context(named(about["model"]), int(key.split("_")[1]), TPU, ServingLayout("ws-1d", (), about["attention"]), about["share"])
        assert ours == pytest.approx(published, rel=0.02)
    assert next(one for one in claims() if one.name == name).met


def test_gathering_weights_wins_as_a_pass_carries_more_tokens() -> None:
    """Stationary first, then gathered over ever more axes, never back."""
    order = ["WS-2D", "WG-X", "WG-XY", "WG-XYZ"]
    won = [front(PALM, TPU, ServingPhase("prefill", batch, 2048), ())[0].title for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)]
    assert won[0] == "WS-2D" and won[-1] == "WG-XYZ" and [order.index(one) for one in won] == sorted(order.index(one) for one in won)
    tokens = crossover(PALM.feed_forward)
    assert wg_elements(tokens, PALM.width, PALM.feed_forward, 64) == pytest.approx(ws_2d_elements(tokens, PALM.width, 64))
    for factor, stationary in ((0.5, True), (2.0, False)):
        assert (ws_2d_elements(factor * tokens, PALM.width, 64) < wg_elements(factor * tokens, PALM.width, PALM.feed_forward, 64)) == stationary


def test_closed_forms_are_what_is_counted_for_a_plain_feed_forward_layer() -> None:
    """Two matrices, next to no attention, many chips: the collectives' bytes approach 2·BL·E and 8·BL·E/√n (the paper leaves out (K − 1)/K)."""
    plain = DecoderDims("plain", 1, 16384, 65536, 1024, 1, 1, 1000, gated=False, parallel=True)
    grid = ServingChips("grid", ("x", "y"), (16, 64), 1e12, 1e12, 1e12, 1e9, 0.0, 0.0)
    phase = ServingPhase("prefill", 1, 4096)

    def elements(layout: ServingLayout) -> float:
        return sum(one.bytes for one in collectives(plain, phase, grid, layout)) / 2

    assert elements(ServingLayout("ws-1d")) == pytest.approx(ws_1d_elements(4096, 16384), rel=0.01)
    assert elements(ServingLayout("ws-2d", ("x",))) == pytest.approx(ws_2d_elements(4096, 16384, 1024), rel=0.06)


# ---- two simulators

dims = st.builds(lambda layers, width, heads, kv, gated, parallel: DecoderDims("d", layers, 1024 * width, 4096 * width, heads, min(kv, heads), 128,
                                                                               32_000, gated, parallel),
                 st.integers(12, 24), st.integers(1, 8), st.sampled_from([16, 64]), st.sampled_from([1, 8, 64]), st.booleans(), st.booleans())
phases = st.builds(ServingPhase, st.sampled_from(["prefill", "decode"]), st.sampled_from([1, 4, 64, 256]), st.sampled_from([16, 512]),
                   st.sampled_from([0, 1024]), st.sampled_from([1, 2]))
grids = st.sampled_from([(4,), (2, 4), (4, 4), (2, 2, 4), (4, 4, 4)]).map(
    lambda shape: ServingChips("g", ("x", "y", "z")[: len(shape)], shape, 275e12, 1.2e12, 2**35, 270e9, 2e-6, 7e-6))


@settings(max_examples=80, deadline=None)
@given(dims, phases, grids)
def test_formulas_and_events_agree(model: DecoderDims, phase: ServingPhase, chips: ServingChips) -> None:
    """Written apart, they differ where a layer's halves are bound by different things, and in which matrix of a gather is waited for."""
    for layout in every(chips):
        if not faults(model, chips, phase, layout):
            formula, (events, _) = serving_cost(model, phase, chips, layout).step, play(model, phase, chips, layout)
            assert events == pytest.approx(formula, rel=0.12 if layout.scheme == "wg" else 0.05), layout


@pytest.mark.parametrize("name", SHARES)
def test_events_of_the_published_rows_within_one_per_cent(name: str) -> None:
    phase = phase_of(READ[name]["layout"])
    for layout in every(TPU):
        if not faults(PALM, TPU, phase, layout):
            seconds, events = play(PALM, phase, TPU, layout)
            assert seconds == pytest.approx(serving_cost(PALM, phase, TPU, layout).step, rel=0.01)
            assert all(a.end <= b.start + 1e-12 for a, b in zip(events, events[1:], strict=False) if a.layer == b.layer)
            assert math.fsum(value for _, value in spans(events)) == pytest.approx(events[-1].end)


def test_what_a_ring_reaches_of_a_chips_links() -> None:
    """A TPU's torus is written as one link; a P100 has one link, which a ring has to itself; a V100 has three, of which it uses one."""
    shares = {name: ServingChips.of(Machine.read(name), Mesh.parse(grid)).link_share for name, grid in (
        ("tpu-v4x64", "8x8"), ("p100x8", "2x4"), ("v100x4", "4"))}
    assert shares == {"tpu-v4x64": 1 / 3, "p100x8": 1.0, "v100x4": 1 / 3}


# ---- rules

def test_rules_are_told_with_what_is_missing() -> None:
    decode = ServingPhase("decode", 96, 64, 2048)
    told = {(layout.title(TPU), layout.attention): faults(PALM, TPU, decode, layout) for layout in every(TPU)}
    assert told["WS-2D", "batch"] == ["attention by batch: 96 sequences do not divide over 64 chips"]
    assert "96 sequences do not divide over the 64 chips whose weights are gathered" in told["WG-XYZ", "head"]
    unpadded = DecoderDims(**{**PALM.to_json(), "padded_heads": 0})   # pyright: ignore[reportArgumentType]
    few = ServingPhase("decode", 32, 64, 512)
    assert faults(unpadded, TPU, few, ServingLayout("ws-1d")) == ["48 heads do not divide over 64 chips; padded to 64 they would"]
    large = ServingPhase("decode", 512, 64, 40_000)
    said = faults(PALM, TPU, large, ServingLayout("ws-2d", ("x",), "batch"))[0]
    held = sum(resident_bytes(PALM, large, TPU, ServingLayout("ws-2d", ("x",), "batch")).values())
    assert f"{(held - TPU.memory) / 2**30:.3g} GiB too much; the cache alone" in said
    line = ServingChips("line", ("x",), (8,), 1e12, 1e12, 1e12, 1e9, 0.0, 0.0)
    assert "two dimensions need two axes" in faults(PALM, line, decode, ServingLayout("ws-2d", ("x",)))[0]
    assert "has no axis y" in faults(PALM, line, decode, ServingLayout("wg", ("y",)))[0]


@given(phases, grids)
@settings(max_examples=30, deadline=None)
def test_the_optimum_is_the_least_of_what_is_allowed(phase: ServingPhase, chips: ServingChips) -> None:
    model = named("palm-8b")
    problem = ServingLayoutProblem(model, chips, (phase,))
    axes = [tuple(a for a, on in zip(chips.names, mask, strict=True) if on) for mask in product((0, 1), repeat=len(chips.names))]
    all_of_them = [ServingLayout(scheme, x, how) for scheme in ("ws-1d", "ws-2d", "wg") for x in axes for how in ("head", "batch")
                   if bool(x) != (scheme == "ws-1d")]
    allowed = [(one,) for one in all_of_them if not problem.violations((one,))]
    found = solve(problem, ExhaustiveLayout())
    assert found.cost == min(problem.cost(answer) for answer in allowed) and found.gap == 0 and problem.bound() <= found.cost


def test_a_decoder_from_a_configuration_and_what_is_refused(tmp_path: Path) -> None:
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}
    (tmp_path / "config.json").write_text(json.dumps(llama))
    found = of_config(tmp_path)
    assert (found.gated, found.parallel, found.kv_heads, found.head_dim) == (True, False, 8, 128)
    assert round(found.parameters / 1e8) == 75                          # 8.03 billion with its second, untied embedding of 0.53 billion
    for change, kind, said in (({"num_experts": 8}, ModelError, "8 experts"), ({"architectures": ["BertModel"]}, ModelError, "decoder"),
                               ({"hidden_size": None}, ModelError, "hidden_size")):
        (tmp_path / "config.json").write_text(json.dumps(llama | change))
        with pytest.raises(kind, match=said) as caught:
            of_config(tmp_path)
        assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(InputError, match="Did you mean palm-540b"):
        decoder("palm540b")


# ---- the job and the command

def test_a_plan_of_both_phases_is_written_verified_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan"
    code = main.run(["plan", "palm-540b", "--devices", "4x4x4", "--machine", "tpu-v4x64", "--serve", "--batch", "512", "--out", str(out)])
    told = capsys.readouterr().out
    assert code == 0 and "Prefill: WG-XYZ" in told and "Decode: WS-2D" in told and "Nothing was measured" in told
    assert plans.verify(out) == {"layout": []} and main.run(["plan", "verify", str(out)]) == 0
    page = (out / "layout.html").read_text()
    assert page.count("<svg") == 2 and "http" not in page.replace("http-equiv", "") and "WG-XYZ" in page
    assert (out / "decode.svg").read_text().startswith("<svg xmlns")
    document = json.loads((out / "plan.json").read_text())
    rows = document["solutions"]["layout"]["rows"]
    assert [row["phase"]["kind"] for row in rows] == ["prefill", "decode"] and all(row["front"] for row in rows)
    document["solutions"]["layout"]["cost"] *= 0.9
    (out / "plan.json").write_text(json.dumps(document))
    assert "counted again" in plans.verify(out)["layout"][0]


def test_one_phase_int8_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.run(["plan", "palm-540b", "--devices", "8x8", "--machine", "tpu-v4x64", "--serve", "--phase", "decode", "--batch", "64", "--weights",
                     "int8", "--json", "--ledger", str(tmp_path / "books.jsonl"), "--out", str(tmp_path / "plan")])
    told = json.loads(capsys.readouterr().out)
    assert code == 0 and told["question"] == "layout" and told["rows"][0]["layout"]["attention"] == "batch" and (tmp_path / "books.jsonl").is_file()


@pytest.mark.parametrize(("options", "code", "said"), [
    (["--serve"], 2, "--serve needs the grid"),
    (["--serve", "--devices", "4x4", "--machine", "tpu-v4x64"], 2, "has 16 chips, and slice of 64 TPU v4 has 64"),
    (["--serve", "--devices", "4x4x4", "--machine", "tpu-v4x64", "--phase", "train"], 2, "prefill or decode"),
    (["--serve", "--devices", "4x4x4", "--machine", "tpu-v4x64", "--weights", "int4"], 2, "int8"),
    (["--serve", "--devices", "4x4x4", "--machine", "tpu-v4x64", "--phase", "decode", "--batch", "512", "--context", "60000"], 3, "GiB too much"),
    (["--serve", "--devices", "4x4x4", "--machine", "tpu-v4x64", "--solver", "weight_gathered_x", "--batch", "1"], 2, "declines"),
])
def test_errors_are_two_lines(options: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["plan", "palm-540b", *options]) == code
    told = capsys.readouterr().err
    assert said in told and len(told.strip().splitlines()) <= 2


def test_heads_that_divide_nowhere_are_infeasible() -> None:
    odd = DecoderDims("odd", 2, 1024, 4096, 6, 6, 128, 1000)
    chips = Machine.read("v100x4")
    with pytest.raises(Infeasible, match="6 heads do not divide over 4 chips; padded to 8 they would"):
        serve(odd, "4", machine=chips, phase="prefill", batch=2, prompt_tokens=64)
