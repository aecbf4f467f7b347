"""A target that somebody else holds: what it says of itself, and files that it converts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compress.executing.forwarded_targets import ForwardedTarget, answer, facts_of
from targets.runtimes.fake.fake_target import FakeTarget
from targets.testing import reference_model, samples


class Converting(FakeTarget):
    """Makes files that say what they were made of."""

    @property
    def cost_quantity(self) -> str:
        return "memory"

    def convert(self, model: Path, precision: str, samples: Mapping[str, np.ndarray], made: Path) -> Path | None:
        if precision == "int4-weights":
            return None
        made.write_text(f"{model.name} {precision} {samples['x'].shape}")
        return made


def test_files_are_converted_where_the_target_is(tmp_path: Path) -> None:
    target = Converting()
    forwarded = ForwardedTarget(facts_of(target), lambda request: answer(target, request))
    assert forwarded.cost_quantity == "memory"
    model, made = reference_model(tmp_path / "m.onnx"), tmp_path / "made.tflite"
    assert forwarded.convert(model, "int8", {"x": samples(3)}, made) == made
    assert made.read_text() == "m.onnx int8 (3, 3, 8, 8)"
    assert forwarded.convert(model, "int4-weights", {"x": samples(3)}, tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
