"""Reading an ``.onnx`` file whole, weights included, where it is to be converted; needs the onnx package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from targets.errors import ModelError

_WORDS = 250
"""Characters of an error that are shown."""


def read_model(path: Path) -> tuple[Any, list[Any]]:
    """The ``onnx.ModelProto`` in a file, and its inputs: weights that are listed among these are left out.

    Weights in files beside it are read as well, never from outside its folder. Raises ModelError for what is no model.
    """
    onnx: Any = importlib.import_module("onnx")
    try:
        model = onnx.load(str(path))  # follows external data, never out of the file's folder
    except MemoryError:
        raise
    except Exception as error:
        garbage = type(error).__name__ == "DecodeError"
        text = "truncated or not an ONNX file" if garbage else " ".join(str(error).split())[:_WORDS]
        raise ModelError(f"{path}: {text}") from None
    if not model.graph.output:
        raise ModelError(f"{path}: truncated or not an ONNX file")
    weights = {one.name for one in model.graph.initializer}
    return model, [one for one in model.graph.input if one.name not in weights]
