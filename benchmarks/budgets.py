"""Is `--budget` kept? Searches of several kinds of model, short and long, idle and beside a busy neighbour; each must end within 1.1 × budget + 10 s,
or say at once what the least is.

    python benchmarks/budgets.py [--runs minilm-60s-idle,conv-60s-busy] [--work DIR]

minilm: the encoder of `fourfold demo`, fine-tuned there; conv: a ResNet on drawn images; whisper: the architecture and sizes of Whisper tiny.en with
seeded weights and sounds, since only its time matters here; smollm: SmolLM2-135M on source code. A finished run is kept: the same command goes on
with those that are missing. Exit code 1 where a budget was not kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402

KINDS = ("minilm", "conv", "whisper", "smollm")
BUDGETS = {"minilm": ("60s", "120s", "600s"), "conv": ("60s", "120s"), "whisper": ("60s", "240s"), "smollm": ("60s", "240s")}


def main() -> int:
    """Run what is missing, write the results, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ",".join(f"{kind}-{budget}-{load}" for kind in KINDS for budget in BUDGETS[kind] for load in ("idle", "busy"))
    parser.add_argument("--runs", default=default, help="kind-budget-load, …")
    parser.add_argument("--work", type=Path, default=Path("fourfold-bench/budgets"))
    parser.add_argument("--out", type=Path, default=harness.HOME / "results" / "budgets.json")
    args = parser.parse_args()
    rows = []
    for run in args.runs.split(","):
        kind, budget, load = run.split("-")
        rows.append(once(args.work.resolve(), kind, budget, load))
        row = rows[-1]
        verdict = "" if row["kept"] else " · NOT KEPT"
        print(f"{run}: ended after {row['wall_s']:.0f} s of {row['allowed_s']:.0f} s allowed{verdict} · {row['last']}", flush=True)
    about = harness.facts(argparse.Namespace(**{**vars(args), "budget": "60s to 600s", "quick": False, "seed": 0}), {})
    kept = sum(row["kept"] for row in rows)
    harness.publish(args.out.stem, {"about": about, "kept": kept, "of": len(rows), "runs": rows}, args.out.parent)
    print(f"{kept} of {len(rows)} budgets were kept")
    return 0 if kept == len(rows) else 1


def once(work: Path, kind: str, budget: str, load: str) -> dict[str, Any]:
    """One search as the command line runs it, from the start of the process to its end; read back where it was done before."""
    from demo import neighbour

    folder = work / f"{kind}-{budget}-{load}"
    done = folder / "row.json"
    if done.exists():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    model, data = globals()[kind](work)
    command = [sys.executable, "-m", "fourfold", "optimize", str(model), "--data", str(data), "--budget", budget, "--out", str(folder / "cheap"),
               "--fresh", "--anyway", "--progress", "plain"]
    with neighbour(load == "busy"):
        began = time.monotonic()
        ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        wall = time.monotonic() - began
    (folder / "log.txt").write_text(ran.stdout + ran.stderr)
    refused = ran.returncode == 2 and "The least is about" in ran.stderr + ran.stdout   # said at once, it is an answer too
    if ran.returncode not in (0, 3) and not refused:
        raise SystemExit(f"{kind} failed with {ran.returncode}; see {folder / 'log.txt'}")
    allowed = 1.1 * float(budget.removesuffix("s")) + 10
    told = [line.strip() for line in (ran.stdout + ran.stderr).splitlines() if line.strip()] if refused else []
    row = {"kind": kind, "budget": budget, "load": load, "wall_s": wall, "allowed_s": allowed, "kept": wall <= allowed, "exit": ran.returncode,
           "last": told[-1][:200] if told else ""}
    done.write_text(json.dumps(row))
    return row


def minilm(work: Path) -> tuple[Path, Path]:
    """The demo's fine-tuned encoder and its rows."""
    from fourfold.jobs import demo

    folder = work / "minilm"
    folder.mkdir(parents=True, exist_ok=True)
    train, test = demo.snippets(folder)
    return demo.teacher(folder, demo.encoder(folder), train, test), train


def conv(work: Path) -> tuple[Path, Path]:
    """A ResNet of 11 M parameters, and 1,200 drawn images of 96 × 96 pixels in three classes of stripes; trained for a minute."""
    import torch
    import transformers
    from PIL import Image

    model, data = work / "conv" / "model", work / "conv" / "images"
    if (model / "model.safetensors").exists():
        return model, data
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[0:96, 0:96] / 96
    tensors, labels = [], []
    for label, name in enumerate(("flat", "steep", "slanted")):
        (data / name).mkdir(parents=True, exist_ok=True)
        for number in range(400):
            turn = (0.0, np.pi / 2, np.pi / 4)[label] + rng.normal(0, 0.25)
            wave_ = np.sin(2 * np.pi * rng.uniform(3, 9) * (np.cos(turn) * yy + np.sin(turn) * xx) + rng.uniform(0, 6))
            picture = np.clip(128 + 60 * wave_[..., None] + rng.normal(0, 40, (96, 96, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(data / name / f"{number}.png")
            tensors.append(torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1)
            labels.append(label)
    torch.manual_seed(0)
    names = ("flat", "slanted", "steep")                              # a folder of images is read in the order of its names
    order = [names.index(("flat", "steep", "slanted")[label]) for label in labels]
    config = transformers.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], embedding_size=64, layer_type="basic", num_labels=3,
                                       id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    module = transformers.ResNetForImageClassification(config).train()
    inputs, targets = torch.stack(tensors), torch.tensor(order)
    optimizer, end = torch.optim.AdamW(module.parameters(), lr=1e-3), time.monotonic() + 60
    while time.monotonic() < end:
        rows = torch.randint(0, len(targets), (32,))
        loss = torch.nn.functional.cross_entropy(module(pixel_values=inputs[rows]).logits, targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.save_pretrained(model)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 96}, crop_pct=1.0, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(model)
    return model, data


def whisper(work: Path) -> tuple[Path, Path]:
    """The sizes of Whisper tiny.en with seeded weights, and 120 sounds of two seconds with a sentence each."""
    import tokenizers
    import torch
    import transformers

    model, data = work / "whisper" / "model", work / "whisper" / "sounds" / "sounds.csv"
    if (model / "model.safetensors").exists():
        return model, data
    data.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    words = "the a red blue bird tone rises falls again slowly and stops here now".split()
    with data.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "text"])
        for number in range(120):
            time_ = np.arange(32_000) / 16_000
            sound = np.sin(2 * np.pi * rng.uniform(200, 900) * time_) * 0.3 + rng.normal(0, 0.02, 32_000)
            with wave.open(str(data.parent / f"{number}.wav"), "wb") as out:
                out.setnchannels(1), out.setsampwidth(2), out.setframerate(16_000)
                out.writeframes((sound * 32_767).astype("<i2").tobytes())
            writer.writerow([f"{number}.wav", " ".join(rng.choice(words, 8))])
    torch.manual_seed(0)
    config = transformers.WhisperConfig(d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6, decoder_attention_heads=6,
                                        encoder_ffn_dim=1536, decoder_ffn_dim=1536, vocab_size=51_864, bos_token_id=50_256, eos_token_id=50_256,
                                        pad_token_id=50_256, decoder_start_token_id=50_257, suppress_tokens=None, begin_suppress_tokens=None)
    module = transformers.WhisperForConditionalGeneration(config)
    module.generation_config.max_length = 16
    module.save_pretrained(model)
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", pad_token="<unk>", eos_token="<unk>", bos_token="<unk>")
    wrapped.save_pretrained(model)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(model)
    return model, data


def smollm(work: Path) -> tuple[Path, Path]:
    """SmolLM2-135M-Instruct in float32, and source code to continue."""
    from sources import smollm as weights
    from sources import source_code

    data = work / "code.txt"
    if not data.exists():
        work.mkdir(parents=True, exist_ok=True)
        data.write_text(source_code(200_000), encoding="utf-8")
    return weights(work), data


if __name__ == "__main__":
    sys.exit(main())
