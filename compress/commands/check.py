"""``paretopress check``: does one ONNX file do what another does, and does it run on the target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.commands.output import SATISFIED, UNSATISFIED, json_option, make_console, print_json
from targets.errors import MeasurementError, ModelError, RequestError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

_SAMPLES = 64
"""Random samples on which two files are compared where no data are given."""


@click.command(name="check")
@click.argument("model", metavar="MODEL.onnx")
@click.option("--against", metavar="BASELINE.onnx", required=True, help="The model that MODEL should agree with.")
@click.option("--target", default="ort-cpu", show_default=True, help="Where both are run.")
@click.option("--data", help="An .npz file with arrays named as the inputs; without it, seeded random ones.")
@json_option
def check_command(model: str, against: str, target: str, data: str | None, as_json: bool) -> None:
    """Compare a model's outputs and size with another's.

    It says how far the outputs agree, what keeps MODEL from running on the target, and how much smaller it is.

    Exit status: 0 MODEL runs on the target and has the other's inputs and outputs, 3 it does not, 2 the request was
    wrong.
    """
    found = check_models(Path(model), Path(against), target, Path(data) if data else None)
    print_json(found) if as_json else print_check(found, make_console())
    raise SystemExit(SATISFIED if found["runs"] and found["same_interface"] else UNSATISFIED)


def check_models(model: Path, against: Path, target: str, data: Path | None) -> dict[str, Any]:
    """How the outputs of two ONNX files agree on a target, with their interfaces and sizes, as a JSON document.

    Both are run on the samples of ``data`` (an ``.npz`` file), or on 64 random ones. Raises ModelError for a file that
    is broken, RequestError where ``data`` lacks an input. That ``model`` does not run on the target is no error: then
    ``runs`` is false and ``problem`` says why.
    """
    import targets
    from compress.onnx_files import graphs

    zero = graphs.load_model(against)
    mine = graphs.load_model(model)
    place = targets.get(target)
    try:
        inputs = _inputs(zero, against, data)
        reference = place.run(against, inputs)
        found: list[np.ndarray] | None = None
        problem: str | None = None
        same = _interface(mine) == _interface(zero)
        try:
            found = place.run(model, inputs) if same else None
            if found is not None and [x.shape for x in found] != [x.shape for x in reference]:
                problem = f"outputs are {[x.shape for x in found]}, not {[x.shape for x in reference]}"
                found = None
        except (ModelError, MeasurementError) as error:
            problem = str(error)
    finally:
        place.close()
    size, zero_size = model.stat().st_size, against.stat().st_size
    return {
        "schema": 1, "path": str(model), "against": str(against), "target": place.name,
        "runs": found is not None, "problem": problem, "same_interface": same,
        "interface": {"inputs": _interface(mine)[0], "outputs": _interface(mine)[1]},
        "samples": len(next(iter(inputs.values()))),
        "parity": None if found is None else _parity(reference, found),
        "size": size, "size_ratio": size / zero_size,
    }  # fmt: skip


def print_check(found: dict[str, Any], console: Console) -> None:
    """Print what ``check_models`` found, for people."""
    if not found["same_interface"]:
        console.print(f"inputs or outputs differ: {found['interface']}")
    if found["problem"]:
        console.print(f"does not run on {found['target']}: {found['problem']}")
    parity = found["parity"]
    if parity is not None:
        console.print(
            f"runs on {found['target']}; largest difference {parity['max_abs']:.3g} "
            f"(relative {parity['relative']:.3g}), "
            f"same decision in {parity['agreement']:.1%} of {found['samples']} samples"
        )
    console.print(f"size {found['size']} B, {found['size_ratio']:.2f}x")


def _parity(reference: list[np.ndarray], found: list[np.ndarray]) -> dict[str, float]:
    """Largest difference of any output, that as a share of the largest output, and the share of equal decisions."""
    import numpy as np

    from compress.metrics import metrics

    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(reference, found, strict=True)]
    # `np.max`, since the built-in one loses NaN.
    worst = float(np.max([np.abs(a - b).max(initial=0.0) for a, b in pairs]))
    scale = float(np.max([np.abs(a).max(initial=0.0) for a, _ in pairs])) or 1.0
    agreement = 1.0
    if reference[0].ndim == 2 and reference[0].shape[1] > 1:
        agreement = float(metrics.get("agreement").function(found[0], reference[0]))
    return {"max_abs": worst, "relative": worst / scale, "agreement": agreement}


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
    import onnx

    from compress.tasks.onnx_tasks import read_arrays

    names = [entry[0] for entry in _interface(model)[0]]
    if data is not None:
        arrays = read_arrays(data)
        given = {name: arrays[name] for name in names if name in arrays}
        if len(given) < len(names):
            raise RequestError(f"--data {str(data)!r} lacks {sorted(set(names) - set(given))}, inputs of {path.name}")
        return given
    random = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        if value.name not in names:
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        dims = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        shape = [_SAMPLES, *dims[1:]] if dims else []
        numbers = random.standard_normal(shape) if np.issubdtype(kind, np.floating) else random.integers(0, 2, shape)
        made[value.name] = np.asarray(numbers).astype(kind)
    return made
