"""Plain frozen data to JSON and back, and a hash that stays the same across machines and runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from cattrs.gen import make_dict_unstructure_fn, override
from cattrs.strategies import configure_tagged_union

from compress.values.domains import Choice, Domain, Float, Int
from compress.values.settings import OMITTED
from targets.documents import file_hash as file_hash
from targets.documents import finite as finite
from targets.documents import write_text as write_text
from targets.errors import SpaceError

T = TypeVar("T")


@cache
def _converter() -> cattrs.Converter:

    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _whole)
    converter.register_structure_hook(bool, _truth)
    converter.register_structure_hook(float, _real)
    converter.register_structure_hook(Choice, lambda value, _: Choice(*_only(value, "values")))
    domain = Float | Int | Choice
    configure_tagged_union(domain, converter, tag_name="domain")
    structure = converter.get_structure_hook(domain)
    unstructure = converter.get_unstructure_hook(domain)
    converter.register_structure_hook(Domain, lambda v, _: structure(v, domain) if isinstance(v, dict) else v)
    converter.register_unstructure_hook(Domain, lambda v: unstructure(v) if isinstance(v, (Float, Int, Choice)) else v)
    converter.register_unstructure_hook_factory(
        _omits, lambda kind: make_dict_unstructure_fn(kind, converter, **_omissions(kind))
    )
    return converter


def _omits(kind: Any) -> bool:
    """Whether ``kind`` is a dataclass with fields that are left out of JSON where they have their default."""
    return isinstance(kind, type) and is_dataclass(kind) and bool(_omissions(kind))


def _omissions(kind: type) -> dict[str, Any]:
    """Those fields, as cattrs wants to know of them."""
    return {one.name: override(omit_if_default=True) for one in fields(kind) if one.metadata.get(OMITTED)}


def _whole(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _truth(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _real(value: Any, _: Any) -> float:
    """Null is how ``finite`` writes a NaN."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("a number is too large") from None


def _only(value: Mapping[str, Any], key: str) -> Any:
    if set(value) != {key}:
        raise ValueError(f"has {sorted(value)} where only {key!r} belongs")
    return value[key]


def to_json(value: Any) -> Any:
    """Dataclasses, tuples and dicts as what ``json`` writes."""
    return _converter().unstructure(value)


def from_json(kind: type[T], value: Any) -> T:
    """The inverse of ``to_json``; raises SpaceError in one line where the data does not fit."""

    try:
        return _converter().structure(value, kind)
    except cattrs.BaseValidationError as error:
        causes = "; ".join(cattrs.transform_error(error, format_exception=_cause))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        causes = str(error)
    raise SpaceError(f"this is not a {kind.__name__}: {causes}")


def _cause(error: BaseException, kind: type | None) -> str:
    from cattrs.v import format_exception

    if isinstance(error, SpaceError) or type(error) is ValueError:
        return str(error)
    return format_exception(error, kind)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def stable_hash(value: Any) -> str:
    """The first 16 hex digits of SHA-256 over ``canonical(value)``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """``write_text`` of indented JSON; NaN and infinities become null, since JSON has none."""
    write_text(path, json.dumps(finite(to_json(value)), indent=1, allow_nan=False) + "\n")
