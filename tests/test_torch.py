"""Installing this package with every extra never moves an installed torch."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def installed(folder: Path, version: str) -> Path:
    """A bare environment in which pip sees torch `version` as installed: the metadata of ours under that number, and what it needs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    site = Path(subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True,
                               check=True).stdout.strip())
    todo, done = ["torch"], set()
    while todo:
        name = todo.pop()
        if name in done:
            continue
        done.add(name)
        found = distribution(name)
        source = Path(str(found._path))  # type: ignore[attr-defined]
        number = version if name == "torch" else found.version
        target = site / f"{found.metadata['Name'].replace('-', '_')}-{number}.dist-info"
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("licenses"))
        (target / "METADATA").write_text(re.sub(r"(?m)^Version: .*$", f"Version: {number}", (source / "METADATA").read_text(), count=1))
        for need in found.requires or []:
            if ";" not in need:                                        # what torch needs on every machine
                todo.append(re.split(r"[<>=!~\[ ]", need)[0])
    return python


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.8.0", distribution("torch").version])
def test_all_extras_leave_an_installed_torch_alone(tmp_path: Path, version: str) -> None:
    python = installed(tmp_path / "env", version)
    report = tmp_path / "report.json"
    done = subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "--dry-run", "--quiet", "--report", str(report),
                           f"{ROOT}[all,bench,dev]"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    chosen = {row["metadata"]["name"].lower(): row["metadata"]["version"] for row in json.loads(report.read_text())["install"]}
    assert {"fourfold", "openvino", "onnxruntime", "torchao", "nncf", "transformers"} <= set(chosen)
    assert "torch" not in chosen, f"torch {version} would become {chosen['torch']}"


def test_no_requirement_names_a_torch_that_would_replace_a_supported_one() -> None:
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    asked = [text for text in texts if re.match(r"torch(?![\w-])|torchvision|torchaudio", text)]
    assert asked == ["torch>=2.8"]


def test_every_pip_call_of_the_makefile_is_constrained() -> None:
    calls = [line for line in (ROOT / "Makefile").read_text().splitlines() if "$(PIP) install" in line]
    assert calls and all("-c constraints.txt" in line for line in calls)
    assert "torch==2.13.0" in calls[0] and "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
