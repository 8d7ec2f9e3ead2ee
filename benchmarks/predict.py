"""How well the simulator foretells this machine after `fourfold calibrate`: seconds of whole models, and the order of random plans.

    python benchmarks/predict.py [--seconds 150] [--rounds 25] [--plans 24] [--machine FILE] [--only NAME …] [--quick]

*Seconds of a model* is the time from giving inputs to having outputs of one run of its captured program, executed as `fourfold run` executes it: one
process, every node in the plan's order by an operator call of its own, values dropped after their last reader. Predicted is the makespan of the
simulator for that plan, from the machine file alone. Calibration sees single operators of its own sizes, never a model, and none of these: all of
them are held out.

*Order of plans*: random fusion and placement over two worker processes of half the cores each, executed and simulated; Kendall's τ of the two orders.

Models and plans are timed in interleaved rounds in random order; a time is the lower quartile over rounds, its interval the range of the quartiles of
resampled rounds (90 %). What other processes take of the machine lengthens what is measured, not what is predicted; where one thread does all the
work its processor time is told beside the wall clock.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import provenance

from fourfold.measure import bootstrap

HOME = Path(__file__).parent


# ---- the models ----------------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Model:
    """A real architecture with random weights: `make` builds it, `dims` are sizes of its inputs by name, or `inputs` gives them."""

    name: str
    make: Callable[[], Any]
    dims: Mapping[str, int] = field(default_factory=dict)
    inputs: Callable[[], tuple[Any, ...]] | None = None


def _transformers(kind: str, config: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, kind)(getattr(transformers, config)(**options))

    return make


def _clip() -> Any:
    import transformers

    side = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "projection_dim": 256}
    text = side | {"vocab_size": 8000, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 77}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=side | {"image_size": 224, "patch_size": 32},
                                                          projection_dim=256))


def _encoder() -> Any:
    import torch

    layer = torch.nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, norm_first=True)
    return torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


def _noise(*shape: int) -> tuple[Any, ...]:
    import torch

    return (torch.randn(shape, generator=torch.Generator().manual_seed(2)),)


def _lite() -> Any:
    """EfficientNet-Lite0's stages: inverted residuals without squeeze and excitation, ReLU6, widths 16 to 320, a head of 1280."""
    from torch import nn

    def unit(inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True) -> list[nn.Module]:
        conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outside, eps=1e-3), *([nn.ReLU6()] if act else [])]

    class Inverted(nn.Module):
        def __init__(self, inside: int, outside: int, kernel: int, stride: int, expand: int) -> None:
            super().__init__()
            wide = inside * expand
            first = unit(inside, wide) if expand > 1 else []
            self.body = nn.Sequential(*first, *unit(wide, wide, kernel, stride, wide), *unit(wide, outside, act=False))
            self.add = stride == 1 and inside == outside

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.add else self.body(x)

    stages = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]
    blocks, width = unit(3, 32, 3, 2), 32
    for count, kernel, stride, expand, wide in stages:
        for k in range(count):
            blocks.append(Inverted(width, wide, kernel, stride if k == 0 else 1, expand))
            width = wide
    return nn.Sequential(*blocks, *unit(width, 1280), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


_BERT = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024, "vocab_size": 8000}
_WAVE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024, "conv_dim": (256,) * 7,
         "num_conv_pos_embeddings": 64, "num_conv_pos_embedding_groups": 16}
_WHISPER = {"d_model": 256, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024, "vocab_size": 8000, "max_source_positions": 250, "max_target_positions": 64,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None,
            "begin_suppress_tokens": None}
_LLAMA = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 688,
          "vocab_size": 8000}

MODELS = [
    Model("bert", _transformers("BertForSequenceClassification", "BertConfig", **_BERT), {"length": 128}),
    Model("distilbert", _transformers("DistilBertForSequenceClassification", "DistilBertConfig", dim=384, n_layers=4, n_heads=6, hidden_dim=1536,
                                      vocab_size=8000), {"length": 64}),
    Model("roberta", _transformers("RobertaForSequenceClassification", "RobertaConfig",
                                   **_BERT | {"num_hidden_layers": 4, "pad_token_id": 1, "type_vocab_size": 1}), {"length": 64, "batch": 2}),
    Model("gpt2", _transformers("GPT2LMHeadModel", "GPT2Config", n_embd=256, n_layer=4, n_head=4, vocab_size=8000, n_positions=128), {"length": 96}),
    Model("opt", _transformers("OPTForCausalLM", "OPTConfig", hidden_size=256, num_hidden_layers=4, num_attention_heads=4, ffn_dim=1024,
                               word_embed_proj_dim=256, vocab_size=8000, max_position_embeddings=128), {"length": 64}),
    Model("llama", _transformers("LlamaForCausalLM", "LlamaConfig", **_LLAMA), {"length": 64}),
    Model("t5", _transformers("T5ForConditionalGeneration", "T5Config", d_model=256, d_ff=1024, d_kv=64, num_layers=3, num_heads=4, vocab_size=8000,
                              decoder_start_token_id=0), {"length": 64, "decoder_length": 32}),
    Model("vit", _transformers("ViTForImageClassification", "ViTConfig", hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
                               intermediate_size=768, image_size=224, patch_size=16)),
    Model("whisper", _transformers("WhisperForConditionalGeneration", "WhisperConfig", **_WHISPER), {"decoder_length": 32}),
    Model("wav2vec2", _transformers("Wav2Vec2ForCTC", "Wav2Vec2Config", vocab_size=32, **_WAVE), {"samples": 16000}),
    Model("clip", _clip, {"length": 32}),
    Model("encoder", _encoder, inputs=lambda: _noise(2, 64, 256)),
    Model("lite0", _lite, inputs=lambda: _noise(1, 3, 224, 224)),
    Model("resnet", _transformers("ResNetForImageClassification", "ResNetConfig", embedding_size=32, hidden_sizes=[64, 128, 256, 512],
                                  depths=[2, 2, 2, 2], layer_type="basic"), inputs=lambda: _noise(1, 3, 160, 160)),
    Model("convnext", _transformers("ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 4, 2]),
          inputs=lambda: _noise(1, 3, 160, 160)),
]
LIGHT = ("squeezenet", "shufflenet", "bvlc_alexnet", "zfnet512", "inception_v1", "inception_v2", "resnet50", "densenet121")


def light() -> list[Model]:
    """The conv nets that the `onnx` package ships."""
    from importlib.resources import files

    folder = files("onnx").joinpath("backend/test/data/light")
    return [Model(f"onnx-{name}", lambda name=name: str(folder.joinpath(f"light_{name}.onnx"))) for name in LIGHT]


def captured(model: Model) -> Any:
    """The model's program and inputs."""
    import torch

    from fourfold.frontends.capture import capture

    torch.manual_seed(0)
    made = model.make()
    if hasattr(made, "eval"):
        made = made.eval()
    return capture(made, model.inputs() if model.inputs else None, dims=dict(model.dims), name=model.name)


# ---- time ----------------------------------------------------------------------------------------------------------------------------------------

def quartile(times: Any) -> float:
    return float(np.quantile(times, 0.25))


def interval(times: Any, seed: int = 0) -> tuple[float, float]:
    """90 % of the quartiles of resampled rounds."""
    return bootstrap.interval(bootstrap.resampled(lambda drawn: np.quantile(drawn, 0.25, axis=1), times, seed=seed, resamples=500))


Pair = tuple[float, float]                                              # s: wall, processor time of this process


def _both(ready: Any) -> Pair:
    """A warm run, as `execute` measures it: right after one that does not count."""
    ready.run()
    began = time.process_time()
    wall = ready.run()[1]
    return wall, time.process_time() - began


def interleaved(calls: Mapping[str, Callable[[], Pair]], rounds: int, seed: int = 0) -> dict[str, list[Pair]]:
    """s of every call in every round, in random order within a round; the round before does not count."""
    dice, names = np.random.default_rng(seed), list(calls)
    times: dict[str, list[Pair]] = {name: [] for name in names}
    for round_ in range(rounds + 1):
        for k in dice.permutation(len(names)).tolist():
            took = calls[names[k]]()
            if round_:
                times[names[k]].append(took)
    return times


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """τ-b of two rows."""
    from scipy.stats import kendalltau

    return float(kendalltau(one, other).statistic)  # type: ignore[attr-defined]


# ---- plans ---------------------------------------------------------------------------------------------------------------------------------------

def plan_of(found: Any, system: Any, place: np.ndarray | None = None, group: np.ndarray | None = None) -> Any:
    """A plan by hand: nodes in the graph's order, unfused on the first device unless told otherwise."""
    from fourfold.plans import Plan

    count = len(found.graph)
    group = np.full(count, -1) if group is None else group
    place = np.zeros(count, int) if place is None else place
    plan = Plan(found.graph, system, "latency", group, place, -np.arange(count, dtype=float), "by hand", 0.0, "s")
    return plan.replace(cost=float(plan.timeline().makespan))


def given(found: Any) -> Any:
    """The inputs it was captured with; random ones of the declared shapes where there are none."""
    if found.inputs is not None:
        return found.inputs
    program, dice = found.program, np.random.default_rng(0)
    return {name: dice.random(program.spec[name][0], np.float32) for name in program.inputs}


# ---- whole models --------------------------------------------------------------------------------------------------------------------------------

def models(wanted: Sequence[Model], system: Any, rounds: int, batch: int, single: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row per model: predicted and measured seconds on the first device of `system`; `batch` models are timed interleaved."""
    from contextlib import ExitStack

    from fourfold.cost.roofline import seconds
    from fourfold.runtime.local.executor import Local

    rows: list[dict[str, Any]] = []
    for first in range(0, len(wanted), batch):
        with ExitStack() as stack:
            calls: dict[str, Callable[[], Pair]] = {}
            for model in wanted[first: first + batch]:
                try:
                    found = captured(model)
                    plan = plan_of(found, system)
                    ready = stack.enter_context(Local(plan, found.program, given(found), engines="eager", placement="planned", stamps=False))
                except Exception as error:  # noqa: BLE001 — a model that cannot be had here is told, the others stand
                    say(f"{model.name}: {type(error).__name__}: {str(error)[:200]}")
                    continue
                priced = seconds(found.graph, system)[:, 0]
                rows.append({"model": model.name, "nodes": len(found.graph), "gflop": float(found.graph.flops.sum() / 1e9), "predicted": plan.cost,
                             "launch": float(_launches(found.graph, system)), "parts": _parts(found.graph, priced)})
                calls[model.name] = lambda ready=ready: _both(ready)
            told = interleaved(calls, rounds)
        for row in rows:
            if row["model"] in told:
                _measured(row, told[row["model"]], single)
                say(_line(row))
    return rows


def _launches(graph: Any, system: Any) -> float:
    from fourfold.cost.roofline import Prices

    return Prices(graph, system).launch[:, 0].sum()


def _parts(graph: Any, priced: np.ndarray) -> dict[str, float]:
    """Predicted seconds by kind of op, the eight dearest."""
    by: dict[str, float] = {}
    for kind, took in zip(graph.kind.tolist(), priced.tolist(), strict=True):
        by[graph.kinds[kind]] = by.get(graph.kinds[kind], 0.0) + took
    return dict(sorted(by.items(), key=lambda one: -one[1])[:8])


def _measured(row: dict[str, Any], times: Sequence[Pair], single: bool) -> None:
    """`measured`: by the wall clock; `busy`, where one thread does it all: its processor time, which others on the machine do not lengthen."""
    wall, busy = (np.array(one) for one in zip(*times, strict=True))
    row |= {"measured": quartile(wall), "interval": interval(wall), "median": float(np.median(wall)), "runs": len(wall)}
    row["error"] = row["predicted"] / row["measured"] - 1
    if single:
        row |= {"busy": quartile(busy), "busy_interval": interval(busy), "busy_error": row["predicted"] / quartile(busy) - 1}


def _line(row: Mapping[str, Any]) -> str:
    told, measured, low, high = (f"{one * 1e3:.2f}" for one in (row["predicted"], row["measured"], *row["interval"]))
    busy = f"  processor time {row['busy'] * 1e3:.2f} ms {row['busy_error']:+.1%}" if "busy" in row else ""
    return f"{row['model']:<24} {row['nodes']:>4}  predicted {told:>7} ms  measured {measured:>7} [{low}, {high}] {row['error']:+.1%}{busy}"


# ---- random plans --------------------------------------------------------------------------------------------------------------------------------

def drawn(found: Any, system: Any, count: int, seed: int = 0) -> list[tuple[str, Any]]:
    """`count` random plans over two devices: the whole on one; stretches (two to a hundred), or single nodes strewn about."""
    dice, nodes, plans = np.random.default_rng(seed), len(found.graph), []
    for k in range(count):
        style = ("one device", "stretches", "strewn")[0 if k == 0 else 1 + k % 2]
        place = np.zeros(nodes, int)
        if style == "stretches":
            cuts = np.sort(dice.integers(1, nodes, size=int(np.exp(dice.uniform(0.0, 4.6)))))
            place = (np.searchsorted(cuts, np.arange(nodes), side="right") + int(dice.integers(2))) % len(system)
        elif style == "strewn":
            place = np.where(dice.random(nodes) < np.exp(dice.uniform(-4.6, -0.7)), 1, 0)
        plans.append((f"{style} {k}", plan_of(found, system, together(found.graph, place))))
    return plans


def together(graph: Any, place: np.ndarray) -> np.ndarray:
    """`place` with nodes that must share a device where the first of them is."""
    place = place.copy()
    for mark in np.unique(graph.colocation[graph.colocation >= 0]):
        mine = np.flatnonzero(graph.colocation == mark)
        place[mine] = place[mine[0]]
    return place


def plans(wanted: Sequence[Model], system: Any, count: int, rounds: int, batch: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row per random plan of each model: simulated and measured seconds on all devices of `system`."""
    from contextlib import ExitStack

    from fourfold.runtime.local.executor import Local

    rows: list[dict[str, Any]] = []
    for model in wanted:
        found = captured(model)
        mine = drawn(found, system, count)
        for first in range(0, len(mine), batch):
            with ExitStack() as stack:
                calls: dict[str, Callable[[], Pair]] = {}
                for name, plan in mine[first: first + batch]:
                    ready = stack.enter_context(Local(plan, found.program, given(found), engines="eager", placement="planned", stamps=False))
                    line = plan.timeline()
                    rows.append({"model": model.name, "plan": name, "predicted": float(line.makespan), "transfers": len(line.transfers),
                                 "loads": line.busy.tolist()})
                    calls[name] = lambda ready=ready: _both(ready)
                told = interleaved(calls, rounds)
            for row in rows:
                if row["model"] == model.name and row["plan"] in told:
                    _measured(row, told[row["plan"]], False)
                    say(_line(row | {"model": f"{row['model']} {row['plan']}", "nodes": row["transfers"]}))
    return rows


# ---- main ----------------------------------------------------------------------------------------------------------------------------------------

def settled(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Kendall's τ over the pairs whose measured intervals do not overlap: those whose order the measurement itself settles."""
    agree, pairs = 0, 0
    for k, one in enumerate(rows):
        for other in rows[:k]:
            if one["interval"][0] > other["interval"][1] or other["interval"][0] > one["interval"][1]:
                pairs += 1
                agree += (one["predicted"] - other["predicted"]) * (one["measured"] - other["measured"]) > 0
    return {"settled_pairs": pairs, "settled_kendall": 2 * agree / pairs - 1 if pairs else float("nan")}


def summary(rows: Sequence[Mapping[str, Any]], error: str = "error", time: str = "measured") -> dict[str, float]:
    errors = np.array([row[error] for row in rows])
    off = np.abs(errors)
    return {"rows": len(rows), "mean_absolute_error": float(off.mean()), "worst": float(off.max()), "bias": float(errors.mean()),
            "within_15_percent": int((off <= 0.15).sum()), "kendall": kendall([r["predicted"] for r in rows], [r[time] for r in rows])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150.0, help="time of each calibration")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--plans", type=int, default=24, help="random plans; 0: none")
    parser.add_argument("--threads", type=int, nargs="*", default=[1], help="threads of the one process that runs whole models: 1, or all cores")
    parser.add_argument("--machines", type=Path, default=HOME / "work" / "machines", help="where machine files are kept; those there are used")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=HOME / "results" / "predict.json")
    asked = parser.parse_args()
    document = run(asked)
    provenance.publish(asked.out, document)


def run(asked: argparse.Namespace) -> dict[str, Any]:
    from fourfold.host import here

    began, cores = time.time(), here().cores
    document: dict[str, Any] = {"rounds": asked.rounds, "scheduling": scheduling(),
                                "execution": "fourfold.runtime.local.executor, eager engine, one region per device between transfers",
                                "held_out": "calibration times single operators only; no model is among them", "models": {}, "plans": {}}
    zoo = [model for model in MODELS + light() if not asked.only or model.name in asked.only]
    for threads in asked.threads:
        workers = max(1, cores // threads)
        system = machine(asked.machines, workers, asked.seconds)
        rows = models(zoo, system, asked.rounds, 8, threads == 1, print)
        told = {"wall clock": summary(rows)} | ({"processor time": summary(rows, "busy_error", "busy")} if threads == 1 else {})
        document["models"][f"{threads} thread{'s' * (threads > 1)}"] = {"summary": told, "rows": rows}
        print(f"{threads} thread{'s' * (threads > 1)}: {told}")
    if asked.plans:
        system = machine(asked.machines, cores, asked.seconds)
        chosen = [model for model in MODELS if model.name in ("bert", "clip", "t5")]
        rows = plans(chosen, system, asked.plans, asked.rounds, 8, print)
        each = {model.name: [row for row in rows if row["model"] == model.name] for model in chosen}
        by = {name: summary(mine) | settled(mine) for name, mine in each.items()}
        document["plans"] = {"summary": by, "kendall": float(np.mean([one["kendall"] for one in by.values()])), "rows": rows}
        print({name: (one["kendall"], one["settled_kendall"]) for name, one in by.items()})
    document["seconds"] = time.time() - began
    document = {"about": provenance.facts(asked, [0]), **document}
    return document


def scheduling() -> str:
    """By which rule the system shares its processors with this process: ahead of others ("SCHED_FIFO 1") or evenly ("SCHED_OTHER 0")."""
    names = {getattr(os, name): name for name in ("SCHED_OTHER", "SCHED_FIFO", "SCHED_RR") if hasattr(os, name)}
    return f"{names.get(os.sched_getscheduler(0), '?')} {os.sched_getparam(0).sched_priority}" if names else ""


def machine(folder: Path, workers: int, seconds: float) -> Any:
    """The machine file of so many workers, measured where it is missing."""
    from fourfold.jobs.calibrate import calibrate
    from fourfold.machine import Machine

    file = folder / f"workers{workers}.toml"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        calibrate(workers, seconds, print).write(file)
    return Machine.read(file)


if __name__ == "__main__":
    main()
