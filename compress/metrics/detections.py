"""Detections and the objects that are there: boxes with their classes, in one form, checked.

A label is a dict for each image: ``boxes`` (k, 4) as left, top, right, bottom, and ``labels`` (k,) class numbers from 0
on, optionally ``iscrowd`` (k,) for regions of many objects, which are neither found nor missed. What a model found is
such a dict with ``scores`` (k,). Units are the user's, the same on both sides: pixels of the input, or shares of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from targets.errors import TaskError

LAYOUT = "left, top, right, bottom"
"""What the four numbers of a box are."""


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image: what is there, or what was found."""

    corners: np.ndarray
    """(k, 4) in double precision: left, top, right, bottom."""
    classes: np.ndarray
    """(k,) class numbers."""
    values: np.ndarray
    """(k,) scores of what was found; of what is there, 1 for a crowd and 0 for one object."""

    def __len__(self) -> int:
        return len(self.classes)


def objects_of(labels: Any, name: str = "label") -> list[Boxes]:
    """What is in each image, of labels (n,); raises TaskError for labels that are no boxes, with the first of them."""
    return [_boxes(one, "iscrowd", f"{name} {i}", needed=False) for i, one in enumerate(_each(labels, name))]


def detections_of(outputs: Any, name: str = "detection") -> list[Boxes]:
    """What was found in each image, of decoded outputs (n,); raises TaskError for what are no boxes with scores.

    Boxes and scores that are no finite numbers find nothing: they are left out.
    """
    found = [_boxes(one, "scores", f"{name} {i}", needed=True) for i, one in enumerate(_each(outputs, name))]
    kept = [np.isfinite(one.corners).all(axis=1) & np.isfinite(one.values) for one in found]
    return [
        Boxes(one.corners[rows], one.classes[rows], one.values[rows]) for one, rows in zip(found, kept, strict=True)
    ]


def check_objects(labels: Any, name: str, size: tuple[int, int] | None) -> None:
    """Raise TaskError for labels whose boxes are empty, turned round or outside of the images.

    ``size``: (height, width) of the images where it is known. Boxes may reach beyond the border, as those of cut
    images do; their centres may not.
    """
    for i, one in enumerate(objects_of(labels, name)):
        bad = _turned(one.corners) | ~np.isfinite(one.corners).all(axis=1)
        if bad.any():
            raise TaskError(f"{name} {i}: the box {_written(one.corners[bad][0])} is empty; give {LAYOUT}")
        beyond = _outside(one.corners, size)
        if beyond.any():
            raise TaskError(
                f"{name} {i}: the box {_written(one.corners[beyond][0])} lies outside of its image, {_wide(size)}; "
                f"give {LAYOUT} in pixels of the input, or as shares of it"
            )


def check_detections(found: Any, name: str, size: tuple[int, int] | None) -> None:
    """Raise TaskError where most of what the untouched model finds cannot be boxes of its images."""
    raw = [_boxes(one, "scores", f"{name} {i}", needed=True) for i, one in enumerate(_each(found, name))]
    corners = np.concatenate([one.corners for one in raw]) if raw else np.zeros((0, 4))
    scores = np.concatenate([one.values for one in raw]) if raw else np.zeros(0)
    for bad, said in (
        (~np.isfinite(corners).all(axis=1) | ~np.isfinite(scores), "are not finite"),
        (_turned(corners), f"are empty or turned round; give {LAYOUT}"),
        (
            _outside(corners, size),
            f"lie outside of the images, {_wide(size)}; give {LAYOUT} as the labels do",
        ),
    ):
        if 2 * bad.sum() > len(corners):
            first = _written(corners[bad][0])
            raise TaskError(f"{name}: {int(bad.sum())} of {len(corners)} boxes {said} (the first is {first})")


def _each(given: Any, name: str) -> Sequence[Any]:
    if isinstance(given, np.ndarray) and given.dtype != object:
        raise TaskError(
            f"{name}s are an array of shape {given.shape}; boxes are needed, a dict for each image"
            + ("" if name != "detection" else ": give the task a decode=")
        )
    if isinstance(given, tuple) and given and isinstance(given[0], np.ndarray):
        raise TaskError(f"{name}s are {len(given)} arrays; boxes are needed, a dict for each image: give a decode=")
    found: Sequence[Any] = given
    return found


def _boxes(given: Any, beside: str, name: str, *, needed: bool) -> Boxes:
    keys = ("boxes", "labels", beside) if needed else ("boxes", "labels")
    if not isinstance(given, Mapping) or any(key not in given for key in keys):
        what = f"a dict of {', '.join(map(repr, given))}" if isinstance(given, Mapping) else type(given).__name__
        raise TaskError(f"{name} is {what}; give a dict of {', '.join(map(repr, keys))}")
    corners = _numbers(given["boxes"], f"{name}: 'boxes'")
    if corners.size == 0:
        corners = corners.reshape(0, 4)
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise TaskError(f"{name}: 'boxes' are of shape {corners.shape}; give (k, 4): {LAYOUT}")
    classes = _numbers(given["labels"], f"{name}: 'labels'")
    values = _numbers(given[beside], f"{name}: {beside!r}") if beside in given else np.zeros(len(corners))
    for key, found in (("labels", classes), (beside, values)):
        if found.shape != (len(corners),):
            raise TaskError(f"{name}: {key!r} are of shape {found.shape} for {len(corners)} boxes; give one for each")
    whole = classes.astype(np.int64)
    if not np.array_equal(whole, classes) or (whole < 0).any():
        raise TaskError(f"{name}: 'labels' are not class numbers (0, 1, 2, ...)")
    return Boxes(corners, whole, values)


def _numbers(given: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TaskError(f"{name} are {type(given).__name__}, which is no array of numbers") from None


def _turned(corners: np.ndarray) -> np.ndarray:
    """Which boxes hold nothing."""
    return (corners[:, 2] <= corners[:, 0]) | (corners[:, 3] <= corners[:, 1])


def _outside(corners: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Which boxes have their centre outside of images of ``size``, height and width."""
    if size is None:
        return np.zeros(len(corners), dtype=bool)
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    return np.asarray((centre < 0).any(axis=1) | (centre > np.array([size[1], size[0]])).any(axis=1))


def _written(corners: np.ndarray) -> str:
    return f"({', '.join(f'{value:g}' for value in corners)})"


def _wide(size: tuple[int, int] | None) -> str:
    return "" if size is None else f"which is {size[1]} wide and {size[0]} high"
