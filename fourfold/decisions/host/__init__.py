"""Which hall, how full, how cooled: what each kilowatt of IT load costs on top, and how much of it can go.

In: a hall (load, rating, PUE, set point), hourly outside temperatures, an hourly load and servers. Out: how the heat leaves in each hour (`cool`) and how
many servers stay on (`serve`). Baseline: the chiller runs all year and every server stays on. Wrong would be: inlet air above the set point, a load
that its servers cannot carry, a published figure passed off as measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def study(*, it_kw: float = 1000.0, rated_kw: float | None = None, pue: Any = None, temperatures: Any = None, set_point: float = 18.0,
          limit: float = 27.0, cooling: str = "chiller", load: Any = 0.3, **more: Any) -> dict[str, Any]:
    """A hall studied: PUE by part, each technique's factor with its interval, hours of free cooling, servers off; plain data.

    `pue` a number (known to ±3 %), a Quantity, or None; `temperatures` a CSV path or None; `load` a number, numbers by hour, or a CSV path. The rest
    as in `_study.study`. Raises InputError for figures that cannot be: PUE below 1, a utilisation above 1, missing hours.
    """
    from fourfold.decisions.host._hall import ANYWHERE, Hall, stated_pue
    from fourfold.decisions.host._study import study as made
    from fourfold.decisions.host._weather import read, read_load

    weather = ANYWHERE if temperatures is None else read(temperatures)
    shares = read_load(load) if isinstance(load, str | Path) else load
    known = None if pue is None else stated_pue(pue)
    return made(Hall(it_kw, rated_kw, known, set_point, cooling), weather, limit=limit, load=shares, **more)


def pue_after(pue: Any, means: list[str]) -> Any:
    """The PUE (a Quantity) that a hall of PUE `pue` would have with `means`: set_point, overcooling, immersion; one or several that go together.

    Modelled, or published where a published reduction is used. Outside air needs hourly temperatures: `study`. Raises InputError for other names.
    """
    from fourfold.decisions.host._hall import stated_pue
    from fourfold.decisions.host._study import pue_with

    return pue_with(stated_pue(pue), means)
