"""What every results file says of itself: when it was made, from which commit, with which versions, on which host under which load, with which
seeds and options. Import it before the measurement begins: it notes the time and the load at that moment. It changes nothing else, so that a script
may import it under any interpreter."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FIELDS = ("date", "commit", "versions", "machine", "load", "seeds", "options")
PACKAGES = (
    "fourfold", "torch", "transformers", "numpy", "onnxruntime", "openvino", "nncf", "torchao", "torch-pruning", "optuna", "tokenizers", "gguf",
    "scipy", "numba", "onnx", "jax", "ortools", "highspy", "pymetis",
)


def load() -> list[float] | None:
    """Mean number of runnable processes over 1, 5 and 15 minutes; None where the system does not tell."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


def now() -> str:
    """UTC, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


BEGAN, LOAD = now(), load()


def commit() -> str:
    """The commit that is checked out, with "+changes" where the working tree differs from it; "none" outside of a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + "+changes" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "none"


def versions(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Python's and of every package of `PACKAGES` that is installed; `more` adds others'."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | dict(more or {})


def facts(options: Any, seeds: Sequence[int | str], files: Mapping[str, Path] | None = None, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """All of `FIELDS`. `options`: the parsed arguments; `seeds`: all that were used; `files`: read files, whose sha256 is kept; `more`: versions."""
    from fourfold.host import here

    def plain(value: Any) -> Any:
        return value.name if isinstance(value, Path) else [plain(one) for one in value] if isinstance(value, list) else value

    told = {key: plain(value) for key, value in vars(options).items() if key not in ("work", "out", "cache")}
    return {
        "date": now(), "began": BEGAN, "commit": commit(), "machine": here().to_json(), "versions": versions(more), "seeds": list(seeds),
        "options": told, "sha256": {name: sha256(path.read_bytes()).hexdigest() for name, path in (files or {}).items()},
        "load": load(), "load_before": LOAD,
    }


def publish(path: Path, data: Mapping[str, Any]) -> Path:
    """Write `data` as JSON, aside and then renamed. Raises ValueError where its `about` lacks one of `FIELDS`."""
    missing = [name for name in FIELDS if name not in data.get("about", {})]
    if missing:
        raise ValueError(f"{path.name} does not say its {', '.join(missing)}.\nGive it about=provenance.facts(…).")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(data, indent=1, ensure_ascii=False, default=float) + "\n", encoding="utf-8")
    aside.replace(path)
    return path
