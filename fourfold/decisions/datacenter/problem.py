"""The two questions of the hall, each with its validator, which was written without looking at any technique.

`Cool`: how the heat leaves, hour by hour. `Serve`: how many servers stay on for an hourly load, and in what batches they work.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from fourfold.cost import datacenter
from fourfold.cost.datacenter import Hall, Weather
from fourfold.errors import InputError
from fourfold.problem import Problem

MEANS = ("outside air", "set point", "immersion", "overcooling")        # what a hall may be allowed to change
CHILLER, MIXED, OUTSIDE = 0, 1, 2                                      # modes of an hour: chiller alone; outside air and chiller; outside air alone
_HEAVY = 1e-9


class Cool(Problem[dict[str, Any]]):
    """How the heat of `it_kw` [T] kW leaves a hall through hours of outside temperature [T], in kWh of the whole hall (IT, its fans and its
    overhead).

    An answer is plain data: `cooling` (air or immersion), `set_point` in °C, `cut` (name of a published reduction, or ""), `modes` [T] of 0 chiller,
    1 outside air with the chiller for the rest, 2 outside air alone. Wrong would be: air warmer than the set point at a server's inlet, a set point
    beyond `limit`, a mode left sooner than `hold` hours after it was entered, or a mode named for an hour that is not there.
    """

    question: ClassVar[str] = "cool"
    lever: ClassVar[str] = "mechanization"
    unit = "kWh"

    def __init__(self, hall: Hall, weather: Weather, it_kw: np.ndarray | None = None, *, limit: float = datacenter.RECOMMENDED[1], hold: int = 1,
                 allowed: Iterable[str] = MEANS, drawn: datacenter.Drawn | None = None, pue: float | None = None) -> None:
        self.hall, self.weather, self.limit, self.hold, self.allowed = hall, weather, limit, hold, frozenset(allowed)
        self.outside = np.asarray(weather.celsius, float)
        self.it_kw = np.full(len(self.outside), hall.it_kw) if it_kw is None else np.asarray(it_kw, float)
        if self.it_kw.shape != self.outside.shape:
            raise InputError(f"There are {len(self.it_kw):,} hours of load and {len(self.outside):,} of temperature.",
                             "Give both for the same hours.")
        if hold < 1:
            raise InputError(f"A mode cannot be held for {hold} hours.", "Give 1 or more.")
        self.drawn = datacenter.central() if drawn is None else drawn
        if odd := self.allowed - set(MEANS):
            raise InputError(f"The hall has no means called {', '.join(sorted(odd))}.", f"Choose from: {', '.join(MEANS)}.")
        known = datacenter.known_pue(hall, 0.5) if pue is None else pue
        self.scale = datacenter.scale(hall, datacenter.overhead(hall, self.it_kw, self.outside, self.drawn), self.it_kw, known)

    def baseline(self) -> dict[str, Any]:
        """The hall as it stands."""
        modes = self.free_modes(self.hall.set_point) if self.hall.cooling == "economiser" else np.zeros(len(self.outside), int)
        means = "immersion" if self.hall.cooling == "immersion" else "air"
        return {"cooling": means, "set_point": self.hall.set_point, "cut": "", "modes": [int(mode) for mode in modes]}

    def free_modes(self, set_point: float) -> np.ndarray:
        """The mode that leaves least to the chiller in each hour [T], were there no `hold`."""
        left = datacenter.share_by_chiller(self.outside, set_point, self.drawn)
        return np.where(left <= 0, OUTSIDE, np.where(left < 1, MIXED, CHILLER))

    def violations(self, answer: dict[str, Any]) -> list[str]:
        """Which rules `answer` breaks, in words."""
        modes = np.asarray(answer["modes"], int)
        if len(modes) != len(self.outside):
            return [f"there are {len(self.outside)} hours and {len(modes)} modes"]
        broken = [f"hour {t} is in mode {modes[t]}, which does not exist" for t in np.flatnonzero((modes < CHILLER) | (modes > OUTSIDE))]
        if answer["cooling"] not in ("air", "immersion"):
            broken.append(f"{answer['cooling']!r} is no way to cool")
        if answer["cut"] and answer["cut"] not in datacenter.REDUCTIONS:
            broken.append(f"no published reduction is called {answer['cut']!r}")
        broken += [f"{means} is not allowed in this hall" for means in self.used(answer) if means not in self.allowed]
        point = float(answer["set_point"])
        if point > max(self.limit, self.hall.set_point) + _HEAVY:
            broken.append(f"the set point of {point:g} °C is above the limit of {self.limit:g} °C")
        if answer["cooling"] == "immersion":
            return broken + (["an immersed server meets no outside air, yet some hours are in an outside-air mode"] if modes.any() else [])
        coolest, warmest = point - self.drawn["margin"], point - self.drawn["margin"] + self.drawn["air_rise"]
        for t in range(len(modes)):
            if modes[t] == OUTSIDE and self.outside[t] > coolest + _HEAVY:
                broken.append(f"hour {t}: outside air of {self.outside[t]:g} °C cannot keep a set point of {point:g} °C alone")
            elif modes[t] == MIXED and self.outside[t] >= warmest - _HEAVY:
                broken.append(f"hour {t}: outside air of {self.outside[t]:g} °C is warmer than the air that it would replace")
        return broken + self._restless(modes)

    def used(self, answer: dict[str, Any]) -> list[str]:
        """Means that `answer` uses and the hall as it stands does not."""
        now = self.hall.cooling
        return [means for means, used in (("outside air", now != "economiser" and any(answer["modes"])),
                                          ("set point", float(answer["set_point"]) != self.hall.set_point),
                                          ("immersion", answer["cooling"] == "immersion" and now != "immersion"),
                                          ("overcooling", answer["cut"] == "overcooling")) if used]

    def _restless(self, modes: np.ndarray) -> list[str]:
        """Modes left too soon; a run cut off by the beginning or the end of the hours is let pass."""
        edges = np.flatnonzero(np.diff(modes)) + 1
        return [f"mode {modes[first]} of hour {first} is left after {last - first} hours; it must be held for {self.hold}"
                for first, last in zip(edges, edges[1:], strict=False) if last - first < self.hold]

    def hourly(self, answer: dict[str, Any]) -> dict[str, np.ndarray]:
        """Kilowatts by hour [T]: "IT" (with what warm air adds to the servers' fans) and the parts of the overhead, scaled to the hall's PUE."""
        point = float(answer["set_point"])
        extra = self.drawn["server_fans"] * max(0.0, point - max(25.0, self.hall.set_point)) if answer["cooling"] == "air" else 0.0
        it = self.it_kw * (1 + extra)
        hall = datacenter.changed(self.hall, set_point=point, cooling="chiller", rated_kw=max(float(self.hall.rated_kw or 0), float(it.max())))
        modes = np.asarray(answer["modes"], int)
        left = datacenter.share_by_chiller(self.outside, point, self.drawn)
        parts = datacenter.overhead(hall, it, self.outside, self.drawn, np.where(modes == CHILLER, 1.0, np.where(modes == OUTSIDE, 0.0, left)))
        keep = self._kept(answer)
        return {"IT": it, **{name: self.scale * part * (keep if name == "cooling" else 1.0) for name, part in parts.items()}}

    def hours(self, answer: dict[str, Any]) -> dict[str, int]:
        """Hours whose heat leaves with outside air alone ("free"), with the chiller's help ("partial"), and by the chiller alone."""
        modes, left = np.asarray(answer["modes"], int), datacenter.share_by_chiller(self.outside, float(answer["set_point"]), self.drawn)
        free = int(((modes != CHILLER) & (left <= 0)).sum())
        chiller = int((modes == CHILLER).sum())
        return {"free": free, "partial": len(modes) - free - chiller, "chiller": chiller}

    def _kept(self, answer: dict[str, Any]) -> float:
        """Part of the air-cooled hall's cooling energy that stays. A hall that is immersed already has no further cut coming by it."""
        already = self.hall.cooling == "immersion"
        cuts = [answer["cut"]] if answer["cut"] else []
        cuts += ["immersion"] if answer["cooling"] == "immersion" and not already else []
        kept = 1.0
        for name in cuts:
            kept *= 1.0 - self.drawn.get(name, datacenter.REDUCTIONS[name].value)
        return kept

    def cost(self, answer: dict[str, Any]) -> float:
        """kWh of the whole hall over all hours."""
        return float(sum(part.sum() for part in self.hourly(answer).values()))

    def bound(self) -> float:
        """kWh that no answer goes below: the servers, with no overhead at all but what power delivery and lighting lose."""
        parts = self.hourly({**self.baseline(), "cooling": "air", "modes": [0] * len(self.outside)})
        return float(parts["IT"].sum() + parts["power delivery"].sum() + parts["lighting and other"].sum())

    @classmethod
    def sample(cls, seed: int) -> Cool:
        """A small random instance."""
        rng = np.random.default_rng(seed)
        hours = int(rng.integers(3, 30))
        celsius = np.round(rng.uniform(-5, 25) + 8 * np.sin(np.arange(hours) * 2 * np.pi / 24) + rng.normal(0, 3, hours), 1)
        hall = Hall(it_kw=float(rng.uniform(50, 900)), rated_kw=1000.0, set_point=float(rng.choice([16.0, 18.0, 22.0])))
        return cls(hall, Weather(celsius, True, "drawn at random"), hold=int(rng.integers(1, 4)))


class Fleet:
    """Servers in the order in which they are kept on: `capacity` [N] in units of load, `idle_w` and `busy_w` [N] in watts; the most efficient first.

    `start_kwh` is the energy of starting one. Raises InputError for empty fleets, powers that are not positive, or idle above busy.
    """

    def __init__(
        self, capacity: object, idle_w: object, busy_w: object, *, start_kwh: float = 0.0, exponent: float = datacenter.SERVER["exponent"].value
    ) -> None:
        rows = [np.atleast_1d(np.asarray(column, float)) for column in (capacity, idle_w, busy_w)]
        if len({len(row) for row in rows}) != 1 or not len(rows[0]):
            raise InputError("A fleet needs the same number of capacities, idle and busy powers, and at least one server.",
                             "Give one of each a server.")
        finite = all(np.isfinite(row).all() for row in rows)
        if not finite or (rows[0] <= 0).any() or (rows[1] < 0).any() or (rows[2] < rows[1]).any() or start_kwh < 0:
            raise InputError("A server's capacity must be above zero and its power 0 <= idle <= busy.", "Check capacity, idle_w and busy_w.")
        self.order = np.argsort(rows[2] / rows[0], kind="stable")
        self.capacity, self.idle_w, self.busy_w = (row[self.order] for row in rows)
        self.start_kwh, self.exponent = start_kwh, exponent
        self.alike = all(np.ptp(row) == 0 for row in rows)

    def __len__(self) -> int:
        return len(self.capacity)


class Serve(Problem[dict[str, Any]]):
    """How many servers stay on in each hour for a load [T] (in units of the fleet's capacity), in kWh of IT.

    The load is spread evenly over those that are on, none above `headroom` of its capacity, `spare` more than needed for safety. With `call_s` (fixed
    seconds of a call), `item_s` (seconds an item) and `latency_s`, the load is a rate of items a second, and an answer's `batch` [T] says how many
    items share a call. An answer is `{"on": [T], "batch": [T]}`; the first n servers of the fleet's order are meant. Wrong would be: fewer servers
    than the load needs, more than there are, or a batch that keeps its first item waiting beyond the latency.
    """

    question: ClassVar[str] = "serve"
    lever: ClassVar[str] = "mechanization"
    unit = "kWh"

    def __init__(self, load: object, fleet: Fleet, *, headroom: float = 0.8, spare: int = 0, call_s: float = 0.0, item_s: float = 0.0,
                 latency_s: float = 0.0, most: int = 1024, fixed_idle: bool = False) -> None:
        self.load = np.asarray(load, float)
        self.fixed_idle = fixed_idle                                   # the idle power was given, so no interval is put on it
        self.fleet, self.headroom, self.spare = fleet, headroom, spare
        self.call_s, self.item_s, self.latency_s, self.most = call_s, item_s, latency_s, most
        if self.load.ndim != 1 or not len(self.load) or not np.isfinite(self.load).all() or (self.load < 0).any():
            raise InputError("A load must be at least one hour of numbers of zero or more.", "Give one figure an hour.")
        if not 0 < headroom <= 1:
            raise InputError(f"Servers cannot be filled to {headroom:g} of their capacity: a utilisation above 1 or none.", "Give 0 < headroom <= 1.")
        if self.batched and not (item_s > 0 and call_s >= 0 and latency_s >= call_s + item_s):
            raise InputError(f"One item takes {call_s + item_s:g} s, and the latency allowed is {latency_s:g} s.", "Allow more, or give other times.")
        need = self.demand(np.ones(len(self.load), int))
        if (need > headroom * fleet.capacity.sum() * (1 + 1e-9)).any() and not self.batched:
            worst = int(np.argmax(need))
            raise InputError(f"Hour {worst} needs {need[worst]:g} of a fleet that holds {headroom * fleet.capacity.sum():g} at {headroom:.0%}: "
                             "a utilisation above 1.", "Add servers, or lower the load.")

    def with_fleet(self, fleet: Fleet) -> Serve:
        """The same load on other servers."""
        return Serve(self.load, fleet, headroom=self.headroom, spare=self.spare, call_s=self.call_s, item_s=self.item_s, latency_s=self.latency_s,
                     most=self.most, fixed_idle=self.fixed_idle)

    @property
    def batched(self) -> bool:
        return self.item_s > 0 or self.call_s > 0

    def demand(self, batch: np.ndarray) -> np.ndarray:
        """Load [T] in units of capacity (busy servers, where items are batched) for items in batches of `batch` [T]."""
        return self.load * (self.call_s / batch + self.item_s) if self.batched else self.load

    def baseline(self) -> dict[str, object]:
        """Every server on, one item a call."""
        return {"on": [len(self.fleet)] * len(self.load), "batch": [1] * len(self.load)}

    def violations(self, answer: dict[str, Any]) -> list[str]:
        """Which rules `answer` breaks, in words."""
        on, batch = list(answer["on"]), list(answer["batch"])
        if len(on) != len(self.load) or len(batch) != len(self.load):
            return [f"there are {len(self.load)} hours, {len(on)} counts of servers and {len(batch)} batches"]
        room, broken = np.concatenate(([0.0], np.cumsum(self.fleet.capacity))), []
        for t, (count, size) in enumerate(zip(on, batch, strict=True)):
            if not 0 <= count <= len(self.fleet):
                broken.append(f"hour {t}: {count} servers are on, of {len(self.fleet)}")
                continue
            if size < 1 or (size > 1 and not self.batched):
                broken.append(f"hour {t}: a batch of {size} where items cannot be batched")
                continue
            work = self.load[t] * (self.call_s / size + self.item_s) if self.batched else self.load[t]
            if count < min(self.spare, len(self.fleet)):
                broken.append(f"hour {t}: {count} servers are on, and {self.spare} are to be spare")
                continue
            held = room[max(count - self.spare, 0)] if count < len(self.fleet) else room[count]
            if work > self.headroom * held * (1 + 1e-9) + 1e-12:
                broken.append(f"hour {t}: a load of {work:g} does not fit into {count} servers at {self.headroom:.0%}, {self.spare} of them spare")
            if size > 1 and (size - 1) / max(self.load[t], 1e-300) + self.call_s + size * self.item_s > self.latency_s * (1 + 1e-9):
                broken.append(f"hour {t}: the first of {size} items waits beyond {self.latency_s:g} s")
        return broken

    def power(self, counts: np.ndarray, work: np.ndarray) -> np.ndarray:
        """Watts with the first `counts` servers on and `work` spread evenly over them (arrays that broadcast)."""
        room, idle, busy = (np.concatenate(([0.0], np.cumsum(row))) for row in (self.fleet.capacity, self.fleet.idle_w, self.fleet.busy_w))
        used = np.clip(np.divide(work, room[counts], out=np.zeros(np.broadcast(work, counts).shape), where=room[counts] > 0), 0.0, 1.0)
        return idle[counts] + (busy[counts] - idle[counts]) * datacenter.dynamic_share(used, self.fleet.exponent)

    def cost(self, answer: dict[str, object]) -> float:
        """kWh over all hours, starts included (all servers that the first hour needs are on already)."""
        on, batch = np.asarray(answer["on"], int), np.asarray(answer["batch"], int)
        return float(self.power(on, self.demand(batch)).sum() / 1000.0 + self.fleet.start_kwh * np.maximum(np.diff(on), 0).sum())

    def bound(self) -> float:
        """kWh that no choice of servers goes below: parts of servers, each filled to the headroom, cheapest first, no starts, the largest batches."""
        fleet, full = self.fleet, self.headroom
        busy = datacenter.dynamic_share(np.array([full]), fleet.exponent)   # watts per unit of load fall as a server fills
        per_unit = (fleet.idle_w + (fleet.busy_w - fleet.idle_w) * busy) / (fleet.capacity * full)
        cheapest = np.argsort(per_unit, kind="stable")
        room = np.concatenate(([0.0], np.cumsum(fleet.capacity[cheapest] * full)))
        watts = np.concatenate(([0.0], np.cumsum(per_unit[cheapest] * fleet.capacity[cheapest] * full)))
        work = self.load * (self.call_s / self.most + self.item_s) if self.batched else self.load
        return float(np.interp(work, room, watts).sum() / 1000.0)

    @classmethod
    def sample(cls, seed: int) -> Serve:
        """A small random instance."""
        rng = np.random.default_rng(seed)
        servers, hours = int(rng.integers(1, 7)), int(rng.integers(1, 9))
        alike = bool(rng.integers(0, 2))
        idle, busy = rng.uniform(40, 120, servers), rng.uniform(150, 400, servers)
        capacity = rng.uniform(0.5, 2, servers)
        if alike:
            idle, busy, capacity = (np.full(servers, row[0]) for row in (idle, busy, capacity))
        fleet = Fleet(capacity, idle, busy, start_kwh=float(rng.choice([0.0, 0.02, 0.2])))
        if rng.integers(0, 2):
            item = 0.01
            rate = rng.uniform(0, 0.8 * capacity.sum() / 0.05, hours)
            return cls(rate, fleet, call_s=0.04, item_s=item, latency_s=0.3)
        return cls(rng.uniform(0, 0.8 * capacity.sum(), hours), fleet, spare=int(rng.integers(0, 2)))
