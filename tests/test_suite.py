"""The tests themselves: what forks does so in a process of its own, and nothing of the machine they run on leaks in."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FORKS = {"fork", "forkpty"}


def forking(tree: ast.Module) -> list[str]:
    """Functions that fork and are not marked `apart`."""
    found = []
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        nodes = (node for node in ast.walk(function) if isinstance(node, ast.Call))
        calls = [(node.func.attr, ast.unparse(node)) for node in nodes if isinstance(node.func, ast.Attribute)]
        forks = any(name in FORKS or (name == "get_context" and "'fork'" in call) for name, call in calls)
        if forks and not any(ast.unparse(mark).startswith("pytest.mark.apart") for mark in function.decorator_list):
            found.append(function.name)
    return found


def test_tests_that_fork_are_marked_apart() -> None:
    sources = {path: ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("*.py")}
    assert {path.name: names for path, tree in sources.items() if (names := forking(tree))} == {}
    assert forking(ast.parse("def a():\n    os.fork()\n\n@pytest.mark.apart\ndef b():\n    pty.fork()")) == ["a"]


@pytest.mark.apart
def test_a_test_apart_has_a_process_without_what_others_loaded() -> None:
    assert os.environ["FOURFOLD_TEST_APART"] == "1" and "torch" not in sys.modules and "jax" not in sys.modules


def test_children_hear_ctrl_c_however_the_tests_were_started() -> None:
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
    if os.name == "posix":
        inner = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path.insert(0, sys.argv[1]); import conftest, subprocess; " \
                "print(subprocess.run([sys.executable, '-c', sys.argv[2]], capture_output=True, text=True).stdout)"
        done = subprocess.run([sys.executable, "-c", inner, str(TESTS), code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "True"
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_home_is_the_tests_own() -> None:
    assert Path.home().name.startswith("fourfold-home-")
