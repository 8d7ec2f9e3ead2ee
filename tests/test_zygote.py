"""A forked process knows nothing of this package, says what went wrong, and the next one is none the wiser."""

from __future__ import annotations

from pathlib import Path

from zygote import freshly


def test_each_question_gets_a_process_of_its_own(tmp_path: Path) -> None:
    code = ("import sys, pathlib\nassert 'torch' in sys.modules and 'fourfold' not in sys.modules\nimport fourfold.registry\n"
            "fourfold.registry.mark = 1\npathlib.Path(sys.argv[1]).write_text('done')")
    for name in ("a", "b"):
        assert freshly(code, tmp_path / name) == "" and (tmp_path / name).read_text() == "done"


def test_what_goes_wrong_is_told() -> None:
    assert "ValueError: no" in freshly("raise ValueError('no')")
    assert "status 9" in freshly("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert freshly("print('heard by nobody')") == ""
