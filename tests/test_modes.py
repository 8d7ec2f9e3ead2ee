"""What is written can be read by whom the umask lets: files 0666 and folders 0777 without its bits, wherever they were made before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import served

from fourfold.errors import FourfoldError
from fourfold.gate import Gate
from fourfold.jobs.optimize.choices import keep
from fourfold.ledger.book import Ledger
from fourfold.runtime.artefact import Assembly
from fourfold.runtime.export import export
from fourfold.runtime.loading import load, read_manifest
from fourfold.runtime.saving import save
from fourfold.units import Quantity


@contextmanager
def umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def wrong(root: Path, bits: int) -> list[str]:
    """What below `root` has other bits than the umask leaves."""
    found = []
    for path in [root, *root.rglob("*")]:
        mode = path.stat().st_mode & 0o777
        if mode != (0o777 if path.is_dir() else 0o666) & ~bits:
            found.append(f"{path.relative_to(root)} {mode:o}")
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no modes on this system")
@pytest.mark.parametrize("bits", [0o022, 0o027, 0o002])
def test_everything_that_is_written_follows_the_umask(tmp_path: Path, bits: int) -> None:
    from invented import report

    from fourfold.journal import Journal
    from fourfold.report import write

    with umask(0o077):                                                 # files of the back ends may come from elsewhere
        parts = [served.words(), served.part(tmp_path / "files", "onnxruntime"), served.part(tmp_path / "more", "torch", name="last")]
    with umask(bits):
        cheap, made = tmp_path / "deep" / "cheap", Assembly("small", parts, [Gate(1.0, 0.5), Gate(1.0, 0.5)])
        save(made, served.task(), cheap, {"fingerprint": "", "lengths": [8]}, extra={"ledger.jsonl": "{}\n"}, pages={"report.html": "<p>"})
        assert not wrong(tmp_path / "deep", bits)
        manifest = read_manifest(cheap)
        spec = manifest["parts"][1]
        files = [(tmp_path / "files" / name, name) for name in spec["engine_files"]]
        new = {"setting": spec["setting"], "signature": spec["signature"], "files": files}
        keep(cheap, manifest, {spec["name"]: new}, "tested")
        assert not wrong(cheap, bits) and load(cheap).predict(served.texts(3))
        export(cheap, "onnx", tmp_path / "out" / "onnx", member="net")
        assert not wrong(tmp_path / "out", bits)
        home = tmp_path / "pages"
        home.mkdir()
        for name in ("report.html", "report.json", "front.svg", "card.md"):
            write(report(), home / name)
        ledger = Ledger(Quantity(2.0, "J", "measured", low=1.9, high=2.1), "one run")
        ledger.save(home / "ledger.jsonl")
        ledger.save(home / "ledger.jsonl")
        journal = Journal(home / ".cheap.fourfold", {"a": 1})
        import torch

        journal.tensors("rows", lambda: {"rows": torch.zeros(2)})
        journal.once("step", lambda: 1)
        journal.close()
        with pytest.raises(FourfoldError):
            load(home)
        assert not wrong(home, bits)
