"""A forked process knows nothing of this package, says what went wrong, and the next one is none the wiser."""

from __future__ import annotations

from pathlib import Path

from zygote import freshly, ran


def test_each_question_gets_a_process_of_its_own(tmp_path: Path) -> None:
    code = ("import sys, pathlib\nassert 'torch' in sys.modules and 'fourfold' not in sys.modules\nimport fourfold.registry\n"
            "fourfold.registry.mark = 1\npathlib.Path(sys.argv[1]).write_text('done')")
    for name in ("a", "b"):
        assert freshly(code, tmp_path / name) == "" and (tmp_path / name).read_text() == "done"


def test_what_goes_wrong_is_told() -> None:
    assert "ValueError: no" in freshly("raise ValueError('no')")
    assert "status 9" in freshly("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert freshly("print('heard by nobody')") == ""


def test_it_runs_as_python_would(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    (tmp_path / "said.py").write_text("import sys, atexit\natexit.register(print, 'bye')\nprint(__name__, sys.argv[1:])\nsys.exit(int(sys.argv[1]))")
    code = "import os, sys, atexit\natexit.register(print, 'bye')\nprint(os.getcwd(), os.environ['A'], sys.argv[1:])\nprint('no', file=sys.stderr)"
    for command in (["-m", "said", "3", "x"], ["-c", code, "y"], ["-c", "import said_not"], ["-c", "raise SystemExit('words')"]):
        env = os.environ | {"A": "b", "PYTHONPATH": str(tmp_path)}
        here = ran(command, tmp_path, env)
        there = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (here.returncode, here.stdout) == (there.returncode, there.stdout), here.stderr
        assert here.stderr.splitlines()[-1:] == there.stderr.splitlines()[-1:]
