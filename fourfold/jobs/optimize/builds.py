"""Engine files of many parts, made side by side: an exporter and a quantiser run mostly in one thread, so each core makes a part of its own.

Precisions of one structure and back end are one piece of work, since they share the converted graph. What comes of it does not depend on who made
it. The children are those of `fourfold.jobs.optimize.crew`; what cannot be sent to one is made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

if TYPE_CHECKING:
    from torch import nn

    from fourfold.engines.base import Batch, Engine, Signature
    from fourfold.frontends.subject import Subject


@dataclass
class Made:
    """What came of an export: `files` in its folder, or the `reason` why there are none."""

    files: list[str]
    reason: str = ""


@dataclass
class Build:
    """One piece of work: `module` for `engine` in each of `precisions`, into `folder`, with `few` batches to calibrate and compare with."""

    name: str
    module: nn.Module
    subject: Subject
    signature: Signature
    few: list[Batch]
    engine: type[Engine]
    precisions: list[str]
    folder: Path


@dataclass
class Built:
    """What came of a `Build`, by precision."""

    name: str
    made: dict[str, Made]


def build(work: Build) -> Built:
    """Carry it out in this process."""
    from fourfold.engines.base import first_line
    from fourfold.errors import Declined

    kind, made = work.engine, {}
    work.folder.mkdir(parents=True, exist_ok=True)
    wrapped: nn.Module = work.subject.wrap(work.module).eval()
    for precision in work.precisions:
        try:
            made[precision] = Made(kind.export(wrapped, work.signature, work.few, precision, work.folder))
        except Declined as error:
            made[precision] = Made([], error.message)
        except Exception as error:  # an exporter's own failure is a reason to do without it, never the end of the job
            made[precision] = Made([], first_line(error))
    return Built(work.name, made)
