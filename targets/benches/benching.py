"""Several models on several targets, with all that a reader needs to judge the numbers: ``bench([...], [...])``.

Works beside numpy and one runtime alone. What ``paretopress bench`` prints, saves and compares comes from here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from targets.benches.advice import warnings
from targets.benches.bench_results import Bench, Model, OnTarget, Shapes
from targets.benches.comparing import CAREFUL, compare
from targets.documents import file_hash
from targets.errors import CompressError, ModelError, RequestError
from targets.machine import environment
from targets.model_files.onnx_files import FileFacts, example, read_facts
from targets.registry import DEFAULT, get
from targets.target import Layer, Protocol, Target, Watch


def bench(
    models: Sequence[str | Path],
    targets: Sequence[str | Target] = (DEFAULT,),
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    protocol: Protocol | None = None,
    watch: Watch | None = None,
) -> Bench:
    """Measure ``models`` against the first of them on each of ``targets``.

    ``shapes`` and ``inputs`` are by input name; the name "" stands for the only input of every model. Inputs that
    are not given are made up, dynamic axes being 1 or, where a shape was given for an axis of the same symbol, that.
    ``protocol``: see ``careful`` in ``comparing.py``. Raises ModelError, TargetError, RequestError before anything is
    measured, ModelError or MeasurementError where a runtime refuses a model.
    """
    made = [get(target) for target in targets]
    try:
        for name, times in Counter(one.name for one in made).items():
            if times > 1:
                raise RequestError(f"target {name!r} is given {times} times; once is enough")
        read = tuple(_read(Path(model)) for model in models)
        if not read:
            raise ModelError("no model to measure")
        sizes = fill_shapes([one.facts for one in read], shapes or {})
        started = environment.describe_environment()
        found = tuple(_on_target(read, target, sizes, inputs, protocol or CAREFUL, watch) for target in made)
    finally:
        for one, target in zip(made, targets, strict=True):
            if one is not target:
                one.close()
    made_of = Bench(read, found, sizes, tuple(inputs or ()), protocol or CAREFUL, started)
    return replace(made_of, warnings=warnings(made_of))


def _read(path: Path) -> Model:
    if path.exists() and not path.is_file():
        raise ModelError(f"{path}: not a file; give the path of one .onnx file")
    try:
        return Model(path, file_hash(path), read_facts(path))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise ModelError(f"{path}: {'no such file' if missing else error.strerror}") from None


def _on_target(
    models: Sequence[Model],
    target: Target,
    shapes: Shapes,
    inputs: Mapping[str, np.ndarray] | None,
    protocol: Protocol,
    watch: Watch | None,
) -> OnTarget:
    start = time.monotonic()
    try:
        comparison = compare([one.path for one in models], target, shapes, protocol, inputs, watch)
    except ModelError as error:
        raise ModelError(f"{error}{_shape_remedy(models, {*shapes, *(inputs or ())}, str(error))}") from None
    audits = tuple(_audit(target, one) for one in models)
    described = {**target.describe(), "now": target.moment()}
    return OnTarget(comparison, described, target.counted, audits, time.monotonic() - start, target.remarks())


def _audit(target: Target, model: Model) -> tuple[Layer, ...] | None:
    """Only files with integers in them, or for an NPU, are worth the time; who cannot say is believed to not know."""
    if not target.has_npu and (model.facts is None or not model.facts.quantized):
        return None
    with suppress(CompressError):
        return target.audit(model.path)
    return None


def _shape_remedy(models: Sequence[Model], given: set[str], said: str) -> str:
    """Where a model that was refused has dynamic axes that were measured as 1: how to say what they are."""
    for model in models:
        if str(model.path) in said and "cannot be run" in said:
            for one in model.facts.inputs if model.facts else ():
                if one.open_axes and one.name not in given:
                    return f"; its axes {', '.join(one.open_axes)} were taken as 1: give --shape {example(one)}"
    return ""


def parse_shapes(texts: Sequence[str]) -> Shapes:
    """``x=1,3,224,224`` as name and shape; without a name the name is "". Raises RequestError."""
    shapes: Shapes = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        name = name.strip()
        try:
            shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            shape = (0,)
        if min(shape) < 1 or (equals and not name):
            raise RequestError(f"--shape {text!r} is not allowed; write NAME=1,3,224,224, sizes 1 or more")
        if name in shapes:
            raise RequestError(f"--shape {text!r}: {name or 'a shape without a name'} is given twice")
        shapes[name] = shape
    return shapes


def shapes_for(model: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """``fill_shapes`` of one file; raises ModelError where it is none."""
    return fill_shapes([_read(Path(model)).facts], shapes)


def fill_shapes(facts: Sequence[FileFacts | None], shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Shapes by input name: "" becomes each model's only input, and axes of one symbol get one size.

    Raises RequestError where "" is given and a model has several inputs.
    """
    filled: Shapes = {name: shape for name, shape in shapes.items() if name}
    for one in facts if "" in shapes else ():
        names = [item.name for item in one.inputs] if one else []
        if len(names) != 1:
            said = ",".join(map(str, shapes[""]))
            raise RequestError(
                f"--shape {said}: a model has {len(names)} inputs ({', '.join(names)}); "
                f"say which, as --shape {names[0] if names else 'NAME'}={said}"
            )
        filled.setdefault(names[0], shapes[""])
    for one in facts:
        filled |= _same_symbols(one, filled) if one else {}
    return filled


def _same_symbols(facts: FileFacts, shapes: Shapes) -> Shapes:
    """Shapes of inputs that were not given, as far as symbols of their axes are known from those that were."""
    known = {
        axis: size
        for one in facts.inputs
        for axis, size in zip(one.axes, shapes.get(one.name, ()), strict=False)
        if isinstance(axis, str)
    }
    found = {}
    for one in facts.inputs:
        if one.name not in shapes and known.keys() & set(one.axes):
            found[one.name] = tuple(axis if isinstance(axis, int) else known.get(axis or "", 1) for axis in one.axes)
    return found
