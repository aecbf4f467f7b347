"""Arguments and results of a function as JSON and arrays, as they travel to a worker process and back.

Nothing is pickled: what a worker sends that somebody's file has taken over must not run here.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx


def encode_value(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """``value`` as JSON; its arrays are put into ``arrays`` under names of their own.

    Plain values, paths, arrays, ONNX models, and tuples, lists, dicts and dataclasses of them. Raises TypeError for
    anything else.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return {"path": str(value.absolute())}
    if isinstance(value, np.ndarray):
        return {"array": _put(value, arrays)}
    if isinstance(value, onnx.ModelProto):
        return {"model": _put(np.frombuffer(value.SerializeToString(), np.uint8), arrays)}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [encode_value(one, arrays) for one in value]}
    if isinstance(value, Mapping):
        return {"dict": [[encode_value(key, arrays), encode_value(one, arrays)] for key, one in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: encode_value(getattr(value, one.name), arrays) for one in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
    raise TypeError(f"a {type(value).__name__} cannot be sent to a worker process")


def _put(array: np.ndarray, arrays: dict[str, np.ndarray]) -> str:
    name = str(len(arrays))
    arrays[name] = array
    return name


def decode_value(document: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value that ``encode_value`` made ``document`` and ``arrays`` of; of classes only our dataclasses."""
    if not isinstance(document, dict):
        return document
    if "class" in document:
        return _object(document["class"], {name: decode_value(one, arrays) for name, one in document["fields"].items()})
    kind, content = next(iter(document.items()))
    if kind == "path":
        return Path(content)
    if kind == "array":
        return arrays[content]
    if kind == "model":
        return onnx.ModelProto.FromString(arrays[content].tobytes())
    if kind == "dict":
        return {decode_value(key, arrays): decode_value(one, arrays) for key, one in content}
    values = [decode_value(one, arrays) for one in content]
    return tuple(values) if kind == "tuple" else values


def _object(name: str, fields: Mapping[str, Any]) -> Any:
    module, _, kind = name.partition(":")
    if module.partition(".")[0] not in ("compress", "targets"):
        raise TypeError(f"{name!r} is no class of this project")
    found: Any = getattr(importlib.import_module(module), kind)
    if dataclasses.is_dataclass(found) and isinstance(found, type):
        made: Any = found
        return made(**fields)
    raise TypeError(f"{name!r} is no dataclass")
