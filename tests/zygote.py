"""Fresh processes at the price of a fork. One process has imported torch and transformers, and nothing of ours; it forks for each question.

What a fork runs starts without any module, technique or seed of this package, as a new interpreter would; only the libraries that take seconds to
import are there already.
"""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
from pathlib import Path

_LOOP = """
import json, os, sys, traceback
import numpy, safetensors.torch, torch, transformers
from transformers import BertForSequenceClassification, GPT2LMHeadModel, OPTForCausalLM, PreTrainedTokenizerFast
assert not [name for name in sys.modules if name.split(".")[0] == "fourfold"]
for line in sys.stdin:
    asked = json.loads(line)
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            os.dup2(2, 1)
            sys.argv = ["-c", *asked["arguments"]]
            exec(compile(asked["code"], "<fresh process>", "exec"), {"__name__": "__main__"})
        except BaseException:
            said = traceback.format_exc()[-4000:]
        os.write(into, said.encode())
        os._exit(bool(said))
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    status = os.waitpid(child, 0)[1]
    print(json.dumps(said or ("" if status == 0 else f"the process ended with status {status}")), flush=True)
"""


@functools.cache
def _zygote() -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               cwd=Path(__file__).parent.parent)
    atexit.register(process.kill)
    return process


def freshly(code: str, *arguments: object) -> str:
    """Run `code` with `sys.argv[1:]` in a process of its own. What went wrong there, or ""."""
    process = _zygote()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"code": code, "arguments": [str(one) for one in arguments]}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, f"the process that forks ended with {process.wait(60)}"
    return json.loads(line)
