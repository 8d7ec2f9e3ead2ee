"""The user's model: read from a folder, a factory or memory, together with what is needed to make its bare architecture again without training code.

Weights travel as safetensors only: a pickle can run anything when it is opened, so .bin and .pt files are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fourfold.errors import MissingExtra, ModelError
from fourfold.frontends import quantised
from fourfold.frontends.preprocessors import companions
from fourfold.frontends.subject import Subject, inputs_of, run, vocabulary
from fourfold.text import headline
from fourfold.trust import EVERYONE, Trust, sane

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ELSEWHERE = {                                                          # files that hold models of which the main job can make nothing, and what can
    ".pt2": "An exported program has no modules to work on: give the module as package.module:factory. To place it: fourfold plan MODEL.pt2",
    ".ggml": "It is quantised already, for llama.cpp: give the folder that it was converted from.",
    ".safetensors": "It holds weights without the architecture: give the folder that it lies in, with its config.json.",
    ".h5": "It is Keras's: convert it with tf2onnx and give the .onnx file.",
    ".keras": "It is Keras's: convert it with tf2onnx and give the .onnx file.",
    ".pb": "It is TensorFlow's: convert it with tf2onnx and give the .onnx file.",
    ".tflite": "It is TensorFlow's: convert it with tf2onnx and give the .onnx file.",
    ".joblib": "It may hold a pickle, which can run code when opened: export it with skl2onnx and give the .onnx file.",
    ".xml": "It is OpenVINO's: give the model that it was converted from, or its .onnx file.",
}


# --- loading ---------------------------------------------------------------------------------------------------------------------------------------


def load_model(ref: object) -> Subject:
    """ref: a folder (config.json, *.safetensors, tokenizer files), an .onnx file, "package.module:factory", or an `nn.Module`.

    A factory is called without arguments and returns a module, or (module, tokenizer). Weights are taken as they come, in float32.
    Raises `ModelError` saying what was found and what was expected.
    """
    if isinstance(ref, Subject):
        return ref
    if isinstance(ref, nn.Module):
        return _subject(ref, None)
    if not isinstance(ref, str | Path):
        raise ModelError(f"a model was given as {type(ref).__name__}", "Give a folder, package.module:factory, or an nn.Module.")
    folder = Path(ref)
    if folder.is_dir():
        return _from_folder(folder)
    if folder.is_file() and folder.suffix == ".onnx":
        from fourfold.frontends import onnx_model

        module, origin, tokenizer, processor = onnx_model.read(folder)
        return Subject(module, origin, module.inputs, tokenizer, processor)
    if folder.is_file() and folder.suffix == ".gguf":
        return _from_gguf(folder)
    if folder.is_file() and folder.suffix in _ELSEWHERE:
        raise ModelError(f"{folder} is a {folder.suffix} file; a model is a folder with config.json and *.safetensors, or an .onnx file",
                         _ELSEWHERE[folder.suffix])
    if folder.is_file():
        advice = "It may hold a pickle, which can run code when opened; save as safetensors." if folder.suffix in PICKLES else ""
        raise ModelError(f"{folder} is a file; a model is a folder with config.json and *.safetensors", advice)
    module, colon, name = str(ref).partition(":")
    if colon and name and "/" not in module and "\\" not in module:
        return _from_factory(str(ref))
    raise ModelError(f"there is no folder {ref}", "Give a folder with config.json and *.safetensors, package.module:factory, or an nn.Module.")


def _from_folder(folder: Path) -> Subject:
    import transformers

    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json), which is a change to another model and no model",
            "Merge it: peft.AutoPeftModel….from_pretrained(folder).merge_and_unload().save_pretrained(merged); save the tokenizer there too.",
        )
    if (file := quantised.gguf_in(folder)) is not None:
        return _from_gguf(file)
    names = _architecture(folder)
    more = quantised.widened(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLES]
        if pickles:
            raise ModelError(
                f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when opened", "Convert: model.save_pretrained(folder)."
            )
        raise ModelError(f"{folder} holds no *.safetensors", "Save the model with model.save_pretrained(folder).")
    for path in weights:
        _check_safetensors(path)
    kind = getattr(transformers, names[0], None) if names else transformers.AutoModel
    if kind is None or not hasattr(kind, "from_pretrained"):
        raise ModelError(
            f"{folder}/config.json names the architecture {names[0]!r}, which transformers {transformers.__version__} does not have",
            "Give it as package.module:factory.",
        )
    with _quiet():
        try:
            how = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
            module, info = kind.from_pretrained(folder, **how, **more)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"{folder} cannot be loaded as {kind.__name__}: {headline(error)}", "Check that config.json and the weights belong together."
            ) from error
        missing = used_of(module, sorted(info["missing_keys"]))
        if missing:
            raise ModelError(
                f"the weights in {folder} lack {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
                f"The answers of {kind.__name__} (config.json) depend on them: is that the right class, and are the files complete?",
            )
        tokenizer, processor = companions(folder)
    return _subject(module, None, tokenizer, processor, folder)


def _from_gguf(file: Path) -> Subject:
    with _quiet():
        module, tokenizer = quantised.read_gguf(file)
    return _subject(module, None, tokenizer, None, file.parent)


def used_of(module: nn.Module, names: list[str]) -> list[str]:
    """Those of the parameters `names` that the answer depends on, by its derivative; the others are set to zero, so that a model is the same at
    every load. All of them where no input can be made up to try it with."""
    if not names:
        return []
    own = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    tensors = [own.get(name) for name in names]
    if any(not isinstance(tensor, nn.Parameter) for tensor in tensors):
        return names
    wanted = [tensor for tensor in tensors if tensor is not None]
    module.eval()
    try:
        with torch.enable_grad():
            slopes = torch.autograd.grad(run(module, _made_up(module), inputs_of(module)).sum(), wanted, allow_unused=True)
    except Exception:  # a forward that nobody here can feed: nothing is known of it
        return names
    used = [name for name, slope in zip(names, slopes, strict=True) if slope is not None]
    with torch.no_grad():
        for name, tensor in zip(names, wanted, strict=True):
            if name not in used:
                tensor.zero_()
    return used


def _made_up(module: nn.Module) -> dict[str, Tensor]:
    """A small input of the right kind for a transformers model. KeyError for an input that cannot be made up."""
    config: Any = module.config
    config = getattr(config, "vision_config", config) if "pixel_values" in inputs_of(module) else config
    side = getattr(config, "image_size", None) or 32
    high, wide = side if isinstance(side, list | tuple) else (side, side)
    ids = torch.arange(1, 9)[None] % int(getattr(module.config, "vocab_size", None) or 8)
    makers = {
        "input_ids": lambda: ids,
        "decoder_input_ids": lambda: ids,
        "attention_mask": lambda: torch.ones(1, 8, dtype=torch.long),
        "token_type_ids": lambda: torch.zeros(1, 8, dtype=torch.long),
        "pixel_values": lambda: torch.linspace(-1, 1, int(getattr(config, "num_channels", 3)) * high * wide).view(1, -1, high, wide),
        "input_values": lambda: torch.linspace(-1, 1, 16_000)[None],
        "input_features": lambda: torch.zeros(1, int(config.num_mel_bins), 2 * int(config.max_source_positions)),
    }
    return {name: makers[name]() for name in inputs_of(module)}


def _architecture(folder: Path) -> list[str]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json", "Give a folder as model.save_pretrained(folder) writes it.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return [str(name) for name in config.get("architectures") or []]
    except (ValueError, AttributeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not a JSON object: {headline(error)}", "Save the model again.") from error


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or no safetensors file: {headline(error)}", "Copy or download it again.") from error


def _from_factory(ref: str) -> Subject:
    made, tokenizer, processor = _call(ref, entry_of(ref))
    return _subject(made, ref, tokenizer, processor)


def entry_of(ref: str) -> object:
    """What "package.module:name" names, a callable. Raises ModelError saying what is missing."""
    import sys

    module, _, name = ref.partition(":")
    sys.path.insert(0, "") if "" not in sys.path else None  # a factory beside the user, as `python -m` finds it
    try:
        entry: object = import_module(module)
        for part in name.split("."):
            entry = getattr(entry, part)
    except ImportError as error:
        if (error.name or "").split(".")[0] in ("jax", "jaxlib"):
            raise MissingExtra(f"{ref} needs JAX, which is not installed.", "pip install 'fourfold[jax]'") from error
        raise ModelError(
            f"{ref}: module {module!r} cannot be imported: {headline(error)}", "Install it, or run from the folder that holds it."
        ) from error
    except AttributeError as error:
        raise ModelError(f"{ref}: module {module!r} has no {name!r}", "Name a function of it that returns the model.") from error
    except Exception as error:
        raise ModelError(f"{ref}: importing {module!r} raised {type(error).__name__}: {headline(error)}", "Mend the module.") from error
    if not callable(entry):
        raise ModelError(f"{ref} is a {type(entry).__name__}, not a function", "Name a function that returns the model.")
    return entry


def made_by(ref: str, entry: Any) -> object:
    """What the factory `entry` returns. Raises ModelError in words."""
    try:
        return entry() if not isinstance(entry, nn.Module) else entry
    except Exception as error:
        raise ModelError(
            f"{ref}() raised {type(error).__name__}: {headline(error)}", "A factory takes no arguments and returns the model."
        ) from error


def _call(ref: str, entry: object) -> tuple[nn.Module, object, object]:
    made = made_by(ref, entry)
    companions: list[object] = [None, None]
    if isinstance(made, tuple) and made and isinstance(made[0], nn.Module):
        made, companions = made[0], [*made[1:3], None, None]
    if not isinstance(made, nn.Module):
        raise ModelError(f"{ref}() returned {type(made).__name__}", "It must return an nn.Module, or (nn.Module, tokenizer).")
    extra = companions[0]
    is_tokenizer = hasattr(extra, "encode") or hasattr(extra, "get_vocab")
    return made, (extra if is_tokenizer or extra is None else None), (companions[1] if is_tokenizer or extra is None else extra)


def _subject(module: nn.Module, entry: str | None, tokenizer: object = None, processor: object = None, folder: Path | None = None) -> Subject:
    lazy = next((n for n, p in module.named_parameters() if isinstance(p, nn.UninitializedParameter)), None)
    if lazy:
        raise ModelError(f"parameter {lazy} has no shape yet", "Run the model once before giving it.")
    module.eval()
    _pad(module, tokenizer)
    try:
        origin = origin_of(module, entry)
    except ModelError as error:  # it can be worked on all the same; saving it needs an engine whose files stand alone
        origin = {"kind": "opaque", "class": f"{type(module).__module__}.{type(module).__qualname__}", "why": error.message}
    return Subject(module, origin, inputs_of(module), tokenizer, processor, folder)


def _pad(module: nn.Module, tokenizer: object) -> None:
    """A classifier that looks for its last token by the padding token learns which one it is from its tokenizer."""
    config: Any = getattr(module, "config", None)
    told = getattr(tokenizer, "pad_token_id", None)
    if type(module).__name__.endswith("ForSequenceClassification") and isinstance(told, int) and getattr(config, "pad_token_id", 0) is None:
        rows = vocabulary(module)
        if rows is None or told < rows:  # a tokenizer may add one of its own that the model has no row for
            config.pad_token_id = told


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and notices off the screen for the moment."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# --- the bare architecture -------------------------------------------------------------------------------------------------------------------------


def origin_of(module: nn.Module, entry: str | None = None) -> dict[str, object]:
    """JSON from which `rebuild` makes a module of the same shape: transformers class and configuration, the tree itself, or the factory's name."""
    from fourfold.structure import serialize

    kind = type(module)
    config: Any = getattr(module, "config", None)
    if kind.__module__.startswith("transformers.") and config is not None:
        origin = {"kind": "transformers", "class": kind.__name__, "config": json.loads(config.to_json_string(use_diff=False))}
        if _same_shape(module, origin):
            return origin
    try:
        return {"kind": "tree", "tree": serialize.describe(module)}
    except ModelError:
        if entry is None:
            raise
        return {"kind": "factory", "entry": entry}


def _same_shape(module: nn.Module, origin: dict[str, object]) -> bool:
    """Whether the class and configuration alone give these parameters (a head replaced by hand would not) and no module but those of torch and
    transformers (a layer without weights that was put in would not show)."""
    with torch.device("meta"):
        try:
            bare = rebuild(origin)
        except (ModelError, RuntimeError, NotImplementedError):
            bare = None
    try:
        bare = rebuild(origin) if bare is None else bare
    except ModelError:
        raise
    except Exception:  # whatever a class says of a configuration that was changed after it was made
        return False
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (module, bare)]
    kinds = {type(part) for part in module.modules()} - {type(part) for part in bare.modules()}
    return shapes[0] == shapes[1] and all(kind.__module__.partition(".")[0] in ("torch", "transformers") for kind in kinds)


def rebuild(origin: dict[str, Any], trust: Trust = EVERYONE) -> nn.Module:
    """The bare architecture in eval mode, weights arbitrary; needs no training code. What `origin` names must be what `trust` lets run.

    Raises `ModelError` where `origin` or its class is unknown, `ArtefactError` where it must not run here or takes absurdly much memory.
    """
    kind = origin.get("kind")
    if kind == "tree":
        from fourfold.structure import serialize

        return serialize.build(origin["tree"], trust).eval()
    if kind == "onnx":
        from fourfold.frontends import onnx_model

        return onnx_model.rebuild(origin)
    if kind == "factory":
        trust.called(origin["entry"])
        return _from_factory(str(origin["entry"])).module.eval()
    if kind == "opaque":
        raise ModelError(f"{origin['class']} cannot be made again from data: {origin['why']}", "Give the model as package.module:factory.")
    if kind != "transformers":
        raise ModelError(f"the artefact's origin is of unknown kind {kind!r}", "Known kinds: transformers, tree, onnx, factory.")
    import transformers

    model = getattr(transformers, str(origin["class"]), None)
    if not (isinstance(model, type) and issubclass(model, transformers.PreTrainedModel)):
        raise ModelError(f"transformers {transformers.__version__} has no {origin['class']}", "Install the version that the artefact was made with.")
    data = origin["config"] if trust is EVERYONE else sane(origin["config"])
    with _quiet(), _Unfilled():
        if trust is not EVERYONE:
            trust.room(_size(model, data))
        return model(_config(model.config_class, data)).eval()


def _size(model: Any, data: dict[str, object]) -> int:
    """Bytes of a transformers model's parameters, found without making them; 0 where it cannot be made so."""
    with torch.device("meta"):
        try:
            return sum(p.numel() * p.element_size() for p in model(_config(model.config_class, data)).parameters())
        except (RuntimeError, NotImplementedError):
            return 0


def _config(kind: Any, data: dict[str, object]) -> Any:
    config = kind.from_dict(dict(data))
    for name, value in (("use_cache", data.get("use_cache")), ("return_dict", True)):
        if value is not None:
            setattr(config, name, value)
    return config


class _Unfilled(TorchFunctionMode):
    """Inside, random draws are replaced by their mean, which costs no time: the weights are about to be read from a file."""

    def __torch_function__(self, func: Any, types: Sequence[type], args: Any = (),
                           kwargs: Any = None) -> object:
        name, given = getattr(func, "__name__", ""), {"mean": 0.0, "from": 0.0, "to": 1.0, **(kwargs or {})}
        if name == "normal_" and args:
            return args[0].fill_(args[1] if len(args) > 1 else given["mean"])
        if name == "uniform_" and args:
            low, high = (args[1] if len(args) > 1 else given["from"]), (args[2] if len(args) > 2 else given["to"])
            return args[0].fill_((low + high) / 2)
        return func(*args, **(kwargs or {}))


# --- weights ---------------------------------------------------------------------------------------------------------------------------------------


def state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers for safetensors, contiguous; a tensor with several names is there once, under its first."""
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ModelError(
                f"{name} is not a tensor but {type(tensor).__name__}, so it cannot be stored",
                "Give the model as package.module:factory without extra state.",
            )
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        out[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return out


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Puts `state`'s tensors back, by name and exactly; tied weights follow the one that was stored. Raises `ModelError` on any mismatch."""
    own = module.state_dict(keep_vars=True)
    filled = {id(own[name]) for name in tensors if name in own}
    lacking = [name for name, tensor in own.items() if name not in tensors and id(tensor) not in filled]
    foreign = [name for name in tensors if name not in own]
    if lacking or foreign:
        what = f"lack {lacking[0]}" if lacking else f"hold {foreign[0]}, which the architecture has not"
        raise ModelError(f"the weights {what} ({len(lacking)} missing, {len(foreign)} foreign)", "Weights and recipe do not belong together.")
    with torch.no_grad():
        for name, value in tensors.items():
            target = own[name]
            if target.shape != value.shape:
                raise ModelError(
                    f"{name} has shape {tuple(value.shape)} in the file and {tuple(target.shape)} in the architecture",
                    "Weights and recipe do not belong together.",
                )
            if target.dtype != value.dtype:
                target.data = target.data.to(value.dtype)
            target.copy_(value)
    return module
