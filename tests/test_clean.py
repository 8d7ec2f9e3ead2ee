"""`fourfold clean` removes a search's journal and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourfold.errors import InputError
from fourfold.journal import Journal
from fourfold.run.clean import clean


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
