"""Real models carried out on 2 and 4 processes over gloo: outputs and gradients against one process, the predicted step beside the measured one.

    python benchmarks/partition_run.py --machine FILE.toml      # writes benchmarks/results/partition_run.json; FILE: what `fourfold calibrate` wrote
    python benchmarks/partition_run.py --only bert,vit --ranks 2

Models are built from transformers configurations with random weights, float32; parameters that begin as zeros are drawn too, since a token of zeros
has, normalised, a gradient that is rounding alone. On 2 processes the batch is split (data parallelism) and, in a second
run, the weights; on 4 both, 2 × 2. Each step is forward and backward (mean square of the first output). α and β of the host's link are fitted right
before (`runtime.spmd.link`); what the interpreter adds to a call, and the pace of kernels under the load of the hour, are timed on a chain of tiny
operators and six feed-forward layers, anew before each model. No figure is fitted to the models. Seconds are medians of the slowest rank: by the
processor's clock, which neighbours do not stretch, and by the wall's. The prediction is judged by the processor's, since with more ranks than free
cores wall seconds are a matter of who else is there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import provenance
import torch
from torch import nn

RESULTS = Path(__file__).parent / "results" / "partition_run.json"
BATCH, LENGTH, WORDS = 4, 64, 500
Made = tuple[nn.Module, dict[str, torch.Tensor]]


def _words(kind: str, config: Any) -> Made:
    import transformers

    torch.manual_seed(0)
    config.use_cache = False
    return getattr(transformers, kind)(config).eval(), {"input_ids": torch.randint(3, WORDS, (BATCH, LENGTH))}


def _pixels(kind: str, config: Any, size: int) -> Made:
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval(), {"pixel_values": torch.randn(BATCH, 3, size, size)}


def models() -> dict[str, Callable[[], Made]]:
    import transformers as t

    wide: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    mlp = {"intermediate_size": 1024, "max_position_embeddings": 128}
    rotary = {**wide, **mlp, "num_key_value_heads": 4}
    see = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024, "image_size": 64, "patch_size": 8}
    return {
        "bert": lambda: _words("BertModel", t.BertConfig(**wide, **mlp)),
        "roberta": lambda: _words("RobertaModel", t.RobertaConfig(**wide, **mlp)),
        "electra": lambda: _words("ElectraModel", t.ElectraConfig(embedding_size=128, **wide, **mlp)),
        "albert": lambda: _words("AlbertModel", t.AlbertConfig(embedding_size=128, **wide, **mlp)),
        "distilbert": lambda: _words("DistilBertModel", t.DistilBertConfig(vocab_size=WORDS, dim=256, n_layers=3, n_heads=4, hidden_dim=1024)),
        "gpt2": lambda: _words("GPT2LMHeadModel", t.GPT2Config(vocab_size=WORDS, n_embd=256, n_layer=3, n_head=4, n_positions=128)),
        "gpt_neox": lambda: _words("GPTNeoXForCausalLM", t.GPTNeoXConfig(**wide, **mlp)),
        "opt": lambda: _words("OPTForCausalLM", t.OPTConfig(vocab_size=WORDS, hidden_size=256, num_hidden_layers=3, num_attention_heads=4,
                                                            ffn_dim=1024, word_embed_proj_dim=256, max_position_embeddings=128)),
        "llama": lambda: _words("LlamaForCausalLM", t.LlamaConfig(**rotary)),
        "mistral": lambda: _words("MistralForCausalLM", t.MistralConfig(**rotary)),
        "qwen2": lambda: _words("Qwen2ForCausalLM", t.Qwen2Config(**rotary)),
        "phi": lambda: _words("PhiForCausalLM", t.PhiConfig(**wide, **mlp)),
        "stablelm": lambda: _words("StableLmForCausalLM", t.StableLmConfig(**rotary)),
        "vit": lambda: _pixels("ViTModel", t.ViTConfig(**see), 64),
        "deit": lambda: _pixels("DeiTModel", t.DeiTConfig(**see), 64),
        "dinov2": lambda: _pixels("Dinov2Model", t.Dinov2Config(hidden_size=256, num_hidden_layers=3, num_attention_heads=4, image_size=64,
                                                                patch_size=8), 64),
        "resnet": lambda: _pixels("ResNetModel", t.ResNetConfig(embedding_size=32, hidden_sizes=[64, 128], depths=[2, 2], layer_type="basic"), 64),
        "convnext": lambda: _pixels("ConvNextModel", t.ConvNextConfig(hidden_sizes=[64, 128], depths=[2, 2], num_stages=2), 64),
    }  # fmt: skip


def ways(ranks: int, found: Any) -> dict[str, Any]:
    """Name → description: the batch split, the widest weights split, both."""
    from fourfold.graph import INPUT, PARAMETER
    from fourfold.runtime.spmd import SpmdDescription
    from fourfold.sharding.mesh import Mesh
    from fourfold.sharding.spec import P

    graph = found.graph
    fed = {label: P("dp") for v, label in enumerate(graph.labels) if graph.role[v] == INPUT}
    wide = {label: P("tp") for v, label in enumerate(graph.labels) if graph.role[v] == PARAMETER and len(graph.shape_of(v)) == 2
            and graph.shape_of(v)[0] == 1024}
    if ranks == 2:
        made = {"data parallel": SpmdDescription(Mesh.parse("dp=2"), fed)}
        return made | ({"tensor parallel": SpmdDescription(Mesh.parse("tp=2"), wide)} if wide else {})
    return {"both": SpmdDescription(Mesh.parse("dp=2,tp=2"), fed | wide)} if wide else {"data parallel": SpmdDescription(Mesh.parse("dp=4"), fed)}


def measure(ranks: int, chosen: list[str], machine: Any, repeat: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from fourfold.frontends.capture import capture
    from fourfold.runtime.spmd import RankPool, link_of, run
    from fourfold.runtime.spmd.check import pace_of

    rows: list[dict[str, Any]] = []
    made = models()
    with RankPool(ranks, threads=1, patience=600.0) as pool:
        link = link_of(pool, repeat=9)
        for name in chosen:
            model, inputs = made[name]()
            for parameter in model.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.02)
            try:
                found = capture(model, inputs, name=name)
            except Exception as error:
                rows.append({"model": name, "ranks": ranks, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"})
                print(rows[-1], flush=True)
                continue
            link = pace_of(pool, link, machine)
            for way, described in ways(ranks, found).items():
                try:
                    done = run(found, described, pool=pool, train=True, repeat=repeat, link=link, machine=machine)
                except Exception as error:
                    if not pool.children:
                        raise
                    rows.append({"model": name, "ranks": ranks, "way": way, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"})
                    print(rows[-1], flush=True)
                    continue
                told = done.to_json()
                expected: Any = told["predicted"]
                rows.append({"model": name, "way": way, "parameters": sum(p.numel() for p in model.parameters()), "tensors": len(done.gradients),
                             **{k: told[k] for k in ("ranks", "mesh", "equal", "outputs", "gradients", "seconds", "cpu_seconds", "collectives")},
                             "predicted": expected, "error": expected["cpu_seconds"] / done.busy - 1.0,
                             "wall_error": expected["seconds"] / done.seconds - 1.0, "pace": link.pace,
                             "load": os.getloadavg()[0]})
                print(f"{name} {ranks} {way}: equal {told['equal']} ({told['outputs']:.1e}, {told['gradients']:.1e}), "
                      f"cpu {1e3 * done.busy:.1f} ms predicted {1e3 * expected['cpu_seconds']:.1f} ms ({100 * rows[-1]['error']:+.0f} %)", flush=True)
    return rows, link.to_json()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--machine", type=Path, default=Path("here"))
    parser.add_argument("--only", default="")
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    from fourfold.machine import Machine

    machine, began = Machine.read(str(asked.machine)), time.process_time()
    chosen = [name for name in models() if not asked.only or name in asked.only.split(",")]
    rows, links = list[dict[str, Any]](), dict[str, Any]()
    for ranks in map(int, asked.ranks.split(",")):
        new, links[str(ranks)] = measure(ranks, chosen, machine, asked.repeat)
        rows += new
    told = [row for row in rows if "why" not in row]
    near = sorted(abs(row["error"]) for row in told)
    summary = {"runs": len(told), "models": len({row["model"] for row in told}), "equal": sum(row["equal"] for row in told),
               "outputs": max((row["outputs"] for row in told), default=None), "gradients": max((row["gradients"] for row in told), default=None),
               "within_25": sum(gap <= 0.25 for gap in near), "median_error": near[len(near) // 2] if near else None}
    about = provenance.facts(argparse.Namespace(**vars(asked), batch=BATCH, length=LENGTH), seeds=[0])
    provenance.publish(asked.out, {"about": about, "summary": summary, "rows": rows, "links": links, "cpu_seconds": time.process_time() - began})
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
