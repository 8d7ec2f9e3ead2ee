"""How well a figure is known: grades, whose cost it is, which carbon signal, and what grade a result has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fourfold.units.figure import QuantityLike

GRADES = ("measured", "counted", "modelled", "published", "assumed")   # strongest first; a result is as good as its weakest part that matters
BOUNDARIES = ("", "process", "host", "device", "hall")                  # "" = a property of nothing in particular (a constant, a ratio)
SIGNALS = ("", "average", "marginal", "market")                         # only carbon has one; market = contracts, not the wires
_HOLDS = 0.05                                                          # a grade counts where its sources hold more than this share of the variance
_EXACT = ("measured", "counted")                                       # without an interval these are exact; the others only left it out


def weakest(grades: Iterable[str]) -> str:
    """The weakest of one or more grades."""
    return max(grades, key=GRADES.index)


def origins(inputs: Iterable[QuantityLike]) -> dict[str, str]:
    """Source of error → the weakest grade in which it came."""
    origin: dict[str, str] = {}
    for part in inputs:
        known: dict[str, str] = part.__dict__["_origin"]
        for name, grade in known.items():
            origin[name] = weakest((grade, origin.get(name, grade)))
    return origin


def graded(errors: Mapping[str, float], origin: Mapping[str, str], plain: Mapping[str, float]) -> str | None:
    """The weakest grade that matters; None where nothing has a variance and nothing a share."""
    whole, found = sum(part * part for part in errors.values()), []
    for grade in reversed(GRADES):                                      # weaker ones count with it: 4 % assumed and 4 % published are 8 % published
        weaker = GRADES[GRADES.index(grade):]
        if whole and sum(part * part for name, part in errors.items() if origin.get(name) in weaker) > _HOLDS * whole:
            found.append(grade)
            break
    found += [grade for grade, held in plain.items() if held > _HOLDS and not (found and grade in _EXACT)]
    return weakest(found) if found else None
