"""SmolLM2-135M as it writes: prompts of 128 tokens continued by 64, one at a time and eight at once, against everybody that installs.

    python benchmarks/generate.py [--prompts 200] [--peers-python PATH --llama-python PATH] [--stage race|quality|report] [--quick]

Each peer lives in a process of its own under the interpreter that has it (`_generate_peers.py`). All answer one chunk of eight prompts before the
next comes, in random order, and CPU seconds of their processes are compared within a chunk, so that what else the machine does falls on all. After
the first chunk those go that were dearer than the original: PyTorch in fp32 and bf16, by transformers and by our loop, whichever is cheapest. Ours
are the artefacts given by `--artefact NAME=FOLDER` (`fourfold optimize … --workload generate`) and the original in other ways of ours (`--way`). All
that was measured is a line of work/generate/journal.jsonl; a second call goes on from there, and `--stage report` only writes the results.

Quality, all on text that nobody was tuned on: perplexity of the 64 tokens that the novel has there; accuracy of the word that follows a review
("positive" or "negative"); tokens that agree with the original's before the first that does not.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import numpy as np

PROMPT, NEW, CHUNK = 128, 64, 8
TRIAL = 1                                                               # chunks that everybody answers
BATCHES = (1, 8)
REVIEW = "Review: {}\nIs this review positive or negative? Answer: It is"
MAIN, PEERS, LLAMA = "main", "peers", "llama"
ORIGINALS = {
    "transformers fp32": ("torch-fp32", MAIN, {}), "transformers bf16": ("torch-bf16", MAIN, {}),
    "our loop, torch fp32": ("ours", MAIN, {"engine": "eager", "precision": "fp32"}),
    "our loop, torch bf16": ("ours", MAIN, {"engine": "eager", "precision": "bf16"}),
}
RIVALS = {
    "torchao int8 weights": ("torchao-int8", MAIN, {}), "torchao int8 dynamic": ("torchao-int8-dynamic", MAIN, {}),
    "llama.cpp Q8_0": ("llama.cpp-q8", LLAMA, {}), "llama.cpp Q4_0": ("llama.cpp-q4", LLAMA, {}),
    "llama.cpp Q4_1 as shipped": ("llama.cpp-q4_1", LLAMA, {}),
    "OpenVINO GenAI Q8_0": ("openvino-genai-int8", PEERS, {}), "OpenVINO GenAI Q4_0": ("openvino-genai-int4", PEERS, {}),
    "ONNX Runtime GenAI int8": ("ort-genai-int8", PEERS, {}), "ONNX Runtime GenAI int4": ("ort-genai-int4", PEERS, {}),
    "CTranslate2 int8": ("ctranslate2-int8", PEERS, {}),
}


def main() -> int:
    parser = harness.arguments("generate", "10min")
    parser.add_argument("--prompts", type=int, default=200, help="unseen prompts; a multiple of 8")
    parser.add_argument("--reviews", type=int, default=200, help="snippets of the task by prompt")
    parser.add_argument("--threads", type=int, default=1, help="of every peer")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter with openvino-genai, onnxruntime-genai, ctranslate2")
    parser.add_argument("--llama-python", default=sys.executable, help="interpreter with llama-cpp-python")
    parser.add_argument("--artefact", action="append", default=[], metavar="NAME=FOLDER", help="ours; may be repeated")
    parser.add_argument("--way", action="append", default=[], metavar="ENGINE:PRECISION", help="the original in another of our ways to generate")
    parser.add_argument("--only", default="", help="names of peers, separated by commas; all where empty")
    parser.add_argument("--stage", choices=("race", "quality", "report", "all"), default="all")
    args = parser.parse_args()
    if args.quick:
        args.prompts, args.reviews = 8, 8
    import sources

    work: Path = args.work / ("quick-generate" if args.quick else "generate")
    work.mkdir(parents=True, exist_ok=True)
    model = sources.smollm(args.work)
    data = material(args, model, work)
    journal = Diary(work / "journal.jsonl")
    if args.stage in ("race", "quality", "all"):
        crew = Crew(args, model, journal)
        try:
            if args.stage in ("race", "all"):
                race(crew, data, journal, args.seed)
            if args.stage in ("quality", "all"):
                quality(crew, data, journal)
        finally:
            crew.close()
    report(args, model, data, journal)
    return 0


class Diary:
    """Lines of what was measured, by a key of words; what is there is not measured again."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue                                            # the line that a killed run was writing
                self.rows[tuple(row["key"])] = row["value"]

    def put(self, key: tuple[Any, ...], value: Any) -> None:
        self.rows[key] = value
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": list(key), "value": value}) + "\n")

    def of(self, *head: Any) -> dict[tuple[Any, ...], Any]:
        """Rest of the key → value of all whose key begins so."""
        return {key[len(head) :]: value for key, value in self.rows.items() if key[: len(head)] == head}


def material(args: Any, model: Path, work: Path) -> dict[str, Any]:
    """Prompts [N, 128] and what follows them [N, 64], from a novel; reviews as prompts with their answers. Kept, for a resumed run asks the same."""
    path = work / f"prompts-{args.prompts}-{args.reviews}-{args.seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    import csv

    import sources
    from transformers import AutoTokenizer

    from fourfold.errors import FourfoldError
    from fourfold.jobs import demo

    words = AutoTokenizer.from_pretrained(model)
    try:
        text, said = sources.novels(args.work)["emma"], "Jane Austen, Emma"
    except FourfoldError:
        text, said = sources.source_code(4_000_000), "the Python standard library's source"
    size, random = PROMPT + NEW, np.random.default_rng(args.seed)
    starts = np.sort(random.choice(len(text) // 1000 - 2, args.prompts, replace=False)) * 1000
    rows = [words(text[start : start + 8 * size])["input_ids"][:size] for start in starts.tolist()]
    assert all(len(row) == size for row in rows)
    _, snippets = demo.snippets(args.work)
    with snippets.open(newline="", encoding="utf-8") as file:
        every = list(csv.DictReader(file))
    picked = [every[i] for i in random.permutation(len(every))[: args.reviews]]
    data = {"text": said, "rows": rows, "reviews": [words(REVIEW.format(row["text"]))["input_ids"] for row in picked],
            "labels": [int(row["label"]) for row in picked],
            "answers": [words(word, add_special_tokens=False)["input_ids"][0] for word in (" negative", " positive")]}
    path.write_text(json.dumps(data))
    return data


# ---- the peers' processes


class Crew:
    """All peers, open: name → process. Who cannot be had is written into the diary with the reason."""

    def __init__(self, args: Any, model: Path, journal: Diary) -> None:
        import _generate_peers

        pythons = {MAIN: sys.executable, PEERS: args.peers_python, LLAMA: args.llama_python}
        source = next((args.work / "smollm2-gguf").glob("*.gguf"))
        for kind in ("Q8_0", "Q4_0"):                                   # made here, for not every peer's interpreter has the library
            _generate_peers.gguf(model, args.work, source, kind)
        wanted = dict(ORIGINALS | RIVALS)
        for engine, precision in (way.split(":") for way in args.way):
            wanted[f"our loop, {engine} {precision}"] = "ours", MAIN, {"engine": engine, "precision": precision}
        wanted |= {name: ("fourfold", MAIN, {"artefact": folder}) for name, folder in (one.split("=", 1) for one in args.artefact)}
        only = [name for name in args.only.split(",") if name]
        self.open: dict[str, subprocess.Popen[str]] = {}
        for name, (peer, where, more) in wanted.items():
            if only and name not in only:
                continue
            asked = {"model": str(model), "work": str(args.work), "threads": args.threads, **more}
            one = subprocess.Popen([pythons[where], str(harness.HOME / "_generate_peers.py"), peer, json.dumps(asked)], text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            answer = self._read(one)
            if "ready" in answer:
                self.open[name] = one
            journal.put(("peer", name), answer)
            print(f"{name}: {answer}", flush=True)

    @staticmethod
    def _read(one: subprocess.Popen[str]) -> dict[str, Any]:
        assert one.stdout is not None
        line = one.stdout.readline()
        return json.loads(line) if line else {"absent": f"its process ended with code {one.wait()}"}

    def ask(self, name: str, **question: Any) -> dict[str, Any]:
        one = self.open[name]
        assert one.stdin is not None
        one.stdin.write(json.dumps(question) + "\n")
        one.stdin.flush()
        return self._read(one)

    def close(self) -> None:
        for one in self.open.values():
            assert one.stdin is not None
            one.stdin.close()
            one.wait()


def race(crew: Crew, data: Mapping[str, Any], journal: Diary, seed: int) -> None:
    """Chunk by chunk, batch by batch, all peers in random order; the first time that a peer works at a batch size is not counted."""
    random, warmed = np.random.default_rng(seed), set()
    rows = [row[:PROMPT] for row in data["rows"]]
    for chunk in range(len(rows) // CHUNK):
        some = rows[chunk * CHUNK : (chunk + 1) * CHUNK]
        for batch in BATCHES:
            gone = hopeless(journal, batch, chunk)
            for name in random.permutation(sorted(crew.open)).tolist():
                if name in gone or ("race", name, batch, chunk) in journal.rows:
                    continue
                if (name, batch) not in warmed:
                    warmed.add((name, batch))
                    crew.ask(name, generate=some[:batch], new=4)
                answers = [crew.ask(name, generate=some[at : at + batch], new=NEW) for at in range(0, CHUNK, batch)]
                if bad := [one for one in answers if "cpu" not in one]:
                    journal.put(("failed", name, batch), bad[0])
                    continue
                journal.put(("race", name, batch, chunk), {
                    "cpu": sum(one["cpu"] for one in answers), "wall": sum(one["wall"] for one in answers),
                    "tokens": [row for one in answers for row in one["tokens"]], "at": time.time()})
        print(f"chunk {chunk + 1} of {len(rows) // CHUNK}", flush=True)


def hopeless(journal: Diary, batch: int, chunk: int) -> set[str]:
    """Who need not go on after the first chunks: dearer than the original at its best in each of them, other originals among them."""
    if chunk < TRIAL:
        return set()
    raced: dict[str, Any] = defaultdict(lambda: {batch: {}})
    for (name, size, at), value in journal.of("race").items():
        if size == batch and at < TRIAL:
            raced[name][batch][at] = value
    base = best_original(raced, batch)
    if base is None:
        return set()
    return {name for name, found in raced.items() if name != base
            and all(found[batch][at]["cpu"] > raced[base][batch][at]["cpu"] for at in found[batch] if at in raced[base][batch])}


def quality(crew: Crew, data: Mapping[str, Any], journal: Diary) -> None:
    """Log-probability of what the text has after each prompt, and the word after each review; a peer without logits has the second only."""
    for name in crew.open:
        for chunk in range(len(data["rows"]) // CHUNK):
            if ("score", name, chunk) not in journal.rows:
                journal.put(("score", name, chunk), crew.ask(name, score=data["rows"][chunk * CHUNK : (chunk + 1) * CHUNK], **{"from": PROMPT}))
        for at, row in enumerate(data["reviews"]):
            if ("review", name, at) not in journal.rows:
                found = crew.ask(name, generate=[row], new=1)
                journal.put(("review", name, at), found["tokens"][0][:1] if "tokens" in found else None)
        print(f"quality of {name}", flush=True)


# ---- the account


def report(args: Any, model: Path, data: Mapping[str, Any], journal: Diary) -> None:
    """Ratios to the original at its best within every chunk that both have; medians and ranges over chunks."""
    raced: dict[str, dict[int, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for (name, batch, chunk), value in journal.of("race").items():
        raced[name][batch][chunk] = value
    base = {batch: best_original(raced, batch) for batch in BATCHES}
    rows = []
    for name, by_batch in raced.items():
        row: dict[str, Any] = {"name": name, "original": name in ORIGINALS, "about": journal.rows.get(("peer", name), {}).get("ready")}
        for batch in BATCHES:
            if base[batch] is not None and by_batch.get(batch):
                row[f"batch_{batch}"] = compared(by_batch[batch], raced[base[batch]][batch])
        rows.append(row | judged(name, data, journal, raced))
    rows.sort(key=lambda row: row.get("batch_1", row.get("batch_8", {})).get("cpu", {}).get("median", 9e9))
    absent = {name: value["absent"] for (name,), value in journal.of("peer").items() if "absent" in value}
    for row in rows:
        shown = {batch: row[f"batch_{batch}"] for batch in BATCHES if f"batch_{batch}" in row}
        print(f"{row['name']:32}", *(f"b{batch}: {100 * one['cpu']['median']:5.1f} % [{100 * one['cpu']['low']:.0f}, {100 * one['cpu']['high']:.0f}] "
                                     f"{one['tokens_per_cpu_second']:6.1f} t/s" for batch, one in shown.items()),
              *(f"{what} {row[what]:.3f}" for what in ("perplexity", "accuracy", "agreement") if row[what] is not None))
    files = {"weights": model / "model.safetensors"}
    publish = {"about": harness.facts(args, files), "text": data["text"], "prompt_tokens": PROMPT, "new_tokens": NEW, "chunk": CHUNK,
               "prompts": CHUNK * max((len(found) for by in raced.values() for found in by.values()), default=0), "best_original": base,
               "points": rows, "absent": absent,
               "failed": {f"{name}, batch {batch}": value for (name, batch), value in journal.of("failed").items()}}
    harness.publish("generate", publish, harness.results(args))


def best_original(raced: Mapping[str, Any], batch: int) -> str | None:
    """Who of the originals takes least CPU time over the chunks that all of them have."""
    there = [name for name in ORIGINALS if raced.get(name, {}).get(batch)]
    if not there:
        return None
    common = set.intersection(*(set(raced[name][batch]) for name in there))
    return min(there, key=lambda name: sum(raced[name][batch][chunk]["cpu"] for chunk in common)) if common else None


def compared(mine: Mapping[int, Any], base: Mapping[int, Any]) -> dict[str, Any]:
    """CPU and wall ratio to the original, chunk by chunk."""
    common = sorted(set(mine) & set(base))
    found: dict[str, Any] = {"chunks": len(common)}
    for what in ("cpu", "wall"):
        ratios = np.array([mine[chunk][what] / base[chunk][what] for chunk in common] or [math.nan])
        found[what] = {"median": float(np.median(ratios)), "low": float(ratios.min()), "high": float(ratios.max())}
    tokens = sum(len(row) for one in mine.values() for row in one["tokens"])
    return found | {"tokens_per_cpu_second": tokens / sum(one["cpu"] for one in mine.values()),
                    "cpu_per_prompt": sum(one["cpu"] for one in mine.values()) / (CHUNK * len(mine))}


def judged(name: str, data: Mapping[str, Any], journal: Diary, raced: Mapping[str, Any]) -> dict[str, Any]:
    """Perplexity, accuracy on the reviews, and the share of tokens that are the original's before the first that is not; None where not known."""
    scores = [one for value in journal.of("score", name).values() for one in (value.get("score") or [])]
    said = {at[0]: value for at, value in journal.of("review", name).items() if value}
    right = [said[at][0] == data["answers"][data["labels"][at]] for at in said if at < len(data["labels"])]
    agree, first = [], raced.get("transformers fp32", {}).get(1, {})
    for chunk, value in raced[name].get(1, {}).items():
        for one, other in zip(value["tokens"], first[chunk]["tokens"] if chunk in first else [], strict=False):
            differ = [a != b for a, b in zip(one, other, strict=False)]
            agree.append(differ.index(True) / len(differ) if True in differ else 1.0)
    return {"perplexity": math.exp(-sum(scores) / (NEW * len(scores))) if scores else None, "scored": len(scores),
            "accuracy": sum(right) / len(right) if right else None, "reviews": len(right), "agreement": float(np.mean(agree)) if agree else None}


if __name__ == "__main__":
    sys.exit(main())
