"""`fourfold clean` removes a search's journal and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourfold.errors import InputError
from fourfold.jobs.clean import bound, clean
from fourfold.journal import Journal


def test_only_the_journal_goes(tmp_path: Path) -> None:
    (tmp_path / "cheap").mkdir()
    (tmp_path / "cheap" / "manifest.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    with Journal(tmp_path / ".cheap.fourfold", {"a": 1}) as journal:
        journal.once("step", lambda: 3)
        with pytest.raises(InputError, match="at work"):
            clean(tmp_path / "cheap")
    would = clean(tmp_path / "cheap", dry_run=True)
    assert would["bytes"] > 0 and (tmp_path / ".cheap.fourfold").is_dir()
    assert clean(tmp_path / "cheap") == would
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cheap", "notes.txt"] and (tmp_path / "cheap" / "manifest.json").exists()
    with pytest.raises(InputError, match="nothing to remove"):
        clean(tmp_path / "cheap")


def test_a_folder_of_that_name_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".cheap.fourfold").mkdir()
    (tmp_path / ".cheap.fourfold" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds no journal"):
        clean(tmp_path / "cheap")
    assert (tmp_path / ".cheap.fourfold" / "thesis.tex").read_text() == "years of work"


def test_engine_files_of_another_search_are_never_ones_own(tmp_path: Path) -> None:
    """Candidates of two searches have the same names: what one exported must not be taken for the other's."""
    def at_work(seed: int) -> bool:
        with Journal(tmp_path, {"seed": seed}) as journal:
            bound(journal)
            there = (tmp_path / "race-original" / "model.onnx").is_file()
            for name in ("race-original", "engines/c1", "engines/c2"):
                (tmp_path / name).mkdir(parents=True, exist_ok=True)
                (tmp_path / name / "model.onnx").write_text(str(seed))
            return there

    assert [at_work(1), at_work(1), at_work(2), at_work(1)] == [False, True, False, False]
    with Journal(tmp_path, {"seed": 1}) as journal:
        bound(journal, [tmp_path / "engines" / "c2"])
    assert [path.name for path in (tmp_path / "engines").iterdir()] == ["c2"]
