"""What is sent to a board: the model and the files beside it, and nothing from elsewhere."""

from __future__ import annotations

import errno

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets.boards import parcels
from targets.errors import ModelError


def _external(path, location):
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    values = [helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 3), ("y", 2))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_a_parcel_holds_the_weights_beside_the_model(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"weights")
    found = parcels.pack_model(_external(tmp_path / "m.onnx", "w.bin"))
    assert [part.name for part in found.parts] == ["model.onnx", "w.bin"]
    assert [part.size for part in found.parts] == [(tmp_path / "m.onnx").stat().st_size, 7]
    assert found.key not in {part.sha256 for part in found.parts}


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "in/../../w.bin"])
def test_weights_outside_the_folder_are_not_sent(tmp_path, location):
    said = rf"m\.onnx: its weights lie outside its folder, in '{location}'; keep them beside the model$"
    with pytest.raises(ModelError, match=said):
        parcels.pack_model(_external(tmp_path / "m.onnx", location))


def test_a_file_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    path = _external(tmp_path / "m.onnx", "w.bin")
    monkeypatch.setattr(parcels, "file_hash", broken)
    with pytest.raises(ModelError, match=r"m\.onnx: Input/output error$"):
        parcels.pack_model(path)
    assert onnx.load(path, load_external_data=False).graph.node
