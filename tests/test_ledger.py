"""The account book: factors telescope exactly, unlike costs are refused, files are append-only."""

import json
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.errors import ArtefactError, InputError
from fourfold.ledger import hash_chain
from fourfold.ledger.book import LEVERS, Ledger
from fourfold.units import Quantity


def cost(joules: float, **facts: str) -> Quantity:
    return Quantity(joules, **{"unit": "J", "grade": "modelled", "boundary": "process", **facts}, errors={"watts": 0.3})


steps = st.lists(st.tuples(st.sampled_from(LEVERS), st.floats(1e-3, 1e6)), max_size=8)


@given(st.floats(1e-3, 1e6), steps)
def test_the_product_of_factors_is_start_over_end_exactly(start: float, booked: list[tuple[str, float]]) -> None:
    book = Ledger(cost(start))
    for lever, after in booked:
        book.book(lever, "step", cost(after))
    product = Fraction(1)
    for lever in LEVERS:
        product *= book.exact(lever)
    assert product == Fraction(book.start.value) / Fraction(book.end.value) == book.exact()
    low, high = book.factor().bounds
    assert low == pytest.approx(high)                                  # the watts are the same on both sides


@settings(max_examples=25)
@given(steps)
def test_json_and_file_give_back_the_same_book(tmp_path_factory, booked: list[tuple[str, float]]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    book = Ledger(cost(50.0), "1,000 examples")
    book.save(path)
    for lever, after in booked:
        book.book(lever, "step", cost(after))
        before = path.read_bytes()
        book.spend(cost(10.0))
        book.save(path)
        assert path.read_bytes().startswith(before)
    assert Ledger.load(path).to_json() == book.to_json()
    assert Ledger.from_json(json.loads(json.dumps(book.to_json()))).factors() == book.factors()


def test_the_four_published_factors_multiply() -> None:
    book = Ledger(Quantity(756.0, "J", "published"))
    for lever, after in zip(LEVERS, (189.0, 12.6, 9.0, 1.0), strict=True):
        book.book(lever, "Patterson et al. 2022, with 1.4 for the hall", Quantity(after, "J", "published"))
    assert [round(factor.value, 6) for factor in book.factors().values()] == [4, 15, 1.4, 9]
    assert book.factor().value == 756 and "4 (model) × 15 (machine) × 1.4 (mechanization) × 9 (map) = 756" in book.explain()


PUBLISHED = {"model": 4, "machine": 15, "mechanization": 1.4, "map": 9}


@pytest.mark.parametrize("order", permutations(PUBLISHED), ids="-".join)
def test_the_order_of_entries_changes_nothing(order: tuple[str, ...]) -> None:
    book = Ledger(Quantity(300.1, "MWh", "published"), "one training")
    for lever in order:
        book.book(lever, "Patterson et al. 2022", factor=PUBLISHED[lever])
    assert {lever: factor.value for lever, factor in book.factors().items()} == PUBLISHED and list(book.factors()) == list(LEVERS)
    assert book.factor().value == 756 and book.exact() == 756 and book.end.value == 300.1 / 756


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(LEVERS), st.floats(0.01, 100), st.sampled_from("abc"), st.floats(0.01, 0.4)), min_size=1, max_size=6),
       st.randoms(use_true_random=False))
def test_shuffled_factors_give_the_same_attribution_and_interval(entries: list[tuple[str, float, str, float]], random) -> None:
    def made(rows: list[tuple[str, float, str, float]]) -> Ledger:
        book = Ledger(cost(1000.0))
        for lever, factor, source, sigma in rows:
            book.book(lever, "step", factor=Quantity(factor, "1", "modelled", errors={source: sigma}))
        return book

    shuffled = list(entries)
    random.shuffle(shuffled)
    first, second = made(entries), made(shuffled)
    assert first.end.value == second.end.value and first.exact() == second.exact()
    for lever in (None, *LEVERS):
        assert first.exact(lever) == second.exact(lever) and first.factor(lever).bounds == pytest.approx(second.factor(lever).bounds)


def test_a_factor_brings_its_own_grade_and_interval() -> None:
    book = Ledger(cost(100, grade="measured"))
    book.book("model", "pruned", cost(50, grade="measured"))
    assert book.factor().grade == "measured"
    book.book("map", "another grid", factor=Quantity(2, "1", "published", 1.5, 2.7, source="tables"))
    assert book.factor().grade == "published" == book.factor("map").grade and book.factor("model").grade == "measured"
    assert book.factor().bounds == pytest.approx((4 * 1.5 / 2, 4 * 2.7 / 2), rel=0.02) and book.end.value == 25
    for wrong in (0, -1, Quantity(2, "J", "published")):
        with pytest.raises(InputError, match="not a factor"):
            book.book("map", "nonsense", factor=wrong)
    with pytest.raises(InputError, match="either"):
        book.book("map", "nonsense")


def test_booked_factors_are_saved_loaded_and_audited(tmp_path) -> None:
    path, book = tmp_path / "ledger.jsonl", Ledger(Quantity(756, "MWh", "published"))
    for lever, factor in PUBLISHED.items():
        book.book(lever, "published", factor=factor)
    book.save(path)
    assert hash_chain.verify(path) == [] and Ledger.load(path).to_json() == book.to_json() and Ledger.load(path).lines() == book.lines()
    assert Ledger.from_json(book.to_json()).exact() == 756
    altered = path.read_text().replace('"value":1.4', '"value":1.5')
    path.write_text(altered)
    with pytest.raises(ArtefactError):
        Ledger.load(path)
    assert "Row 3" in hash_chain.verify(path)[0]


@pytest.mark.parametrize("after, word", [
    (cost(1, grade="measured"), "grade"), (cost(1, boundary="host"), "boundary"), (cost(1, unit="s"), "kept in J"), (cost(0), "cannot cost"),
])
def test_unlike_costs_are_refused(after: Quantity, word: str) -> None:
    book = Ledger(cost(10))
    with pytest.raises(InputError, match=word):
        book.book("model", "prune", after)
    assert not book.rows and book.end == book.start


def test_units_of_one_kind_are_converted() -> None:
    book = Ledger(cost(7200.0))
    book.book("model", "prune", cost(1.0, unit="Wh"))
    assert book.end.unit == "J" and book.factor().value == 2


def test_break_even() -> None:
    book = Ledger(cost(10))
    assert book.break_even() is None
    book.book("model", "prune", cost(5))
    book.spend(cost(300))
    book.spend(cost(200))
    assert book.break_even() == 100 and "pays for itself after 100 runs" in book.explain()
    book.book("machine", "a slower engine", cost(20))
    assert book.break_even() is None and "never" in book.explain()


def test_a_broken_or_foreign_file_is_refused(tmp_path) -> None:
    path = tmp_path / "ledger.jsonl"
    book = Ledger(cost(10))
    book.book("model", "prune", cost(5))
    book.book("machine", "bf16", cost(2))
    book.save(path)
    with pytest.raises(ArtefactError, match="another ledger"):
        Ledger(cost(11)).save(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[2]]))
    with pytest.raises(ArtefactError, match="does not start where"):
        Ledger.load(path)
    path.write_text(lines[0] + "\n{")
    with pytest.raises(ArtefactError, match="not a whole ledger"):
        Ledger.load(path)
    with pytest.raises(InputError, match="Cannot read"):
        Ledger.load(tmp_path / "none")
