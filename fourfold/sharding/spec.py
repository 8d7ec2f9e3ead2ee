"""How a tensor is laid over a mesh, and what users write to say so; to and from DTensor's placements and JAX's PartitionSpec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType
from typing import TYPE_CHECKING

from fourfold.errors import InputError
from fourfold.sharding.mesh import Mesh

if TYPE_CHECKING:
    from jax.sharding import PartitionSpec
    from torch.distributed.tensor.placement_types import Placement

Entry = str | tuple[str, ...] | EllipsisType | None


@dataclass(frozen=True)
class Spec:
    """For each dimension of a tensor the mesh axes it is split over, major first; `partial`: axes over which the value is a sum still to be made.

    A dimension of n elements over k devices goes in pieces of ⌈n/k⌉; the last ones are shorter, or empty, where k does not divide n. Raises
    InputError where an axis is used twice: a device holds one piece.
    """

    dims: tuple[tuple[str, ...], ...]
    partial: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(tuple(axes) for axes in self.dims))
        object.__setattr__(self, "partial", tuple(sorted(self.partial)))
        used = [axis for axes in (*self.dims, self.partial) for axis in axes]
        if len(used) != len(set(used)):
            twice = next(axis for axis in used if used.count(axis) > 1)
            raise InputError(f"The axis {twice!r} stands twice in {self}.", "A mesh axis can split one dimension of a tensor, once.")

    @classmethod
    def replicated(cls, ndim: int) -> Spec:
        """Every device holds the whole tensor."""
        return cls(((),) * ndim)

    # ---- questions

    @property
    def ndim(self) -> int:
        return len(self.dims)

    @cached_property
    def axes(self) -> frozenset[str]:
        """Axes that split a dimension."""
        return frozenset(axis for axes in self.dims for axis in axes)

    @property
    def whole(self) -> bool:
        """Whether every device holds the full value."""
        return not self.axes and not self.partial

    def dim_of(self, axis: str) -> int | None:
        """The dimension that `axis` splits; None where it splits none."""
        return next((d for d, axes in enumerate(self.dims) if axis in axes), None)

    def local_shape(self, shape: Sequence[int], mesh: Mesh) -> tuple[int, ...]:
        """The largest piece that a device holds of a tensor of `shape`: ⌈size ÷ devices⌉ in each dimension."""
        return tuple(-(-size // mesh.lengths(axes)) for size, axes in zip(shape, self.dims, strict=True))

    def slices(self, shape: Sequence[int], mesh: Mesh, rank: int) -> tuple[slice, ...]:
        """The part of a tensor of `shape` that device `rank` holds."""
        place = dict(zip(mesh.names, mesh.coordinates(rank), strict=True))
        found = []
        for size, axes in zip(shape, self.dims, strict=True):
            position = 0
            for axis in axes:
                position = position * mesh.length(axis) + place[axis]
            piece = -(-size // mesh.lengths(axes))
            found.append(slice(min(position * piece, size), min((position + 1) * piece, size)))
        return tuple(found)

    def even(self, shape: Sequence[int], mesh: Mesh) -> bool:
        """Whether all devices hold pieces of the same size."""
        return all(size % mesh.lengths(axes) == 0 for size, axes in zip(shape, self.dims, strict=True))

    def refines(self, other: Spec) -> bool:
        """Whether it splits each dimension as `other` does, or further by minor axes, and is partial over the same axes or fewer."""
        return (self.ndim == other.ndim and set(self.partial) <= set(other.partial)
                and all(mine[: len(theirs)] == theirs for mine, theirs in zip(self.dims, other.dims, strict=True)))

    def __str__(self) -> str:
        parts = ["None" if not axes else repr(axes[0]) if len(axes) == 1 else repr(axes) for axes in self.dims]
        return f"P({', '.join(parts)})" + (f" + partial {', '.join(self.partial)}" if self.partial else "")

    # ---- changes

    def with_dim(self, dim: int, axes: Sequence[str]) -> Spec:
        """The same with dimension `dim` split over `axes`."""
        return Spec(tuple(tuple(axes) if d == dim else old for d, old in enumerate(self.dims)), self.partial)

    def without(self, axis: str) -> Spec:
        """The same without `axis`, whatever it did."""
        return Spec(tuple(tuple(a for a in axes if a != axis) for axes in self.dims), tuple(a for a in self.partial if a != axis))

    # ---- to and from others

    def to_placements(self, mesh: Mesh) -> tuple[Placement, ...]:
        """DTensor's placements, one a mesh axis in the mesh's order. A dimension whose major axis stands later in the mesh needs strided shards."""
        from torch.distributed.tensor import Partial, Replicate, Shard
        from torch.distributed.tensor.placement_types import _StridedShard

        placements: list[Placement] = []
        for axis in mesh.names:
            dim = self.dim_of(axis)
            if dim is None:
                placements.append(Partial() if axis in self.partial else Replicate())
                continue
            axes = self.dims[dim]
            before = [a for a in axes[: axes.index(axis)] if mesh.axis(a) > mesh.axis(axis)]    # splits coarser, yet comes later in the mesh
            placements.append(_StridedShard(dim, split_factor=mesh.lengths(before)) if before else Shard(dim))
        return tuple(placements)

    @classmethod
    def of_placements(cls, placements: Sequence[Placement], ndim: int, mesh: Mesh) -> Spec:
        """The spec that DTensor's `placements` mean for a tensor of `ndim` dimensions. Raises InputError for a partial value that is no sum."""
        from torch.distributed.tensor import Partial

        dims: list[list[str]] = [[] for _ in range(ndim)]
        partial: list[str] = []
        for axis, placement in reversed(list(zip(mesh.names, placements, strict=True))):
            if isinstance(placement, Partial):
                if placement.reduce_op != "sum":
                    raise InputError(f"The placement {placement} along {axis!r} is not a sum.", "Redistribute it first: only sums can wait.")
                partial.append(axis)
            elif (dim := getattr(placement, "dim", None)) is not None:
                later = dims[dim % ndim]                                # axes after this one in the mesh, in their order so far
                factor, cut = int(getattr(placement, "split_factor", 1)), 0
                while factor > 1 and cut < len(later):
                    factor //= mesh.length(later[cut])
                    cut += 1
                later.insert(cut, axis)
        return cls(tuple(tuple(axes) for axes in dims), tuple(partial))

    def to_jax(self) -> PartitionSpec:
        """JAX's PartitionSpec; what is partial is said as `unreduced`."""
        from jax.sharding import PartitionSpec

        entries = [None if not axes else axes[0] if len(axes) == 1 else axes for axes in self.dims]
        return PartitionSpec(*entries, unreduced=frozenset(self.partial)) if self.partial else PartitionSpec(*entries)

    @classmethod
    def of_jax(cls, spec: PartitionSpec, ndim: int) -> Spec:
        """The spec that JAX's PartitionSpec means for a tensor of `ndim` dimensions. Raises InputError where it has more entries, or open ones."""
        return P(*getattr(spec, "partitions", spec)).spec(ndim, partial=tuple(getattr(spec, "unreduced", ()) or ()))


class P:
    """What users write: `P(None, "tp", ("dp", "tp"))`, one entry a dimension. None: not split. A name: split over that axis. A tuple: over several,
    major first. `...`: left to propagation. Dimensions without an entry are not split. Raises InputError where an axis stands twice.
    """

    def __init__(self, *entries: Entry | Sequence[str]) -> None:
        kept: list[tuple[str, ...] | EllipsisType] = []
        for entry in entries:
            if entry is None or isinstance(entry, str):
                kept.append((entry,) if entry else ())
            elif entry is Ellipsis or type(entry).__name__ == "UnconstrainedSingleton":
                kept.append(Ellipsis)
            elif isinstance(entry, Iterable) and all(isinstance(name, str) for name in entry):
                kept.append(tuple(entry))
            else:
                raise InputError(f"{entry!r} is no entry of a sharding.", "Write None, the name of a mesh axis, a tuple of names, or ...")
        self.entries = tuple(kept)
        used = [axis for entry in kept if not isinstance(entry, EllipsisType) for axis in entry]
        if twice := [axis for axis in used if used.count(axis) > 1]:
            raise InputError(f"The axis {twice[0]!r} stands twice in {self}.", "A mesh axis can split one dimension of a tensor, once.")

    def spec(self, ndim: int, mesh: Mesh | None = None, name: str = "", partial: Sequence[str] = ()) -> Spec:
        """The spec of a tensor of `ndim` dimensions, what is open not split. Raises InputError for more entries than dimensions, unknown axes."""
        self.check(ndim, mesh, name)
        dims = [() if isinstance(entry, EllipsisType) else entry for entry in self.entries]
        return Spec((*dims, *((),) * (ndim - len(dims))), tuple(partial))

    def open(self, ndim: int) -> tuple[bool, ...]:
        """Which of `ndim` dimensions propagation may split."""
        return tuple(d < len(self.entries) and self.entries[d] is Ellipsis for d in range(ndim))

    def check(self, ndim: int, mesh: Mesh | None = None, name: str = "") -> None:
        """Raises InputError for more entries than dimensions, and for axes that `mesh` lacks; `name` is the tensor's."""
        whose = f" of {name}" if name else ""
        if len(self.entries) > ndim:
            raise InputError(f"{self}{whose} has {len(self.entries)} entries, and the tensor has {ndim} dimension{'s' * (ndim != 1)}.",
                             "Give at most one entry a dimension.")
        for entry in self.entries:
            for axis in () if isinstance(entry, EllipsisType) else entry:
                if mesh is not None and axis not in mesh.names:
                    raise InputError(f"{self}{whose} names the axis {axis!r}; the mesh is {mesh}.", f"Its axes are: {', '.join(mesh.names)}.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, P) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def __repr__(self) -> str:
        def told(entry: tuple[str, ...] | EllipsisType) -> str:
            return "..." if isinstance(entry, EllipsisType) else "None" if not entry else repr(entry[0]) if len(entry) == 1 else repr(entry)

        return f"P({', '.join(told(entry) for entry in self.entries)})"


__all__ = ["Entry", "P", "Spec"]
