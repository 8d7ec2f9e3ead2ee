"""One process of a sharded run, for tests: small models on a mesh of gloo processes, answers and gradients against the plain model's."""

from __future__ import annotations

import copy
import sys

import small_models
import torch
import torch.distributed as dist
from torch import Tensor

import fourfold
from fourfold.sharding.spec import P

SAID: dict[str, dict[str, P]] = {
    "encoder": {"x": P("dp"), "blocks.*.feed.0.weight": P("tp"), "blocks.*.qkv.weight": P("tp")},
    "gpt": {"x": P("dp"), "blocks.*.feed.0.weight": P("tp"), "embed.weight": P(None, "tp")},
    "resnet": {"input": P("dp"), "1.body.0.weight": P("tp")},
    "unet": {"x": P("dp")},
    "lstm": {"x": P("dp")},
    "mlp": {"input": P("dp"), "0.weight": P("tp"), "2.weight": P(None, "tp")},
}


def close(mine: Tensor, full: Tensor, tolerance: float) -> bool:
    return float((mine - full).detach().abs().max()) <= tolerance * max(1.0, float(full.detach().abs().max()))


def check(name: str, mesh: str) -> None:
    model, inputs = small_models.MODELS[name]()
    model.eval()
    plain = copy.deepcopy(model)
    fourfold.shard(model, SAID[name], fourfold.Mesh.parse(mesh), inputs)
    answer, full = model(inputs), plain(inputs)
    assert close(answer, full, 1e-5), (name, float((answer - full).detach().abs().max()))
    answer.square().mean().backward()
    full.square().mean().backward()
    for (label, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None, label
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
