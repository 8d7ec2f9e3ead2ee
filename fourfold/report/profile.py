"""A model's profile in sentences: inputs, where the time goes, how many hidden units matter, which conversion could pay and why the others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourfold.jobs.profile import ModelProfile, Prospect, Ways
    from fourfold.measure.probe import Activity, TimeShare

SMALL = 0.05
"""Share of the time below which nothing that is saved there shows."""


def percent(value: float) -> str:
    """0.314 → "31 %", small ones with a digit more."""
    return f"{100 * value:.{0 if value >= 0.1 or value == 0 else 1}f} %"


def sentences(found: ModelProfile) -> list[str]:
    """What was seen, then what could pay."""
    low, middle, high = found.lengths
    length = f"{low:,} positions" if low == high else f"{low:,} to {high:,} positions, median {middle:,}"
    said = [f"{found.model} on {found.rows} rows of {found.data}: inputs have {length}.", _times(found), *_units(found.probe.activities)]
    said += [f"Not read: {name}, since {why.rstrip('.')}." for name, why in found.refusals.items()]
    return [*said, *conversions(found)]


def _times(found: ModelProfile) -> str:
    kinds = found.probe.kinds
    core = f" ({percent(kinds['core'].value)} between its projections)" if kinds["core"].value else ""
    return (f"Of the {1000 * found.probe.seconds:,.1f} ms of processor time of a pass attention takes {_share(kinds['attention'])}{core}, "
            f"MLPs {_share(kinds['mlp'])}, the rest {_share(kinds['rest'])} (medians of {found.probe.rounds} rounds, {found.threads} "
            f"thread{'s' * (found.threads != 1)}).")


def _share(one: TimeShare) -> str:
    return percent(one.value) if one.low == one.high else f"{percent(one.value)} [{percent(one.low)} to {percent(one.high)}]"


def _units(activities: tuple[Activity, ...]) -> list[str]:
    if not activities:
        return ["No hidden units of an MLP could be watched."]
    most, least = max(activities, key=lambda one: one.nonzero), min(activities, key=lambda one: one.nonzero)
    which = (f"{percent(least.nonzero)} ({least.name}) to {percent(most.nonzero)} ({most.name})" if least.nonzero < most.nonzero
             else percent(most.nonzero))
    needed = sorted(one.needed for one in activities)
    near = sorted(one.near for one in activities)
    return [f"Units of {len(activities)} MLPs that are not zero: {which}; near zero besides: {percent(near[len(near) // 2])} in the median layer.",
            f"99 % of the squared magnitude of a position is held by {percent(needed[0])} to {percent(needed[-1])} of the units of a layer."]


def conversions(found: ModelProfile) -> list[str]:
    """A sentence for each conversion; last, whether any could pay."""
    said = [_prospect(one) for one in found.prospects]
    paying = [one.to for one in found.prospects if one.pays]
    if found.prospects:
        said.append(f"Could pay here: {', '.join(paying)}. Untrained copies were raced; what quality is left, `fourfold convert` measures."
                    if paying else "No conversion pays on these inputs on this machine.")
    return said


def _prospect(one: Prospect) -> str:
    if one.refused:
        return f"{one.to}: cannot be done here, since {_sentence(one.refused)}"
    limit = f"{one.sites} part{'s' * (one.sites != 1)} with {percent(one.share)} of the time"
    races = [f"{_ways(ways)} {on}" for ways, on in ((one.batch, "on these rows"), (one.decode, "on one position of one row")) if ways is not None]
    verdict = "could pay" if one.pays else "does not pay"
    few = "; at most that share could be saved" if not one.pays and one.share < SMALL else ""
    return f"{one.to}: {verdict}. It takes {limit}{few}; raced, it costs {' and '.join(races)}."


def _ways(ways: Ways) -> str:
    value, low, high = ways.cpu
    return f"{value:.2f} [{low:.2f}, {high:.2f}] of the processor time ({ways.wall[0]:.2f} of the wall time)"


def _sentence(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".") + "."
