"""For all tests: no network, a home of their own, one thread a worker, SIGINT as at a terminal, and no deadlines on a machine that others share.

Set before torch is loaded, and inherited by whatever the tests start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
APART = "FOURFOLD_TEST_APART"  # set in a process that runs one test marked `apart`
SHOWN = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE")  # what changes how text is printed
KEPT = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "FOURFOLD_CACHE", "FOURFOLD_LEDGER")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # tests start many processes: each would compile all of our files anew
sys.dont_write_bytecode = False
for name in SHOWN + KEPT:
    os.environ.pop(name, None)
if WORKER:  # one core for each of several workers
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
if APART not in os.environ:
    HOME = tempfile.TemporaryDirectory(prefix="fourfold-home-", ignore_cleanup_errors=True)  # removed when this process ends
    os.environ["HOME"] = HOME.name
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `nohup … &` ignores it, and what the tests start would inherit that

from hypothesis import HealthCheck, settings  # noqa: E402

QUIET = [HealthCheck.too_slow, HealthCheck.differing_executors]
settings.register_profile("fixed", deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
settings.register_profile("random", deadline=None, suppress_health_check=QUIET, print_blob=True, max_examples=1000)
PROFILE = os.environ.get("FOURFOLD_HYPOTHESIS", "fixed")  # `fixed`: the same examples each time; `random`: `make slow`, others each time, and more
MORE = 10  # times as many examples as a test asks for, in the profile `random`
settings.load_profile(PROFILE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: a worker for each core that this process may use, at most 8, for each holds a torch."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """`--dist loadfile`, but the files that ask for the whole job (`front` of tests/flow) go to one worker: two would search twice."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    front = {path.name for path in (config.rootpath / "tests" / "flow").glob("test_*.py") if "front: fourfold.Front" in path.read_text("utf-8")}

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/flow with the whole job" if file.startswith("tests/flow/") and file.split("/")[-1] in front else file

    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The profile `random` takes more examples than a test asks for."""
    for item in items:
        function = getattr(item, "obj", None)
        own = getattr(function, "_hypothesis_internal_use_settings", None)
        if PROFILE == "random" and own is not None and not getattr(function, "_more", False):
            function.__dict__.update(_hypothesis_internal_use_settings=settings(own, max_examples=MORE * own.max_examples), _more=True)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test marked `apart` runs in a fresh process: it forks, or measures this process, which other tests have filled with threads and memory."""
    if pyfuncitem.get_closest_marker("apart") is None or APART in os.environ:
        return None
    drop = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "--override-ini", "addopts=--strict-markers",
               f"--rootdir={pyfuncitem.config.rootpath}", pyfuncitem.nodeid.split("@", 1)[0]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pyfuncitem.config.rootpath, env={**drop, APART: "1"}, check=False)
    if done.returncode == 0 and " skipped" in done.stdout:
        pytest.skip("skipped in the process of its own")
    assert done.returncode == 0, f"in a process of its own:\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
    return True
