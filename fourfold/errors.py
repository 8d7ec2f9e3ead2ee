"""What can go wrong, in the reader's words: what was given, what was expected, how to mend it.

The command line prints `str(error)` in at most two lines and exits with `error.exit_code`; nothing below raises `SystemExit`.
"""

from __future__ import annotations


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
