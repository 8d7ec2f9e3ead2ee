"""What lies beside a model's weights and prepares its inputs: the tokenizer, and the processor of images or sounds."""

from __future__ import annotations

from pathlib import Path

from fourfold.errors import InputError, ModelError
from fourfold.text import headline


def tokenizer_in(folder: str | Path) -> tuple[object, object]:
    """(tokenizer, processor) of a folder that the user names. Raises InputError where there is neither."""
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"There is no folder {folder}.", "--tokenizer wants a folder as tokenizer.save_pretrained(folder) writes it.")
    found = companions(place)
    if found == (None, None):
        raise InputError(f"{folder} holds no tokenizer.", "Give a folder as tokenizer.save_pretrained(folder) writes it.")
    return found


def companions(folder: Path) -> tuple[object, object]:
    """Tokenizer and processor, where their files are there."""
    import transformers

    has = {p.name for p in folder.iterdir()}
    tokenizer = processor = None
    said = ""
    if has & {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"}:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise ModelError(
                f"the tokenizer in {folder} cannot be loaded: {headline(error)}", "Save it again with tokenizer.save_pretrained(folder)."
            ) from error
    if has & {"preprocessor_config.json", "processor_config.json"}:
        for kind in (transformers.AutoProcessor, transformers.AutoImageProcessor, transformers.AutoFeatureExtractor):
            try:
                processor = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                break
            except Exception as error:  # each class reads only its own kind of folder
                said = headline(error)
                continue
        if processor is None and "preprocessor_config.json" in has:
            raise ModelError(
                f"the processor in {folder} (preprocessor_config.json) cannot be loaded: {said}", "Install what it needs, or save it again."
            )
    return tokenizer, processor
