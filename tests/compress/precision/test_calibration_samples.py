"""Calibration samples in the containers that people have them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from compress.precision.calibration_samples import named
from targets.errors import RequestError

IDS = np.random.default_rng(0).integers(0, 50, (6, 7))
IMAGES = np.random.default_rng(1).integers(0, 256, (6, 3, 4, 4))


def _model(**inputs: tuple[int, list[Any]]) -> Any:
    values = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    node = helper.make_node("Identity", [values[0].name], ["y"])
    return helper.make_model(helper.make_graph([node], "g", values, []))


TOKENS = _model(ids=(TensorProto.INT64, ["n", "t"]))
PICTURES = _model(x=(TensorProto.FLOAT, ["n", 3, 4, 4]))
BOTH = _model(ids=(TensorProto.INT64, ["n", "t"]), x=(TensorProto.FLOAT, ["n", 3, 4, 4]))


@pytest.mark.parametrize(
    "given",
    [
        lambda: IDS,
        lambda: IDS.astype(np.int32),
        lambda: IDS.astype(np.uint8),
        lambda: IDS.astype(np.float64),
        lambda: torch.tensor(IDS),
        lambda: IDS.tolist(),
        lambda: list(IDS),
        lambda: [row[None] for row in IDS],
        lambda: [IDS[:4], IDS[4:]],
        lambda: (row for row in IDS),
        lambda: iter([{"ids": row[None]} for row in IDS]),
        lambda: [{"ids": row} for row in IDS],
        lambda: {"ids": list(IDS)},
        lambda: {"ids": (row for row in torch.tensor(IDS))},
    ],
)
def test_tokens_in_any_container(given: Callable[[], Any]) -> None:
    found = named(TOKENS, "m.onnx", given())
    assert list(found) == ["ids"]
    assert found["ids"].dtype == np.int64
    assert np.array_equal(found["ids"], IDS)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float16, np.float64, bool])
def test_images_of_any_type_of_numbers(kind: Any) -> None:
    images = IMAGES.astype(kind)
    found = named(PICTURES, "m.onnx", [{"x": image} for image in images])["x"]
    assert found.dtype == np.float32
    assert np.array_equal(found, images.astype(np.float32))


@pytest.mark.parametrize(
    "given",
    [
        lambda: {"ids": IDS, "x": IMAGES},
        lambda: (IDS, IMAGES),
        lambda: list(zip(IDS, IMAGES, strict=True)),
        lambda: ({"x": x, "ids": i} for i, x in zip(IDS, IMAGES, strict=True)),
    ],
)
def test_several_inputs_in_any_container(given: Callable[[], Any]) -> None:
    found = named(BOTH, "m.onnx", given())
    assert np.array_equal(found["ids"], IDS)
    assert np.array_equal(found["x"], IMAGES)


class Unreadable:
    """An array, as it says, whose numbers are elsewhere."""

    def __array__(self, *_: object) -> np.ndarray:
        raise TypeError("on another device")


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        (TOKENS, [np.arange(5), np.arange(7)], r"ragged, samples have shapes \(5,\) and \(7,\); pad or cut"),
        (TOKENS, [[[1, 2], [3]]], "ragged"),
        (TOKENS, [{"ids": np.zeros((1, 5))}, {"ids": np.zeros((1, 6))}], "ragged"),
        (TOKENS, [], "calibration is empty"),
        (TOKENS, iter([]), "calibration is empty"),
        (TOKENS, 3, "calibration is empty"),
        (TOKENS, object(), "calibration is object; give an array"),
        (TOKENS, IDS + 0.5, "holds values of type float64 that int64 does not"),
        (TOKENS, np.full((2, 7), 2**63, np.uint64), "holds values of type uint64 that int64 does not"),
        (TOKENS, np.full((2, 7), "a"), "is of type <U1; the model takes int64"),
        (TOKENS, np.full((2, 7), None), "holds NoneType, not numbers"),
        (TOKENS, Unreadable(), "calibration of 'ids' is no array: TypeError: on another device"),
        (PICTURES, np.full((2, 3, 4, 4), 1e300), "that float32 does not"),
        (PICTURES, [{"x": IMAGES[0]}, {"z": IMAGES[0]}], "lacks 'x' in some of its samples"),
        (BOTH, {"ids": IDS, "x": IMAGES[:4]}, "unequal numbers of samples: 6 of 'ids', 4 of 'x'"),
        (BOTH, IDS, r"calibration has \['ids'\]; m.onnx has the inputs \['ids', 'x'\]"),
        (BOTH, [IDS, IMAGES, IDS], "does not name its inputs"),
    ],
)
def test_what_is_no_calibration_is_refused_in_one_line(model: Any, given: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        named(model, "m.onnx", given)
    assert "\n" not in str(caught.value)
