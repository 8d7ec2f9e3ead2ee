"""`fourfold.shard`: a few annotated tensors, and the model runs on a mesh of devices as DTensors, its code unchanged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from fourfold.errors import InputError, ModelError
from fourfold.frontends.capture import capture
from fourfold.graph import INPUT
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.propagate import Propagation, propagate
from fourfold.sharding.spec import P, Spec

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

Model = TypeVar("Model", bound="nn.Module")
KEPT = "fourfold_sharding"                                              # the attribute in which a sharded model keeps its propagation


def shard(model: Model, annotations: Mapping[str, P | Spec], mesh: Mesh | DeviceMesh | str, inputs: object, *, device: str = "cpu") -> Model:
    """Distribute `model` over `mesh` as `annotations` imply, in place, and return it: parameters become DTensors, its code stays.

    `annotations`: patterns over names of parameters ("*.mlp.up.weight"), inputs and modules → `P(None, "tp")`; all else follows by propagation.
    `inputs`: example inputs, whose shapes the program is captured with. Called, it takes plain tensors (the same on every process) or DTensors; with
    plain ones it answers with plain ones, whole on every process. `model.fourfold_sharding` is the `Propagation`: layouts, collectives, conflicts in
    words. `mesh`: a Mesh, "2x4", "dp=2,tp=4", or a DeviceMesh. The process group is the one that is initialised; else that of torchrun's
    environment; else, for one device, one of this process alone.

    Raises InputError where the mesh does not fit the processes, and as `annotated` does; ModelError where the model is sharded already.
    """
    import torch
    from torch.distributed.tensor import distribute_tensor

    from fourfold.jobs._dtensor import registered

    if hasattr(model, KEPT):
        raise ModelError("The model is sharded already.", "Load it afresh, or keep the layouts that it has.")
    grid, devices = _devices(mesh, device)
    registered()
    found = capture(model, inputs)
    made = propagate(found, annotations, grid)
    layouts = made.parameters()
    graph = made.graph
    constants = {graph.labels[v]: made.specs[v] for v in range(len(graph.producer)) if graph.labels[v]}
    done: dict[int, Any] = {}
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, tensor in list(module._parameters.items()):
                if tensor is None:
                    continue
                if id(tensor) not in done:                              # tied weights stay one
                    spec = layouts.get(_named(path, name)) or Spec.replicated(tensor.ndim)
                    laid = distribute_tensor(tensor.detach(), devices, spec.to_placements(grid), src_data_rank=None)
                    done[id(tensor)] = torch.nn.Parameter(laid, requires_grad=tensor.requires_grad)
                module._parameters[name] = done[id(tensor)]
            for name, tensor in list(module._buffers.items()):
                if tensor is not None:
                    spec = constants.get(_named(path, name)) or Spec.replicated(tensor.ndim)
                    spec = spec if spec.ndim == tensor.ndim else Spec.replicated(tensor.ndim)
                    module._buffers[name] = distribute_tensor(tensor, devices, spec.to_placements(grid), src_data_rank=None)
    setattr(model, KEPT, made)
    _hooked(model, made, grid, devices)
    return model


def _named(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _devices(mesh: Mesh | DeviceMesh | str, device: str) -> tuple[Mesh, DeviceMesh]:
    """(our mesh, torch's) on the process group that there is. Raises InputError where it has not a process a device."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    if isinstance(mesh, DeviceMesh):
        return Mesh.of_torch(mesh), mesh
    grid = Mesh.parse(mesh) if isinstance(mesh, str) else mesh
    if not dist.is_initialized():
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == grid.size == 1 and "MASTER_ADDR" not in os.environ:
            dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        elif world == grid.size and "RANK" in os.environ:
            dist.init_process_group("gloo" if device == "cpu" else "nccl")
        else:
            raise InputError(f"The mesh {grid} takes {grid.size} processes, and there {'is one' if world == 1 else f'are {world}'}.",
                             f"Start it by torchrun --nproc-per-node {grid.size}, or initialise torch.distributed first.")
    if dist.get_world_size() != grid.size:
        raise InputError(f"The mesh {grid} takes {grid.size} processes, and the process group has {dist.get_world_size()}.",
                         "Choose sizes whose product is the number of processes.")
    return grid, init_device_mesh(device, grid.shape, mesh_dim_names=grid.names)


def _hooked(model: nn.Module, made: Propagation, grid: Mesh, devices: DeviceMesh) -> None:
    """Around every call: inputs distributed as found, plain tensors that the code makes taken for whole, answers made whole again."""
    import torch
    from torch.distributed.tensor import DTensor, distribute_tensor
    from torch.utils import _pytree

    from fourfold.jobs._dtensor import completing, whole

    fed = [v for v in range(len(made.graph.producer)) if made.graph.role[v] == INPUT]
    by_shape = {made.graph.shape_of(v): made.specs[v] for v in reversed(fed)}
    recurrent = any(isinstance(module, torch.nn.RNNBase) for module in model.modules())
    entered: list[tuple[ExitStack, bool]] = []

    def before(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[tuple[object, ...], dict[str, object]]:
        leaves, tree = _pytree.tree_flatten((args, kwargs))
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        plain = not any(isinstance(leaves[i], DTensor) for i in tensors)
        shapes = [tuple(leaves[i].shape) for i in tensors]
        same = shapes == [made.graph.shape_of(v) for v in fed]
        for i, value, shape in zip(tensors, fed if same else [None] * len(tensors), shapes, strict=True):
            if not isinstance(leaves[i], DTensor):
                spec = made.specs[value] if value is not None else by_shape.get(shape, Spec.replicated(len(shape)))
                leaves[i] = distribute_tensor(leaves[i], devices, spec.to_placements(grid), src_data_rank=None)
        stack = ExitStack()
        stack.enter_context(completing(devices, recurrent))
        entered.append((stack, plain))
        return _pytree.tree_unflatten(leaves, tree)

    def after(_: nn.Module, args: object, answer: object) -> object:
        stack, plain = entered.pop()
        stack.close()
        return _pytree.tree_map_only(DTensor, whole, answer) if plain else answer

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, always_call=True)


__all__ = ["KEPT", "shard"]
