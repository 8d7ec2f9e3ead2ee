"""What can go wrong, in the reader's words: what was given, what was expected, how to mend it.

The command line prints `str(error)` in at most two lines and exits with `error.exit_code`; nothing below raises `SystemExit`.
"""

from __future__ import annotations

import errno
from pathlib import Path


class FourfoldError(ValueError):
    """Base of every error that is the user's to mend. `mend` is one sentence saying how."""

    exit_code = 2

    def __init__(self, message: str, mend: str = "") -> None:
        super().__init__(f"{message}\n{mend}" if mend else message)
        self.message = message
        self.mend = mend


class InputError(FourfoldError):
    """A file, column, option or value that cannot be used."""


class ModelError(FourfoldError):
    """A model that cannot be read, traced or changed. Names the module."""


class MissingExtra(FourfoldError):
    """An optional dependency is absent. Says which extra brings it."""


class Declined(FourfoldError):
    """An engine cannot take this model, precision or region; the message is the reason in words."""


class MetricError(FourfoldError):
    """The user's metric raised, returned a non-number, or answered twice differently."""


class ArtefactError(FourfoldError):
    """A saved artefact is damaged, altered or made by something else."""


class Infeasible(FourfoldError):
    """No candidate clears the floor; carries the nearest ones in `front`."""

    exit_code = 3

    def __init__(self, message: str, mend: str = "", front: object | None = None) -> None:
        super().__init__(message, mend)
        self.front = front


class Missing(FourfoldError):
    """A figure that was asked for and cannot be had now, such as from a service that does not answer. Says why."""

    exit_code = 3


_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def unwritable(path: str | Path, error: OSError, what: str, kept: str = "") -> FourfoldError:
    """Why `what` could not be written to `path`: a full disk, exit code 1, or a place that cannot be written to. `kept`: what is still whole."""
    if error.errno not in _FULL:
        return InputError(f"Cannot write to {path}: {error.strerror}.", "Name a file in a folder that you may write to.")
    full = FourfoldError(f"The disk is full: {what} could not be written to {path}.{kept and ' '}{kept}",
                         "Make room and run the command again.")
    full.exit_code = 1
    return full
