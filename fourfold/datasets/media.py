"""Pictures and sounds: read from their files, and brought to what the model reads by its own processor."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets import columns as roles
from fourfold.datasets import split
from fourfold.datasets.examples import Examples, Ragged
from fourfold.datasets.table import Table
from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.frontends.subject import Subject

ROOM = 8_000_000_000  # bytes of pixels held in memory at most


def pictures(table: Table, subject: Subject, notes: list[str]) -> Examples:
    """The images that the table names as pixels [N, channels, height, width]. InputError where sizes differ, or where they do not fit into memory."""
    config = roles.config_of(subject)
    config = getattr(config, "vision_config", None) or config
    channels = int(getattr(config, "num_channels", 3) or 3)
    files = roles.texts_of(table, "file")
    processor = getattr(subject.processor, "image_processor", None) or subject.processor
    name = subject.inputs[0]
    if processor is not None and (hasattr(processor, "image_mean") or hasattr(processor, "size")):
        named = (getattr(processor, "model_input_names", None) or ["pixel_values"])[0]
        name = named if named in subject.inputs else name
        pixels = _filled(files, lambda file: np.asarray(processor(images=picture(file, channels), return_tensors="np")[named][0], dtype=np.float32))
    else:
        size = getattr(config, "image_size", None)
        side = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, tuple | list) else None
        pixels = _filled(files, lambda file: _pixels(file, channels, side))
        if pixels is None:  # sizes differ, and the model does not say which one it wants
            pixels = _filled(files, lambda file: _pixels(file, channels, (224, 224)))
        assert pixels is not None
        high, wide = pixels.shape[2:]
        notes.append(f"Images were brought to {high} × {wide} pixels in [−1, 1], since the model has no processor of its own.")
    if pixels is None:
        raise InputError(f"{table.source}: the model's processor gives images of different sizes.", "Bring all images to one size first.")
    return Examples({name: pixels}, None, None, {}, None, np.array([split.group_of(Path(file).read_bytes()) for file in files], dtype=np.int64))


def _filled(files: list[str], pixels_of: Callable[[str], np.ndarray]) -> np.ndarray | None:
    """[N, channels, height, width]; None where shapes differ. InputError where they do not fit into memory."""
    first = pixels_of(files[0])
    if first.nbytes * len(files) > ROOM:
        shape = " × ".join(map(str, first.shape))
        raise InputError(
            f"{len(files):,} images of {shape} need {first.nbytes * len(files) / 1e9:.1f} GB; at most {ROOM / 1e9:.1f} GB are taken.",
            f"Give a sample of at most {ROOM // first.nbytes:,} images.",
        )
    out = np.empty((len(files), *first.shape), dtype=np.float32)
    for i, file in enumerate(files):
        pixels = first if i == 0 else pixels_of(file)
        if pixels.shape != first.shape:
            return None
        out[i] = pixels
    return out


def _pixels(file: str, channels: int, side: tuple[int, ...] | None) -> np.ndarray:
    """[channels, height, width] in [−1, 1]."""
    image = picture(file, channels)
    if side and image.size != (side[1], side[0]):
        image = image.resize((side[1], side[0]))
    pixels = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def sounds(table: Table, subject: Subject, max_length: int | None, notes: list[str]) -> Examples:
    """The sounds that the table names as samples or spectra, cut to `max_length` samples."""
    extractor = getattr(subject.processor, "feature_extractor", None) or subject.processor
    rate = int(getattr(extractor, "sampling_rate", None) or 16_000)
    files = roles.texts_of(table, "file")
    waves = [sound(file, rate)[: max_length or None] for file in files]
    groups = np.array([split.group_of(wave) for wave in waves], dtype=np.int64)
    name = next((n for n in ("input_features", "input_values") if n in subject.inputs), subject.inputs[0])
    if extractor is None:
        if name == "input_features":
            raise InputError(
                "The model reads spectra (input_features), but comes without a feature extractor.",
                "Put preprocessor_config.json into the model's folder, or give arrays.",
            )
        notes.append(f"Sounds were resampled to {rate:,} Hz, since the model has no processor of its own.")
        rows = waves
    else:
        named = (getattr(extractor, "model_input_names", None) or [name])[0]
        rows = [np.asarray(extractor(wave, sampling_rate=rate, return_tensors="np")[named][0], dtype=np.float32) for wave in waves]
    if rows[0].ndim > 1:  # spectra
        if len({row.shape for row in rows}) > 1:
            most = max(row.shape[0] for row in rows)
            rows = [np.pad(row, ((0, most - row.shape[0]), *((0, 0) for _ in row.shape[1:]))) for row in rows]
        return Examples({name: np.stack(rows)}, None, None, {}, None, groups)
    values = Ragged.of(rows, np.float32)
    columns = {name: values}
    if "attention_mask" in subject.inputs:
        columns["attention_mask"] = Ragged(np.ones(len(values.values), dtype=np.int64), values.offsets)
    left = (name, "attention_mask") if getattr(extractor, "padding_side", "right") == "left" else ()
    fill = float(getattr(extractor, "padding_value", 0.0) or 0.0)
    return Examples(columns, None, None, {name: fill, "attention_mask": 0}, None, groups, left=left)


def picture(path: str, channels: int) -> Any:
    """A PIL image in grey (1 channel), RGB or RGBA (4), turned as its EXIF data say; 16 bits a channel are scaled to 8.

    InputError naming a file that is damaged, or whose numbers have no range that the file states (32-bit integers and floats).
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            deep = image.mode.startswith("I;16") or image.mode == "I" and image.format == "PNG"  # older Pillow opens PNG's 16 bits as 32
            ranged = deep or image.mode not in ("I", "F")
            image.load()
            turned = ImageOps.exif_transpose(image)
            if deep:
                turned = Image.fromarray(np.round(np.asarray(turned).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
            made = turned.convert({1: "L", 4: "RGBA"}.get(channels, "RGB")) if ranged else None
    except Exception as error:  # PIL raises OSError, SyntaxError and ValueError for damaged files
        raise InputError(f"{path} is not a readable image ({type(error).__name__}).", "Replace or delete it.") from None
    if made is None:
        raise InputError(
            f"{path} holds 32-bit numbers, and nothing says which of them is black and which white.", "Save the images with 8 or 16 bits a channel."
        )
    return made


def sound(path: str, rate: int) -> np.ndarray:
    """Mono samples in [−1, 1] as float32 [T] at `rate` Hz. InputError naming a file that is damaged or silent."""
    import warnings

    from scipy.io import wavfile
    from scipy.signal import resample_poly

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown chunks are harmless
            found, samples = wavfile.read(path)
    except Exception as error:  # scipy raises ValueError, struct.error and others
        raise InputError(f"{path} is not a readable WAV file ({type(error).__name__}).", "Save it as PCM WAV, or delete it.") from None
    if not len(samples):
        raise InputError(f"{path} holds no samples.", "Replace or delete it.")
    if samples.dtype.kind == "u":
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / np.iinfo(samples.dtype).max
    samples = samples.astype(np.float32)
    samples = samples.mean(axis=1) if samples.ndim > 1 else samples
    if not np.isfinite(samples).all():
        raise InputError(f"{path} holds NaN or infinite samples.", "Save it again.")
    if found != rate:
        shared = math.gcd(found, rate)
        samples = resample_poly(samples, rate // shared, found // shared).astype(np.float32)
    return samples
