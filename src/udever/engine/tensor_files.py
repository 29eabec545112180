"""Tensors into a safetensors file.

Invariant: a disk that is full or does not work is an `OSError`, as with any other file.
Does not know: names, or what the tensors are.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors under their names.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        found = re.search(r"([^\":]+) \(os error (\d+)\)|code: (\d+).*message: \"([^\"]+)\"", str(error))
        if not found:
            raise
        message, number = found[1] or found[4], found[2] or found[3]
        raise OSError(int(number), message.strip(), str(path)) from None
