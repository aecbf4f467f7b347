"""What no `.onnx` file may hold: each is refused in one line that names the file and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.onnx_files import graphs
from compress.onnx_files.graphs import load_model
from compress.onnx_files.normalizing import read_normalized
from targets.errors import ModelError

Change = Callable[[onnx.ModelProto], None]


def _saved(path: Path, change: Change) -> Path:
    """x (n, 3) times a weight (3, 2), and then ``change``."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.ones((3, 2), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def _sequence(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, None))


def _wide(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("wide", TensorProto.FLOAT, ["n", 10**6, 501]))


def _long(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].float_data.extend([1.0] * 7)


def _negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -3


def _outside(location: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "40"), ("length", "24")):
            tensor.external_data.add(key=key, value=value)

    return change


def _text(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING


def _dictionaries(model: onnx.ModelProto) -> None:
    each = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output[0].CopyFrom(helper.make_value_info("y", helper.make_sequence_type_proto(each)))


def _untrained(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((3, 2), np.nan, np.float32), "w"))


INVALID = "is truncated or not a valid ONNX file: "
REFUSED: dict[str, tuple[Change, str]] = {
    "an unknown operator": (lambda model: setattr(model.graph.node[0], "op_type", "Magic"), INVALID + ".*Magic"),
    "no operators": (lambda model: model.graph.ClearField("node"), INVALID + "it holds no operators"),
    "an input that is a list": (_sequence, "input 'many' is no tensor; networks of tensors can be worked with"),
    "an input without end": (
        _wide, r"input 'wide' has the sizes \[1000000, 501\]; up to 2 GB can be given: export the model with smaller",
    ),
    "more than its shape": (_long, INVALID + "weight 'w' has no values of its shape"),
    "less than nothing": (_negative, INVALID + r"weight 'w' has shape \[-3, 2\]"),
    "data under no name": (_outside("a\0b"), INVALID + "the data of weight 'w' is nowhere"),
    "data in another folder": (_outside("../w.bin"), "'w' is said to be in '../w.bin', outside the model's folder"),
    "data that is the folder": (_outside(""), "'w' is said to be in '', outside the model's folder"),
    "data that is gone": (_outside("gone.bin"), "the file 'gone.bin' with the data of weight 'w' is not beside it"),
    "data behind the file's end": (_outside("w.bin"), INVALID),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_no_network_can_be_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(30))
    change, said = REFUSED[name]
    path = _saved(tmp_path / "m.onnx", change)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(path)
    assert str(caught.value).startswith(repr(str(path)))
    assert "\n" not in str(caught.value)


def test_an_axis_of_negative_size_is_an_open_one(tmp_path: Path) -> None:
    """Older exporters write open sizes as -1; ONNX Runtime takes any number there."""

    def negative(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = -1

    axes = [
        value.type.tensor_type.shape.dim[0] for value in load_model(_saved(tmp_path / "m.onnx", negative)).graph.input
    ]
    assert [axis.WhichOneof("value") for axis in axes] == [None] * len(axes)


def test_a_file_that_is_not_there_or_holds_something_else(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.onnx' does not exist$"):
        load_model(tmp_path / "absent.onnx")
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(ModelError, match=INVALID):
        load_model(tmp_path / "m.onnx")


def test_weights_of_more_than_one_file_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(tmp_path / "m.onnx", lambda _: None)
    size = path.stat().st_size
    monkeypatch.setattr(graphs, "MOST_BYTES", size)
    assert len(load_model(path).graph.node) == 1
    monkeypatch.setattr(graphs, "MOST_BYTES", size - 1)
    with pytest.raises(
        ModelError, match=r"m\.onnx': its weights take .* GB can be worked with: give a smaller network"
    ):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_text, "m.onnx: output 'y' is text; numbers are needed: train with class numbers as labels"),
        (_dictionaries, "m.onnx: output 'y' is a list of dictionaries, not a tensor; .*zipmap': False"),
        (_untrained, "m.onnx: weight 'w' holds NaN; export a network that is trained"),
    ],
)
def test_outputs_and_weights_that_are_no_numbers(tmp_path: Path, change: Change, said: str) -> None:
    path = _saved(tmp_path / "m.onnx", change)
    with pytest.raises(ModelError, match=said):
        read_normalized(path)
