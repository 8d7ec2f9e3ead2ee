"""Tensors as chunks: TensorStore's zarr 3 encoding (little-endian elements, then their crc32c), so that TensorStore reads and checks them, too."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import InputError

if TYPE_CHECKING:
    import tensorstore as ts
    from torch import Tensor

CHUNK = 16 << 20                                                       # bytes of a chunk at most, unless told otherwise
_WIDTHS = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64", 16: "complex128"}
NATIVE = frozenset((
    "bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "bfloat16", "float32", "float64", "complex64",
    "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
))                                                                     # torch's names that are zarr's too


def dtype_name(tensor: Tensor, name: str) -> str:
    """The name of the elements' type, torch's and zarr's. Raises InputError for one that zarr does not have."""
    found = str(tensor.dtype).removeprefix("torch.")
    if found not in NATIVE:
        raise InputError(f"{name} holds {found}, which zarr has no type for.", f"Save tensor.view(torch.uint8). Known: {', '.join(sorted(NATIVE))}.")
    return found


def array(tensor: Tensor) -> np.ndarray:
    """The same memory as a numpy array of TensorStore's type."""
    import tensorstore as ts
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    if name in ("bfloat16",) or name.startswith("float8"):
        flat = tensor.contiguous().view(torch.uint8 if tensor.element_size() == 1 else torch.int16).numpy()
        return flat.view(ts.dtype(name).numpy_dtype)
    return tensor.numpy()


def tensor_of(values: np.ndarray, dtype: str) -> Tensor:
    """A torch tensor of `dtype` on the same memory, where it is writable."""
    import torch

    kind = getattr(torch, dtype)
    if dtype == "bfloat16" or dtype.startswith("float8"):
        return torch.from_numpy(np.ascontiguousarray(values).view(_WIDTHS[values.dtype.itemsize])).view(kind)
    return torch.from_numpy(values)


def chunk_shape(shape: Sequence[int], itemsize: int, most: int = CHUNK) -> list[int]:
    """The chunk of an array: its longest side is halved until `most` bytes hold it, so that rows and columns are read with little beside them."""
    sides = [max(1, size) for size in shape]
    while int(np.prod(sides, dtype=np.int64)) * itemsize > most and max(sides) > 1:
        longest = max(range(len(sides)), key=lambda axis: (sides[axis], -axis))
        sides[longest] = -(-sides[longest] // 2)
    return sides


def metadata(dtype: str, shape: Sequence[int], chunk: Sequence[int]) -> dict[str, object]:
    """zarr 3's description of an array of these chunks."""
    zero: object = False if dtype == "bool" else [0.0, 0.0] if dtype.startswith("complex") else 0
    return {
        "zarr_format": 3, "node_type": "array", "shape": list(shape), "data_type": dtype, "fill_value": zero, "attributes": {},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}} if not dtype.endswith("8") and "float8" not in dtype and dtype != "bool"
                   else {"name": "bytes"}, {"name": "crc32c"}],
    }  # fmt: skip


def grid(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Indices of all chunks, row by row; none for an array without elements."""
    if 0 in tuple(shape):
        return iter(())
    return itertools.product(*(range(-(-size // side)) for size, side in zip(shape, chunk, strict=True)))


def zarr_key(index: Sequence[int]) -> str:
    return "/".join(("c", *map(str, index)))


def encoded(values: np.ndarray, dtype: str, chunk: Sequence[int]) -> Iterator[bytes]:
    """The bytes of each chunk of `values`, in the order of `grid`; a chunk that hangs over the edge is filled up with zeros."""
    import tensorstore as ts

    if not values.size:
        return
    spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}, "metadata": metadata(dtype, values.shape, chunk),
            "store_data_equal_to_fill_value": True}
    made: ts.TensorStore = ts.open(spec, create=True, context=ts.Context({"cache_pool": {"total_bytes_limit": 0}})).result()
    store = made.kvstore
    assert store is not None
    for index in grid(values.shape, chunk):
        where = tuple(slice(at * side, min((at + 1) * side, size)) for at, side, size in zip(index, chunk, values.shape, strict=True))
        made[where].write(values[where]).result()
        key = zarr_key(index)
        yield store[key]
        del store[key]
