"""Readings of what ran: clocks, meters, quality. A missing meter is a reason in words, never a zero."""

from __future__ import annotations


def availability() -> dict[str, str | None]:
    """Every energy meter by name: why it cannot be read on this machine, or None where it can."""
    from fourfold.measure.meter import known

    return {meter.name: meter.available() for meter in known()}
