"""Mean average precision of detections, as COCO defines it (Lin et al. 2014): the area under precision over recall.

What was found is matched with what is there by ``pycocotools``, the reference implementation: in each image and class,
the best score first, each object once, where intersection over union reaches a threshold. A match depends on its own
image alone, so that this is done once; precision and recall are then added up over the images asked for, which a
bootstrap asks for a thousand times, by weights: an image that is drawn twice counts twice. Up to 100 detections of one
class count in an image. Averaged over classes that are there and over thresholds: 0.5 alone is ``map50``, and 0.50,
0.55 ... 0.95 are ``map50-95``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from compress.metrics.detections import Boxes, detections_of, objects_of
from targets.errors import TaskError

INSTALL = "pip install 'paretopress[detection]'"
"""What brings the library that matches boxes."""
MAP50 = (0.5,)
"""Thresholds of ``map50``."""
MAP50_95 = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""Thresholds of ``map50-95``."""
_MOST = 100
"""Detections of one class that count in one image."""
_RECALLS = np.linspace(0.0, 1.0, 101)
"""Where precision is read off."""


@dataclass(frozen=True)
class Matches:
    """Detections of all images in one row: class by class, the best score of each class first, threshold by threshold.

    ``images`` (d,): the image of each; ``right``, ``wrong`` (d,): whether it found an object, or nothing, as 1 or 0;
    neither for one that lies in a crowd. ``starts`` (thresholds * classes + 1,): where each class begins, and the end.
    ``objects`` (images, classes): how many there are to be found.
    """

    images: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    starts: np.ndarray
    objects: np.ndarray

    def mean_average_precision(self, rows: np.ndarray) -> float:
        """Of the images at ``rows`` (m,), which may hold an image several times; NaN where nothing is in them."""
        times = np.bincount(rows, minlength=len(self.objects))
        there = np.tile(times @ self.objects, (len(self.starts) - 1) // self.objects.shape[1])
        classes = np.flatnonzero(there)
        if not len(classes):
            return float("nan")
        there, first, last = there[classes, None], self.starts[classes, None], self.starts[classes + 1, None]
        weight = times[self.images]
        rights, wrongs = (np.concatenate([[0], np.cumsum(one * weight)]) for one in (self.right, self.wrong))
        mine = rights[1:] - rights[self._begun]
        precision = mine / (mine + wrongs[1:] - wrongs[self._begun] + np.spacing(1))
        # The best precision at this recall or a higher one, within a class.
        precision = np.maximum.accumulate((precision + self._lift)[::-1])[::-1] - self._lift
        # The first detection with which recall reaches each level, in whole objects: exactly where a division says so.
        need = np.ceil(_RECALLS * there - 1e-6).astype(np.int64)
        need += need / there < _RECALLS
        reached = np.maximum(np.searchsorted(rights[1:], rights[first] + need), first)
        inside = reached < last
        return float(np.where(inside, np.append(precision, 0.0)[np.where(inside, reached, -1)], 0.0).mean())

    @cached_property
    def _begun(self) -> np.ndarray:
        """(d,) where the class of each detection begins."""
        return np.repeat(self.starts[:-1], np.diff(self.starts))

    @cached_property
    def _lift(self) -> np.ndarray:
        """(d,) what sets the precisions of each class above those of all later ones."""
        return 2.0 * np.repeat(np.arange(len(self.starts) - 1)[::-1], np.diff(self.starts))


def matches(outputs: Any, labels: Any, thresholds: Sequence[float]) -> Matches:
    """What was found in each image against what is there, at each of ``thresholds``.

    ``outputs``, ``labels``: (n,) dicts of boxes (see ``detections``). Raises TaskError for what are none, and where
    the library is not installed.
    """
    found, there = detections_of(outputs), objects_of(labels)
    count = 1 + max((int(one.classes.max()) for side in (found, there) for one in side if len(one)), default=0)
    evaluated = _evaluated(found, there, thresholds, count)
    objects = np.zeros((len(there), count), dtype=np.int64)
    parts, sizes = [], []
    for kind in range(count):
        part = [_of_image(None, 0, len(thresholds))]
        for image in range(len(there)):
            one = evaluated[kind * len(there) + image]
            if one is not None:
                objects[image, kind] = len(one["gtIgnore"]) - int(np.sum(one["gtIgnore"]))
                part.append(_of_image(one, image, len(thresholds)))
        rows = np.concatenate(part, axis=1)
        parts.append(rows[1:, np.argsort(-rows[0], kind="mergesort")])
        sizes.append(rows.shape[1])
    images, *flags = np.concatenate(parts, axis=1).astype(np.int64)
    right, wrong = (np.concatenate(flags[k::2]) for k in range(2))
    starts = np.concatenate([[0], np.cumsum(np.tile(sizes, len(thresholds)))]).astype(np.int64)
    return Matches(np.tile(images, len(thresholds)), right, wrong, starts, objects)


def _of_image(one: Any, image: int, thresholds: int) -> np.ndarray:
    """(2 + 2 * thresholds, d): score, image, and right and wrong at each threshold, of one class in one image."""
    if one is None:
        return np.zeros((2 + 2 * thresholds, 0))
    hit, left_out = np.asarray(one["dtMatches"]) > 0, np.asarray(one["dtIgnore"], dtype=bool)
    found = np.empty((2 + 2 * thresholds, hit.shape[1]))
    found[0], found[1], found[2::2], found[3::2] = one["dtScores"], image, hit & ~left_out, ~hit & ~left_out
    return found


def check_installed() -> None:
    """Raise TaskError where the library that matches boxes is not installed."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        raise TaskError(f"map50 and map50-95 need pycocotools, which is not installed: {INSTALL}") from None


def _evaluated(found: list[Boxes], there: list[Boxes], thresholds: Sequence[float], count: int) -> list[Any]:
    """What the library says of each class in each image: images within classes."""
    check_installed()
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints how far it is
        run = COCOeval(_as_coco(there, "iscrowd", count), _as_coco(found, "score", count), "bbox")
        run.params.iouThrs = np.array(thresholds)
        run.params.areaRng, run.params.areaRngLbl = [[0, float("inf")]], ["all"]
        run.params.maxDets = [_MOST]
        run.params.imgIds, run.params.catIds = list(range(len(there))), list(range(count))
        run.evaluate()
    rows: list[Any] = run.evalImgs
    return rows


def _as_coco(boxes: list[Boxes], value: str, count: int) -> Any:
    from pycocotools.coco import COCO

    rows: list[dict[str, Any]] = []
    for image, one in enumerate(boxes):
        size = np.maximum(one.corners[:, 2:] - one.corners[:, :2], 0.0)
        for (left, top), (width, height), kind, known in zip(
            one.corners[:, :2].tolist(), size.tolist(), one.classes.tolist(), one.values.tolist(), strict=True
        ):
            rows.append(
                {
                    "id": len(rows) + 1, "image_id": image, "category_id": kind, "bbox": [left, top, width, height],
                    "area": width * height, "iscrowd": 0, value: int(known) if value == "iscrowd" else known,
                }
            )  # fmt: skip
    made = COCO()
    made.dataset = {
        "images": [{"id": i} for i in range(len(boxes))],
        "categories": [{"id": i} for i in range(count)],
        "annotations": rows,
    }
    made.createIndex()
    return made
