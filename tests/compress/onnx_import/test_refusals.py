"""What an operator may be set to that torch has nothing for: refused with the operator, its name and the setting.

Each case is an operator that is covered, in the one form of it that is not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto

import onnx_models
from compress.onnx_import import importing
from compress.onnx_import.importer import NotImportable
from compress.onnx_import.importing import import_file
from onnx_models import IMAGE, ROWS, f32, i64, node, write
from targets.errors import MeasurementError

seeded = onnx_models.seeded
FLAT, BIG = (3, 6), (3, 2, 3, 3, 3, 3)
Case = tuple[tuple[int, ...], list[NodeProto], dict[str, np.ndarray], str]


def _one(shape: tuple[int, ...], made: NodeProto, reason: str, **constants: np.ndarray) -> Case:
    return shape, [made], constants, reason


def _recurrent(kind: str, gates: int, reason: str, inputs: str = "x w r", **attributes: object) -> Case:
    made = node(kind, inputs, hidden_size=4, name="cell", **attributes)
    constants = {
        "w": f32(1, gates * 4, 6), "r": f32(1, gates * 4, 4), "lens": i64(5, 5, 4).astype(np.int32),
        "h": f32(1, 3, 4), "p": f32(1, 12),
    }  # fmt: skip
    return ROWS, [made], {name: array for name, array in constants.items() if name in inputs.split()}, reason


LAYERS: dict[str, Case] = {
    "conv of four axes": _one(
        BIG, node("Conv", "x w", name="c"), r"Conv \(c\): input of 6 axes", w=f32(4, 2, 1, 1, 1, 1)
    ),
    "deconv of four axes": _one(BIG, node("ConvTranspose", "x w"), "input of 6 axes", w=f32(2, 4, 1, 1, 1, 1)),
    "deconv, uneven": _one(
        IMAGE,
        node("ConvTranspose", "x w", strides=[2, 2], pads=[0, 0, 1, 1], output_padding=[1, 1]),
        "uneven pads with output_padding",
        w=f32(6, 4, 3, 3),
    ),
    "batch norm that trains": _one(
        IMAGE, node("BatchNormalization", "x a a a a", training_mode=1), "in training mode", a=np.ones(6, np.float32)
    ),
    "batch norm of six axes": _one(
        BIG, node("BatchNormalization", "x a a a a"), "input of 6 axes", a=np.ones(2, np.float32)
    ),
    "instance norm of two axes": _one(FLAT, node("InstanceNormalization", "x a a"), "input of 2 axes", a=f32(6)),
    "layer norm's mean": _one(
        ROWS, node("LayerNormalization", "x a", "y mean"), "mean and deviation are used as outputs", a=f32(6)
    ),
    "gates of another activation": _recurrent("RNN", 1, r"RNN \(cell\): activations \['Relu'\]", activations=["Relu"]),
    "gates that are clipped": _recurrent("LSTM", 4, "clip, layout or input_forget is set", clip=1.0),
    "batch first": _recurrent("LSTM", 4, "clip, layout or input_forget is set", layout=1),
    "sequences of several lengths": _recurrent("LSTM", 4, "different lengths", "x w r _ lens"),
    "peepholes": _recurrent("LSTM", 4, "peephole weights", "x w r _ _ _ _ p"),
    "one state of two": _recurrent("LSTM", 4, "one of two initial states is given", "x w r _ _ h"),
}  # fmt: skip


def _weighted(reason: str, *nodes: NodeProto, **constants: np.ndarray) -> Case:
    """Behind a product by channel, since a network needs a weight; ``s`` is what comes out of it."""
    return IMAGE, [node("Mul", "x k", "s"), *nodes], {"k": f32(6, 1, 1), **constants}, reason


def _resized(reason: str, scales: list[float] | None = None, **attributes: object) -> Case:
    return _weighted(reason, node("Resize", "s _ a", **attributes), a=np.float32(scales or [1, 1, 2, 2]))


OPERATORS: dict[str, Case] = {
    "selu of its own": _weighted(r"Selu: alpha=2\.0", node("Selu", "s", alpha=2.0)),
    "the last of equals": _weighted("ArgMax: select_last_index", node("ArgMax", "s", select_last_index=1)),
    "a sum without itself": _weighted("exclusive or reverse", node("CumSum", "s a", exclusive=1), a=np.array(1)),
    "cast to text": _weighted("Cast: to type STRING", node("Cast", "s", to=TensorProto.STRING)),
    "axes by the batch size": _weighted(
        "the number of axes depends on the batch size",
        node("Slice", "s a b c", "t"), node("Squeeze", "t"), a=i64(1), b=i64(9), c=i64(0),
    ),
    "nothing in another shape": _weighted(
        r"Reshape: \(2, 0, 8, 8\) to \(2, 0, 3, 3\) neither joins nor divides axes",
        node("Slice", "s zero zero one", "t"), node("Reshape", "t a"), zero=i64(0), one=i64(1), a=i64(0, 0, 3, 3),
    ),
    "a shape out of samples": _weighted(
        "Reshape: the shape is computed from the samples' values",
        node("Cast", "s", "i", to=TensorProto.INT64), node("Reshape", "s i"),
    ),
    "expanded by samples": _weighted(
        "Expand: the shape is computed", node("Cast", "s", "i", to=TensorProto.INT64), node("Expand", "s i")
    ),
    "repeated by samples": _weighted(
        "i is computed from the samples' values", node("Cast", "s", "i", to=TensorProto.INT64), node("Tile", "s i")
    ),
    "cut by samples": _weighted(
        r"Slice: input 1 \(i\) is computed",
        node("Cast", "s", "i", to=TensorProto.INT64), node("Slice", "s i a"), a=i64(1),
    ),
    "backwards from the middle": _weighted(
        "steps backwards from 3", node("Slice", "s a b c d"), a=i64(3), b=i64(-99), c=i64(2), d=i64(-1)
    ),
    "backwards to the middle": _weighted(
        "steps backwards to 2", node("Slice", "s a b c d"), a=i64(-1), b=i64(2), c=i64(2), d=i64(-1)
    ),
    "clipped by samples": _weighted(r"Clip: input 1 \(x\) is computed, not constant", node("Clip", "s x")),
    "an input that is missing": _weighted("Concat: input 1 is absent", node("Concat", "s _ s", axis=1)),
    "indices of what is not zero": _weighted("NonZero: not covered", node("NonZero", "s")),
    "shapes that do not fit": _weighted("Add: RuntimeError: The size of tensor", node("Add", "s a"), a=f32(5, 1, 1)),
    "constants that do not fit": _weighted(
        "Concat .* of constants cannot be evaluated", node("Concat", "a b", "c", axis=0), node("Add", "s c"),
        a=f32(2), b=f32(3, 3),
    ),
    "a table of the batch": _weighted(
        "r depends on the batch size in a way that is not covered",
        node("Shape", "s", "h"), node("Gather", "h zero", "n"), node("Range", "zero n one", "r"),
        node("Cast", "r", "q", to=TensorProto.FLOAT), node("Gather", "s r", axis=2),
        zero=np.array(0), one=np.array(1),
    ),
    "pooling over four axes": (
        BIG, [node("MaxPool", "x", kernel_shape=[1, 1, 1, 1])], {}, r"MaxPool: kernel \(1, 1, 1, 1\)",
    ),
    "where the largest was": _weighted("indices as a second output", node("MaxPool", "s", "y i", kernel_shape=[2, 2])),
    "a mean with gaps": _weighted(
        "AveragePool: dilations", node("AveragePool", "s", kernel_shape=[2, 2], dilations=[2, 2])
    ),
    "padding of another kind": _weighted("Pad: mode other", node("Pad", "s a", mode="other"), a=i64(*[0, 0, 1, 1] * 2)),
    **{
        f"channels reflected {name}": _weighted(
            "mode reflect on the first two axes", node("Pad", "s a", mode="reflect"), a=i64(*pads)
        )
        for name, pads in {"before": (0, 1, 1, 1, 0, 0, 1, 1), "behind": (0, 0, 1, 1, 0, 1, 1, 1)}.items()
    },
    "a crop": _resized("axes or tf_crop_and_resize", coordinate_transformation_mode="tf_crop_and_resize"),
    "more channels": _resized(r"scales \[1.0, 2.0, 2.0, 2.0\]", [1, 2, 2, 2]),
    "nearest by corners": _resized(
        "nearest, align_corners, ceil",
        mode="nearest", coordinate_transformation_mode="align_corners", nearest_mode="ceil",
    ),
    "cubic of its own": _resized("cubic_coeff_a", mode="cubic", cubic_coeff_a=-0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", [*LAYERS, *OPERATORS])
def test_a_form_that_is_not_covered_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    shape, nodes, constants, reason = {**LAYERS, **OPERATORS}[name]
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(*shape)}, constants)
    with pytest.raises(NotImportable, match=reason) as caught:
        import_file(path, inputs)
    assert "\n" not in str(caught.value)


def test_a_constant_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("ConstantOfShape", "a", "z", name="wide"), node("Add", "x z")]
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(*FLAT)}, {"a": i64(1, 6)})
    monkeypatch.setattr(importing, "_FOLDED_BYTES", 23)
    with pytest.raises(NotImportable, match=r"ConstantOfShape \(wide\) makes a constant of more than 23 bytes"):
        import_file(path, inputs)
    monkeypatch.setattr(importing, "_FOLDED_BYTES", 24)
    import_file(path, inputs)


def test_inputs_that_are_not_the_files_own_are_said_in_a_line(tmp_path: Path) -> None:
    path, inputs = write(tmp_path / "m.onnx", [node("MatMul", "x w")], {"x": f32(*FLAT)}, {"w": f32(6, 4)})
    with pytest.raises(NotImportable, match=r"importing it into torch failed \(ValueError: .*\)$"):
        import_file(path, (*inputs, *inputs))


def test_an_import_that_takes_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, inputs = write(tmp_path / "m.onnx", [node("MatMul", "x w")], {"x": f32(*FLAT)}, {"w": f32(6, 4)})

    def too_much(*_: object) -> str:
        raise MeasurementError("m.onnx: 9 GB of memory")

    monkeypatch.setattr(importing, "_rehearsed", too_much)
    with pytest.raises(NotImportable, match=r"takes too much \(m\.onnx: 9 GB of memory\)"):
        importing.rehearse(path, inputs)
    monkeypatch.setattr(importing, "_rehearsed", lambda *_: "operator Det not covered")
    with pytest.raises(NotImportable, match=r"^operator Det not covered$"):
        importing.rehearse(path, inputs)
