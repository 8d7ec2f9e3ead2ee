"""What a machine is made of: devices that compute, links between them, and the routes over the links."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CURVES = ("peak", "bandwidth", "narrow")
_DTYPES = {"fp64": "float64", "fp32": "float32", "tf32": "tf32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8", "half": "float16",
           "float": "float32", "double": "float64", "f64": "float64", "f32": "float32", "f16": "float16", "uint8": "int8"}
_WIDER = {"int4": ("int8", "float16", "bfloat16", "float32"), "int8": ("float16", "bfloat16", "float32"),
          "float8": ("float16", "bfloat16", "float32"),
          "float16": ("float32",), "bfloat16": ("float32",), "int16": ("float32",), "int32": ("float32",), "int64": ("float32", "float64"),
          "bool": ("int8", "float32"), "float32": ("float64",), "complex64": ("float32", "float64"), "complex128": ("float64",)}


@dataclass(frozen=True)
class Efficiency:
    """How much of a device one family of ops gets. Each curve is points (size, share), straight on double logarithmic paper, level outside.

    `launch` s a call costs besides its work, None: the device's. `peak`: FLOP of the op → share of peak, 0 to 1. `bandwidth`: bytes that pass until
    the same ones are used again → share of bandwidth; above 1 where caches hold them. `narrow`: least side of a matrix product → factor on `peak`.
    `relay` B/s at which each call lays its weights out anew before it computes; inf: it need not.
    """

    launch: float | None = None
    peak: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    bandwidth: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    narrow: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    relay: float = math.inf

    @staticmethod
    def at(curve: tuple[tuple[float, float], ...], size: object) -> np.ndarray:
        """The share of `curve` at `size` (a number or an array of any shape)."""
        import numpy as np

        points = np.log(np.asarray(curve, dtype=float))
        return np.exp(np.interp(np.log(np.maximum(np.asarray(size, dtype=float), 1e-9)), points[:, 0], points[:, 1]))


@dataclass(frozen=True)
class Device:
    """One place that runs ops, one at a time.

    `peak` FLOP/s by dtype (torch's names: float32, bfloat16, int8), `bandwidth` B/s of its memory, `launch` s of fixed cost per op, `memory` B it may
    hold, `idle` and `busy` W, `efficiency` by family or kind of op, `unsupported` patterns of kinds of op, `cold` points (B, s): what a call costs
    more once so many bytes have passed, since one of its kind ran, through the caches that hold the framework's own code and data.
    """

    name: str
    kind: str
    peak: Mapping[str, float]
    bandwidth: float
    launch: float
    memory: float
    idle: float = 0.0
    busy: float = 0.0
    efficiency: Mapping[str, Efficiency] = field(default_factory=dict)
    unsupported: tuple[str, ...] = ()
    cold: tuple[tuple[float, float], ...] = ()

    def chill(self, size: object) -> np.ndarray:
        """s that a call costs more once `size` bytes (a number or an array) have passed: 0 below the first point, level above the last."""
        import numpy as np

        moved = np.maximum(np.asarray(size, dtype=float), 1.0)
        if not self.cold:
            return np.zeros(moved.shape)
        points = np.array(self.cold)
        return np.interp(np.log(moved), np.log(points[:, 0]), points[:, 1], left=0.0)

    def speed(self, dtype: str) -> float:
        """Peak FLOP/s in `dtype`; a type without a figure runs as the next wider one that has. 0 where there is none: the device cannot."""
        dtype = plain_dtype(dtype)
        return next((self.peak[name] for name in (dtype, *_WIDER.get(dtype, ())) if name in self.peak), 0.0)

    def supports(self, kind: str) -> bool:
        return not any(fnmatch.fnmatchcase(kind, pattern) for pattern in self.unsupported)


@dataclass(frozen=True)
class Link:
    """A wire between `a` and `b`, devices or hubs: `latency` s, `bandwidth` B/s of one direction, `duplex` (both at once), `energy` J/B,
    `overlap`: bytes move while the sender computes; if not, it copies them itself."""

    a: str
    b: str
    latency: float
    bandwidth: float
    duplex: bool = True
    energy: float = 0.0
    overlap: bool = True


@dataclass(frozen=True)
class Route:
    """The way from one device to another: lanes in order, `latency` s in all, `bandwidth` B/s of the narrowest, `energy` J/B in all.

    Lane 2·l is link l from its `a` to its `b`; 2·l + 1 the other way, the same lane 2·l where the link is not duplex.
    """

    lanes: tuple[int, ...]
    latency: float
    bandwidth: float
    energy: float

    def seconds(self, size: float) -> float:
        """Of a transfer of `size` bytes that waits for nobody; 0 where both ends are the same device."""
        return self.latency + size / self.bandwidth if self.lanes else 0.0


def plain_dtype(dtype: str) -> str:
    """torch's name of a dtype: "torch.float32", "fp32", "f32" → "float32"."""
    dtype = dtype.rsplit(".", 1)[-1].lower()
    return _DTYPES.get(dtype, dtype)
