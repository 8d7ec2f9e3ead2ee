"""One model in OpenVINO GenAI's own pipeline, timed like the others: run by `generate_precision.py` in an interpreter that has openvino-genai.

Arguments: the folder of the model and its tokenizer, a file of prompts [N, T], and a JSON object with new, batches, threads and rounds. The last line
printed is {"batch B, N threads": {"prefill": [CPU s a prompt], "decode": [CPU s a token]}, …} for its faster kind of attention.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    folder, prompts, asked = Path(sys.argv[1]), np.load(sys.argv[2]), json.loads(sys.argv[3])
    import openvino as ov
    import openvino_genai as genai
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    if not (folder / "openvino_tokenizer.xml").exists():
        for name, model in zip(("openvino_tokenizer", "openvino_detokenizer"),
                               convert_tokenizer(AutoTokenizer.from_pretrained(folder), with_detokenizer=True), strict=True):
            ov.save_model(model, str(folder / f"{name}.xml"))
    found: dict[str, dict[str, list[float]]] = {}
    for threads in asked["threads"]:
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False, "PERFORMANCE_HINT": "LATENCY"}
        for backend in ("SDPA", "PA"):
            try:
                pipe = genai.LLMPipeline(str(folder), "CPU", ATTENTION_BACKEND=backend, **settings)
                for batch in asked["batches"]:
                    timed = [once(genai, ov, pipe, prompts, batch, r, asked["new"]) for r in range(asked["rounds"] + 1)][1:]
                    key = f"batch {batch}, {threads} thread{'s' * (threads > 1)}"
                    mine = {"prefill": [a for a, _ in timed], "decode": [b for _, b in timed], "backend": backend}
                    if key not in found or np.median(mine["decode"]) < np.median(found[key]["decode"]):
                        found[key] = mine
            except RuntimeError as error:
                print(backend, str(error)[:300], file=sys.stderr)
    if not found:
        raise SystemExit("neither kind of attention takes the model")
    print(json.dumps(found))


def once(genai: object, ov: object, pipe: object, prompts: np.ndarray, batch: int, r: int, new: int) -> tuple[float, float]:
    """CPU seconds a prompt of reading it, and of a new token after the first."""
    rows = np.ascontiguousarray(prompts[(r * batch + np.arange(batch)) % len(prompts)])
    given = genai.TokenizedInputs(ov.Tensor(rows), ov.Tensor(np.ones_like(rows)))
    taken = []
    for count in (1, new):
        config = genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        began = time.process_time()
        pipe.generate(given, config)
        taken.append(time.process_time() - began)
    return taken[0] / batch, (taken[1] - taken[0]) / (new - 1) / batch


main()
