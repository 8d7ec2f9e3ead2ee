"""One process of a sharded run, for tests: small models on a mesh of gloo processes, answers and gradients against the plain model's."""

from __future__ import annotations

import copy
import sys

import small_models
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fourfold
from fourfold.sharding.spec import P

SAID: dict[str, dict[str, P]] = {
    "encoder": {"x": P("dp"), "blocks.*.feed.0.weight": P("tp"), "blocks.*.qkv.weight": P("tp")},
    "gpt": {"x": P("dp"), "blocks.*.feed.0.weight": P("tp"), "embed.weight": P(None, "tp")},
    "resnet": {"input": P("dp"), "1.body.0.weight": P("tp")},
    "unet": {"x": P("dp")},
    "lstm": {"x": P("dp")},
    "bert": {"input_ids": P("dp"), "*.intermediate.dense.weight": P("tp"), "*.query.weight": P("tp"), "*.key.weight": P("tp"),
             "*.value.weight": P("tp")},
    "gpt2": {"input_ids": P("dp"), "*.c_fc.weight": P(None, "tp")},
    "llama": {"input_ids": P("dp"), "*.gate_proj.weight": P("tp"), "*.q_proj.weight": P("tp"), "*.k_proj.weight": P("tp")},
    "mlp": {"input": P("dp"), "0.weight": P("tp"), "2.weight": P(None, "tp")},
}


def hub(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A tiny transformers model of random weights, and example inputs by name."""
    import transformers

    torch.manual_seed(0)
    shape = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
             "max_position_embeddings": 64}
    ids = torch.randint(5, 90, (4, 8), generator=torch.Generator().manual_seed(1))
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**shape)), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64, use_cache=False)
        return transformers.GPT2LMHeadModel(config), {"input_ids": ids}
    config = transformers.LlamaConfig(**shape, num_key_value_heads=2, use_cache=False)
    return transformers.LlamaForCausalLM(config), {"input_ids": ids}


def made(name: str) -> tuple[nn.Module, Tensor | dict[str, Tensor]]:
    return small_models.MODELS[name]() if name in small_models.MODELS else hub(name)


def answered(model: nn.Module, inputs: Tensor | dict[str, Tensor]) -> Tensor:
    found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return found if isinstance(found, Tensor) else found.logits if hasattr(found, "logits") else found.last_hidden_state


def close(mine: Tensor, full: Tensor, tolerance: float) -> bool:
    return float((mine - full).detach().abs().max()) <= tolerance * max(1.0, float(full.detach().abs().max()))


def check(name: str, mesh: str) -> None:
    model, inputs = made(name)
    model.eval()
    plain = copy.deepcopy(model)
    fourfold.shard(model, SAID[name], fourfold.Mesh.parse(mesh), inputs)
    answer, full = answered(model, inputs), answered(plain, inputs)
    assert close(answer, full, 1e-5), (name, float((answer - full).detach().abs().max()))
    answer.square().mean().backward()
    full.square().mean().backward()
    for (label, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), label
        if mine.grad is None or theirs.grad is None:                    # bert's pooler, which its last hidden state does not read
            continue
        assert close(mine.grad.full_tensor(), theirs.grad, 1e-4), (name, label)  # type: ignore[operator]


def main() -> None:
    rank, world, port, mesh, *names = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.TCPStore("127.0.0.1", int(port), int(world), rank == "0"), rank=int(rank), world_size=int(world))
    for name in names:
        check(name, mesh)
    dist.barrier()
    dist.destroy_process_group()
    print("well")


if __name__ == "__main__":
    main()
