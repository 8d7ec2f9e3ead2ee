"""A saved member on its shelf: module, tokenizer and processor are made when they are asked for; an engine whose files stand alone asks for none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fourfold.runtime.later import Later, OnDemand
from fourfold.runtime.tokens import Tokens, facts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fourfold.frontends.subject import Subject

TOKENIZERS = {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"}
PROCESSORS = {"preprocessor_config.json", "processor_config.json"}


class Shelved:
    """Stands in for `fourfold.frontends.subject.Subject`, whose attributes it has, and `config`, which is known without the module.

    home: the member's folder. reading: what `reading` wrote into the manifest, or None. module: how to make it.
    """

    module: OnDemand[Any] = OnDemand()
    tokenizer: OnDemand[object] = OnDemand()
    processor: OnDemand[object] = OnDemand()

    def __init__(
        self, home: Path, origin: dict[str, Any], inputs: tuple[str, ...], reading: Mapping[str, Any] | None, module: Later[nn.Module | None]
    ) -> None:
        self.folder, self.origin, self.inputs, self.reading = home, origin, inputs, reading or {}
        self.module = module
        there = {path.name for path in files.iterdir()} if (files := home / "tokenizer").is_dir() else set()
        self.tokenizer = Tokens(files, self.reading.get("tokens"), self._whole_tokenizer) if there & TOKENIZERS else None
        self.processor = Later(self._processor) if there & PROCESSORS else None

    def _whole_tokenizer(self) -> object:
        from fourfold.frontends.preprocessors import companions

        return companions(self.folder / "tokenizer")[0]

    def _processor(self) -> object:
        from fourfold.frontends.preprocessors import companions

        return companions(self.folder / "tokenizer")[1]

    @property
    def config(self) -> object:
        """The model's configuration as plain data; the module's own where the manifest has none."""
        if "config" in self.reading:
            return plain(self.reading["config"] or {})
        return getattr(self.module, "config", None)

    @property
    def rows(self) -> int | None:
        """How many tokens the model has rows for; asked of the module where the manifest does not say."""
        if "rows" in self.reading and isinstance(self.reading["rows"], int | None):
            return self.reading["rows"]
        from fourfold.frontends.subject import vocabulary

        return vocabulary(self.module)

    def logits(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """As `Subject.logits`."""
        from fourfold.frontends.subject import run

        return run(module, inputs, self.inputs)

    def wrap(self, module: nn.Module) -> nn.Module:
        """As `Subject.wrap`."""
        from fourfold.frontends.subject import Wrapped

        return Wrapped(module, self.inputs)


def plain(data: Mapping[str, object]) -> SimpleNamespace:
    """A configuration's values as attributes, its inner configurations too."""
    return SimpleNamespace(**{k: plain(v) if k.endswith("_config") and isinstance(v, dict) else v for k, v in data.items() if k.isidentifier()})


def reading(subject: Subject, module: nn.Module, home: Path) -> dict[str, Any]:
    """What a loader must know to read inputs without the module and without transformers, tried on the files just saved in `home`."""
    from dataclasses import replace

    from fourfold.datasets.tokenise import longest, paddings
    from fourfold.frontends.subject import vocabulary

    own = getattr(module, "config", None)
    config = json.loads(own.to_json_string(use_diff=False)) if own is not None and hasattr(own, "to_json_string") else None
    known: dict[str, object] = {"tokens": facts(subject.tokenizer, home / "tokenizer"), "rows": vocabulary(module)}
    if own is None or config is not None:
        real, lean = replace(subject, module=module), Shelved(home, {}, subject.inputs, known | {"config": config}, Later(lambda: module))
        if paddings(real) == paddings(lean) and longest(real) == longest(lean):  # type: ignore[arg-type]
            known["config"] = config
    return known
