"""What ends a trial, or a candidate of it, and with which words; what is nobody's fault passes through as it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from compress.networks.weights_files import write_weights
from compress.precision.schemes import Variant
from compress.run_folder.caching import Cache
from compress.stages import moved_targets, pruning, quantizing, rebuilding, sparsifying
from compress.stages.finetuning import failing_as
from compress.stages.int8_training import float_network, trained_file
from compress.stages.rebuilding import module_maker
from compress.training.training_modes import TrainingMode
from compress.values.candidates import Candidate
from compress.values.configs import Config, PruneSettings
from onnx_models import f32, node, write
from targets.documents import file_hash
from targets.errors import (
    MeasurementError,
    QuantizeError,
    RequestError,
    RunError,
    StageError,
    TrainingError,
    TransientError,
)
from targets.target import Capabilities

Make = Callable[..., Candidate]


def _raise(error: BaseException) -> Callable[..., Any]:
    def raising(*_: object, **__: object) -> None:
        raise error

    return raising


def _leave() -> None:
    sys.exit(3)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (
            _raise(ValueError("odd\nlines")),
            TrainingError,
            r"^sparsity learning failed: ValueError: odd \(.*\.py:\d+\)$",
        ),
        (_leave, TrainingError, r"^sparsity learning failed: SystemExit: 3 \(.*\.py:\d+\)$"),
        (_raise(StageError("said already")), StageError, "^said already$"),
    ],
)
def test_what_training_raises_is_said_in_one_line(call: Callable[[], None], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said), failing_as("sparsity learning"):
        call()


def test_interrupts_are_no_failure_of_training() -> None:
    with pytest.raises(KeyboardInterrupt), failing_as("fine-tuning"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(("own", "steps", "learned"), [(True, 1, True), (True, 0, False), (False, 1, False)])
def test_a_loop_that_trains_something_else_or_nothing_learns_no_sparsity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: bool, steps: int, learned: bool
) -> None:
    training: Any = SimpleNamespace(module=nn.Linear(2, 2), train=[0], key=SimpleNamespace(of_trainings=dict))
    groups: Any = SimpleNamespace(prunable=())

    def run(_: Any, module: nn.Module, *__: Any, **___: Any) -> tuple[nn.Module, None]:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
        for _ in range(steps):
            optimizer.step()
        return module if own else nn.Linear(2, 2), None

    monkeypatch.setattr(sparsifying, "run_training", run)
    asked = (Cache(tmp_path, lambda *_: None), training, groups, PruneSettings(sparsity=0.1, sparsity_epochs=1), print)
    if learned:
        assert sparsifying.sparse_weights(*asked).is_file()
        return
    with pytest.raises(
        TrainingError, match=r"^sparsity learning had no effect: the task's finetune must train the net"
    ):
        sparsifying.sparse_weights(*asked)


def test_a_gradient_that_is_not_finite_ranks_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training: Any = SimpleNamespace(train=None, objective=None, example=None, mode=TrainingMode())
    monkeypatch.setattr(pruning, "_taylor_inputs", lambda _: {})
    monkeypatch.setattr(pruning.datasets, "batches", lambda *_: iter(()))
    monkeypatch.setattr(pruning.pruning_importance, "taylor", lambda *_: {"a": [1.0, float("inf")]})
    origin: Any = SimpleNamespace(module=None, groups=None, key=dict)
    with pytest.raises(
        TrainingError, match="importance 'taylor': the loss of the baseline on train has no finite gradi"
    ):
        pruning.prune_to(Cache(tmp_path, lambda *_: None), training, origin, {"a": 1}, "taylor")


# -- int8


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A file with one layer."""
    return write(tmp_path / "m.onnx", [node("MatMul", "x w", name="only")], {"x": f32(8, 6)}, {"w": f32(6, 3)})[0]


def _variant(scheme: str) -> Variant:
    return Variant(scheme, scheme, Capabilities(), ("fake",))


def test_a_precision_that_cannot_be_made_costs_that_candidate_alone(product: Path, tmp_path: Path) -> None:
    variants = [_variant("fp32"), _variant("mixed")]
    context: Any = SimpleNamespace(targets=SimpleNamespace(variants=variants), cache=Cache(tmp_path, lambda *_: None))
    files, skipped = quantizing.make_files(context, product, Config(), print)
    assert files == {variants[0]: product}
    said = "mixed: the network has one layer that int8 can speed up; there is nothing to mix"
    assert skipped == [("mixed", said)]


def test_a_full_disk_is_not_a_precisions_fault(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context: Any = SimpleNamespace(targets=SimpleNamespace(variants=[_variant("int8")]))
    monkeypatch.setattr(quantizing, "_file", _raise(QuantizeError("q.onnx: No space left on device")))
    with pytest.raises(QuantizeError, match="No space left"):
        quantizing.make_files(context, product, Config(), print)
    monkeypatch.setattr(quantizing, "_file", _raise(QuantizeError("no such operator")))
    assert quantizing.make_files(context, product, Config(), print) == ({}, [("int8", "no such operator")])


def test_a_file_that_torch_cannot_rebuild_is_not_trained(product: Path, tmp_path: Path) -> None:
    context: Any = SimpleNamespace(training=None)
    with pytest.raises(
        QuantizeError, match=r"m\.onnx cannot be trained: the model is an \.onnx file that torch cannot"
    ):
        trained_file(context, product, _variant("int8-qat"), Config(), _raise(AssertionError()), print)
    path, inputs = write(tmp_path / "h.onnx", [node("Hardmax", "x")], {"x": f32(8, 6)})
    with pytest.raises(QuantizeError, match=r"h\.onnx cannot be rebuilt in torch: operator Hardmax not covered"):
        float_network(path, inputs)


# -- modules of candidates


def _made(folder: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch, **said: Any) -> nn.Module:
    """The candidate's module, where ``candidate.json`` says these things."""
    (folder / candidate.id).mkdir(exist_ok=True)
    (folder / candidate.id / "candidate.json").write_text(json.dumps(said))
    run = SimpleNamespace(folder=folder, candidate_folder=lambda name: folder / name)
    context: Any = SimpleNamespace(
        training=SimpleNamespace(example=(torch.zeros(1, 6),)), run=run, profile=SimpleNamespace(groups=None),
        baseline=SimpleNamespace(candidate=SimpleNamespace(id="baseline")),
    )  # fmt: skip
    monkeypatch.setattr(rebuilding, "rebuilt", lambda *_: nn.Linear(6, 3))
    make = module_maker(context)
    assert make is not None
    return make(candidate)


def test_a_module_is_never_given_with_other_weights(
    tmp_path: Path, candidate: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = candidate("0001-fp32")
    weights = tmp_path / one.id / "weights.pt"
    weights.parent.mkdir()
    trained = nn.Linear(6, 3)
    write_weights(trained.state_dict(), weights)
    whole = file_hash(weights)
    found = _made(tmp_path, one, monkeypatch, removed={}, weights=whole)
    assert torch.equal(found.get_parameter("weight"), trained.weight)
    for wrong in ({}, {"removed": 3}):
        with pytest.raises(RunError, match=r"candidate\.json"):
            _made(tmp_path, one, monkeypatch, **wrong)
    write_weights({"weight": torch.zeros(2, 2)}, weights)
    with pytest.raises(RunError, match=r"weights\.pt.*its SHA-256 is not that of the weights that were trained"):
        _made(tmp_path, one, monkeypatch, removed={}, weights=whole)
    with pytest.raises(RunError, match=r"weights\.pt.*Linear"):
        _made(tmp_path, one, monkeypatch, removed={}, weights=file_hash(weights))
    weights.unlink()
    said = r"0001-fp32: its weights are gone \(weights\.pt was removed, as --keep front does\); choose a candidate of"
    with pytest.raises(RequestError, match=said):
        _made(tmp_path, one, monkeypatch, removed={}, weights=whole)


def test_a_file_trained_in_int8_that_is_no_network_is_damaged(
    tmp_path: Path, candidate: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = candidate("0001-int8-qat")
    floats = tmp_path / one.id / "weights.onnx"
    floats.parent.mkdir()
    write(floats, [node("Hardmax", "x")], {"x": f32(8, 6)})
    with pytest.raises(RunError, match=r"weights\.onnx.*operator Hardmax not covered"):
        _made(tmp_path, one, monkeypatch, removed={}, weights=file_hash(floats))


# -- devices


@pytest.mark.parametrize("error", [TransientError("gone"), MeasurementError("crashed")])
def test_a_device_that_is_gone_takes_no_figures_with_it(
    candidate: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    known = {name: candidate(name) for name in ("baseline", "0001-fp32")}
    written: list[Any] = []
    record = SimpleNamespace(append=lambda *_, **told: written.append(told))
    run = SimpleNamespace(state=SimpleNamespace(candidates=known), is_whole=lambda _: True, record=record)
    context: Any = SimpleNamespace(
        run=run, targets=SimpleNamespace(all=[SimpleNamespace(name="fake")]),
        baseline=SimpleNamespace(candidate=known["baseline"]),
    )  # fmt: skip
    monkeypatch.setattr(moved_targets, "measure_anew", _raise(error))
    if isinstance(error, TransientError):
        with pytest.raises(TransientError, match="gone"):
            moved_targets.measure_moved(context, {"fake": "another CPU"}, print)
        assert written == []
        return
    told = moved_targets.measure_moved(context, {"fake": "another CPU"}, print)
    assert told == [
        "fake is another device now (another CPU): everything is measured again on it",
        "0001-fp32 could not be measured again on fake: crashed",
    ]
    assert [list(one.measured) for one in written[0]["candidates"]] == [["fake"], []]
