"""Targets decide what is produced: formats, widths, opsets; and who computes quality where a device is slow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from compress.measurement import scoring
from compress.onnx_files import limits
from compress.precision import schemes as precision_schemes
from compress.reports import target_notes
from compress.results import Result
from targets.errors import TargetError
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import Capabilities

Search = Callable[..., Result]
ALL = ("fp32", "int8", "mixed", "int8-dynamic")


def _can(**changes: Any) -> Capabilities:
    return Capabilities(**{"channel_step": 8, "int8_step": 8, **changes})


# -- what is produced, as a pure function


def test_one_format_for_all_gives_one_file_a_scheme() -> None:
    found = precision_schemes.variants(ALL, {"a": _can(), "b": _can(channel_step=16)})
    assert [one.name for one in found] == list(ALL)
    assert all(one.targets == ("a", "b") for one in found)


def test_every_format_gets_its_file_and_is_measured_everywhere() -> None:
    found = precision_schemes.variants(("fp32", "int8"), {"x86": _can(), "arm": _can(int8_format="s8s8")})
    assert [(one.name, one.format) for one in found] == [("fp32", ""), ("int8", "u8s8"), ("int8-s8s8", "s8s8")]
    assert all(one.targets == ("x86", "arm") for one in found)


def test_what_does_not_run_on_a_target_is_not_measured_there() -> None:
    float_only = _can(precisions=("fp32",), refuses=("int8", "mixed", "int8-dynamic"))
    found = precision_schemes.variants(("fp32", "int8"), {"ncnn": float_only, "ort": _can()})
    assert [(one.name, one.targets) for one in found] == [("fp32", ("ncnn", "ort")), ("int8", ("ort",))]


def test_saturating_products_are_a_format_of_their_own() -> None:
    found = precision_schemes.variants(("int8",), {"new": _can(), "old": _can(reduce_range=True)})
    assert [(one.name, one.capabilities.reduce_range) for one in found] == [("int8", False), ("int8-u8s8-7bit", True)]


def test_nothing_that_runs_is_an_error_that_names_targets_and_precisions() -> None:
    with pytest.raises(TargetError, match="a, b: none of the precisions int8 runs there"):
        precision_schemes.variants(("int8",), {"a": _can(precisions=("fp32",)), "b": _can(precisions=("fp32",))})


@pytest.mark.parametrize(
    ("schemes", "step"),
    [(("fp32",), 16), (("int8",), 4), (("fp32", "int8"), 16), (("int8-dynamic",), 16)],
)
def test_widths_suit_every_target_in_what_is_searched(schemes: tuple[str, ...], step: int) -> None:
    abilities = {"a": _can(channel_step=16, int8_step=4), "b": _can(channel_step=8, int8_step=2)}
    assert precision_schemes.channel_step(schemes, abilities) == step
    assert f"widths in steps of {step} (a " in precision_schemes.steps_in_words(schemes, abilities)


# -- searches


def test_one_search_on_two_targets_trains_once_and_gives_a_front_for_each(search: Search) -> None:
    arm = FakeTarget("arm", capabilities=_can(int8_format="s8s8"), cost=lambda path: 1e-4 + path.stat().st_size * 1e-9)
    result = search(target=[FakeTarget(), arm], trials=3)
    report = result.report
    assert set(report["front"]) == {"fake", "arm"}
    assert all(report["front"].values())
    assert report["stages"]["finetune"]["count"] <= 3, "each network is trained once"
    formats = {c["id"].partition("-")[2]: c["config"]["precision"].get("format") for c in report["candidates"]}
    assert formats["int8"] == "u8s8"
    assert formats["int8-s8s8"] == "s8s8"
    for candidate in report["candidates"]:
        assert set(candidate["measured"]) == {"fake", "arm"}
    signed = next(c for c in report["candidates"] if c["id"].endswith("int8-s8s8"))
    model = onnx.load(result.folder / signed["path"])
    points = {n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert {t.data_type for t in model.graph.initializer if t.name in points} == {onnx.TensorProto.INT8}


def test_a_target_that_runs_float_only_takes_part(search: Search) -> None:
    float_only = _can(precisions=("fp32",), refuses=("int8", "mixed", "int8-dynamic"))
    plain = FakeTarget("plain", capabilities=float_only)
    report = search(target=[FakeTarget(), plain], trials=2).report
    for candidate in report["candidates"]:
        runs = candidate["config"]["precision"]["scheme"] == "fp32"
        assert ("plain" in candidate["measured"]) == runs
    assert report["front"]["plain"]
    assert report["failures"] == []
    asked = len(plain.calls)
    search(target=[FakeTarget(), plain], trials=2)
    ran = [paths for operation, paths in plain.calls[asked:] if operation == "run"]
    assert not ran, "what it cannot run is not tried again"


def test_files_are_written_for_an_old_runtime(search: Search) -> None:
    old = FakeTarget("old", capabilities=_can(opset=18, ir_version=8))
    result = search(target=old, trials=2)
    for candidate in result.report["candidates"]:
        model = onnx.load(result.folder / candidate["path"])
        assert model.ir_version <= 8
        assert max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx")) <= 18


def test_what_an_old_runtime_cannot_take_is_refused_before_training(search: Search, tmp_path: Path) -> None:
    ancient = FakeTarget("ancient", capabilities=_can(opset=6))
    with pytest.raises(TargetError, match=r"needs opset 18, the target's runtime knows up to 6"):
        search(target=ancient, trials=1)
    assert not (tmp_path / "run" / "run.json").exists(), "a refused request leaves no run behind"


def test_a_model_is_converted_down_where_that_is_possible(tmp_path: Path) -> None:
    from targets.testing import reference_model, samples

    model = onnx.load(reference_model(tmp_path / "m.onnx"))
    older = limits.fit_to_limits(model, limits.VersionLimits(opset=14, ir_version=7))
    assert (older.opset_import[0].version, older.ir_version) == (14, 7)
    onnx.save(older, tmp_path / "older.onnx")
    x = {"x": samples(3)}
    new, old = (FakeTarget().run(tmp_path / name, x)[0] for name in ("m.onnx", "older.onnx"))
    np.testing.assert_allclose(old, new, atol=1e-6)


# -- quality of a device that is slow


class Board(FakeTarget):
    """A device that says it is remote; ``wrong`` of its answers are others than the host's."""

    remote = True

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__("board")
        self.counts: list[int] = []
        self._wrong = wrong

    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        """The outputs; some of them turned round."""
        self.counts.append(len(next(iter(inputs.values()))))
        (found,) = super().run(model, inputs, batch=batch)
        bad = int(self._wrong * len(found))
        return [np.concatenate([-found[:bad], found[bad:]])]


def _splits(monkeypatch: pytest.MonkeyPatch, patience: Mapping[str, float]) -> None:
    monkeypatch.setattr(scoring, "_PATIENCE", dict(patience))


def test_a_slow_device_is_scored_on_the_host_and_checked(
    search: Search, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    _splits(monkeypatch, {"val": 0.0, "test": 1e9})
    board = Board()
    # In int8 this machine's kernels, which stand for the board's, may saturate where the host's do not.
    report = search(target=board, trials=2, space=replace(tiny.SPACE, precision="fp32")).report
    for candidate in report["candidates"]:
        checks = candidate["measured"]["board"]["scored_on_host"]
        assert set(checks) == {"val"}
        assert checks["val"]["n"] == 64
        assert checks["val"]["agreement"] == 1.0
    assert 400 not in board.counts, "val was not run there"
    assert 497 in board.counts, "picks were read there in full"
    assert any("was computed on this machine" in line for line in target_notes.notes(report, "board"))


def test_a_fast_device_scores_itself(search: Search) -> None:
    board = Board()
    report = search(target=board, trials=1).report
    assert all(c["measured"]["board"]["scored_on_host"] == {} for c in report["candidates"])
    assert 400 in board.counts


def test_a_device_that_decides_otherwise_is_scored_there_after_all(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    _splits(monkeypatch, {"val": 0.0, "test": 0.0})
    board = Board(wrong=0.25)
    report = search(target=board, trials=1).report
    assert all(c["measured"]["board"]["scored_on_host"] == {} for c in report["candidates"])
    baseline = report["candidates"][0]["measured"]["board"]["quality"]["val"]["value"]
    assert baseline < 0.8, "its own answers count"


# -- what is said about a target


def _noted(ratios: Sequence[tuple[float, float]]) -> dict[str, Any]:
    def one(name: str, trial: int | None, scheme: str, ratio: float) -> dict[str, Any]:
        latency = {"p50": ratio, "p95": ratio, "ratio": ratio, "low": ratio, "high": ratio, "runs": 1}
        return {
            "id": name, "trial": trial, "size": 1, "config": {"precision": {"scheme": scheme}, "widths": {"a": 8}},
            "measured": {"t": {"latency": latency, "instructions": None, "integer": None}},
        }  # fmt: skip

    candidates = [one("baseline", None, "fp32", 1.0)]
    for trial, (float_ratio, int8_ratio) in enumerate(ratios):
        candidates += [
            one(f"{trial}-fp32", trial, "fp32", float_ratio),
            one(f"{trial}-int8", trial, "int8", int8_ratio),
        ]
    return {"baseline": "baseline", "candidates": candidates, "picks": {"t": {}}, "front": {"t": []}, "constraints": []}


def test_a_precision_that_costs_time_is_said_in_so_many_words() -> None:
    assert target_notes.notes(_noted([(0.5, 0.6), (0.4, 0.48)]), "t") == [
        "int8 is slower than float on t: 1.20x of its time at the same widths (median of 2 networks)."
    ]


@pytest.mark.parametrize("ratios", [[(0.5, 0.4), (0.4, 0.3)], [(0.5, 0.505), (0.4, 0.404)], [(0.5, 0.6)]])
def test_nothing_is_said_where_it_pays_or_hardly_anything_is_known(ratios: list[tuple[float, float]]) -> None:
    assert target_notes.notes(_noted(ratios), "t") == []


def test_what_a_target_says_of_its_device_is_a_warning_of_the_run(search: Search) -> None:
    class Pool(FakeTarget):
        """Has seen that its boards differ."""

        def remarks(self) -> tuple[str, ...]:
            return ("fake: b takes 20 % longer than a",)

    report = search(target=Pool(), trials=1).report
    assert "fake: b takes 20 % longer than a" in report["environment"]["warnings"]
