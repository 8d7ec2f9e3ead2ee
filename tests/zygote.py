"""Fresh processes at the price of a fork. One process has imported torch and transformers, and nothing of ours; it forks for each question.

What a fork runs starts without any module, technique or seed of this package, as a new interpreter would; only the libraries that take seconds to
import are there already. So nothing that asks what is imported, how long a start takes or how much memory a process holds belongs here.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_LOOP = """
import json, os, sys, traceback
import numba, numpy, safetensors.torch, scipy.optimize, scipy.sparse, torch, transformers
from transformers import BertForSequenceClassification, GPT2LMHeadModel, OPTForCausalLM, PreTrainedTokenizerFast
assert not [name for name in sys.modules if name.split(".")[0] == "fourfold"]

def child(asked):
    for number, name in ((1, "out"), (2, "err")):
        if asked.get(name):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        elif number == 1:
            os.dup2(2, 1)
    if asked.get("cwd"):
        os.chdir(asked["cwd"])
    if asked.get("env") is not None:
        os.environ.clear()
        os.environ.update(asked["env"])
    sys.path[:0] = [asked["cwd"] or ".", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["-c", *asked["arguments"]]
    if asked.get("module"):
        import runpy
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    else:
        exec(compile(asked["code"], "<fresh process>", "exec"), {"__name__": "__main__"})

def ended(asked):
    "The exit status and, where nobody is told the errors otherwise, what went wrong."
    try:
        child(asked)
        return 0, ""
    except SystemExit as exit:
        if exit.code is None or isinstance(exit.code, int):
            return exit.code or 0, f"the process ended with status {exit.code}" if exit.code else ""
        print(exit.code, file=sys.stderr)
        return 1, traceback.format_exc()[-4000:]
    except BaseException:
        traceback.print_exc()
        return 1, traceback.format_exc()[-4000:]

for line in sys.stdin:
    asked = json.loads(line)
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        code, said = ended(asked)
        try:
            import atexit, threading
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os.write(into, said.encode())
            os._exit(code & 255)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([status, said or ("" if status == 0 else f"the process ended with status {abs(status)}")]), flush=True)
"""


@functools.cache
def _zygote() -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               cwd=Path(__file__).parent.parent)
    atexit.register(process.kill)
    return process


def _asked(**asked: object) -> tuple[int, str]:
    process = _zygote()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, f"the process that forks ended with {process.wait(60)}"
    status, said = json.loads(line)
    return status, said


def freshly(code: str, *arguments: object) -> str:
    """Run `code` with `sys.argv[1:]` in a process of its own. What went wrong there, or ""."""
    return _asked(code=code, arguments=[str(one) for one in arguments], cwd=None)[1]


def ran(command: list[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *command], capture_output=True, text=True)` for `-c CODE …` and `-m MODULE …`."""
    kind, what, *arguments = command
    assert kind in ("-c", "-m"), command
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in ("out", "err")}
        status, _ = _asked(code=what, module=what if kind == "-m" else None, arguments=arguments, cwd=str(cwd or Path.cwd()),
                           env=dict(os.environ if env is None else env), **{name: str(file) for name, file in files.items()})
        out, err = (file.read_text(errors="replace") if file.exists() else "" for file in files.values())
    return subprocess.CompletedProcess([sys.executable, *command], status, out, err)
