"""A hall studied: its PUE taken apart, and what each means would make of it, with intervals. The library call behind `fourfold datacenter`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.cite import BIBLIOGRAPHY
from fourfold.cost import datacenter
from fourfold.cost.datacenter import Hall, Weather, figure
from fourfold.decisions.datacenter._weather import read, read_load
from fourfold.decisions.datacenter.problem import MIXED, OUTSIDE, Cool, Fleet, Serve
from fourfold.errors import InputError
from fourfold.problem import Solution, Solver, solve
from fourfold.registry import names, technique
from fourfold.solvers.compare import entries
from fourfold.units import GRADES, Quantity

COOL = ("economiser", "set_point", "overcooling", "immersion")         # in the order told; a technique beside them is told after
SERVE = ("consolidation", "batching")
_METHOD = "hall model: losses by load, chiller and outside air by temperature"
_CUTS = ("immersion", "overcooling")


def study(*, it_kw: float = 1000.0, rated_kw: float | None = None, pue: float | Quantity | None = None, temperatures: str | Path | None = None,
          set_point: float = datacenter.REFERENCE, cooling: str = "chiller", load: str | Path | Sequence[float] | float = 0.3,
          **more: Any) -> dict[str, object]:
    """A hall studied: PUE by part, each technique's factor with its interval, hours of free cooling, servers off; plain data.

    `pue` a number (known to ±3 %), a Quantity, or None for the model's; `temperatures` a CSV path or None; `load` a number, numbers by hour, or a CSV
    path. The rest as in `examine`. Raises InputError for figures that cannot be: PUE below 1, a utilisation above 1, missing hours.
    """
    weather = datacenter.ANYWHERE if temperatures is None else read(temperatures)
    shares: Any = read_load(load) if isinstance(load, str | Path) else load
    known = None if pue is None else datacenter.stated_pue(pue)
    return examine(Hall(it_kw, rated_kw, known, set_point, cooling), weather, load=shares, **more)


def examine(hall: Hall, weather: Weather = datacenter.ANYWHERE, *, limit: float = datacenter.RECOMMENDED[1], hold: int = 1,
          load: Sequence[float] | float = 0.3, servers: int = 100, idle: float | None = None, headroom: float = 0.8, spare: int = 0,
          start_kwh: float = 0.0, call_s: float = 0.0, item_s: float = 0.0, latency_s: float = 0.0, seed: int = 0) -> dict[str, object]:
    """The PUE of `hall` by part, what each technique of decisions/datacenter would save, and the best of them together.

    `weather` outside; `limit` the warmest set point allowed (°C); `hold` hours a cooling mode is kept; `load` the servers' utilisation, 0 to 1, one
    figure or one an hour; `servers` alike, all on now, an idle one drawing `idle` of a busy one's power, filled to `headroom`, with `spare` in
    reserve; `call_s`, `item_s` and `latency_s` where items may be batched. A factor is energy of the hall before / after for the same work.
    Raises InputError for figures that cannot be.
    """
    hours = len(weather.celsius)
    shares = _shares(load, hours)
    serve = _serve(hall, shares, servers, idle, headroom, spare, start_kwh, (call_s, item_s, latency_s))
    weather = weather if len(shares) == hours else Weather(np.full(len(shares), float(weather.celsius[0])), False, weather.source)
    it_kw = _present(hall, serve)
    hall = _rated(hall, float(it_kw.max()))
    bench = _Bench(hall, weather, it_kw, limit, hold, serve, seed)
    options = [bench.cooling(name) for name in _named("cool", COOL)] + [bench.serving(name) for name in _named("serve", SERVE)]
    return {
        "hall": {"it_kw": float(it_kw.mean()), "rated_kw": hall.rated_kw, "utilisation": float(it_kw.mean() / float(hall.rated_kw or 1)),
                 "set_point": hall.set_point, "cooling": hall.cooling, "limit": limit,
                 "pue_given": hall.pue.to_json() if hall.pue else None},
        "hours": len(shares), "weather": weather.source, "hourly": weather.hourly,
        "pue": bench.pue().to_json(), "parts": {name: part.to_json() for name, part in bench.parts().items()},
        "by_load": bench.by_load(), "by_temperature": bench.by_temperature(),
        "options": options, "together": bench.together(options),
        "servers": {"count": servers, "utilisation": float(shares.mean()), "idle": serve.fleet.idle_w[0] / serve.fleet.busy_w[0],
                    "headroom": headroom, "spare": spare},
        "coefficients": {name: row.to_json() for name, row in (datacenter.COEFFICIENTS | datacenter.REDUCTIONS | datacenter.SERVER).items()},
        "notes": _notes(hall, weather),
    }


class _Bench:
    """One hall under all draws of the coefficients. The first draw holds the middle values; decisions are taken there and priced everywhere."""

    def __init__(self, hall: Hall, weather: Weather, it_kw: np.ndarray, limit: float, hold: int, serve: Serve, seed: int) -> None:
        self.hall, self.weather, self.it_kw, self.limit, self.hold, self.serve = hall, weather, it_kw, limit, hold, serve
        self.draws = list(datacenter.draws(seed))
        self.problems = [self._problem(drawn) for drawn in self.draws]
        self.before = [problem.cost(_spread(problem.baseline())) for problem in self.problems]
        self.answers: dict[str, dict[str, Any]] = {}

    def _problem(self, drawn: dict[str, float], hall: Hall | None = None) -> Cool:
        return Cool(hall or self.hall, self.weather, self.it_kw, limit=self.limit, hold=self.hold, drawn=drawn,
                    pue=datacenter.known_pue(self.hall, drawn["pue"]))

    def pue(self) -> Quantity:
        """Energy of the hall over energy of its IT."""
        known = self.hall.pue
        values = [cost / self.it_kw.sum() for cost in self.before]
        return known if known is not None else figure([float(v) for v in values], method=_METHOD, source="fourfold's hall model")

    def parts(self) -> dict[str, Quantity]:
        """Kilowatts on top of one kilowatt of IT, by part; with 1 they sum to the PUE."""
        spent = [problem.hourly(_spread(problem.baseline())) for problem in self.problems]
        return {name: figure([float(parts[name].sum() / parts["IT"].sum()) for parts in spent], method=_METHOD, source="fourfold's hall model")
                for name in datacenter.PARTS}

    def by_load(self) -> list[dict[str, float]]:
        """PUE at a tenth to all of the rated load, at the mean outside temperature, scaled as the hall is."""
        rated, outside = float(self.hall.rated_kw or self.hall.it_kw), np.array([self.weather.celsius.mean()])
        rows = []
        for tenth in range(1, 11):
            it = np.array([rated * tenth / 10])
            hall = datacenter.changed(self.hall, it_kw=float(it[0]), rated_kw=rated)
            extra = sum(float(part.sum()) for part in datacenter.overhead(hall, it, outside, self.draws[0]).values())
            rows.append({"load": tenth / 10, "pue": 1 + self.problems[0].scale * extra / float(it[0])})
        return rows

    def by_temperature(self) -> list[dict[str, float]]:
        """PUE from -10 to 40 °C outside at the present load, scaled as the hall is."""
        celsius = np.arange(-10.0, 41.0, 5.0)
        it = np.full(len(celsius), self.hall.it_kw)
        parts = datacenter.overhead(self.hall, it, celsius, self.draws[0])
        extra = self.problems[0].scale * np.sum(list(parts.values()), axis=0) / it
        return [{"celsius": float(c), "pue": float(1 + more)} for c, more in zip(celsius, extra, strict=True)]

    def _factor(self, price: Callable[[Cool], float], grade: str, source: str) -> Quantity:
        values = [before / price(problem) for before, problem in zip(self.before, self.problems, strict=True)]
        return figure(values, grade=grade, method=_METHOD, source=source)

    def cooling(self, name: str) -> dict[str, object]:
        """What technique `name` would make of the cooling: factor, PUE after, free hours, set point; or why it cannot be told."""
        row, found = self._asked(self.problems[0], name)
        return row if found is None else {**row, **self._told(found.answer, _grade(found.answer))}

    def _asked(self, problem: Cool | Serve, name: str) -> tuple[dict[str, Any], Solution[dict[str, Any]] | None]:
        """The row that technique `name` begins with, and its answer; None where it declines: the row says why."""
        solver: Solver = technique(f"datacenter/{name}")()
        one = next(entries(problem, {name: solver}))
        if one.error is not None and not one.declined:
            raise one.error
        if one.solution is not None:
            self.answers[name] = one.solution.answer
        return {"name": name, "title": solver.title, "question": problem.question, "factor": None, "why": one.declined,
                "cites": list(solver.cites)}, one.solution

    def _told(self, answer: dict[str, Any], grade: str, price: Callable[[Cool], float] | None = None) -> dict[str, object]:
        def paid(problem: Cool) -> float:
            return problem.cost(_spread(answer))

        cuts = [cut for cut in _CUTS if cut in (answer["cut"], answer["cooling"])]
        source = " + ".join(["fourfold's hall model", *(datacenter.REDUCTIONS[cut].source for cut in cuts)])
        factor = self._factor(price or paid, grade, source)
        it = [float(problem.hourly(_spread(answer))["IT"].sum()) for problem in self.problems]
        after = figure([(price or paid)(problem) / used for problem, used in zip(self.problems, it, strict=True)], grade=grade, method=_METHOD)
        hours = self.problems[0].hours(answer)
        told = {"factor": factor.to_json(), "pue_after": after.to_json(), "set_point": answer["set_point"]}
        return {**told, **({"hours": hours} if any(answer["modes"]) else {})}

    def serving(self, name: str) -> dict[str, object]:
        """What technique `name` would make of the servers: factor on the whole hall, servers off, batches; or why it cannot be told."""
        row, found = self._asked(self.serve, name)
        if found is None:
            return row
        on = np.asarray(found.answer["on"], int)
        off = len(self.serve.fleet) - on
        return {**row, "factor": self._serving(found.answer, None).to_json(), "it_factor": self._it(found.answer).to_json(),
                "servers_off": {"mean": float(off.mean()), "least": int(off.min()), "most": int(off.max()), "always": int(off.min())},
                "servers_on": {"mean": float(on.mean()), "most": int(on.max())}, "batch": {"mean": float(np.mean(found.answer["batch"]))},
                "gap": found.gap}

    def _ratio(self, answer: dict[str, object], drawn: dict[str, float]) -> np.ndarray:
        """IT power after / before by hour [T] with the servers of a draw: an idle share and a curve of its own."""
        fleet = self.serve.fleet
        first = drawn is self.draws[0]
        idle, exponent = (fleet.idle_w[0] / fleet.busy_w[0], fleet.exponent) if first else (drawn["idle"], drawn["exponent"])
        if self.serve.fixed_idle:
            idle = fleet.idle_w[0] / fleet.busy_w[0]
        drawn_fleet = Fleet(fleet.capacity, fleet.busy_w * idle, fleet.busy_w, exponent=exponent)
        other = self.serve.with_fleet(drawn_fleet)
        counts, batch = np.asarray(answer["on"], int), np.asarray(answer["batch"], int)
        now = other.power(np.full(len(counts), len(fleet)), other.demand(np.ones(len(counts), int)))
        return other.power(counts, other.demand(batch)) / now

    def _it(self, answer: dict[str, object]) -> Quantity:
        values = [float(self.it_kw.sum() / (self.it_kw * self._ratio(answer, drawn)).sum()) for drawn in self.draws]
        return figure(values, method="server power over load", source=datacenter.SERVER["exponent"].source)

    def _after(self, problem: Cool, drawn: dict[str, float], servers: dict[str, object], cooling: dict[str, object]) -> float:
        """kWh of the whole hall with the servers of `servers` and the cooling of `cooling`."""
        fewer = Cool(self.hall, self.weather, self.it_kw * self._ratio(servers, drawn), limit=self.limit, hold=self.hold, drawn=drawn, pue=None)
        fewer.scale = problem.scale
        return fewer.cost(_spread(cooling))

    def _serving(self, servers: dict[str, object], cooling: dict[str, object] | None, grade: str = "modelled") -> Quantity:
        values = [before / self._after(problem, drawn, servers, cooling or problem.baseline())
                  for before, problem, drawn in zip(self.before, self.problems, self.draws, strict=True)]
        return figure(values, grade=grade, method=_METHOD, source="fourfold's hall model + " + datacenter.SERVER["exponent"].source)

    def together(self, options: list[dict[str, Any]]) -> dict[str, object] | None:
        """The best way of serving with the best way of cooling: outside air at the warmer set point with over-cooling control, or immersion."""
        known = [row for row in options if row["factor"] and row["question"] == "cool"]
        serving = [row for row in options if row["factor"] and row["question"] == "serve"]
        if not known and not serving:
            return None
        problem = self.problems[0]
        ways = [self.answers[row["name"]] for row in known] + self._joined(problem)
        cooling = min(ways, key=problem.cost) if ways else problem.baseline()
        best = max(serving, key=lambda row: row["factor"]["value"], default=None)
        grade = _grade(cooling)
        means = [name for name, used in (("outside air", any(cooling["modes"])), ("set point", cooling["set_point"] != self.hall.set_point),
                                         ("over-cooling control", cooling["cut"] == "overcooling"), ("immersion", cooling["cooling"] == "immersion"))
                 if used]
        if best is None:
            return {"means": means, **self._told(cooling, grade)}
        factor = self._serving(self.answers[best["name"]], cooling, grade)
        return {"means": [*means, best["name"]], "factor": factor.to_json(), "set_point": cooling["set_point"],
                "pue_after": self._pue_after(self.answers[best["name"]], cooling, grade).to_json()}

    def _pue_after(self, servers: dict[str, object], cooling: dict[str, object], grade: str) -> Quantity:
        values = []
        for problem, drawn in zip(self.problems, self.draws, strict=True):
            used = self.it_kw * self._ratio(servers, drawn)
            values.append(float(self._after(problem, drawn, servers, cooling) / used.sum()))
        return figure(values, grade=grade, method=_METHOD)

    def _joined(self, problem: Cool) -> list[dict[str, Any]]:
        """Means that go together: the warmer set point with outside air chosen anew for it, and over-cooling control on top."""
        if "set_point" not in self.answers or not self.weather.hourly:
            return []
        point = self.answers["set_point"]["set_point"]
        warm = Cool(datacenter.changed(self.hall, set_point=point), self.weather, self.it_kw, limit=self.limit, hold=self.hold, drawn=self.draws[0])
        if technique("datacenter/economiser")().declines(warm):
            return []
        modes = solve(warm, technique("datacenter/economiser")()).answer["modes"]
        joined = {**problem.baseline(), "set_point": point, "modes": modes}
        return [answer for answer in (joined, {**joined, "cut": "overcooling"}) if not problem.violations(answer)]


def pue_after(pue: float | Quantity, means: Sequence[str], seed: int = 0) -> Quantity:
    """The PUE that a chiller-cooled hall of PUE `pue` would have with `means` together: set_point, overcooling, immersion.

    Modelled, or published where a published reduction is used. Raises InputError for means that need hours, are unknown, or do not go together.
    """
    pue = datacenter.stated_pue(pue)
    known = ("set_point", "overcooling", "immersion")
    odd = [name for name in means if name not in known]
    if "economiser" in odd:
        raise InputError("What outside air saves depends on hourly temperatures, which are not at hand here.",
                         "Find the PUE with `fourfold datacenter --temperatures hourly.csv`, and give it: --hall 1.58:1.32.")
    if odd or not means:
        raise InputError(f"{odd[0] if odd else 'Nothing'!r} is not a means of the hall.", f"Give a PUE, or of: {', '.join(known)}.")
    if "immersion" in means and len(means) > 1:
        raise InputError("An immersed hall has no air to warm or to control.", "Give immersion alone.")
    hall = Hall(pue=pue)
    problems = [Cool(hall, datacenter.ANYWHERE, drawn=drawn, pue=datacenter.known_pue(hall, drawn["pue"])) for drawn in datacenter.draws(seed)]
    answer = problems[0].baseline()
    if "set_point" in means:
        answer["set_point"] = solve(problems[0], technique("datacenter/set_point")()).answer["set_point"]
    answer = {**answer, "cut": "overcooling" if "overcooling" in means else "", "cooling": "immersion" if "immersion" in means else "air"}
    ratios = [problem.cost(answer) / problem.cost(problem.baseline()) for problem in problems]
    cut = figure(ratios, grade=_grade(answer), method=_METHOD, source="fourfold's hall model: " + " + ".join(means))
    return pue * cut


def _spread(answer: dict[str, Any]) -> dict[str, object]:
    """The answer as other coefficients price it: where outside air alone would not quite do, the chiller helps."""
    return {**answer, "modes": [MIXED if mode == OUTSIDE else mode for mode in answer["modes"]]}


def _grade(answer: dict[str, object]) -> str:
    cut = "published" if answer["cut"] or answer["cooling"] == "immersion" else "modelled"
    return max("modelled", cut, key=GRADES.index)


def _named(question: str, first: tuple[str, ...]) -> list[str]:
    """Techniques of decisions/datacenter that answer `question`: those of `first`, then any other file."""
    found = [name for name in names("datacenter") if getattr(technique(f"datacenter/{name}"), "answers", "") == question]
    return [name for name in first if name in found] + [name for name in found if name not in first]


def _shares(load: Sequence[float] | float, hours: int) -> np.ndarray:
    shares = np.atleast_1d(np.asarray(load, float))
    if not np.isfinite(shares).all() or (shares < 0).any() or (shares > 1).any():
        odd = float(shares[(~np.isfinite(shares)) | (shares < 0) | (shares > 1)][0])
        raise InputError(f"A utilisation of {odd:g} cannot be.", "Give a share of the capacity, 0 to 1.")
    if len(shares) == 1:
        return np.full(hours, float(shares[0]))
    if hours not in (1, len(shares)):
        raise InputError(f"There are {len(shares):,} hours of load and {hours:,} of temperature.", "Give both for the same hours.")
    return shares


def _serve(hall: Hall, shares: np.ndarray, servers: int, idle: float | None, headroom: float, spare: int, start_kwh: float,
           batch: tuple[float, float, float]) -> Serve:
    """The servers now: alike, all on, and together drawing the hall's IT load at their mean utilisation."""
    if servers < 1:
        raise InputError(f"{servers} servers serve nothing.", "Give one or more.")
    if idle is not None and not 0 <= idle <= 1:
        raise InputError(f"An idle server cannot draw {idle:g} of a busy one's power.", "Give a share, 0 to 1.")
    rest = datacenter.SERVER["idle"].value if idle is None else idle
    use = rest + (1 - rest) * datacenter.dynamic_share(shares, datacenter.SERVER["exponent"].value)
    busy = hall.it_kw * 1000.0 / servers / float(use.mean()) if use.mean() > 0 else hall.it_kw * 1000.0 / servers
    fleet = Fleet(np.ones(servers), np.full(servers, rest * busy), np.full(servers, busy), start_kwh=start_kwh)
    call, item, latency = batch
    load = shares * servers / (call + item) if item > 0 else shares * servers
    most = 1.0 if shares.max() > headroom else headroom                 # servers that are fuller than the headroom today stay as full
    return Serve(load, fleet, headroom=most, spare=spare, call_s=call, item_s=item, latency_s=latency, fixed_idle=idle is not None)


def _present(hall: Hall, serve: Serve) -> np.ndarray:
    """IT kilowatts by hour [T] with every server on; their mean is the hall's IT load."""
    watts = serve.power(np.full(len(serve.load), len(serve.fleet)), serve.demand(np.ones(len(serve.load), int)))
    return watts / 1000.0 if watts.sum() > 0 else np.full(len(serve.load), hall.it_kw)


def _rated(hall: Hall, peak: float) -> Hall:
    """The hall with a rating that holds its peak; a rating that was given must."""
    rated = float(hall.rated_kw or hall.it_kw)
    if peak <= rated * (1 + 1e-9):
        return hall
    if rated > hall.it_kw:
        raise InputError(f"The hall is rated {rated:g} kW and its busiest hour takes {peak:g} kW: a utilisation above 1.",
                         "Give a rating of at least that.")
    return datacenter.changed(hall, rated_kw=peak)


def _notes(hall: Hall, weather: Weather) -> list[str]:
    notes = ["Modelled, not measured; published reductions are operators' own statements. Coefficients, ranges and sources stand in --json.",
             "Outside air is judged by its dry bulb alone: humidity, dust and smoke allow fewer free hours."]
    if not weather.hourly:
        notes.append("No hourly temperatures were given, so free cooling cannot be told: --temperatures hourly.csv.")
    if hall.pue is not None:
        notes.append("The overhead of the model is scaled as a whole to the PUE given; a hall whose cooling is a larger part of it would gain more.")
    return notes


def references(document: dict[str, Any]) -> list[str]:
    """The papers behind a study's options, as text."""
    return [str(BIBLIOGRAPHY[key]) for key in dict.fromkeys(key for row in document["options"] for key in row["cites"]) if key in BIBLIOGRAPHY]
