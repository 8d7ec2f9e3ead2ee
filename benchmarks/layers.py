"""The cheaper layers, measured: `python benchmarks/layers.py PART [options of the part]`. Each part is a file of its own, `layers_PART.py`, with a
`main(arguments)` that ends in `provenance.publish`; without a part, the parts there are."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def parts() -> list[str]:
    """Names of the parts that lie beside this file."""
    return sorted(file.stem.removeprefix("layers_") for file in Path(__file__).parent.glob("layers_*.py"))


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python benchmarks/layers.py {{{','.join(parts())}}} [options]")
        return 0
    if arguments[0] not in parts():
        print(f"There is no part {arguments[0]!r}.\nThere are: {', '.join(parts()) or 'none yet'}.", file=sys.stderr)
        return 2
    sys.path.insert(0, str(Path(__file__).parent))
    return int(importlib.import_module(f"layers_{arguments[0]}").main(arguments[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
