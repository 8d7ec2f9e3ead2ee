"""What if the same work were done by a cheaper model, on another machine, in another hall, elsewhere: four factors, their product, and who saved
what.

    carbon = work × (chip-hours / work) × (W × PUE × intensity + embodied per chip-hour)

Levers: Model = work; Machine = chip-hours and watts per unit of work; Mechanization = PUE; Map = intensity, and with several sites the shares too.
PUE counts as Mechanization although it moves with the site (the convention of Patterson et al. 2022, arXiv:2204.05149). Without embodied carbon and
with one site the factors are plain ratios; else they are Shapley values of the logarithm: either way they multiply to the whole exactly.

The run and what would change stand in a TOML file (`examples/run.toml`):

    [run]                        # as in `fourfold footprint`, and optionally `work` (any count that scales with the work; only its ratio matters)
    work = 1.61e19
    chips = 8
    chip = "P100"
    hours = 84
    watts = 296
    pue = 1.59
    intensity = "429 g/kWh"
    [after]                      # only what differs; figures measured after the change are taken as they are
    work = 1.03e19
    chip = "TPUv2"
    hours = 14.88
    watts = 227
    [new_model_old_machine]      # optional measurements that part Model from Machine by energy: hours (or days, chip_hours), chips, watts
    [old_model_new_machine]
    [[run.sites]]                # several sites instead of one: share, site (or name), pue, intensity, net_intensity
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fourfold.cost.footprint import KEYS, Footprint, check_keys, embodied_rate, footprint, table
from fourfold.errors import InputError
from fourfold.host import Chip, chip
from fourfold.ledger.attribution import Attribution, logs, split
from fourfold.ledger.book import LEVERS
from fourfold.units import Quantity, total
from fourfold.units.parse import FACTOR, WORK, given

_MACHINE = ("chips", "chip", "watts", "days", "hours", "chip_hours", "energy")
_PLACE = ("pue", "intensity", "net_intensity", "site")
_CROSS = ("new_model_old_machine", "old_model_new_machine")
_HALF = math.log(2) / 1.6448536269514722                               # shares of peak differ by up to × or ÷ 2 (Patterson 2021: 35 %, 62 %)


@dataclass(frozen=True)
class SiteShare:
    """One site of a run: `share` of its energy, PUE, and intensities (None: not given)."""

    name: str
    share: float
    pue: Quantity
    gross: Quantity | None
    net: Quantity | None


@dataclass(frozen=True)
class Side:
    """A run before or after. `work` is relative to the run before (1 there); `energy_it` kWh of the machines; `rate` gCO2e per chip-hour."""

    name: str
    chip: str
    work: Quantity
    energy_it: Quantity
    chip_hours: Quantity | None
    watts: Quantity | None
    places: tuple[SiteShare, ...]
    rate: Quantity | None
    runs_paid: float

    def to_json(self) -> dict[str, object]:
        figures = {name: figure.to_json() if (figure := getattr(self, name)) is not None else None
                   for name in ("work", "energy_it", "chip_hours", "watts", "rate")}
        places = [{"name": place.name, "share": place.share, "pue": place.pue.to_json(), "gross": place.gross and place.gross.to_json(),
                   "net": place.net and place.net.to_json()} for place in self.places]
        return {"name": self.name, "chip": self.chip, "runs_paid": self.runs_paid, "places": places, **figures}


@dataclass(frozen=True)
class Convention:
    """One way to part Model from Machine: their factors, and what they rest on. None and `why` where a measurement is missing."""

    name: str
    model: Quantity | None
    machine: Quantity | None
    why: str = ""

    def to_json(self) -> dict[str, object]:
        return {"name": self.name, "model": self.model and self.model.to_json(), "machine": self.machine and self.machine.to_json(), "why": self.why}


@dataclass(frozen=True)
class WhatIf:
    """`splits` by account: "energy" (kWh of the hall), "gross", "net", "gross + embodied", "net + embodied" (gCO2e), those that the figures allow.

    Each `Attribution` has the factor and the amount of every lever. `runs_paid` before and after stay outside the four: the whole bill is theirs too.
    """

    before: Side
    after: Side
    splits: Mapping[str, Attribution]
    conventions: tuple[Convention, ...]
    notes: tuple[str, ...]

    @property
    def runs_paid(self) -> tuple[float, float]:
        return self.before.runs_paid, self.after.runs_paid

    def to_json(self) -> dict[str, object]:
        return {"before": self.before.to_json(), "after": self.after.to_json(), "splits": {name: one.to_json() for name, one in self.splits.items()},
                "conventions": [one.to_json() for one in self.conventions], "runs_paid": list(self.runs_paid),
                "runs_factor": self.before.runs_paid / self.after.runs_paid, "notes": list(self.notes)}


def read(path: str | Path, **changes: str | float | None) -> WhatIf:
    """`whatif` on the tables of a TOML file. Raises InputError as it does, and for a file that cannot be read or has keys that are not known."""
    data = table(path)
    check_keys(data, ("run", "after", *_CROSS), Path(path).name)
    if not isinstance(data.get("run"), dict):
        raise InputError(f"{path} has no table [run].", 'Write [run], then chips = 8, chip = "P100", hours = 84, pue = 1.6, intensity = "429 g/kWh".')
    return whatif(data["run"], data.get("after"), cross={name: data[name] for name in _CROSS if name in data}, **changes)  # type: ignore[arg-type]


def whatif(
    run: Mapping[str, object],
    after: Mapping[str, object] | None = None,
    *,
    cross: Mapping[str, Mapping[str, object]] | None = None,
    model: str | float | None = None,
    machine: str | float | None = None,
    hall: str | float | None = None,
    site: str | float | None = None,
    embodied: str | float | None = None,
) -> WhatIf:
    """Compare a run with what it would be after changes.

    `run` has the arguments of `footprint`, and optionally `work` and `sites`; `after` those that differ, `cross` the two measurements that part Model
    from Machine by energy. Or in short: `model` a factor ("4": a quarter of the work), `machine` "P100:TPUv4" or a factor, `hall` "1.58:1.10" or the
    PUE after, `site` "FR:SE", "0.429:0.080" (kg/kWh) or the site after, `embodied` a scheme or kg per chip-hour on both sides. A chip whose speed on
    this work is not given is taken to reach the same share of its peak as the one before, known to × or ÷ 2.
    Raises InputError for figures that are missing, impossible, or contradict each other.
    """
    run, after = dict(run), dict(after or {})
    for entry, where in ((run, "[run]"), (after, "[after]")):
        check_keys(entry, (*KEYS, "work", "sites"), where)
    notes: list[str] = []
    if embodied is not None:
        run["embodied"] = embodied
    _halls(run, after, hall)
    _places(run, after, site)
    chips = _chips(run, machine)
    before = _before(run, notes)
    then = _after(before, run, after, model, machine, chips, notes)
    measured = {name: _energy_of(name, entry, run, after, before, then) for name, entry in (cross or {}).items()}
    splits = {"energy": _split(before, then, "energy", False)}
    for account in ("gross", "net"):
        if all(getattr(place, account) is not None for side in (before, then) for place in side.places):
            splits[account] = _split(before, then, account, False)
            if all(side.rate is not None and side.chip_hours is not None for side in (before, then)):
                splits[f"{account} + embodied"] = _split(before, then, account, True)
    if {side.rate is not None and side.chip_hours is not None for side in (before, then)} == {True, False}:
        notes.append("embodied carbon or its chip-hours are known on one side only, so it is left out of both")
    if "gross" not in splits and "net" not in splits:
        notes.append("no carbon intensity on both sides, so energy alone is compared; give --site or intensity in the file")
    derived = model is not None and "work" not in after and not any(key in after for key in _MACHINE)
    return WhatIf(before, then, splits, tuple(_conventions(before, then, measured, derived)), tuple(dict.fromkeys(notes)))


# ---- both sides ----------------------------------------------------------------------------------------------------------------------------------


def _pair(what: str, value: str | float, ok: Callable[[str], object]) -> tuple[str | None, str]:
    """ "A:B" → (A, B); "B" → (None, B). Names may hold colons ("gcp:us-central1"): the cut is where both halves are what `ok` takes."""
    text = str(value).strip()
    for mark in ("->", "→"):
        if mark in text:
            first, _, second = text.partition(mark)
            return first.strip(), second.strip()
    cuts = [(text[:at].strip(), text[at + 1:].strip()) for at, letter in enumerate(text) if letter == ":"]
    fine = [cut for cut in cuts if all(cut) and _takes(ok, cut[0]) and _takes(ok, cut[1])]
    if len(fine) == 1:
        return fine[0]
    if _takes(ok, text) or not cuts:
        return None, text
    if fine:
        raise InputError(f"--{what} {text!r} can be cut in several places.", f"Write it with an arrow: --{what} 'A->B'.")
    for half in cuts[0] if len(cuts) == 1 else (text,):
        ok(half)                                                       # says what is wrong with it
    raise InputError(f"--{what} {text!r} is not a pair of before and after.", f"Write --{what} A:B, or --{what} 'A->B'.")


def _takes(ok: Callable[[str], object], text: str) -> bool:
    try:
        ok(text)
    except InputError:
        return False
    return True


def _halls(run: dict[str, object], after: dict[str, object], hall: str | float | None) -> None:
    """Put the PUEs of --hall into both tables."""
    if hall is None:
        return
    from fourfold.units.parse import PUE

    first, second = _pair("hall", hall, lambda text: given(PUE, text, source="PUE"))
    if first is not None:
        _agree("pue", run, first, "--hall", lambda text: given(PUE, text, source="PUE").value)
        run["pue"] = run.get("pue", first)
    after["pue"] = second


def _places(run: dict[str, object], after: dict[str, object], where: str | float | None) -> None:
    """Put the sites or intensities of --site into both tables."""
    if where is None:
        return
    first, second = _pair("site", where, _location)
    for entry, text in ((run, first), (after, second)):
        if text is not None:
            key = "intensity" if _location(text) == "intensity" else "site"
            if entry is run and (run.get("sites") or not _same(key, run.get(key, text), text)):
                raise InputError(f"--site starts at {text}, but the file says the run was elsewhere.",
                                 "Give --site the site after alone, or mend one.")
            entry[key] = text
    after.pop("sites", None)


def _same(key: str, stated: Any, text: str) -> bool:
    """Whether the file and the option speak of one site, or of one intensity."""
    from fourfold.site import site
    from fourfold.units.parse import INTENSITY

    if key == "site":
        return site(str(stated)).id == site(text).id
    return math.isclose(given(INTENSITY, stated, source="").value, given(INTENSITY, text, source="").value, rel_tol=1e-9)


def _location(text: str) -> str:
    """ "intensity" or "site"; raises InputError for neither."""
    from fourfold.site import site
    from fourfold.units.parse import INTENSITY

    if text[:1].isdigit() or text[:1] == ".":
        given(INTENSITY, text, source="intensity")
        return "intensity"
    site(text)
    return "site"


def _agree(key: str, run: Mapping[str, object], text: str, option: str, value: Callable[[str], float]) -> None:
    if key in run and not math.isclose(value(str(run[key])), value(text), rel_tol=1e-9):
        raise InputError(f"{option} starts at {text}, but the file says {key} = {run[key]}.", f"Give {option} the figure after alone, or mend one.")


def _chips(run: dict[str, object], machine: str | float | None) -> tuple[Chip, Chip] | None:
    """The chips of --machine A:B; A becomes the run's where the file names none. None for a factor."""
    if machine is None or _takes(lambda text: given(FACTOR, text, source="machine"), str(machine)):
        return None
    first, second = _pair("machine", machine, chip)
    if first is None and "chip" not in run:
        raise InputError(f"--machine {machine}: from which chip is not known.", "Write --machine P100:TPUv4, or name the chip in the file.")
    old, new = chip(first or str(run["chip"])), chip(second)
    if "chip" in run and chip(str(run["chip"])).name != old.name:
        raise InputError(f"--machine starts at {old.name}, but the file says chip = {run['chip']}.", "Mend one of them.")
    run["chip"] = old.name
    return old, new


def _before(run: Mapping[str, Any], notes: list[str]) -> Side:
    places = run.get("sites")
    facts = {key: value for key, value in run.items() if key not in ("work", "sites", *(_PLACE if places else ()))}
    facts.setdefault("name", "the run")
    first = _location_of(facts, places, notes) if places else None
    base = footprint(**{**facts, **({"pue": first[0].pue} if first else {})})
    notes += base.warnings
    if base.energy_it is None:
        raise InputError("A run whose energy was metered at the hall needs the hall's PUE too.", "Give pue beside energy.")
    one = Quantity(1.0, "1", "counted")
    return Side(base.name, base.chip, one, base.energy_it, base.chip_hours, base.watts, first or (_place(base),), base.embodied_rate, base.runs_paid)


def _place(found: Footprint, share: float = 1.0, name: str = "") -> SiteShare:
    assert found.pue is not None
    return SiteShare(name or found.site or "its site", share, found.pue, found.intensity, found.net_intensity)


def _location_of(facts: Mapping[str, Any], places: object, notes: list[str]) -> tuple[SiteShare, ...]:
    """The sites of a `sites` list: shares must sum to 1."""
    made = []
    for entry in places if isinstance(places, list) else []:
        if not isinstance(entry, Mapping):
            raise InputError(f"A site of a run is a table with share and intensity, got {entry!r}.", "Write [[run.sites]], then share = 0.5 …")
        check_keys(entry, ("share", "name", *_PLACE), "[[sites]]")
        name = str(entry.get("name") or entry.get("site") or f"site {len(made) + 1}")
        share = entry.get("share")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise InputError(f"The share of {name} must be from 0 to 1, got {share!r}.", "Shares say which part of the work is done where.")
        found = footprint(name=f"{facts['name']} at {name}", chip_hours=1, watts=1, grade=facts.get("grade", "assumed"),
                          **{key: entry[key] for key in _PLACE if key in entry})
        notes += found.warnings
        made.append(_place(found, float(share), name))
    if not made or not math.isclose(sum(place.share for place in made), 1.0, abs_tol=1e-9):
        raise InputError(f"The shares of the sites sum to {sum(place.share for place in made):g}, not to 1.", "Say where all of the work is done.")
    if len({place.name for place in made}) < len(made):
        raise InputError("Two of the sites have one name.", "Name each site once, with its whole share.")
    return tuple(made)


def _after(before: Side, run: Mapping[str, object], after: Mapping[str, object], model: object, machine: object, chips: tuple[Chip, Chip] | None,
           notes: list[str]) -> Side:
    """The other side: what is measured there as it is, the rest carried over, so that what did not change cancels."""
    name = str(after.get("name", f"{before.name}, after"))
    facts = {"grade": run.get("grade", "assumed"), "source": run.get("source", ""), **after, "name": name}
    work = _work(before, run, after, model, name)
    side = replace(before, name=name, work=work, runs_paid=_runs(run, after))
    changed = [key for key in _MACHINE if key in after]
    if changed and machine is not None:
        raise InputError(f"--machine and [after] {changed[0]} both say what the machine is.", "Give one of them.")
    time = [key for key in changed if key not in ("chip", "watts")]
    if time:
        side = _measured(side, before, run, facts, notes)
    else:
        new = chip(str(after["chip"])) if "chip" in after else chips[1] if chips else None
        side = _derived(side, before, new, machine if chips is None else None, facts, run, notes)
    if "embodied" in after:
        side = replace(side, rate=embodied_rate(name, after["embodied"], after.get("chips_per_server", run.get("chips_per_server", 8))))
    return replace(side, places=_moved(before, run, after, facts, notes))


def _runs(run: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    from fourfold.cost.footprint import _runs as checked

    return checked(after.get("runs_paid", run.get("runs_paid", 1)))


def _work(before: Side, run: Mapping[str, Any], after: Mapping[str, Any], model: Any, name: str) -> Quantity:
    """Work after, as a share of the work before."""
    if model is not None:
        if "work" in after:
            raise InputError("--model and [after] work both say how much work is left.", "Give one of them.")
        return before.work / given(FACTOR, model, source=f"model factor of {name}")
    if "work" not in after:
        return before.work
    if "work" not in run:
        raise InputError("[after] has work, but [run] has none to compare it with.", "Give work in both, or --model 4.")
    old, new = (given(WORK, entry["work"], source=f"work of {who}") for entry, who in ((run, before.name), (after, name)))
    counted = [figure if figure.errors or figure.grade != "assumed" else replace(figure, grade="counted") for figure in (old, new)]
    return counted[1] / counted[0]


def _measured(side: Side, before: Side, run: Mapping[str, object], facts: dict[str, Any], notes: list[str]) -> Side:
    """A machine side with a time of its own: what is not said anew is as before."""
    said = _machine_facts(run, facts)
    if "watts" not in said and "chip" not in facts and before.watts is not None and "energy" not in said:
        said["watts"] = before.watts
    found = footprint(**said, name=facts["name"], grade=facts["grade"], source=facts["source"], pue=facts.get("pue", _pue(before.places, "")))
    assert found.energy_it is not None
    notes += found.warnings
    return replace(side, chip=found.chip or before.chip, energy_it=found.energy_it, chip_hours=found.chip_hours, watts=found.watts)


def _machine_facts(run: Mapping[str, object], facts: Mapping[str, object]) -> dict[str, Any]:
    """The machine keys of `facts`, filled up from `run` where the two do not exclude each other."""
    said = {key: facts[key] for key in _MACHINE if key in facts}
    if "energy" in said:
        return said
    fill = ["chip"] if "chip" not in said else []
    if "chip_hours" not in said:
        fill += [key for key in ("chips", "days", "hours") if key not in said and not (key in ("days", "hours") and {"days", "hours"} & set(said))]
    return {**said, **{key: run[key] for key in fill if key in run}}


def _derived(side: Side, before: Side, new: Chip | None, factor: Any, facts: Mapping[str, object], run: Mapping[str, object],
             notes: list[str]) -> Side:
    """A machine side without a time of its own: scaled by work, and by the ratio of two chips' peaks, or by a factor."""
    energy, hours, watts, name = before.energy_it * side.work, before.chip_hours and before.chip_hours * side.work, before.watts, before.chip
    if factor is not None:
        gain = given(FACTOR, factor, source=f"machine factor of {side.name}")
        notes.append("a machine factor is taken as speed at the same watts: chip-hours fall with it, and embodied carbon too")
        return replace(side, energy_it=energy / gain, chip_hours=hours and hours / gain)
    if new is not None and new.name != before.chip:
        if not before.chip or hours is None:
            raise InputError(f"How fast {new.title} is on this work is not known.", "Give chip and time in [run], or hours and chips in [after].")
        ratio = _speed(chip(before.chip), new)
        notes.append(f"{new.title} is taken to reach the same share of its peak as {chip(before.chip).title}: {ratio}; a measured time is better")
        hours, name = hours / ratio, new.name
        watts = new.power.at("host")
        if watts.method.startswith("TDP"):
            notes.append(f"{watts.value:g} W is the TDP of {new.title}, not a measured mean")
    if "watts" in facts:
        said = {"watts": facts["watts"], "chip": name or None, "grade": facts["grade"]}
        watts = footprint(name=side.name, chip_hours=1, pue=1, **said).watts
    if watts is not before.watts and watts is not None and hours is not None:
        energy = (watts * hours).to("kWh")
    return replace(side, chip=name, energy_it=energy, chip_hours=hours, watts=watts)


def _speed(old: Chip, new: Chip) -> Quantity:
    """How many times faster `new` is, from 16-bit peaks (or 32-bit where one of the two has no other), at the same share of peak."""
    for names in (("bf16", "fp16"), ("fp32",)):
        peaks = [max((one.peak[name] for name in names if name in one.peak), key=lambda figure: figure.value, default=None) for one in (old, new)]
        if peaks[0] is not None and peaks[1] is not None:
            same = Quantity(1.0, "1", "assumed", errors={f"share of peak, {new.name} against {old.name}": _HALF}, method="same share of peak")
            return peaks[1] / peaks[0] * same
    raise InputError(f"No precision has a peak for both {old.title} and {new.title}.", "Give hours and chips of the new machine in [after].")


def _moved(before: Side, run: Mapping[str, object], after: Mapping[str, object], facts: Mapping[str, Any],
           notes: list[str]) -> tuple[SiteShare, ...]:
    """The places after. Where only the hall or only the intensity changes, the other is carried over."""
    if after.get("sites"):
        return _location_of(facts, after["sites"], notes)
    keys = [key for key in _PLACE if key in after]
    if not keys:
        return before.places
    told = {key: after[key] for key in keys}
    old, first = before.places, before.places[0]
    if keys != ["pue"] and len(old) > 1 and "pue" not in told:
        raise InputError("The run has several sites; which PUE holds at the one after is not said.", "Give --hall, or pue in [after].")
    found = footprint(name=str(facts["name"]), chip_hours=1, watts=1, grade=facts["grade"], source=facts["source"],
                      **{**({"pue": first.pue} if "pue" not in told else {}), **told})
    assert found.pue is not None
    if keys == ["pue"]:
        return tuple(replace(place, pue=found.pue) for place in old)
    if "site" in told and "pue" not in told:
        from fourfold.site import site

        notes.append(f"the hall stays as it was (PUE {first.pue.value:g}); that of {site(str(told['site'])).title} is "
                     f"{site(str(told['site'])).pue.value:g}: give --hall to change it")
    place = _place(found, name=found.site or "the site after")
    kept = first if len(old) == 1 and "site" not in told else None    # a new intensity leaves the other account as it was
    if kept is not None:
        place = replace(place, gross=place.gross or kept.gross, net=place.net or kept.net)
    return (place,)


# ---- costs ---------------------------------------------------------------------------------------------------------------------------------------


def _split(before: Side, after: Side, account: str, embodied: bool) -> Attribution:
    """Shapley values of one account; plain ratios instead where the cost is a product of one figure a lever."""
    def cost(pulled: frozenset[str]) -> Quantity:
        return _cost(before, after, pulled, account, embodied)

    found = split(cost, LEVERS)
    if len(before.places) > 1 or len(after.places) > 1:
        return found
    one = Quantity(1.0, "1", "counted")
    ends = []
    for side in (before, after):
        place = side.places[0]
        ends.append({"model": side.work, "machine": side.energy_it / side.work, "mechanization": place.pue,
                     "map": one if account == "energy" else getattr(place, account)})
    ratios = {lever: factor.at("") for lever, factor in logs(*ends).items()}
    if embodied:                                                       # no error left to grade a factor by: it is as sure as its own figures
        ratios = {lever: factor if factor.errors else replace(factor, grade=ratios[lever].grade) for lever, factor in found.factors.items()}
    return replace(found, factors=ratios)


def _cost(before: Side, after: Side, pulled: frozenset[str], account: str, embodied: bool) -> Quantity:
    """kWh of the hall, or gCO2e, with the levers in `pulled` as after."""
    model, machine = (after if lever in pulled else before for lever in ("model", "machine"))
    scale = model.work / machine.work                                  # the machine's own work cancels: what counts is its cost per work
    energy = machine.energy_it * scale
    where = (after if "map" in pulled else before).places
    hall = after if "mechanization" in pulled else before
    parts = []
    for place in where:
        if place.share:
            local = (energy * _pue(hall.places, place.name) * place.share).at("hall")
            parts.append(local if account == "energy" else local * getattr(place, account))
    whole = total(parts).to("kWh" if account == "energy" else "gCO2e")
    if not embodied:
        return whole
    assert machine.rate is not None and machine.chip_hours is not None
    made = machine.rate * (machine.chip_hours * scale / Quantity(1.0, "h", "counted"))
    return whole + replace(made.at("hall"), signal=whole.signal)


def _pue(places: tuple[SiteShare, ...], name: str) -> Quantity:
    """The PUE at `name`; where that side did not run there, its mean over the places where it did."""
    for place in places:
        if place.name == name:
            return place.pue
    return places[0].pue if len(places) == 1 else total(place.pue * place.share for place in places)


# ---- Model against Machine -----------------------------------------------------------------------------------------------------------------------


def _energy_of(name: str, entry: Mapping[str, Any], run: Mapping[str, object], after: Mapping[str, object], before: Side, then: Side) -> Quantity:
    """kWh of the machines, measured with one model on the other's machine."""
    check_keys(entry, (*_MACHINE, "grade", "source"), f"[{name}]")
    home, side = (run, before) if name == _CROSS[0] else ({**run, **after}, then)
    said = _machine_facts(home, entry)
    if "watts" not in said and side.watts is not None and "energy" not in said:
        said["watts"] = side.watts
    grade = entry.get("grade", run.get("grade", "assumed"))
    found = footprint(**said, name=name.replace("_", " "), pue=1, grade=grade, source=entry.get("source", ""))
    assert found.energy_it is not None
    return found.energy_it


def _conventions(before: Side, after: Side, measured: Mapping[str, Quantity], derived: bool) -> list[Convention]:
    """Model and Machine by counted work, and by energy at a fixed machine: a smaller model often runs at a lower rate, and who pays for that
    differs."""
    old, new = before.energy_it, after.energy_it
    work = before.work / after.work
    found = [Convention("counted work", work, (old / new) / work)]
    if not measured:
        if derived or after.work is before.work:
            why = "taken as equal: the smaller model is assumed to run at the same rate" if derived else "the model did not change"
            return [*found, Convention("energy at a fixed machine", work, (old / new) / work, why)]
        missing = "measure the new model on the old machine, [new_model_old_machine] in the file: a smaller model often runs at a lower rate"
        return [*found, Convention("energy at a fixed machine", None, None, missing)]
    crossed, straight = measured.get(_CROSS[0]), measured.get(_CROSS[1])
    if crossed is not None:
        found.append(Convention("energy at the old machine", old / crossed, crossed / new))
    if straight is not None:
        found.append(Convention("energy at the new machine", straight / new, old / straight))
    if crossed is not None and straight is not None:
        corners = {frozenset(): old, frozenset({"model"}): crossed, frozenset({"machine"}): straight, frozenset({"model", "machine"}): new}
        mean = split(lambda pulled: corners[pulled], ("model", "machine")).factors
        found.append(Convention("energy, mean of both (Shapley)", mean["model"], mean["machine"]))
    return found
