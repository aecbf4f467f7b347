"""A task from an ONNX file and an ``.npz`` of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from compress.tasks.loading import load_task
from compress.tasks.onnx_tasks import onnx_space, onnx_task
from compress.tasks.tasks import Task
from targets.errors import ModelError, TaskError

ROWS = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
CLASSES = np.arange(40) % 4


def _model(path: Path, outputs: int = 4, inputs: tuple[str, ...] = ("x",)) -> Path:
    """Sums its inputs (n, 3) and multiplies by a constant."""
    weight = np.random.default_rng(1).standard_normal((3, outputs)).astype(np.float32)
    nodes = [helper.make_node("Sum", list(inputs), ["s"]), helper.make_node("MatMul", ["s", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return _model(tmp_path / "net.onnx")


def _samples(path: Path, **arrays: Any) -> Path:
    np.savez(path.with_name("data.npz"), **arrays)
    return path.with_name("data.npz")


def test_with_labels_it_is_scored_by_them(model: Path) -> None:
    task = onnx_task(model, _samples(model, x=ROWS, labels=CLASSES))
    assert (task.name, task.metric, task.onnx_path) == ("net", "accuracy", model)
    assert [len(s) for s in (task.train, task.val, task.test)] == [24, 8, 8]
    for split in (task.train, task.val, task.test):
        for x, y in split:
            assert CLASSES[np.flatnonzero((x.numpy() == ROWS).all(axis=1))[0]] == y, "samples keep their labels"


def test_the_split_is_always_the_same(model: Path) -> None:
    data = _samples(model, x=ROWS, labels=CLASSES)
    a, b = (onnx_task(model, data).val.tensors[0].numpy() for _ in range(2))
    assert np.array_equal(a, b)


def test_without_labels_it_is_scored_by_agreement(model: Path) -> None:
    task = onnx_task(model, _samples(model, x=ROWS))
    assert task.metric == "agreement"
    weight = onnx.numpy_helper.to_array(onnx.load(model).graph.initializer[0])
    rows, own = (x.numpy() for x in task.val.tensors)
    assert np.array_equal(own, (rows @ weight).argmax(axis=1)), "the original's decisions"


def test_numbers_are_compared_by_their_errors(tmp_path: Path, model: Path) -> None:
    one = _model(tmp_path / "one.onnx", outputs=1)
    assert onnx_task(one, _samples(one, x=ROWS)).metric.name == "relative_error"
    assert onnx_task(model, _samples(model, x=ROWS, labels=ROWS[:, 0])).metric == "mse"
    same = _model(tmp_path / "same.onnx", outputs=3)
    assert onnx_task(same, _samples(same, x=ROWS)).metric.name == "cosine", "what has its input's shape rebuilds it"


def test_samples_are_cast_to_what_the_model_takes(model: Path) -> None:
    task = onnx_task(model, _samples(model, x=ROWS.astype(np.float64), labels=CLASSES))
    assert task.val.tensors[0].dtype == torch.float32


@pytest.mark.parametrize(("count", "low", "high"), [(30, 100, 100), (600, 20, 100), (6000, 3, 11), (600_000, 2, 3)])
def test_few_samples_are_trained_on_for_longer(count: int, low: int, high: int) -> None:
    task = Task("t", "m.onnx", torch.utils.data.TensorDataset(torch.zeros(count, 1)), val=[0])
    space = onnx_space(task, labelled=False)
    assert (space.epochs.low, space.epochs.high) == (low, max(high, low + 1))
    assert space.distill_weight.low >= 0.5
    assert onnx_space(task, labelled=True).distill_weight.low == 0
    assert onnx_space(task, labelled=True, timed=True).epochs == "auto", "the time of the search says how long"


@pytest.mark.parametrize("kind", [str, bytes])
def test_a_split_that_is_given_is_kept(model: Path, kind: type) -> None:
    names = ["val"] * 10 + ["train"] * 25 + ["test"] * 5
    split = np.array([n.encode() if kind is bytes else n for n in names])
    task = onnx_task(model, _samples(model, x=ROWS, labels=CLASSES, split=split))
    assert np.array_equal(task.val.tensors[0].numpy(), ROWS[:10])
    assert np.array_equal(task.train.tensors[0].numpy(), ROWS[10:35])
    assert np.array_equal(task.test.tensors[0].numpy(), ROWS[35:])


def test_only_val_is_needed(model: Path) -> None:
    task = onnx_task(model, _samples(model, x=ROWS, labels=CLASSES, split=np.array(["val"] * 40)))
    assert task.train is None
    assert task.test is None


def test_several_inputs_by_their_names(tmp_path: Path) -> None:
    model = _model(tmp_path / "two.onnx", inputs=("a", "b"))
    task = onnx_task(model, _samples(model, b=ROWS * 2, a=ROWS, labels=CLASSES))
    a, b, _ = task.val.tensors
    assert np.array_equal(b.numpy(), a.numpy() * 2)


def test_a_file_name_that_names_no_folder_becomes_one_that_does(tmp_path: Path) -> None:
    model = _model(tmp_path / "my net (1).onnx")
    assert load_task(str(model), str(_samples(model, x=ROWS))).task.name == "my-net-1-"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": ROWS}, r"holds \['y'\]; net.onnx needs x"),
        ({}, "needs x"),
        ({"x": ROWS[:5]}, "at least 10"),
        ({"x": np.float32(1)}, "at least 10"),
        ({"x": ROWS, "labels": CLASSES[:7]}, r"labels have shape \(7,\); one for each of 40"),
        ({"x": ROWS, "labels": np.int64(3)}, r"labels have shape \(\)"),
        ({"x": ROWS, "labels": np.array(["cat"] * 40)}, "numbers are needed"),
        ({"x": np.array([["a", "b", "c"]] * 40), "labels": CLASSES}, "numbers are needed"),
        ({"x": ROWS, "labels": CLASSES, "split": np.arange(40) % 3}, "split must name train, val or test"),
        ({"x": ROWS, "labels": CLASSES, "split": np.array(["train"] * 40)}, "and have val"),
        ({"x": ROWS, "labels": CLASSES, "split": np.array(["val"] * 39)}, "for each of 40 samples"),
        ({"x": ROWS, "labels": CLASSES, "split": np.array("val")}, "for each of 40 samples"),
        ({"x": np.array([{"evil": 1}] * 40, dtype=object)}, "not a readable .npz"),
    ],
)
def test_samples_that_do_not_fit_are_refused_in_one_line(model: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said) as caught:
        onnx_task(model, _samples(model, **arrays))
    assert "\n" not in str(caught.value)


def _truncated(path: Path) -> None:
    np.savez(path, x=ROWS)
    path.write_bytes(path.read_bytes()[:200])


def _corrupt(path: Path) -> None:
    np.savez_compressed(path, x=ROWS)
    found = bytearray(path.read_bytes())
    found[100:140] = b"\xff" * 40
    path.write_bytes(found)


def _single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, ROWS)


@pytest.mark.parametrize(
    "write",
    [lambda p: p.write_bytes(b""), lambda p: p.write_text("text"), _truncated, _corrupt, _single, lambda _: None],
)
def test_a_file_that_is_no_npz_is_refused_in_one_line(model: Path, write: Any) -> None:
    path = model.with_name("bad.npz")
    write(path)
    with pytest.raises(TaskError, match=r"bad.npz' is not a readable .npz file") as caught:
        onnx_task(model, path)
    assert "\n" not in str(caught.value)


def test_without_data_it_says_what_is_needed(model: Path) -> None:
    with pytest.raises(TaskError, match=r"--data FILE.npz, arrays named x"):
        onnx_task(model, None)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x00\x01nonsense")
    for name in ("bad.onnx", "absent.onnx"):
        with pytest.raises(ModelError, match=name):
            load_task(str(tmp_path / name), "x.npz")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(20) % 3 + 0j, "labels are of type complex128"),
        (np.array(["a", "b"] * 10), "labels are of type <U1"),
        (np.arange(20), r"labels go from 0 to 19; output .* has 10 classes, 0 to 9"),
        (np.arange(20) % 3 - 1, "labels go from -1 to 1"),
        (np.full(20, 2**40), "labels go from 1099511627776"),
    ],
)
def test_labels_that_the_output_does_not_have_are_refused(
    exported: Path, tmp_path: Path, labels: np.ndarray, said: str
) -> None:
    np.savez(tmp_path / "d.npz", input=np.zeros((20, 1, 8, 8), np.float32), labels=labels)
    with pytest.raises(TaskError, match=said):
        onnx_task(_named(exported, tmp_path), tmp_path / "d.npz")


def _named(path: Path, folder: Path) -> Path:
    """The same with its input called ``input``."""
    model = onnx.load(path)
    old = model.graph.input[0].name
    model.graph.input[0].name = "input"
    for node in model.graph.node:
        node.input[:] = ["input" if name == old else name for name in node.input]
    onnx.save(model, folder / "named.onnx")
    return folder / "named.onnx"


def test_a_class_number_of_none_is_ignored(exported: Path, tmp_path: Path) -> None:
    labels = np.where(np.arange(20) % 2, -100, 3)
    np.savez(tmp_path / "d.npz", input=np.zeros((20, 1, 8, 8), np.float32), labels=labels)
    assert onnx_task(_named(exported, tmp_path), tmp_path / "d.npz").metric is not None


def test_numbers_that_the_model_cannot_take_are_refused(tmp_path: Path) -> None:
    model = _typed(tmp_path / "whole.onnx", TensorProto.INT32)
    data = _samples(model, x=ROWS.astype(np.int64).clip(0) + 2**40)
    with pytest.raises(TaskError, match=r"x holds numbers that int32 cannot; whole\.onnx takes int32"):
        onnx_task(model, data)
    model = _typed(tmp_path / "text.onnx", TensorProto.STRING)
    with pytest.raises(TaskError, match="arrays are of types object, int64; numbers are needed"):
        onnx_task(model, _samples(model, x=np.array([["a", "b", "c"]] * 40), labels=CLASSES))


def test_what_is_no_sample_is_said_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "state"], ["y"])]
    kinds = (("x", ["n", 3]), ("state", [3, 2]), ("y", ["n", 2]))
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in kinds]
    graph = helper.make_graph(nodes, "g", values[:2], values[2:])
    path = tmp_path / "stateful.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    with pytest.raises(TaskError, match=r"has 40 of 'x', 3 of 'state': .* has to be a constant within the model"):
        onnx_task(path, _samples(path, x=ROWS, state=np.ones((3, 2), np.float32)))


def _typed(path: Path, kind: int) -> Path:
    """Whether its inputs (n, 3) of that type are equal to the first of them."""
    nodes = [helper.make_node("Slice", ["x", "zero", "one", "one"], ["first"]),
             helper.make_node("Equal", ["x", "first"], ["same"]),
             helper.make_node("Cast", ["same"], ["y"], to=TensorProto.FLOAT)]  # fmt: skip
    values = [helper.make_tensor_value_info(name, one, ["n", 3]) for name, one in (("x", kind), ("y", 1))]
    constants = [onnx.numpy_helper.from_array(np.array([i]), name) for i, name in enumerate(("zero", "one"))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def test_outputs_that_are_not_one_for_each_sample_are_refused(tmp_path: Path) -> None:
    """Its batch is fixed, so that nothing else can be tried: one mean over forty samples."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)]
    values = [helper.make_tensor_value_info("x", 1, [40, 3]), helper.make_tensor_value_info("y", 1, [])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    path = tmp_path / "mean.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    with pytest.raises(
        ModelError, match=r"an output has shape \(\) for 40 samples: its first axis must be the samples"
    ):
        onnx_task(path, _samples(path, x=ROWS))
