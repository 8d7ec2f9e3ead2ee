"""fourfold map: at which site and in which hours jobs should run, with the proof."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, Any

import typer

from fourfold.cli._print import AsJson, emit, table
from fourfold.errors import InputError

_VERIFY_FAILED, _INTERRUPTED = 4, 130


def register(app: typer.Typer) -> None:
    app.command("map", epilog="Example: fourfold map jobs.csv --intensity eia-2022 --capacity 10 --slack 24h --out plan/")(place)


def place(
    jobs: Annotated[str, typer.Argument(help="Jobs as CSV or JSON; or `verify`, to check the certificate that follows.")],
    certificate: Annotated[Path | None, typer.Argument(help="With `verify`: certificate.json, or the folder that holds it.")] = None,
    sites: Annotated[str, typer.Option(help="Sites to choose from, separated by commas. [all of the intensity file]")] = "",
    intensity: Annotated[str, typer.Option(help="Hourly file, or eia-2022. [eia-2022 where it fits, else yearly averages]")] = "",
    capacity: Annotated[list[str] | None, typer.Option(help="Units at once: N for every site, or site=N; may be repeated.")] = None,
    slack: Annotated[str, typer.Option(help="How long a job may wait that gives neither slack nor deadline: 24h, 2d.")] = "",
    objective: Annotated[str, typer.Option(help="carbon, cost or mixed.")] = "carbon",
    carbon_price: Annotated[str | None, typer.Option(help="USD per tonne of CO2e, for the mixed objective.")] = None,
    contiguous: Annotated[bool, typer.Option("--contiguous", help="No job may pause.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Plan on forecasts renewed every hour, not on known hours.")] = False,
    budget: Annotated[str, typer.Option(help="Time for all of it, reading included: 60s, 10min.")] = "60s",
    pue: Annotated[list[str] | None, typer.Option(help="PUE: a number, or site=number; may be repeated. [the sites' tables]")] = None,
    price: Annotated[list[str] | None, typer.Option(help="USD per kWh, or 80USD/MWh; or site=price; may be repeated. [the sites' tables]")] = None,
    egress: Annotated[str, typer.Option(help="USD per GB that leaves a site.")] = "0",
    zone: Annotated[str, typer.Option(help="IANA time zone of local times in the jobs, and in an intensity file that says none.")] = "",
    unit: Annotated[str, typer.Option(help="Unit of the intensity file: g/kWh, lb/MWh, kg/MWh … [what it says itself]")] = "",
    signal: Annotated[str, typer.Option(help="average or marginal. [what the intensity file says, else average]")] = "",
    replay: Annotated[bool, typer.Option("--replay", help="Let the hours of another year stand in for the jobs'.")] = False,
    error: Annotated[float, typer.Option(help="Error of forecasts, as a share of the mean.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="The plan alone, without comparators.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for plan.json, schedule.csv, certificate.json and problem.npz.")] = None,
    to_plan: Annotated[Path | None, typer.Option("--plan", help="Folder of a plan that the answer is added to, in place of --out.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Ledger that what the decision saves is booked in, as `fourfold ledger show` tells it.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page here: intensity by site with the chosen hours, comparators, jobs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Choose where and when jobs run, and prove how good the choice is; or verify such a proof."""
    if jobs == "verify":
        _verify(certificate, as_json)
        return
    if certificate is not None:
        raise InputError(f"{certificate} is one argument too many.", "Give one file of jobs, or: fourfold map verify certificate.json")
    from fourfold.folder import may_overwrite
    from fourfold.jobs.booking import book_jobs, may_book
    from fourfold.jobs.map import may_add, may_save, plan
    from fourfold.units.parse import duration, quantity

    if out is not None and to_plan is not None:
        raise InputError("Both --out and --plan were given.", "Give one of them.")
    if ledger is not None:
        may_book(ledger)
    seconds = duration(budget, "--budget")
    moving = quantity(egress, "price of traffic", "--egress", bare="USD/GB")
    charge = None if carbon_price is None else quantity(carbon_price, "price of carbon", "--carbon-price", bare="USD/tCO2e")
    if out is not None:
        may_save(out, [jobs, intensity])
    if to_plan is not None:
        may_add(to_plan, [jobs, intensity])
    if html is not None:
        may_overwrite(html, "--html", inputs=[jobs, intensity])
    found = plan(jobs, sites=[name.strip() for name in sites.split(",") if name.strip()] or None, intensity=intensity or None,
                 capacity=_by_site(capacity, "--capacity"), slack=slack or None, objective=objective, carbon_price=charge,
                 contiguous=contiguous, online=online, budget=seconds, pue=_by_site(pue, "--pue"),
                 price=_by_site(price, "--price", lambda text: quantity(text, "price of energy", "--price", bare="USD/kWh")),
                 egress=moving, zone=zone or None, replay=replay, error=error, seed=seed, compare=not quick,
                 unit=unit or None, signal=signal or None)
    out, adds = to_plan or out, to_plan is not None
    files = found.save(out, add=adds) if out else []
    if ledger is not None:
        book_jobs(ledger, found)
    document = found.to_json()
    if html:
        from fourfold.report.place import write

        files.append(write(document, html))
    if as_json:
        emit(document | ({"files": [str(file) for file in files]} if files else {}))
        if found.stopped:
            raise typer.Exit(_INTERRUPTED)
        return
    _tell(document)
    if html:
        print(f"Page: {files.pop()}")
    if files:
        print(f"Wrote {', '.join(file.name for file in files)} to {out}. Check with: fourfold map verify {out}")
    if found.stopped:
        raise typer.Exit(_INTERRUPTED)


def _by_site(given: list[str] | None, option: str, read: Callable[[str], float] = float) -> float | dict[str, float] | None:
    """Numbers for all sites or by name, as `read` takes them."""
    named: dict[str, float] = {}
    for text in [part for each in given or [] for part in each.split(",")]:
        name, _, number = text.rpartition("=")
        try:
            value = read(number)
        except InputError:
            raise
        except ValueError:
            raise InputError(f"{option} {text!r} is not a number, nor site=number.", f"Example: {option} 10 or {option} BPAT=10") from None
        if not name and len(given or []) == 1 and "," not in (given or [""])[0]:
            return value
        if not name:
            raise InputError(f"{option} {text!r}: a number for all sites stands alone.", f"Example: {option} BPAT=10 {option} CISO=20")
        named[name.strip()] = value
    return named or None


def _verify(path: Path | None, as_json: bool) -> None:
    from fourfold.decisions.carbon_aware.validate import load, verify

    if path is None:
        raise InputError("Which certificate?", "Give certificate.json, or the folder that holds it.")
    problem, schedule, certificate = load(path)
    wrong = verify(problem, schedule, certificate)
    if as_json:
        emit({"verified": not wrong, "wrong": wrong, "value": certificate.value, "bound": certificate.bound, "gap": certificate.gap,
              "unit": certificate.unit, "signal": certificate.signal})
    elif wrong:
        print("\n".join(["The certificate does not hold:", *(f"  {sentence}" for sentence in wrong)]))
    else:
        print(f"Sound: {len(problem.names)} jobs at {len(problem.sites)} sites over {problem.intensity.shape[1]} hours take {certificate.value:.6g} "
              f"{certificate.unit}; no valid schedule takes less than {certificate.bound:.6g} (gap {certificate.gap:.1e}).")
    if wrong:
        raise typer.Exit(_VERIFY_FAILED)


def _tell(document: dict[str, Any]) -> None:
    unit = document["unit"]
    gap = document["gap"]
    proof = "optimal" if gap <= 1e-9 else f"at most {100 * gap:.2g} % above the best"
    print(f"{document['value']:.6g} {unit}; lower bound {document['bound']:.6g} {unit}, gap {gap:.1e} ({proof}; {document['technique']}).")
    if document["solver_note"]:
        print(f"{document['technique']}: {document['solver_note']}.")
    if document["before"] is None:
        print(f"Run now: {document['before_why']}.")
    else:
        saving = document["saving"]
        print(f"Run now: {document['before']:.6g} {unit}" + (f"; saved: {100 * saving:.1f} %." if saving is not None else "."))
    money = "money unknown (no price on record)" if document["usd"] is None else f"{document['usd']:.4g} USD"
    print(f"{document['kg']:.6g} kgCO2e, {document['hall_kwh']:.6g} kWh with the halls, {money}; mean delay {document['delay_h']:.1f} h.")
    left = ("of oracle", "peak") if get_terminal_size().columns < 100 else ()   # --json and the page have them
    for title, key in (("Against", "comparators"), ("Of which", "ablations"), ("Without a region", "without")):
        if document[key]:
            print(f"\n{title}")
            table([{head: cell for head, cell in _line(row, unit).items() if head not in left} for row in document[key]])
    print("\nSites")
    table([{"site": row["name"], "g/kWh": _short(row["mean_g_kwh"]), "job-hours": row["job_hours"], "peak": row["peak"],
            "capacity": _short(row["capacity"], "none or hourly")} for row in document["sites"]])
    if document["dearest"]:
        print(f"\nDearest capacity: what one more unit would save, {unit}")
        table([{"site": row["site"], "hour": row["utc"], "price": f"{row['price']:.4g}"} for row in document["dearest"]])
    print()
    for note in [document["sentence"], *document["notes"]]:
        print(note)


def _short(value: float | None, absent: str = "–") -> str:
    return absent if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _line(row: dict[str, Any], unit: str) -> dict[str, object]:
    if row["value"] is None:
        return {"policy": row["title"], unit: "–", "saving": "–", "of oracle": "–", "delay h": "–", "peak": "–", "capacity": row["why"]}
    value = f"{row['value']:.6g}" + (f" [{row['low']:.6g}, {row['high']:.6g}]" if "low" in row else "")
    kept = "kept" if row["capacity_kept"] else "broken"
    return {"policy": row["title"], unit: value, "saving": _share(row["saving"]), "of oracle": _share(row["share"]),
            "delay h": _short(row["delay_h"]), "peak": row["peak"], "capacity": kept}
