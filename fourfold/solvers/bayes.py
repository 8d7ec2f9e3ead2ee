"""Multi-objective Bayesian search with constraints: Optuna's tree-structured Parzen estimator behind ask and tell.

Deterministic for a seed and a history: a resumed run tells what the journal remembers and goes on as the killed one would have.
(Watanabe 2023, TPE; Ozaki et al. 2022, multi-objective TPE; constraints c-TPE.)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Span:
    """A range to search: float (optionally logarithmic), or integer when `whole`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


class Search:
    """`ask()` for parameters, `tell()` their objectives (all minimised) and constraint violations (≤ 0 is feasible)."""

    def __init__(self, space: Mapping[str, Span | list[Any]], objectives: int, seed: int, startup: int = 6) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.optuna = dict(space), optuna
        # Optuna 5 takes constraints per trial; 4 took a function of the trial.
        self.modern = hasattr(optuna.trial.Trial, "set_constraint")
        old: dict[str, Any] = {} if self.modern else {"constraints_func": lambda t: t.user_attrs.get("violation", (0.0,))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate sampling is marked experimental
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, **old)
        minimise: list[Literal["minimize"]] = ["minimize" for _ in range(objectives)]
        self.study = optuna.create_study(directions=minimise, sampler=sampler)
        self.open: dict[int, Any] = {}

    def seed(self, parameters: Mapping[str, object]) -> None:
        """Put a point at the head of the queue."""
        self.study.enqueue_trial(dict(parameters))

    def ask(self) -> tuple[int, dict[str, Any]]:
        """A ticket and the parameters to try next."""
        trial = self.study.ask()
        found: dict[str, object] = {}
        for name, span in self.space.items():
            if isinstance(span, list):
                found[name] = trial.suggest_categorical(name, span)
            elif span.whole:
                found[name] = trial.suggest_int(name, int(span.low), int(span.high))
            else:
                found[name] = trial.suggest_float(name, span.low, span.high, log=span.log)
        self.open[trial.number] = trial
        return trial.number, found

    def tell(self, ticket: int, objectives: list[float], violation: float = 0.0) -> None:
        """Answer a ticket."""
        trial = self.open.pop(ticket)
        if self.modern:
            trial.set_constraint("violation", float(violation))
        else:
            trial.set_user_attr("violation", (float(violation),))
        self.study.tell(trial, objectives)


def dominated(points: list[tuple[float, ...]]) -> list[bool]:
    """For each point (all coordinates minimised), whether another is no worse everywhere and better somewhere."""
    return [any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for q in points) for p in points]
