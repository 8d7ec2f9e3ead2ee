"""Forecasts with realistic errors, and what a careful planner makes of them.

Errors of real forecasts persist for hours: e_t = rho e_(t-1) + sqrt(1 - rho²) n_t, sigma = `error` × the site's mean. A planner that picks the least
of many noisy values picks the luckiest error (the winner's curse), and clipping at zero does not cure it; so a forecast is shrunk towards the mean of
its site and hour of day by the share of its variance that is signal (Efron & Morris 1975).
"""

from __future__ import annotations

import numpy as np

FLOOR = 1.0                                                             # g/kWh: no grid is forecast below it


def noisy(truth: np.ndarray, error: float, seed: int, rho: float = 0.95, start: int = 0) -> np.ndarray:
    """A forecast of `truth` [R, T] g/kWh, NaN where it is NaN. With `start` > 0 the error grows from nothing in that hour (when it is issued)."""
    dice = np.random.default_rng(seed)
    sites, total = truth.shape
    shocks = dice.normal(size=(sites, total))
    noise = np.zeros((sites, total))
    state = shocks[:, start] if start == 0 else np.zeros(sites)         # stationary from the first hour, or known in the hour of issue
    noise[:, start] = state
    for t in range(start + 1, total):
        state = rho * state + np.sqrt(1 - rho * rho) * shocks[:, t]
        noise[:, t] = state
    made = truth + error * np.nanmean(truth, axis=1, keepdims=True) * noise
    return np.where(np.isnan(truth), np.nan, np.maximum(made, FLOOR))


def climatology(values: np.ndarray, phase: int = 0) -> np.ndarray:
    """Mean by site and hour of day, laid out over the hours: [R, T]. `phase` is the hour of day of the first hour."""
    sites, total = values.shape
    clock = (np.arange(total) + phase) % 24
    level = np.nanmean(values, axis=1, keepdims=True)
    made = np.repeat(level, total, axis=1)
    for hour in range(min(24, total)):
        chosen = values[:, clock == hour]
        seen = (~np.isnan(chosen)).sum(axis=1)
        mean = np.where(seen > 0, np.nansum(chosen, axis=1) / np.maximum(seen, 1), level[:, 0])
        weight = np.maximum(0.0, 1 - 3.0 / np.maximum(seen, 1e-9))      # a mean of a few days is hardly one: towards the site's mean
        made[:, clock == hour] = (weight * mean + (1 - weight) * level[:, 0])[:, None]
    return made


def shrunk(forecast: np.ndarray, error: float, usual: np.ndarray | None = None) -> np.ndarray:
    """The forecast [R, T] moved towards `usual` (its own climatology if not given), by what is noise in its deviations from it."""
    usual = climatology(forecast) if usual is None else usual
    away = forecast - usual
    noise = (error * np.nanmean(forecast, axis=1, keepdims=True)) ** 2
    signal = np.maximum(0.0, np.nanmean(away * away, axis=1, keepdims=True) - noise)
    return np.maximum(usual + signal / np.maximum(signal + noise, 1e-300) * away, 0.0)
