"""What a token costs in each engine and precision, and what each precision does to perplexity: SmolLM2-135M as shipped, prompt 128 and 64 new tokens.

Every way is opened by the same contract and answers the same prompts, greedily, in rounds of random order; cost is the process's CPU time. Perplexity
is of windows of a novel that calibration never saw, by the engine that is timed, each token after the right ones. Peers run in an interpreter of
their own (`--peers`), on the same weights, which OpenVINO's own tool stores in its default ways. The shipped weights are 4 bits already: quality is
relative to the model as shipped, never to the one that it was made from.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import numpy as np
import provenance
import sources

from fourfold.errors import FourfoldError

if TYPE_CHECKING:
    from torch import nn

    from fourfold.engines.decode.base import Decoding

MEASURED = ("prefill", "decode")


@dataclass
class Way:
    """An engine in a precision: how it is opened with a number of threads, and what was found of it."""

    name: str
    engine: str
    weights: str
    arithmetic: str
    open: Callable[[int], Decoding]
    perplexity: float | None = None
    bits: float = 32.0
    times: dict[str, dict[str, list[float]]] = field(default_factory=dict)


def windows(text: str, tokenizer: object, count: int, length: int, skip: int = 20_000) -> np.ndarray:
    """int64 [count, length] tokens of a text, one window after the other."""
    ids = np.array(tokenizer(text[skip : skip + count * length * 6])["input_ids"], np.int64)  # type: ignore[operator]
    return ids[: count * length].reshape(-1, length)


def perplexity(decoding: Decoding, tokens: np.ndarray, rows: int = 2) -> float:
    """exp of the mean negative log-likelihood of each token after the first of its window."""
    total, count = 0.0, 0
    for begin in range(0, len(tokens), rows):
        part = tokens[begin : begin + rows]
        state, first = decoding.start({"input_ids": part[:, :1], "attention_mask": np.ones((len(part), 1), np.int64)}, part.shape[1])
        rest = decoding.step(state, part[:, 1:-1])
        logits = np.concatenate([first[:, None], rest], 1)
        for row, right in zip(logits, part[:, 1:], strict=True):
            row = row - row.max(-1, keepdims=True)
            total -= float((row[np.arange(len(right)), right] - np.log(np.exp(row).sum(-1))).sum())
            count += len(right)
    return float(np.exp(total / count))


def once(decoding: Decoding, prompts: np.ndarray, new: int) -> tuple[float, float]:
    """CPU seconds of the prompt and of `new` − 1 greedy steps after it."""
    began = time.process_time()
    state, logits = decoding.start({"input_ids": prompts, "attention_mask": np.ones_like(prompts)}, prompts.shape[1] + new)
    token = logits.argmax(-1)[:, None]
    read = time.process_time()
    for _ in range(new - 1):
        token = decoding.step(state, token)[:, -1].argmax(-1)[:, None]
    return read - began, time.process_time() - read


def ways(module: nn.Module, calibration: np.ndarray, folder: Path, only: list[str], mean: list[float]) -> list[Way]:
    """All that can be opened here; a precision's files are made once."""
    import torch

    from fourfold.engines.decode import onnxruntime, openvino
    from fourfold.engines.decode.eager import EagerDecoding
    from fourfold.rewrites.weight_precision import Grid, WeightPlan, head_of, mixed, packed, predicted, uniform, weight_bits

    tokens = torch.from_numpy(calibration)
    rtn, gptq, awq = (f"compress/{name}" for name in ("round_to_nearest", "gptq", "awq"))
    four, sym, exact, eight = Grid(4, 32, "integer"), Grid(4, 64, "symmetric"), Grid(4, 32, "fractional"), Grid(8, 0, "symmetric")
    plans = {
        "int8": WeightPlan("int8", rtn, uniform(module, eight)),
        "int4 exact": WeightPlan("int4 exact", rtn, uniform(module, exact)),
        "int4 rtn": WeightPlan("int4 rtn", rtn, uniform(module, four)),
        "int4 gptq": WeightPlan("int4 gptq", gptq, uniform(module, four)),
        "int4 awq": WeightPlan("int4 awq", awq, uniform(module, four)),
        "int4 gptq sym 64": WeightPlan("int4 gptq sym 64", gptq, uniform(module, sym)),
    }
    if mean:
        from torch.nn.functional import cross_entropy

        few, choices = tokens[:8], [sym, four, eight]
        harms = predicted(module, lambda m: cross_entropy(m(input_ids=few).logits[:, :-1].flatten(0, 1), few[:, 1:].flatten()), choices)
        head = head_of(module)
        if head in harms:
            harms[head][:2] = np.inf  # its table is looked up too: 8 bits, as in the uniform plans
        plans |= {plan.name: plan for plan in mixed(module, harms, choices, mean, gptq)}
    found = [Way("torch fp32", "torch", "fp32", "fp32", lambda n: EagerDecoding(module, n)),
             Way("torch bf16", "torch", "bf16", "bf16", lambda n: EagerDecoding(module, n, "bf16"), bits=16.0)]  # fmt: skip
    made: dict[str, Path] = {}

    def place(name: str, build: Callable[[], nn.Module], onnx: bool = False) -> Path:
        if name not in made:
            made[name] = folder / name.replace(" ", "-")
            if not (made[name] / "bits.json").exists():
                made[name].mkdir(parents=True, exist_ok=True)
                began = time.process_time()
                module = build()
                bits = weight_bits(module)
                sizes = {p: module.get_submodule(p).in_features * module.get_submodule(p).out_features for p in bits}  # type: ignore[operator]
                if onnx:
                    onnxruntime.export(module, made[name], "int8")
                else:
                    openvino.export(module, made[name])
                (made[name] / "bits.json").write_text(json.dumps(
                    {"bits": sum(bits[p] * sizes[p] for p in bits) / sum(sizes.values()), "seconds": time.process_time() - began}))  # fmt: skip
        return made[name]

    def add(weights: str, build: Callable[[], nn.Module], *settings: tuple[str, str]) -> None:
        if only and not any(word in weights for word in only):
            return
        where = place(weights, build)
        for arithmetic, cache in settings:
            name = f"openvino {weights} {arithmetic}" + (f" cache {cache}" if cache else "")
            found.append(Way(name, "openvino", weights, arithmetic, lambda n, a=arithmetic, c=cache: openvino.OpenVinoDecoding(where, n, a, c),
                             bits=json.loads((where / "bits.json").read_text())["bits"]))  # fmt: skip

    def by_onnx(weights: str, where: Path) -> Way:
        return Way(f"onnxruntime {weights} int8", "onnxruntime", weights, "int8", lambda n: onnxruntime.OnnxDecoding(where, n, "int8"),
                   bits=json.loads((where / "bits.json").read_text())["bits"])  # fmt: skip

    add("fp32", lambda: module, ("fp32", ""), ("bf16", ""))
    for name, plan in plans.items():
        settings = [("bf16", "")] if "exact" in name else [("int8", "")] if name in ("int4 rtn", "int4 awq") else [("int8", ""), ("bf16", "")]
        add(name, lambda p=plan: packed(module, p, lambda m: m(input_ids=tokens)), *settings, *([("int8", "bf16")] if name == "int8" else []))
    for name in ("int8", "int4 rtn"):
        if not only or any(word in f"onnxruntime {name}" for word in only):
            found.append(by_onnx(name, place(f"{name} ort", lambda p=plans[name]: packed(module, p, lambda m: m(input_ids=tokens)), onnx=True)))
    return found


def measure(found: list[Way], prompts: np.ndarray, new: int, batches: list[int], threads: list[int], rounds: int, seed: int) -> None:
    """Rounds in random order; the first of each way is not counted."""
    rng = np.random.default_rng(seed)
    for count in threads:
        opened = {way.name: way.open(count) for way in found}
        for batch in batches:
            key = f"batch {batch}, {count} thread{'s' * (count > 1)}"
            for r in range(rounds + 1):
                for i in rng.permutation(len(found)):
                    rows = prompts[(r * batch + np.arange(batch)) % len(prompts)]
                    prefill, decode = once(opened[found[i].name], rows, new if r else 4)
                    if r:
                        kept = found[i].times.setdefault(key, {name: [] for name in MEASURED})
                        kept["prefill"].append(prefill / batch)
                        kept["decode"].append(decode / (new - 1) / batch)
            told(found, key, batch)
        for one in opened.values():
            one.close()


def total(way: Way, key: str, new: int) -> np.ndarray:
    """CPU seconds a prompt with its answer, a round each."""
    return np.array(way.times[key]["prefill"]) + (new - 1) * np.array(way.times[key]["decode"])


def told(found: list[Way], key: str, batch: int) -> None:
    print(f"\n{key}: CPU milliseconds of a prompt, and of a new token (median over rounds)")
    for way in found:
        times = way.times[key]
        print(f"  {way.name:38} {1e3 * np.median(times['prefill']):8.1f} {1e3 * np.median(times['decode']):8.2f}", flush=True)


def peers(module: nn.Module, python: Path, folder: Path, tokenizer_folder: Path, prompts: np.ndarray, args: argparse.Namespace) -> dict[str, object]:
    """OpenVINO GenAI on the same weights, stored by NNCF's own ways: the graph is ours without what its pipeline does not hand over."""
    import nncf
    import openvino as core

    from fourfold.engines.decode import openvino

    plain = folder / "peer-fp32" / "openvino_model.xml"
    if not plain.exists():
        plain.parent.mkdir(parents=True, exist_ok=True)
        openvino.export_plain(module, plain)
    np.save(folder / "prompts.npy", prompts)
    found: dict[str, object] = {}
    kinds = nncf.CompressWeightsMode
    modes = {"int8": {"mode": kinds.INT8_ASYM}, "int4": {"mode": kinds.INT4_ASYM, "group_size": 64, "ratio": 1.0},
             "int4 sym": {"mode": kinds.INT4_SYM, "group_size": 64, "ratio": 1.0}}  # fmt: skip
    for name, mode in modes.items():
        where = folder / f"peer-{name.replace(' ', '-')}"
        if not (where / "openvino_model.xml").exists():
            where.mkdir(parents=True, exist_ok=True)
            stored = nncf.compress_weights(core.Core().read_model(str(plain)), **mode)
            core.save_model(stored, str(where / "openvino_model.xml"), compress_to_fp16=False)
            for file in tokenizer_folder.glob("*.json*"):
                shutil.copy(file, where / file.name)
        asked = {"new": args.new_tokens, "batches": args.batches, "threads": args.threads, "rounds": args.rounds}
        script = Path(__file__).parent / "_genai.py"
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run([python, str(script), str(where), str(folder / "prompts.npy"), json.dumps(asked)], capture_output=True, text=True,
                              check=False, env=environment)
        found[f"openvino genai {name}"] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"declined": done.stderr[-400:]}
        print(f"openvino genai {name}: {found[f'openvino genai {name}']}", flush=True)
    return found


def main() -> None:
    parser = harness.arguments("generate_precision", "none")
    parser.add_argument("--model", type=Path, default=None, help="folder of a causal language model (default: SmolLM2-135M as shipped)")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=24, help="windows of 256 tokens that perplexity is of")
    parser.add_argument("--only", nargs="*", default=[], help="weights whose names hold one of these words")
    parser.add_argument("--mixed", type=float, nargs="*", default=[6.0], help="mean bits a weight of mixed plans")
    parser.add_argument("--peers", type=Path, help="an interpreter that has openvino-genai")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.windows, args.new_tokens, args.batches, args.threads = 1, 2, 4, [1], [1]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    folder = args.model or sources.smollm(args.work)
    tokenizer, module = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    try:
        texts = sources.novels(args.work)
        calibration_text, test_text, said = texts["prideprejudice"], texts["emma"], "calibrated on Pride and Prejudice, judged on Emma"
    except FourfoldError as error:
        print(f"{error.message}; the standard library's source takes their place", file=sys.stderr)
        code = sources.source_code(2_000_000)
        calibration_text, test_text, said = code[:900_000], code[900_000:], "the Python standard library's source, two parts of it"
    calibration = windows(calibration_text, tokenizer, 4 if args.quick else 32, 128)
    unseen, prompts = windows(test_text, tokenizer, args.windows, 256), windows(test_text, tokenizer, 64, args.prompt_tokens, 400_000)
    with tempfile.TemporaryDirectory(prefix="fourfold-precision-") as scratch:
        place = Path(scratch) if args.quick else args.work / "generate-precision"
        found = ways(module, calibration, place, args.only, args.mixed)
        for way in found:
            one = way.open(1)
            began = time.process_time()
            way.perplexity = perplexity(one, unseen)
            one.close()
            print(f"{way.name:38} perplexity {way.perplexity:.3f}, {way.bits:.2f} bits a weight, {time.process_time() - began:.0f} s", flush=True)
        measure(found, prompts, args.new_tokens, args.batches, args.threads, args.rounds, args.seed)
        others = peers(module, args.peers, place, folder, prompts, args) if args.peers else {}
    base = found[0].perplexity or 1.0
    keys = list(found[0].times)
    best = {key: min(float(np.median(total(way, key, args.new_tokens))) for way in found if way.engine == "torch") for key in keys}
    data = {
        "about": provenance.facts(args, [args.seed], {"weights": folder / "model.safetensors"}), "text": said,
        "rows": [{"name": way.name, "engine": way.engine, "weights": way.weights, "arithmetic": way.arithmetic, "bits": way.bits,
                  "perplexity": way.perplexity, "quality": base / (way.perplexity or np.inf), "times": way.times,
                  "share": {key: float(np.median(total(way, key, args.new_tokens))) / best[key] for key in keys}} for way in found],
        "peers": others,
    }  # fmt: skip
    harness.publish("generate_precision", data, harness.results(args))


if __name__ == "__main__":
    main()
