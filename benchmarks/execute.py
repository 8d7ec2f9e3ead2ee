"""Plans executed against torch eager, torch.compile (plain, and with frozen weights) and ONNX Runtime as it comes, interleaved, on this machine.

    python benchmarks/execute.py                       # every model in a process of its own; writes benchmarks/results/execute.json
    python benchmarks/execute.py --only bert,vit       # these anew; the file's other rows stay
    python benchmarks/execute.py --prepare             # compile only, so that a later run finds compilers' caches warm

Models: transformers families built from configurations with random weights, and the convolutional networks that ship in the onnx package (their
weights, which are constants there, are drawn anew). All in float32, batch 1, all cores. A plan is made for this machine as one device (`expert`), its
engine raced (`runtime.local.race`), then stored; the timing that is reported is a later one, of all contestants in turns, in random order
(`measure.race`). A ratio is the other's time divided by the plan's in the same round: above 1, the plan is faster. Intervals are 90 %
bootstrap ones of the median. All contestants of a model share one process, so each gains from the allocator's settings (`workers/heap.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import provenance
import torch
from torch import nn

RESULTS = Path(__file__).parent / "results" / "execute.json"
OTHERS = ("eager", "compile", "compile, frozen", "onnxruntime")
TITLES = {"eager": "torch eager", "compile": "torch.compile", "compile, frozen": "torch.compile, frozen", "onnxruntime": "ONNX Runtime"}


# ---- models --------------------------------------------------------------------------------------------------------------------------------------

class First(nn.Module):
    """A transformers model called with tensors in order; its first tensor."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, given, strict=True)), return_dict=False)[0]


def ids(length: int, most: int = 2000) -> torch.Tensor:
    return torch.randint(5, most, (1, length), generator=torch.Generator().manual_seed(1))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def _transformers() -> dict[str, Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]]:
    import transformers as t

    text = {"vocab_size": 2000}
    plain: dict[str, Any] = {"attn_implementation": "sdpa"}
    return {
        "bert": lambda: (t.BertModel(t.BertConfig(hidden_size=256, num_hidden_layers=3, num_attention_heads=4, intermediate_size=1024, **text)),
                         {"input_ids": ids(128)}),
        "distilbert": lambda: (t.DistilBertModel(t.DistilBertConfig(dim=512, n_layers=3, n_heads=8, hidden_dim=2048, **text)),
                               {"input_ids": ids(64)}),
        "albert": lambda: (t.AlbertModel(t.AlbertConfig(embedding_size=128, hidden_size=384, num_hidden_layers=4, num_attention_heads=6,
                                                        intermediate_size=1536, **text)), {"input_ids": ids(128)}),
        "gpt2": lambda: (t.GPT2Model(t.GPT2Config(n_embd=384, n_layer=3, n_head=6, use_cache=False, **text)), {"input_ids": ids(128)}),
        "t5": lambda: (t.T5Model(t.T5Config(d_model=256, d_ff=1024, d_kv=32, num_layers=2, num_heads=8, use_cache=False, **text)),
                       {"input_ids": ids(64), "decoder_input_ids": ids(32)}),
        "vit": lambda: (t.ViTModel(t.ViTConfig(hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768)),
                        {"pixel_values": noise(1, 3, 224, 224)}),
        "resnet": lambda: (t.ResNetModel(t.ResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])),
                           {"pixel_values": noise(1, 3, 160, 160)}),
        "mobilenet_v2": lambda: (t.MobileNetV2Model(t.MobileNetV2Config()), {"pixel_values": noise(1, 3, 160, 160)}),
        "convnext": lambda: (t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 2, 2])),
                             {"pixel_values": noise(1, 3, 160, 160)}),
        "wav2vec2": lambda: (t.Wav2Vec2Model(t.Wav2Vec2Config(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=1024,
                                                              conv_dim=(128,) * 7, **plain)), {"input_values": noise(1, 8000)}),
    }


CONVOLUTIONAL = ("resnet50", "densenet121", "inception_v1", "inception_v2", "shufflenet", "squeezenet")
TORCH = ("bert", "distilbert", "albert", "gpt2", "t5", "vit", "resnet", "mobilenet_v2", "convnext", "wav2vec2")
MODELS = ("bert", "distilbert", "gpt2", "t5", "vit", "squeezenet", "shufflenet", "resnet50", "albert", "resnet", "inception_v1", "wav2vec2",
          "convnext", "densenet121", "inception_v2", "mobilenet_v2")


def drawn(name: str, folder: Path) -> Path:
    """The network of the onnx package with weights drawn anew (He et al. 2015), as a file."""
    import onnx

    from fourfold.frontends.onnx import capture

    found = capture(Path(onnx.__file__).parent / f"backend/test/data/light/light_{name}.onnx")
    program, dice = found.program, np.random.default_rng(0)
    made = {value: key for key, value in program.value.items()}
    role = {n.input[k]: k for n in program.model.graph.node if n.op_type == "BatchNormalization" for k in range(1, 5)}
    arrays = {}
    for value, old in program.weights().items():
        key, shape = made[value], old.shape
        if not np.issubdtype(old.dtype, np.floating):
            arrays[key] = old
        elif key in role:
            arrays[key] = dice.uniform(0.5, 1.5, shape) if role[key] in (1, 4) else 0.1 * dice.standard_normal(shape)
        else:
            spread = np.sqrt(2 / max(1, np.prod(shape[1:]))) if len(shape) > 1 else 0.01
            arrays[key] = dice.standard_normal(shape) * spread * (0.05 if len(shape) == 2 else 1.0)    # a softmax that is not all at one place
    model = type(program.model).FromString(program.model.SerializeToString())
    nodes = [n for n in model.graph.node if n.output[0] not in program.folded]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a, dtype=np.float32 if a.dtype.kind == "f" else a.dtype), key)
                                   for key, a in arrays.items())
    model.ir_version = max(model.ir_version, 8)                         # before 4 weights had to be inputs too
    keep = [i for i in model.graph.input if i.name in program.inputs]
    del model.graph.input[:]
    model.graph.input.extend(keep)
    path = folder / f"{name}.onnx"
    onnx.save(model, str(path))
    return path


# ---- one model -----------------------------------------------------------------------------------------------------------------------------------

def one(name: str, rounds: int, cache: Path, prepare: bool) -> dict[str, Any]:
    """All contestants on one model."""
    from fourfold.frontends.capture import capture
    from fourfold.host import here
    from fourfold.jobs.plan import plan as make
    from fourfold.machine import Machine
    from fourfold.measure import race as measured
    from fourfold.runtime.local.compare import compared
    from fourfold.runtime.local.executor import Local
    from fourfold.runtime.local.race import race

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    threads = here().cores
    torch.set_num_threads(threads)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        file = cache / f"{name}.onnx"                                   # exporting takes long, and gives the same again
        if name in TORCH:
            inner, fed = _transformers()[name]()
            module, inputs = First(inner.eval(), tuple(fed)).eval(), tuple(fed.values())
            why = "" if file.exists() else exported(module, inputs, tuple(fed), file)
            found = capture(module, inputs)
            feeds = {key: value.numpy() for key, value in fed.items()}
        else:
            file, why = drawn(name, Path(scratch)), ""
            found = capture(str(file))
            dice = np.random.default_rng(3)
            inputs = {key: dice.standard_normal(found.program.spec[key][0]).astype(np.float32) for key in found.program.inputs}
            feeds, module = inputs, None
        plan = make(found, machine=Machine.here(1), solver="expert", budget=30.0)
        raced = race(plan, found.program, inputs, folder=cache, say=lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True))
        plan = plan.replace(engines=dict(raced.engines))
        runners, reasons = others(module, inputs, found, file, feeds, threads, why)
        with Local(plan, found.program, inputs, stamps=False, folder=cache) as ready:
            ours = ready.outputs(ready.run()[2])
            wanted = runners["eager"]()
            error = compared("", first(ours), first(wanted)).relative
            ready_in = time.monotonic() - began
            if prepare:
                return {"model": name, "ready": ready_in, "engine": raced.engines["0"]}
            results = measured.race({"plan": ready.run, **runners}, baseline="plan", rounds=rounds, min_time=0.006, deadline=60.0)
    rows = {key: {"seconds": results[key].wall_median, "ratio": results[key].wall.value, "low": results[key].wall.low,
                  "high": results[key].wall.high, "faster": results[key].wall.verdict > 0, "slower": results[key].wall.verdict < 0,
                  "rounds": results[key].rounds} for key in runners}
    return {"model": name, "ops": len(found.graph), "engine": raced.engines["0"], "seconds": results["plan"].wall_median, "error": error,
            "others": rows, "absent": reasons, "race": [dict(row) for row in raced.rows], "ready": ready_in}


def first(answer: Any) -> Any:
    if isinstance(answer, dict):
        return next(iter(answer.values()))
    return answer[0] if isinstance(answer, tuple | list) else answer


def exported(module: nn.Module, inputs: tuple[torch.Tensor, ...], names: tuple[str, ...], file: Path) -> str:
    """Why torch cannot write it as ONNX; "" where it can. By the exporter that ONNX Runtime's users get, and the older one where that fails."""
    reasons = []
    for dynamo in (True, False):
        try:
            with torch.no_grad():
                torch.onnx.export(module, inputs, str(file), input_names=list(names), dynamo=dynamo, verbose=False)
            return ""
        except Exception as error:  # noqa: BLE001
            reasons.append(" ".join(str(error).split())[:120])
    return "; ".join(reasons)


def others(module: nn.Module | None, inputs: Any, found: Any, file: Path, feeds: dict[str, Any], threads: int, why: str,
           ) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Contestants by name, and why one is absent. An ONNX network runs in torch as the translation of its nodes."""
    reasons: dict[str, str] = {}
    if module is None:
        from fourfold.engines import region
        from fourfold.machine import Machine
        from fourfold.plans import Plan
        from fourfold.runtime.local.executor import Local

        count = len(found.graph)
        bare = Local(Plan(found.graph, Machine.here(1), "latency", np.arange(count), np.zeros(count), -np.arange(count), "", 1.0, "s"), found.program,
                     inputs)
        bare.inspect()
        part = bare.regions[0]
        module = region.module(part, bare.calls[0], {v: bare.weights[v] for v in part.weights}).eval()
        inputs = tuple(bare.given[v] for v in part.reads)
    whole: nn.Module = module
    runners: dict[str, Callable[[], Any]] = {"eager": under(lambda: whole(*inputs))}
    for name, options in (("compile", {}), ("compile, frozen", {"freezing": True})):
        torch._dynamo.reset()
        made = torch.compile(whole, dynamic=False, options=options or None)
        call = free(lambda made=made: made(*inputs))
        try:
            call()
            runners[name] = call
        except Exception as error:  # noqa: BLE001
            reasons[name] = " ".join(str(error).split())[:200]
    try:
        if why:
            raise RuntimeError(why)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        wanted = [port.name for port in session.get_inputs()]
        given = {name: feeds[name] for name in wanted}
        session.run(None, given)
        runners["onnxruntime"] = lambda: session.run(None, given)
    except Exception as error:  # noqa: BLE001
        reasons["onnxruntime"] = " ".join(str(error).split())[:200]
    return runners, reasons


def under(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return call()
    return run


def free(call: Callable[[], Any]) -> Callable[[], Any]:
    """no_grad: freezing looks at that only."""
    def run() -> Any:
        with torch.no_grad():
            return call()
    return run


# ---- all ------------------------------------------------------------------------------------------------------------------------------------------

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="models, separated by commas")
    parser.add_argument("--one", default="", help="a single model, in this process, as JSON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fourfold-execute")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    given.cache.mkdir(exist_ok=True)
    if given.one:
        sys.stdout = sys.stderr
        found = one(given.one, given.rounds, given.cache, given.prepare)
        print(json.dumps(found), file=sys.__stdout__)
        return
    rows: list[dict[str, Any]] = json.loads(given.out.read_text())["models"] if given.only and given.out.exists() else []
    for name in [n for n in given.only.split(",") if n] or MODELS:
        command = [sys.executable, __file__, "--one", name, "--rounds", str(given.rounds), "--cache", str(given.cache)]
        done = subprocess.run(command + ["--prepare"] * given.prepare, capture_output=True, text=True, check=False)
        rows = [row for row in rows if row["model"] != name]
        if done.returncode:
            print(f"{name}: failed\n{done.stderr[-2000:]}", flush=True)
            rows.append({"model": name, "failed": done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else str(done.returncode)})
        else:
            rows.append(json.loads(done.stdout))
            tell(rows[-1])
        if not given.prepare:
            provenance.publish(given.out, {"about": provenance.facts(given, [0]), **document(rows)})
    if not given.prepare:
        for line in document(rows)["summary"]:
            print(line)


def tell(row: dict[str, Any]) -> None:
    if "others" not in row:
        print(f"{row['model']:14s} ready in {row['ready']:.0f} s, {row['engine']}", flush=True)
        return
    told = "  ".join(f"{key} {r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for key, r in row["others"].items())
    print(f"{row['model']:14s} {row['engine']:12s} {1e3 * row['seconds']:8.2f} ms  error {row['error']:.1e}  {told}", flush=True)


def document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    good = [row for row in rows if "others" in row]
    summary = []
    for key in OTHERS:
        mine = [row["others"][key] for row in good if key in row["others"]]
        if mine:
            geomean = float(np.exp(np.mean([np.log(r["ratio"]) for r in mine])))
            summary.append(f"{TITLES[key]}: plan faster beyond doubt on {sum(r['faster'] for r in mine)}, slower beyond doubt on "
                           f"{sum(r['slower'] for r in mine)} of {len(mine)}; median ratio above 1 on {sum(r['ratio'] > 1 for r in mine)}; "
                           f"geometric mean {geomean:.2f}")
    return {"models": rows, "summary": summary}


if __name__ == "__main__":
    main()
