"""``paretopress check``: does one ONNX file do what another does, and does it run on the target."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.commands.output import SATISFIED, UNSATISFIED, json_option, make_console, print_json
from compress.values.printable import printable
from targets.errors import MeasurementError, ModelError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from rich.console import Console

    from compress.onnx_files.agreements import Agreement
    from targets.target import Target

_SAMPLES = 64
"""Random samples on which two files are compared where no data are given."""
_BYTES, _MOST_BYTES = 2 * 10**8, 10**9
"""Bytes of random samples: fewer are made of large inputs. The most that a single one may take."""


@click.command(name="check")
@click.argument("model", metavar="MODEL.onnx")
@click.option("--against", metavar="BASELINE.onnx", required=True, help="The model that MODEL should agree with.")
@click.option("--target", default="ort-cpu", show_default=True, help="Where both are run.")
@click.option("--data", help="An .npz file with arrays named as the inputs; without it, seeded random ones.")
@json_option
def check_command(model: str, against: str, target: str, data: str | None, as_json: bool) -> None:
    """Compare a model's outputs and size with another's.

    It says how far each output agrees, what keeps MODEL from running on the target, and how much smaller it is.

    Exit status: 0 MODEL runs on the target, has the other's inputs and outputs, and each output is still the same one;
    3 it does not, 2 the request was wrong. The same one: on the samples of --data, within 10 dB with half of its
    decisions, or nine of ten decisions or whole numbers; on random samples, that it is not unrelated.
    """
    found = check_models(Path(model), Path(against), target, Path(data) if data else None)
    print_json(found) if as_json else print_check(found, make_console())
    raise SystemExit(SATISFIED if found["agrees"] else UNSATISFIED)


def check_models(model: Path, against: Path, target: str | Target, data: Path | None) -> dict[str, Any]:
    """How the outputs of two ONNX files agree on a target, with their interfaces and sizes, as a JSON document.

    Both are run on the samples of ``data`` (an ``.npz`` file), or on 64 random ones. Raises ModelError for a file that
    is broken, RequestError where ``data`` lacks an input. That ``model`` does not run on the target is no error: then
    ``runs`` is false and ``problem`` says why.
    """
    from dataclasses import asdict

    import targets
    from compress.onnx_files import agreements, graphs
    from compress.onnx_files.isolation import PATIENCE, blaming, kept_worker
    from targets.workers.local import LocalTarget

    with kept_worker():
        zero = graphs.load_model(against)
        mine = graphs.load_model(model)
    place = targets.get(target)
    try:
        inputs = _inputs(zero, against, data)
        if isinstance(place, LocalTarget) and not place.remote:
            place.patience = min(place.patience, PATIENCE)
        # What goes wrong on a board may be the board's fault; here it is the file's.
        with contextlib.nullcontext() if place.remote else blaming(against):
            reference = place.run(against, inputs)
        found: list[np.ndarray] | None = None
        problem: str | None = None
        same = _interface(mine) == _interface(zero)
        lacks = _lacking(mine, place)
        try:
            found = place.run(model, inputs) if same else None
            if found is not None and [x.shape for x in found] != [x.shape for x in reference]:
                problem = f"outputs are {[x.shape for x in found]}, not {[x.shape for x in reference]}"
                found = None
        except (ModelError, MeasurementError) as error:
            problem = str(error)
    finally:
        place.close()
    names = [entry[0] for entry in _interface(zero)[1]]
    each = [] if found is None else agreements.compare(names, reference, found, real=data is not None)
    size, zero_size = model.stat().st_size, against.stat().st_size
    return {
        "schema": 1, "path": str(model), "against": str(against), "target": place.name,
        "runs": found is not None, "problem": problem, "same_interface": same,
        "interface": dict(zip(("inputs", "outputs"), _interface(mine), strict=True)),
        "wanted": dict(zip(("inputs", "outputs"), _interface(zero), strict=True)),
        "samples": len(next(iter(inputs.values()))),
        "parity": _parity(each) if each else None, "lacks": lacks,
        "outputs": [asdict(one) for one in each], "agrees": bool(each) and all(one.same for one in each),
        "size": size, "size_ratio": size / zero_size,
    }  # fmt: skip


def print_check(found: dict[str, Any], console: Console) -> None:
    """Print what ``check_models`` found, for people."""

    def say(text: str) -> None:
        console.print(printable(text), markup=False, soft_wrap=True)

    if not found["same_interface"]:
        say(f"inputs or outputs differ: {found['interface']}, not {found['wanted']}")
    if found["problem"]:
        say(f"does not run on {found['target']}: {found['problem']}")
    if found["lacks"]:
        say(f"operators that {found['target']} lacks: {', '.join(found['lacks'])}")
    parity = found["parity"]
    if parity is not None:
        say(
            f"runs on {found['target']}; largest difference {parity['max_abs']:.3g} "
            f"(relative {parity['relative']:.3g}), "
            f"same decision in {parity['agreement']:.1%} of {found['samples']} samples"
        )
    for one in found["outputs"] if len(found["outputs"]) > 1 or not found["agrees"] else ():
        say(_output_line(one))
    say(f"size {found['size']} B, {found['size_ratio']:.2f}x")


def _output_line(one: dict[str, Any]) -> str:
    """What is said of one output."""
    decided = f", same decision in {one['agreement']:.1%}" if one["agreement"] is not None else ""
    decibels = f", {one['sqnr']:.1f} dB" if one["sqnr"] is not None else ""
    verdict = "agrees" if one["same"] else "differs"
    return f"output {one['name']}: {verdict}, relative difference {one['relative']:.3g}{decibels}{decided}"


def _parity(each: Sequence[Agreement]) -> dict[str, float]:
    """The worst of all outputs: largest difference, that as a share of the output's largest value, equal decisions."""
    import numpy as np

    # `np.max`, since the built-in one loses NaN.
    return {
        "max_abs": float(np.max([one.max_abs for one in each])),
        "relative": float(np.max([one.relative for one in each])),
        "agreement": min((one.agreement for one in each if one.agreement is not None), default=1.0),
    }


def _lacking(model: Any, place: Target) -> list[str]:
    """The operators of the model, at any depth, that the target is known not to have."""
    from compress.onnx_files.contents import graphs_in

    nodes = [node for graph in graphs_in(model.graph) for node in graph.node]
    kinds = {f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in nodes}
    return sorted(kinds & set(place.capabilities().lacks))


def _interface(model: Any) -> tuple[list[list[Any]], list[list[Any]]]:
    """(name, type, dimensions but the first) of inputs and outputs."""
    constants = {t.name for t in model.graph.initializer}

    def said(values: Any) -> list[list[Any]]:
        return [
            [v.name, v.type.tensor_type.elem_type, [d.dim_value or None for d in v.type.tensor_type.shape.dim][1:]]
            for v in values
            if v.name not in constants
        ]

    return said(model.graph.input), said(model.graph.output)


def _inputs(model: Any, path: Path, data: Path | None) -> dict[str, np.ndarray]:
    """The arrays of ``data`` that are inputs, or seeded random samples."""
    import numpy as np

    from compress.onnx_files.contents import input_types, inputs_of
    from compress.values.arrays import read_arrays

    names = [entry[0] for entry in _interface(model)[0]]
    if data is not None:
        arrays = read_arrays(data, RequestError)
        given = {name: arrays[name] for name in names if name in arrays}
        if len(given) < len(names):
            raise RequestError(f"--data {str(data)!r} lacks {sorted(set(names) - set(given))}, inputs of {path.name}")
        return given
    types = input_types(model)
    shapes = {
        value.name: [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim] for value in inputs_of(model)
    }
    each = sum(math.prod(shapes[name][1:]) * kind.itemsize for name, kind in types.items())
    if each > _MOST_BYTES:
        raise ModelError(
            f"{path}: its inputs take {each / 1e9:.3g} GB a sample; up to {_MOST_BYTES / 1e9:.0f} GB are made up: give "
            "samples with --data"
        )
    count = int(min(_SAMPLES, max(1, _BYTES // max(each, 1))))
    random = np.random.default_rng(0)
    return {name: _random(random, kind, shapes[name], count) for name, kind in types.items()}


def _random(random: np.random.Generator, kind: np.dtype[Any], dims: list[int], count: int) -> np.ndarray:
    """``count`` random samples of one input."""
    import numpy as np

    shape = [count, *dims[1:]] if dims else []
    floating = np.issubdtype(kind, np.floating) or kind.name == "bfloat16"
    numbers = random.standard_normal(shape) if floating else random.integers(0, 2, shape)
    return np.asarray(numbers).astype(kind)
