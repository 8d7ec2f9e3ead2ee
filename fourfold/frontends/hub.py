"""A model by its hub id: the snapshot in the local Hugging Face cache, or, only where the user allows it, from the hub."""

from __future__ import annotations

import re
from pathlib import Path

from fourfold.errors import MissingExtra, ModelError

FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken"]   # no pickles


def resolved(reference: str, *, online: bool = False) -> str:
    """The folder of a hub id ("distilbert-base-uncased", "owner/name"); anything else, and what lies on this machine already, as it is.

    Without `online` nothing is asked of the network. Raises ModelError where the id is not cached, or the hub does not have it.
    """
    if Path(reference).exists() or ":" in reference or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", reference) or reference.startswith("."):
        return reference
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        if online:
            raise MissingExtra("the hub needs the package huggingface_hub.", "pip install huggingface_hub") from None
        return reference
    try:
        return snapshot_download(reference, allow_patterns=FILES, local_files_only=not online)
    except Exception as error:  # the hub's own errors are of many kinds, and change
        if online and (type(error).__name__ == "GatedRepoError" or getattr(getattr(error, "response", None), "status_code", None) in (401, 403)):
            raise ModelError(f"the hub gives {reference} only to who has accepted its licence ({type(error).__name__}).",
                             "Accept it on the model's page and log in (hf auth login), or give a folder with the weights.") from None
        if online:
            raise ModelError(f"the hub did not give {reference} ({type(error).__name__}).", "Check the name and the connection.") from None
        raise ModelError(
            f"there is no folder {reference}, and no such model in the local Hugging Face cache.",
            "Give a folder, or --online to fetch it from the hub.",
        ) from None
