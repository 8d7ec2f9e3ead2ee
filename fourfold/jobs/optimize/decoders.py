"""Ways to generate made ready: exported, opened, and compared with PyTorch's own logits on a few prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.engines.base import Signature, first_line
from fourfold.engines.decode import decoder
from fourfold.engines.decode.base import TOLERANCE, Decoding
from fourfold.engines.select import sample_batches
from fourfold.errors import Declined, InputError

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task
    from fourfold.engines.decode.eager import EagerDecoding
    from fourfold.runtime.artefact import Part

PARITY = 3
"""Prompts on which a way to generate must answer as PyTorch does."""


def torch_threads() -> int:
    """Threads that PyTorch computes with now."""
    import torch

    return torch.get_num_threads()


def sample(examples: Examples, task: Task, most: int = PARITY) -> dict[str, np.ndarray]:
    """A few prompts of the shorter rows, as `Decoding.start` reads them."""
    from fourfold.runtime.generating import prompts

    order = np.argsort(examples.lengths, kind="stable")
    return prompts(examples, np.sort(order[: max(1, len(order) // 2)][:most]), task, 32)


def ready(module: Any, task: Task, examples: Examples) -> EagerDecoding:
    """The module in PyTorch, with a cache where that changes nothing. InputError or ModelError in words where it cannot generate."""
    from fourfold.engines.decode.eager import opened

    try:
        return opened(module, sample(examples, task), torch_threads())
    except Declined as error:
        raise InputError(f"--workload generate: {error.message}.", "Leave --workload out, or give a model that generates.") from None


def prepared(part: Part, examples: Examples, folder: Path) -> tuple[float, str | None]:
    """Export and open a part that generates; (largest difference of a logit relative to PyTorch's, reason it cannot be used or None)."""
    from fourfold.host import here
    from fourfold.runtime.generating import GeneratingSession

    kind = decoder(part.setting.engine)
    reason = kind.declines(part.setting.precision, here())
    if reason:
        return float("inf"), reason
    assert part.module is not None and part.generating is not None
    part.signature = Signature.of(part.subject.inputs, sample_batches(part.sees(examples), 0))
    part.folder = folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        inputs = sample(part.sees(examples), part.generating)
        part.files = kind.export(part.module, part.setting.precision, folder, [inputs])
        session = part.open()
        assert isinstance(session, GeneratingSession)
        noise = distance(session.decoding, part, inputs)
        tolerance = TOLERANCE.get(part.setting.precision, 0.5)
        reason = None if noise <= tolerance else f"its logits differ from PyTorch's by {noise:.2g} of the largest (at most {tolerance:g})"
    except Declined as error:
        noise, reason = float("inf"), error.message
    except Exception as error:  # an exporter's own failure is a reason to do without it, never the end of the job
        noise, reason = float("inf"), first_line(error)
    if reason:
        part.close()
    return noise, reason


def distance(model: Decoding, part: Part, inputs: dict[str, np.ndarray]) -> float:
    """Largest difference of a logit from eager fp32 PyTorch's, relative to its largest: after the prompts, then after its own greedy tokens."""
    from fourfold.engines.decode.eager import EagerDecoding

    assert part.module is not None
    own = EagerDecoding(part.module, part.setting.threads)
    length = int(inputs["decoder_input_ids" if own.encodes else "input_ids"].shape[1])
    (a, x), (b, y) = model.start(inputs, length + 4), own.start(inputs, length + 4)
    worst = float(np.abs(x - y).max() / max(1.0, np.abs(y).max()))
    for _ in range(3):
        token = y.reshape(len(y), -1, y.shape[-1])[:, -1].argmax(-1)[:, None]
        x, y = model.step(a, token), own.step(b, token)
        worst = max(worst, float(np.abs(x - y).max() / max(1.0, np.abs(y).max())))
    return worst if np.isfinite(worst) else float("inf")
