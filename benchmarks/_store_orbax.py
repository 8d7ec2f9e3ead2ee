"""Orbax in a process of its own, for `store.py`: seconds to save and load what `store.py` saves, as a JSON line. Runs under an interpreter with
orbax-checkpoint.

    PYTHON benchmarks/_store_orbax.py FOLDER TENSORS ROUNDS
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROWS, COLUMNS = 4096, 256


def main() -> None:
    import jax
    import orbax.checkpoint as orbax

    folder, tensors, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3])
    made = np.random.default_rng(0)
    rows = []
    with orbax.AsyncCheckpointer(orbax.PyTreeCheckpointHandler()) as saver:
        for number in range(rounds + 1):                               # the first warms up
            state = {f"w{i}": jax.numpy.asarray(made.standard_normal((ROWS, COLUMNS), dtype=np.float32)) for i in range(tensors)}
            jax.block_until_ready(state)
            path = folder / f"orbax-{number}"
            wall, cpu = time.perf_counter(), time.process_time()
            saver.save(path, args=orbax.args.PyTreeSave(state))
            blocked = time.perf_counter() - wall
            saver.wait_until_finished()
            row = {"blocked": blocked, "save": time.perf_counter() - wall, "save_cpu": time.process_time() - cpu}
            wall, cpu = time.perf_counter(), time.process_time()
            back = saver.restore(path)
            row |= {"load": time.perf_counter() - wall, "load_cpu": time.process_time() - cpu}
            row["right"] = all(np.array_equal(back[name], state[name]) for name in state)
            row["bytes"] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            shutil.rmtree(path)
            rows.append(row)
    print(json.dumps({"rows": rows[1:], "version": version("orbax-checkpoint")}))


if __name__ == "__main__":
    main()
