"""Mean average precision against a brute-force one written here from its definition, and what it refuses."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.metrics.average_precision import MAP50, MAP50_95, matches
from compress.metrics.detections import check_detections, check_objects
from compress.metrics.metrics import get, quality_drop, quality_of, slice_qualities
from targets.errors import TaskError

Image = dict[str, np.ndarray]


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def objects(*rows: tuple[float, ...], labels: list[int] | None = None) -> Image:
    return {"boxes": boxes(*rows), "labels": np.array(labels or [0] * len(rows))}


def found(*rows: tuple[float, ...], scores: list[float], labels: list[int] | None = None) -> Image:
    return objects(*rows, labels=labels) | {"scores": np.array(scores)}


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    wide, high = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in range(2))
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
    return wide * high / (area(a) + area(b) - wide * high)


def brute(outputs: list[Image], labels: list[Image], thresholds: tuple[float, ...]) -> float:
    """Object by object and detection by detection; precision read off at 101 levels of recall."""
    kinds = sorted({int(kind) for one in labels for kind in one["labels"]})
    values = []
    for threshold in thresholds:
        for kind in kinds:
            rows = []
            total = sum(int((one["labels"] == kind).sum()) for one in labels)
            for image, (ours, theirs) in enumerate(zip(outputs, labels, strict=True)):
                wanted = [box for box, k in zip(theirs["boxes"], theirs["labels"], strict=True) if k == kind]
                mine = [i for i in np.argsort(-ours["scores"], kind="stable") if ours["labels"][i] == kind]
                taken: set[int] = set()
                for i in mine[:100]:
                    free = [(overlap(ours["boxes"][i], box), k) for k, box in enumerate(wanted) if k not in taken]
                    best = max(free, default=(0.0, -1))
                    right = best[0] >= threshold
                    taken |= {best[1]} if right else set()
                    rows.append((-ours["scores"][i], image, right))
            rows.sort(key=lambda row: row[:2])
            right = np.cumsum([row[2] for row in rows])
            precision = [hits / (n + 1) for n, hits in enumerate(right)]
            recall = [hits / total for hits in right]
            levels = [
                max((p for p, r in zip(precision, recall, strict=True) if r >= level), default=0.0)
                for level in np.linspace(0, 1, 101)
            ]
            values.append(np.mean(levels))
    return float(np.mean(values)) if values else math.nan


def scenes(count: int, seed: int, *, ties: bool = False) -> tuple[list[Image], list[Image]]:
    """What is there and what was found: some of it moved, of another class, missed, or nothing."""
    rng = np.random.default_rng(seed)
    outputs, labels = [], []
    for _ in range(count):
        k, more = rng.integers(0, 5), rng.integers(0, 4)
        centre, size = rng.uniform(10, 50, (k, 2)), rng.uniform(8, 20, (k, 2))
        there = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
        kinds = rng.integers(0, 3, k)
        kept = rng.random(k) < 0.8
        moved = (there + rng.normal(0, 1.5, there.shape))[kept]
        beside = np.concatenate([rng.uniform(0, 20, (more, 2)), rng.uniform(25, 60, (more, 2))], axis=1)
        said = np.where(rng.random(k) < 0.85, kinds, rng.integers(0, 3, k))[kept]
        scores = rng.random(int(kept.sum()) + more)
        # Equal scores in one image would be taken in another order by another implementation.
        scores = np.round(scores, 1) + 0.001 * np.arange(len(scores)) if ties else scores
        labels.append({"boxes": there, "labels": kinds})
        outputs.append(
            {
                "boxes": np.concatenate([moved, beside]), "scores": scores,
                "labels": np.concatenate([said, rng.integers(0, 3, more)]),
            }
        )  # fmt: skip
    return outputs, labels


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(0, 10**6), st.booleans())
def test_it_is_what_brute_force_says(count: int, seed: int, ties: bool) -> None:
    outputs, labels = scenes(count, seed, ties=ties)
    for name, thresholds in (("map50", MAP50), ("map50-95", MAP50_95)):
        assert get(name).function(outputs, labels) == pytest.approx(
            brute(outputs, labels, thresholds), abs=1e-9, nan_ok=True
        )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 10), st.integers(0, 10**6), st.lists(st.integers(0, 9), min_size=1, max_size=15))
def test_images_that_are_drawn_several_times_count_so_often(count: int, seed: int, rows: list[int]) -> None:
    outputs, labels = scenes(count, seed)
    drawn = np.array([row % count for row in rows])
    # Copies of an image have equal scores: those of one right box and one wrong one must not lie between each other.
    expected = brute([outputs[i] for i in np.sort(drawn)], [labels[i] for i in np.sort(drawn)], MAP50)
    value = matches(outputs, labels, MAP50).mean_average_precision(drawn)
    assert value == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_it_is_what_the_library_sums_up() -> None:
    import contextlib
    import io

    from pycocotools.cocoeval import COCOeval

    from compress.metrics import average_precision, detections

    outputs, labels = scenes(60, 3)
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(
            average_precision._as_coco(detections.objects_of(labels), "iscrowd", 3),
            average_precision._as_coco(detections.detections_of(outputs), "score", 3),
            "bbox",
        )
        run.evaluate(), run.accumulate(), run.summarize()
    assert get("map50-95").function(outputs, labels) == pytest.approx(run.stats[0], abs=1e-9)
    assert get("map50").function(outputs, labels) == pytest.approx(run.stats[1], abs=1e-9)


def test_a_crowd_is_neither_found_nor_missed() -> None:
    one, crowd = (0, 0, 10, 10), (20, 20, 60, 60)
    labels = [objects(one, crowd) | {"iscrowd": np.array([0, 1])}]
    assert get("map50").function([found(one, (25, 25, 40, 40), scores=[0.5, 0.9])], labels) == pytest.approx(1.0)
    plain = [objects(one, crowd)]
    assert get("map50").function([found(one, (25, 25, 40, 40), scores=[0.5, 0.9])], plain) < 0.5


def test_classes_that_are_not_there_do_not_count_and_nothing_found_is_zero() -> None:
    labels = [objects((0, 0, 10, 10))]
    assert get("map50").function([found(scores=[])], labels) == 0.0
    both = found((0, 0, 10, 10), (0, 0, 10, 10), scores=[0.5, 0.9], labels=[0, 7])
    assert get("map50").function([both], labels) == pytest.approx(1.0)
    broken = found((0, 0, 10, 10), (0, 0, math.nan, 10), scores=[0.5, 0.9])
    assert get("map50").function([broken], labels) == pytest.approx(1.0)  # what is no number finds nothing


def test_quality_and_drops_have_intervals_over_images() -> None:
    outputs, labels = (np.array(side, dtype=object) for side in scenes(80, 1))
    worse, _ = scenes(80, 2)
    quality = quality_of(get("map50"), outputs, labels)
    assert quality.low < quality.value < quality.high
    assert (quality.n, quality.metric) == (80, "map50")
    drop = quality_drop(get("map50"), outputs, np.array(worse, dtype=object), labels)
    assert drop.low > 0.1  # boxes of other images
    assert drop.value == pytest.approx(
        quality.value - get("map50").function(np.array(worse, dtype=object), labels), abs=1e-9
    )
    same = quality_drop(get("map50"), outputs.copy(), outputs, labels)
    assert same.value == 0.0
    assert same.low < 0 < same.high  # no difference among 80 images says something, not everything
    halves = slice_qualities(get("map50"), outputs, labels, {"half": [i % 2 for i in range(80)]})
    assert {value: one.n for value, one in halves["half"].items()} == {"0": 40, "1": 40}


GOOD = found((0, 0, 10, 10), scores=[0.5])


@pytest.mark.parametrize(
    ("outputs", "labels", "said"),
    [
        (np.zeros((1, 4)), [objects((0, 0, 1, 1))], r"array of shape \(1, 4\).*give the task a decode="),
        ([{"boxes": boxes()}], [objects()], "detection 0 is a dict of 'boxes'; give a dict of 'boxes', 'labels', 'sco"),
        ([GOOD | {"boxes": np.zeros((1, 5))}], [objects()], r"'boxes' are of shape \(1, 5\); give \(k, 4\): left, top"),
        ([GOOD | {"scores": np.zeros(2)}], [objects()], r"'scores' are of shape \(2,\) for 1 boxes"),
        ([GOOD | {"labels": np.array([0.5])}], [objects()], "not class numbers"),
        ([GOOD | {"labels": ["cat"]}], [objects()], "'labels' are list, which is no array of numbers"),
        ([GOOD], [objects((0, 0, 1, 1), labels=[-1])], "label 0: 'labels' are not class numbers"),
        ([GOOD], np.zeros((1, 4)), r"labels are an array of shape \(1, 4\)"),
    ],
)
def test_what_are_no_boxes_is_said_in_one_line(outputs: Any, labels: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said) as caught:
        get("map50").function(outputs, labels)
    assert "\n" not in str(caught.value)


def test_boxes_that_cannot_be_right_are_refused() -> None:
    with pytest.raises(TaskError, match=r"val 1: the box \(9, 2, 3, 4\) is empty; give left, top"):
        check_objects([objects((0, 0, 5, 5)), objects((9, 2, 3, 4))], "val", None)
    with pytest.raises(TaskError, match="outside of its image, which is 64 wide and 32 high"):
        check_objects([objects((0, 30, 20, 60))], "val", (32, 64))
    check_objects([objects((-2, -2, 20, 20))], "val", (32, 64))  # cut by the border
    outside = [found((0, 0, 5, 5), (90, 90, 120, 120), (80, 80, 90, 90), scores=[0.1, 0.2, 0.3])]
    with pytest.raises(TaskError, match=r"decode: 2 of 3 boxes lie outside of the images.*\(90, 90, 120, 120\)"):
        check_detections(outside, "decode", (64, 64))
    turned = [found((5, 5, 0, 0), scores=[0.1])]
    with pytest.raises(TaskError, match="1 of 1 boxes are empty or turned round"):
        check_detections(turned, "decode", None)
    check_detections([found(scores=[])], "decode", (64, 64))


def test_a_library_that_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TaskError, match=r"need pycocotools.*pip install 'paretopress\[detection\]'"):
        get("map50").function([GOOD], [objects((0, 0, 10, 10))])
