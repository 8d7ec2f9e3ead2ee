"""Who else generates: each peer in a process of its own, under the interpreter that has it, driven by lines of JSON. Imports nothing of fourfold,
save for ours.

    python benchmarks/_generate_peers.py PEER '{"model": …, "work": …, "threads": 1}'

It answers {"ready": …} or {"absent": why}, then one line for each of: {"generate": [[ids], …], "new": n} → tokens, CPU and wall seconds, seconds to
the first token where the peer tells; {"score": [[ids], …], "from": n} → the log-probability of every row's tokens from the n-th on (None where the
peer does not give logits). Greedy; an end-of-sequence token ends nothing, so that all make as many tokens.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

Rows = list[list[int]]


def likelihood(logits: np.ndarray, rows: np.ndarray, start: int) -> list[float]:
    """Sum of log P of each row's tokens [B, T] from `start` on, from logits [B, T, V] (row t says what follows token t)."""
    found = np.asarray(logits[:, start - 1 : -1], np.float64)
    top = found.max(-1, keepdims=True)
    norm = top[..., 0] + np.log(np.exp(found - top).sum(-1))
    picked = np.take_along_axis(found, rows[:, start:, None], -1)[..., 0]
    return (picked - norm).sum(-1).tolist()


class Peer:
    """A model that is open. `generate`: new tokens of every row (all rows are equally long); `score`: log-probabilities, or None."""

    def __init__(self, asked: dict) -> None:
        self.model, self.work, self.threads = Path(asked["model"]), Path(asked["work"]), int(asked["threads"])
        self.detail: dict = {}

    def generate(self, rows: Rows, new: int) -> Rows:
        raise NotImplementedError

    def score(self, rows: Rows, start: int) -> list[float] | None:
        return None


# ---- PyTorch, and what quantises it


class Torch(Peer):
    """transformers' own `generate`, with the precision that its name says."""

    how = "fp32"

    def __init__(self, asked: dict) -> None:
        super().__init__(asked)
        import torch
        import transformers

        torch.set_num_threads(self.threads)
        transformers.utils.logging.disable_progress_bar()
        dtype = torch.bfloat16 if self.how == "bf16" else torch.float32
        self.torch, self.module = torch, transformers.AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype).eval()
        self.change()
        self.detail = {"torch": torch.__version__, "transformers": transformers.__version__}

    def change(self) -> None:
        pass

    def generate(self, rows: Rows, new: int) -> Rows:
        ids = self.torch.tensor(rows)
        with self.torch.inference_mode():
            found = self.module.generate(ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                                         pad_token_id=0)
        return found[:, ids.shape[1] :].tolist()

    def score(self, rows: Rows, start: int) -> list[float] | None:
        ids = self.torch.tensor(rows)
        with self.torch.inference_mode():
            return likelihood(self.module(ids).logits.float().numpy(), np.array(rows), start)


class TorchBf16(Torch):
    how = "bf16"


class TorchAo(Torch):
    """torchao's weight-only layers. Its compiled form is not raced: on two cores it compiles for minutes a shape."""

    def change(self) -> None:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(self.module, Int8WeightOnlyConfig())


class TorchAoDynamic(Torch):
    def change(self) -> None:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(self.module, Int8DynamicActivationInt8WeightConfig())


# ---- files that others read


def gguf(model: Path, work: Path, source: Path, kind: str) -> Path:
    """The model's weights as GGUF, all matrices of type `kind` (F16, Q8_0, Q4_0), with tokenizer and sizes of `source`; made once."""
    target = work / f"smollm2-{kind}.gguf"
    if target.exists():
        return target
    import gguf as lib

    reader = lib.GGUFReader(source)
    type_ = lib.GGMLQuantizationType[kind]
    aside = target.with_suffix(".part")
    writer = lib.GGUFWriter(aside, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        if key == "general.file_type":
            writer.add_file_type({"F16": 1, "Q8_0": 7, "Q4_0": 2}[kind])
            continue
        if field.types[0] == lib.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        values = lib.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(int(x) for x in tensor.shape[::-1]))
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values.astype(np.float32))
            continue
        kept = lib.GGMLQuantizationType.Q8_0 if kind == "Q4_0" and tensor.name == "token_embd.weight" else type_
        writer.add_tensor(tensor.name, lib.quants.quantize(values.astype(np.float32), kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    aside.rename(target)
    return target


class LlamaCpp(Peer):
    """llama.cpp by llama-cpp-python; rows of a batch are sequences of one `llama_decode`."""

    kind = "Q8_0"

    def __init__(self, asked: dict) -> None:
        super().__init__(asked)
        import llama_cpp

        self.lib = llama_cpp
        source = next((self.work / "smollm2-gguf").glob("*.gguf"))
        path = source if self.kind == "Q4_1" else gguf(self.model, self.work, source, self.kind)
        self.lib.llama_backend_init()
        settings = self.lib.llama_model_default_params()
        self.weights = self.lib.llama_model_load_from_file(str(path).encode(), settings)
        if not self.weights:
            raise RuntimeError(f"{path.name} is not loaded")
        self.vocabulary = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.weights))
        self.contexts: dict = {}
        self.detail = {"llama-cpp-python": llama_cpp.__version__, "file": path.name, "bytes": path.stat().st_size}

    def context(self, rows: int, length: int) -> object:
        key = rows, length
        if key not in self.contexts:
            settings = self.lib.llama_context_default_params()
            settings.n_ctx, settings.n_batch, settings.n_ubatch = rows * (256 + 256 * ((length - 1) // 256)), 512, 512
            settings.n_seq_max = rows
            settings.n_threads = settings.n_threads_batch = self.threads
            self.contexts[key] = self.lib.llama_init_from_model(self.weights, settings)
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.contexts[key]), True)
        return self.contexts[key]

    def decode(self, context: object, entries: list[tuple[int, int, int, bool]]) -> np.ndarray:
        """Logits [wanted, V] of entries (token, position, row, wanted), in parts of 512."""
        found = []
        for first in range(0, len(entries), 512):
            part = entries[first : first + 512]
            batch = self.lib.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for i, (token, place, row, wanted) in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, place, 1, wanted
                batch.seq_id[i][0] = row
            if self.lib.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            found += [np.ctypeslib.as_array(self.lib.llama_get_logits_ith(context, i), (self.vocabulary,)).copy()
                      for i, entry in enumerate(part) if entry[3]]
            self.lib.llama_batch_free(batch)
        return np.stack(found)

    def generate(self, rows: Rows, new: int) -> Rows:
        length = len(rows[0])
        context = self.context(len(rows), length + new)
        entries = [(token, at, r, at == length - 1) for r, row in enumerate(rows) for at, token in enumerate(row)]
        made: Rows = [[] for _ in rows]
        logits = self.decode(context, entries)
        for step in range(new):
            chosen = logits.argmax(-1)
            for r, token in enumerate(chosen):
                made[r].append(int(token))
            if step + 1 < new:
                logits = self.decode(context, [(int(token), length + step, r, True) for r, token in enumerate(chosen)])
        return made

    def score(self, rows: Rows, start: int) -> list[float] | None:
        found = []
        for row in rows:
            context = self.context(1, len(row))
            logits = self.decode(context, [(token, at, 0, True) for at, token in enumerate(row)])
            found += likelihood(logits[None], np.array([row]), start)
        return found


class LlamaCppQ4(LlamaCpp):
    kind = "Q4_0"


class LlamaCppShipped(LlamaCpp):
    kind = "Q4_1"


class OpenVinoGenAI(Peer):
    """OpenVINO GenAI's pipeline over a GGUF file, which it converts itself."""

    kind = "Q8_0"

    def __init__(self, asked: dict) -> None:
        super().__init__(asked)
        import openvino
        import openvino_genai

        source = next((self.work / "smollm2-gguf").glob("*.gguf"))
        path = gguf(self.model, self.work, source, self.kind)
        self.ov, self.genai = openvino, openvino_genai
        self.pipeline = openvino_genai.LLMPipeline(str(path), "CPU", {"INFERENCE_NUM_THREADS": self.threads})
        self.detail = {"openvino-genai": openvino_genai.__version__, "file": path.name}

    def generate(self, rows: Rows, new: int) -> Rows:
        ids = np.array(rows, np.int64)
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.min_new_tokens, config.ignore_eos, config.do_sample = new, new, True, False
        found = self.pipeline.generate(self.genai.TokenizedInputs(self.ov.Tensor(ids), self.ov.Tensor(np.ones_like(ids))), config)
        return [list(row)[-new:] for row in found.tokens]


class OpenVinoGenAI4(OpenVinoGenAI):
    kind = "Q4_0"


class OrtGenAI(Peer):
    """ONNX Runtime GenAI over what its own builder writes."""

    precision = "int4"

    def __init__(self, asked: dict) -> None:
        super().__init__(asked)
        import onnxruntime_genai as og

        folder = self.work / f"ort-genai-{self.precision}"
        if not (folder / "genai_config.json").exists():
            aside = folder.with_suffix(".part")
            done = subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(self.model), "-o", str(aside), "-p",
                                   self.precision, "-e", "cpu", "-c", str(self.work / "ort-cache")], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"its builder failed: {done.stderr.strip().splitlines()[-1]}")
            aside.rename(folder)
        text = json.loads((folder / "genai_config.json").read_text())
        text["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": self.threads, "inter_op_num_threads": 1}
        (folder / "genai_config.json").write_text(json.dumps(text))
        self.og, self.opened = og, og.Model(str(folder))
        self.detail = {"onnxruntime-genai": og.__version__}

    def begun(self, rows: Rows, length: int) -> object:
        params = self.og.GeneratorParams(self.opened)
        params.set_search_options(max_length=length, min_length=length, batch_size=len(rows), do_sample=False)
        generator = self.og.Generator(self.opened, params)
        generator.append_tokens(np.array(rows, np.int32))
        return generator

    def generate(self, rows: Rows, new: int) -> Rows:
        generator = self.begun(rows, len(rows[0]) + new)
        for _ in range(new):
            generator.generate_next_token()
        return [list(map(int, generator.get_sequence(r)))[len(row) :] for r, row in enumerate(rows)]

    def score(self, rows: Rows, start: int) -> list[float] | None:
        generator = self.begun(rows, len(rows[0]) + 1)
        return likelihood(np.asarray(generator.get_output("logits"), np.float32), np.array(rows), start)


class OrtGenAI8(OrtGenAI):
    precision = "int8"


class CTranslate2(Peer):
    """CTranslate2 over its own conversion of the checkpoint."""

    precision = "int8"

    def __init__(self, asked: dict) -> None:
        super().__init__(asked)
        import ctranslate2
        import transformers

        folder = self.work / f"ctranslate2-{self.precision}"
        if not folder.exists():
            from ctranslate2.converters import TransformersConverter

            TransformersConverter(str(self.model)).convert(str(folder), quantization=self.precision)
        self.lib = ctranslate2
        self.opened = ctranslate2.Generator(str(folder), device="cpu", compute_type=self.precision, intra_threads=self.threads, inter_threads=1)
        self.words = transformers.AutoTokenizer.from_pretrained(self.model)
        self.detail = {"ctranslate2": ctranslate2.__version__}

    def generate(self, rows: Rows, new: int) -> Rows:
        texts = [self.words.convert_ids_to_tokens(row) for row in rows]
        found = self.opened.generate_batch(texts, max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False, beam_size=1)
        return [list(one.sequences_ids[0]) for one in found]

    def score(self, rows: Rows, start: int) -> list[float] | None:
        logits = np.asarray(self.opened.forward_batch(rows), np.float32)
        return likelihood(logits, np.array(rows), start)


# ---- ours


class Fourfold(Peer):
    """An artefact of `fourfold optimize … --workload generate`, as `fourfold.load` opens it."""

    def __init__(self, asked: dict) -> None:
        super().__init__(asked)
        import fourfold

        self.artefact = fourfold.load(asked["artefact"])
        self.detail = {"fourfold": fourfold.__version__, "artefact": Path(asked["artefact"]).name}

    def generate(self, rows: Rows, new: int) -> Rows:
        from fourfold.runtime.generate import generate

        ids = np.array(rows, np.int64)
        return generate(self.decoder(), {"input_ids": ids, "attention_mask": np.ones_like(ids)}, new, scored=False).tokens

    def decoder(self) -> object:
        part = self.artefact.assembly.parts[0]
        return part.open()

    def score(self, rows: Rows, start: int) -> list[float] | None:
        model, ids = self.decoder(), np.array(rows, np.int64)
        state, first = model.start({"input_ids": ids[:, :1], "attention_mask": np.ones_like(ids[:, :1])}, ids.shape[1])
        logits = np.concatenate([first[:, None], model.step(state, ids[:, 1:])], axis=1)
        return likelihood(logits, ids, start)


class Ours(Fourfold):
    """The original in one of our ways to generate: {"engine": "torch", "precision": "fp32"}."""

    def __init__(self, asked: dict) -> None:
        Peer.__init__(self, asked)
        import torch
        import transformers

        torch.set_num_threads(self.threads)
        transformers.utils.logging.disable_progress_bar()
        module = transformers.AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()
        ids = np.arange(40, 56)[None]
        engine = importlib.import_module(f"fourfold.engines.decode.{asked['engine']}")
        self.opened = engine.opened(module, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, self.threads, asked["precision"])
        self.detail = self.opened.describe()

    def decoder(self) -> object:
        return self.opened


PEERS: dict[str, type[Peer]] = {
    "torch-fp32": Torch, "torch-bf16": TorchBf16, "torchao-int8": TorchAo, "torchao-int8-dynamic": TorchAoDynamic, "llama.cpp-q8": LlamaCpp,
    "llama.cpp-q4": LlamaCppQ4, "llama.cpp-q4_1": LlamaCppShipped, "openvino-genai-int8": OpenVinoGenAI, "openvino-genai-int4": OpenVinoGenAI4,
    "ort-genai-int4": OrtGenAI, "ort-genai-int8": OrtGenAI8, "ctranslate2-int8": CTranslate2, "fourfold": Fourfold, "ours": Ours,
}


def main() -> int:
    name, asked = sys.argv[1], json.loads(sys.argv[2])
    channel = os.fdopen(os.dup(1), "w", buffering=1)                    # libraries print to standard output; the answers have it to themselves
    os.dup2(2, 1)
    try:
        peer = PEERS[name](asked)
    except BaseException as error:  # noqa: BLE001  why a peer is not there is a finding, whatever it is
        print(json.dumps({"absent": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}), file=channel)
        return 0
    print(json.dumps({"ready": peer.detail}), file=channel)
    for line in sys.stdin:
        try:
            print(json.dumps(answered(peer, json.loads(line))), file=channel)
        except Exception as error:  # noqa: BLE001  the driver goes on without this peer, and says why
            print(json.dumps({"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}), file=channel)
    return 0


def answered(peer: Peer, asked: dict) -> dict:
    if "score" in asked:
        return {"score": peer.score(asked["score"], asked["from"])}
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = peer.generate(asked["generate"], asked["new"])
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "tokens": tokens}


if __name__ == "__main__":
    sys.exit(main())
