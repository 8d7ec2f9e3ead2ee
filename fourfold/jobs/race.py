"""`fourfold race`: an artefact's precisions and back ends raced again, on this machine, the stored choice among them.

Nothing is removed: every choice stays in the manifest with its files (see `jobs.optimize.choices`), so that one can go back. Another back end in the
stored precision (fp32, bf16) computes the same answers and may win by speed alone. Another precision gives other answers, as does 8-bit arithmetic
in another back end: it may win only where labelled rows prove the quality floor again, once, for the whole assembly.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets.encode import load_labelled
from fourfold.errors import FourfoldError, InputError
from fourfold.jobs.optimize.choices import keep
from fourfold.runtime.artefact import Assembly, Model, Part, Setting
from fourfold.runtime.loading import load
from fourfold.runtime.synthetic import drawn

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task
    from fourfold.engines.base import Session
    from fourfold.engines.select import Contender, EngineChoice
    from fourfold.measure.race import RaceResult

EXACT = ("fp32", "bf16")  # precisions in which back ends differ by rounding only
RACED = 512  # rows that are raced and calibrated on at most; the others prove
FEWEST = 50  # labelled rows that prove anything


@dataclass
class Way:
    """A way to run a member that was raced: who, its files, its times relative to the stored choice. `exact`: the stored answers up to rounding."""

    name: str
    choice: EngineChoice
    contender: Contender
    exact: bool
    result: RaceResult | None = None


@dataclass
class Raced:
    """A member's race. `stand_in`: why the stored choice could not run here, so that plain PyTorch ran for it. `sure`, `bold`: the ways that beat it
    beyond doubt, without and with regard to precision (None: none did)."""

    part: Part
    stored: Setting
    stand_in: str | None
    ways: list[Way]
    rejected: list[dict[str, str]]
    sure: Way | None = None
    bold: Way | None = None


def rerace(
    folder: Path | str,
    data: object = None,
    *,
    budget: float = 60.0,
    columns: Mapping[str, str] | None = None,
    original: object = None,
    engines: Sequence[str] | None = None,
    trust: Sequence[str] = (),
    dry_run: bool = False,
    log: Callable[[str], None] | None = None,
) -> dict[str, object]:
    """Race the artefact on this machine and keep what wins beyond doubt; what was found, per member, and in words.

    data: rows as for `optimize`. Without them, inputs of the recorded lengths are drawn at random, which is fine for timing. With labels another
    precision may win too: half of the rows (those beyond 512) must prove that the assembly with it still clears the manifest's floor; against
    `original` (a model as for `optimize`) where it is given, else through the stored choice, whose own shortfall is then counted too. engines: back
    ends that may run (None: all). trust: as in `load`. budget: seconds. dry_run: tell, and write nothing. Raises InputError, ArtefactError.
    """
    from fourfold.host import here

    root = Path(folder)
    model = load(root, trust=trust)
    if model.task.generation is not None:
        model.close()
        raise InputError(f"{root} generates, and ways to generate are not raced anew by themselves.",
                         "Run its `fourfold optimize … --workload generate` on this machine (the manifest's `command`).")
    say = log or (lambda text: None)
    try:
        race_rows, proof_rows, said = _rows(model, data, columns)
        networks = [part for part in model.assembly.parts if part.words is None]
        raced: list[Raced] = []
        with tempfile.TemporaryDirectory(prefix="fourfold-race-") as scratch:
            for part, spec in zip(model.assembly.parts, model.manifest["parts"], strict=True):
                if part.words is not None:
                    continue
                if part.module is None:
                    said.append(f"{part.name} cannot be made again from data, so only its stored back end can run it.")
                    continue
                examples = race_rows if race_rows is not None else drawn(part, model.manifest.get("lengths") or [32])
                seen = part.sees(examples)
                place = Path(scratch) / part.name
                stored, each = Setting(**spec["setting"]), budget / len(networks)
                raced.append(_member(part, stored, seen, model, place, each, proof_rows is not None, engines, say))
            chosen, why = _decided(model, raced, proof_rows, original)
            said += why
            outcome: dict[str, Any] = {"folder": str(root), "machine": str(here()), "parts": [], "said": said, "dry_run": dry_run}
            changed = {}
            for one in raced:
                way = chosen.get(one.part.name)
                after = one.stored if way is None else _setting(way.choice)
                outcome["parts"].append(
                    {
                        "part": one.part.name, "before": one.stored.to_json(), "after": after.to_json(), "stand_in": one.stand_in,
                        "race": {"table": [_row(w, w is way or (way is None and w.name == "stored")) for w in one.ways], "rejected": one.rejected},
                    }
                )  # fmt: skip
                if way is not None and after != one.stored:
                    own = way.name in ("stored", "stored, tuned")
                    spec = next(s for s in model.manifest["parts"] if s["name"] == one.part.name)
                    files = None if own else [(way.contender.folder / name, name) for name in way.contender.files]
                    signature = spec["signature"] if own else way.contender.signature.to_json()
                    changed[one.part.name] = {"setting": after.to_json(), "signature": signature, "files": files}
            outcome["stored"] = bool(changed) and not dry_run
            if changed and not dry_run:
                keep(root, model.manifest, changed, _words(outcome))
            for one in raced:
                for way in one.ways:
                    way.contender.close()
            return outcome
    finally:
        model.close()


def _rows(model: Model, data: object, columns: Mapping[str, str] | None) -> tuple[Examples | None, Examples | None, list[str]]:
    """Rows to race on, labelled rows to prove on (None where there are none), and what is to be said of them."""
    if data is None:
        return None, None, ["Without rows of yours only the stored precision may win; inputs of the recorded lengths were drawn at random."]
    reader, longest = model.assembly.reader(), model.manifest.get("max_length")
    bare = reader is None or isinstance(data, list | tuple) and data and isinstance(data[0], str)   # texts alone
    examples = model.encode(data) if bare else load_labelled(data, model.task, reader, columns=columns, max_length=longest)
    only = "only the stored precision may win"
    if examples.targets is None:
        return _subset(examples, RACED), None, [f"The rows have no labels, and agreement with the stored answers is no proof of quality: {only}."]
    order = np.random.default_rng(0).permutation(len(examples))
    first = min(RACED, len(examples) // 2)
    if len(examples) - first < FEWEST:
        said = f"{len(examples):,} labelled rows are too few to prove quality on ({2 * FEWEST} are the least): {only}."
        return _subset(examples, RACED), None, [said]
    return examples.take(np.sort(order[:first])), examples.take(np.sort(order[first:])), []


def _member(
    part: Part, stored: Setting, examples: Examples, model: Model, place: Path, budget: float, proving: bool,
    engines: Sequence[str] | None, say: Callable[[str], None],
) -> Raced:
    """The race of one member: its stored choice, the same with its settings tuned, and the best of the others."""
    from fourfold import engines as registry
    from fourfold.engines.base import PRECISIONS, Signature
    from fourfold.engines.select import Contender, EngineChoice, Field, powers, race_model, sample_batches
    from fourfold.host import here
    from fourfold.measure.race import race

    objective, call = model.manifest.get("objective", "energy"), (model.manifest.get("baseline") or {}).get("rows_per_call")
    began, machine = time.perf_counter(), here()
    wrapped = part.subject.wrap(part.module).eval()  # type: ignore[arg-type]
    signature = Signature.of(part.subject.inputs, sample_batches(examples, 0))
    first = EngineChoice(stored.engine, stored.precision, stored.threads, 1 if objective == "latency" else stored.batch, stored.bucketing)
    own = Contender(
        registry.engine(stored.engine), stored.precision, wrapped, part.signature or signature, examples, part.folder or Path("."), part.files,
        call=call,
    )  # fmt: skip
    stand_in = own.engine.refuses(stored.precision, machine)
    if stand_in is None:
        try:
            own.session(stored.threads)
        except FourfoldError as error:
            stand_in = error.message
    plain = Contender(registry.engine("torch"), "fp32", wrapped, signature, examples, place, [], call=call)
    base, start = (own, first) if stand_in is None else (plain, replace(first, engine="torch", precision="fp32"))
    ways = [Way("stored" if stand_in is None else "stand-in", start, base, True)]
    rejected: list[dict[str, str]] = []

    def enter(name: str, precisions: list[str], names: list[str], seconds: float, accept: object = None) -> None:
        """The best of these pairs joins, where it is another than the stored one."""
        say(f"{part.name}: racing {name}")
        outcome = race_model(
            part.subject, part.module, examples, objective=objective, precisions=precisions, engines=names, budget_s=seconds, accept=accept,  # type: ignore[arg-type]
            folder=place / name.replace(" ", "-"), call=call, log=say,
        )  # fmt: skip
        rejected.extend(outcome.rejected)
        pair = (outcome.best.engine, outcome.best.precision)
        if pair == (stored.engine, stored.precision) or pair == (base.engine.name, base.precision):
            return
        exact = outcome.best.precision == stored.precision and stored.precision in EXACT
        if not (exact or proving):
            return
        kind, shape = registry.engine(outcome.best.engine), replace(Signature.from_json(outcome.signature), example=signature.example)
        made = Contender(kind, outcome.best.precision, wrapped, shape, examples, Path(outcome.folder), outcome.files, call=call)
        ways.append(Way(name, outcome.best, made, exact))

    able_here = [n for n in registry.names() if engines is None or n in engines]
    others = [n for n in able_here if n != stored.engine and stored.precision in registry.engine(n).precisions]
    if stored.precision in EXACT and others:
        enter("the same precision in other back ends", [stored.precision], others, (0.3 if proving else 0.55) * budget)
    if proving:
        rest = [p for p in PRECISIONS if (p != stored.precision or p not in EXACT) and (p != "int8-weights" or objective == "memory")]
        enter("other precisions", rest, able_here, 0.35 * budget, _screen(part, examples, model.task, stored))
    sizes = [1] if objective == "latency" else sorted({4, 8, 16, 32, 64, start.batch})
    course = Field(objective, base, powers(machine.cores), sizes, 0, say, max(budget - (time.perf_counter() - began), 3.0))
    tuned = course.tune(base, "stored", start)
    if tuned != start and stand_in is None:
        ways.append(Way("stored, tuned", tuned, base, True))
    runners = {way.name: way.contender.runner(way.choice) for way in ways}
    results = race(runners, baseline=ways[0].name, rounds=15, at_least=7, deadline=max(0.8 * course.left(), 2.0))
    found = Raced(part, stored, stand_in, ways, rejected)
    for way in ways:
        way.result = results[way.name]
    able = [way for way in ways[1:] if course.wins(results[way.name])]
    if objective == "memory":  # fewer bytes, not dearer
        able = [way for way in able if way.contender is not base and _bytes(way) < _bytes(ways[0])]

    def cost(way: Way) -> float:
        return _bytes(way) if objective == "memory" else course.cost(results[way.name])

    found.bold = min(able, key=cost, default=None)
    found.sure = min((way for way in able if way.exact), key=cost, default=None)
    return found


def _setting(choice: EngineChoice) -> Setting:
    return Setting(choice.engine, choice.precision, choice.threads, choice.batch, choice.bucket)


def _bytes(way: Way) -> int:
    return way.contender.session(way.choice.threads).bytes


def _decided(model: Model, raced: list[Raced], proof: Examples | None, original: object) -> tuple[dict[str, Way], list[str]]:
    """Who runs from now on, by member: the boldest where that is proved, else what needs no proof. And why, in words."""
    sure = {one.part.name: one.sure for one in raced if one.sure is not None}
    bold = {one.part.name: one.bold for one in raced if one.bold is not None}
    absent = [one for one in raced if one.stand_in]
    said = [f"{one.part.name}: the stored choice cannot run here ({one.stand_in}); it stays recorded, with its files." for one in absent]
    if all(way.exact for way in bold.values()):
        return bold, said
    assert proof is not None
    passed, text = _proved(model, bold, proof, original)
    return (bold if passed else sure), [*said, text]


def _proved(model: Model, ways: Mapping[str, Way], proof: Examples, original: object) -> tuple[bool, str]:
    """Whether the assembly with these members clears the floor on rows that nothing was chosen on, with the evidence in words.

    Against the original: the lower 95 % bound of relative quality. Without it: (new ÷ stored, here) × (stored ÷ original, in the manifest), two
    independent ratios whose relative errors add in quadrature.
    """
    from fourfold.measure.quality import relative

    task, manifest = model.task, model.manifest
    parts = []
    for part in model.assembly.parts:
        way = ways.get(part.name)
        if way is not None:
            part = replace(part, setting=_setting(way.choice), signature=way.contender.signature, folder=way.contender.folder, session=None)
        parts.append(part)
    new = Assembly("raced", parts, model.assembly.gates)
    floor = float(manifest.get("floor", 1.0))
    names = " and ".join(f"{n} in {w.choice.engine} {w.choice.precision}" for n, w in ways.items() if not w.exact)
    records = new.outputs(proof, task)
    for part in parts:
        if part.name in ways:
            part.close()
    if original is not None:
        base = _original(original, proof, task)
        found = relative(task.metric, base, records, proof.targets, groups=proof.groups)
        low, against = found.low, "the original"
    else:
        stated = (manifest.get("candidate") or {}).get("test_quality")
        if not stated:
            return False, f"{names}: not taken, since the manifest states no proven quality; give the original to prove it anew."
        found = relative(task.metric, model.assembly.outputs(proof, task), records, proof.targets, groups=proof.groups)
        value = stated["value"] * found.value
        short = math.hypot((stated["value"] - stated["low"]) / stated["value"], (found.value - found.low) / max(found.value, 1e-9))
        low, against = value * (1 - short), "the original, through the stored choice"
    passed = low >= floor
    verdict = "clears" if passed else "does not prove"
    return passed, f"{names}: a lower 95 % bound of {low:.1%} of the quality of {against} on {len(proof):,} rows {verdict} the floor of {floor:.1%}."


def _original(ref: object, proof: Examples, task: Task) -> np.ndarray:
    from fourfold.datasets.unread import Unread
    from fourfold.engines.base import Signature
    from fourfold.engines.select import sample_batches
    from fourfold.frontends.model import load_model

    subject = load_model(ref)
    texts = proof.raw is not None and task.kind in ("classification", "regression") and subject.tokenizer is not None
    examples = Unread(proof.raw or [], subject).read().with_targets(proof.targets) if texts else proof
    signature = Signature.of(subject.inputs, sample_batches(examples, 0))
    part = Part("original", subject, subject.module, None, Setting(), signature)
    return part.outputs(examples, task)


def _screen(part: Part, examples: Examples, task: Task, stored: Setting) -> Callable[[Session, object], str | None]:
    """Turns down what hardly agrees with plain PyTorch before time is spent on it; quality is proved afterwards."""
    few = _subset(examples, 128)
    batch = few.collate(np.arange(len(few)))
    plain = replace(part, setting=Setting(), session=None)
    wanted = plain.open().run(batch)

    def accept(session: Session, choice: Any) -> str | None:
        if (choice.engine, choice.precision) == (stored.engine, stored.precision):
            return "the stored choice races with its own files"
        got = session.run(batch)
        if task.kind == "regression" or got.ndim < 2:
            off = float(np.abs(got - wanted).mean() / max(1e-9, float(np.abs(wanted - wanted.mean()).mean())))
            return None if off < 0.05 else f"its values are off by {off:.1%} of their spread"
        same = float((got.argmax(-1) == wanted.argmax(-1)).mean())
        return None if same >= 0.97 else f"it agrees with the fp32 answers on {same:.1%} only"

    return accept


def _row(way: Way, chosen: bool) -> dict[str, object]:
    result = way.result
    assert result is not None
    verdict = {-1: "cheaper", 0: "no difference", 1: "dearer"}[result.cpu.verdict]
    ratios = {by: {k: getattr(getattr(result, by), k) for k in ("value", "low", "high")} for by in ("cpu", "wall")}
    return {"stage": "final", "who": way.name, **asdict(way.choice), **ratios, "verdict": verdict, "chosen": chosen}


def _words(outcome: Mapping[str, Any]) -> str:
    """What changed, in a sentence."""
    changes = [f"{p['part']} from {Setting(**p['before'])} to {Setting(**p['after'])}" for p in outcome["parts"] if p["before"] != p["after"]]
    day = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return f"Raced again on {day} UTC on {outcome['machine']}: {'; '.join(changes)}. {' '.join(outcome['said'])}".strip()


def _subset(examples: Examples, most: int) -> Examples:
    return examples.take(np.sort(np.random.default_rng(0).permutation(len(examples))[:most]))
