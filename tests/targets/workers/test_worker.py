"""Worker processes: they crash, hang, eat memory and print, and cost one request each; they die with their parent."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from processes import alive, wait_for
from targets.errors import MeasurementError, ModelError, TargetUnavailable, TransientError
from targets.machine import memory
from targets.machine.processes import descendants
from targets.registry import get
from targets.testing import QUICK
from targets.workers import pipes
from targets.workers.process import Launch, WorkerProcess
from targets.workers.runtime import Runtime
from targets.workers.worker import existing

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("segfault", "killed by SIGSEGV while running .*model.onnx for the first time"),
        ("abort", "killed by SIGABRT while running"),
        ("exit", "ended with status 7 while running"),
        ("raise", "RuntimeError while running .*: first line second line"),
    ],
)
def test_a_crash_is_said_in_words(misbehaving, model, how, said):
    target = misbehaving(how)
    with pytest.raises(MeasurementError, match=said) as caught:
        target.measure([model], protocol=QUICK)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, TransientError)


def test_scoring_goes_on_after_a_crash(misbehaving, model):
    target = misbehaving("segfault")
    for _ in range(2):
        with pytest.raises(MeasurementError, match="SIGSEGV"):
            target.run(model, {"x": np.ones((1, 2), np.float32)})


def test_a_process_with_many_open_files_has_workers_too(model):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard) if hard >= 0 else 4096, hard))
    try:
        with contextlib.ExitStack() as opened:
            last = [opened.enter_context(open(os.devnull)) for _ in range(1100)][-1]
            assert last.fileno() > 1024
            target = get("ort-cpu")
            opened.callback(target.close)
            assert target.run(model, {"x": np.ones((1, 3, 8, 8), np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("how", ["hang", "hang-gil"])
def test_a_hang_is_ended(misbehaving, model, how):
    with pytest.raises(MeasurementError, match=r"hung: no answer in 5 s while running"):
        misbehaving(how, patience=5.0).measure([model], protocol=QUICK)
    assert not alive(int(model.with_suffix(".pid").read_text()))


def test_a_memory_eater_is_ended_and_may_be_tried_again(misbehaving, model):
    with pytest.raises(TransientError, match=r"more than the limit of 0\.30 GB"):
        misbehaving("eat", memory_limit=300_000_000).measure([model], protocol=QUICK)
    assert not alive(int(model.with_suffix(".pid").read_text()))


def test_a_missing_library_names_the_command(misbehaving, model):
    with pytest.raises(TargetUnavailable, match=r"onlyhere.*pip install onlyhere"):
        misbehaving("import").measure([model], protocol=QUICK)


def test_printing_does_not_disturb_the_answers(misbehaving, model, capfd):
    x = np.zeros((3, 2), np.float32)
    (y,) = misbehaving("print").run(model, {"x": x}, batch=1)
    np.testing.assert_array_equal(y, x + 1)
    assert capfd.readouterr().out == ""


def test_a_scoring_process_is_kept_and_ends_on_close(misbehaving, model):
    target = misbehaving("print")
    x = {"x": np.zeros((1, 2), np.float32)}
    target.run(model, x)
    pid = int(model.with_suffix(".pid").read_text())
    model.with_suffix(".pid").unlink()
    target.run(model, x)
    assert not model.with_suffix(".pid").exists()  # not loaded a second time
    assert alive(pid)
    target.close()
    assert not alive(pid)


@pytest.mark.parametrize("how", ["hang", "hang-gil"])
def test_a_worker_ends_when_its_parent_is_killed(misbehaving, model, how):
    misbehaving(how)  # sets PYTHONPATH for what follows
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(ROOT / "tests" / "targets")!r})
        from conftest import Misbehaving
        Misbehaving(how={how!r}).measure([{str(model)!r}])
    """)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        left_behind = model.with_suffix(".pid")
        wait_for(lambda: left_behind.exists() and left_behind.read_text() != "")
        worker = int(left_behind.read_text())
        assert alive(worker)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not alive(worker))


def test_an_interruption_ends_the_worker(misbehaving, model, monkeypatch):
    target = misbehaving("hang")

    def interrupt(_: object) -> None:
        if model.with_suffix(".pid").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("targets.workers.process.WorkerProcess.check_memory", interrupt)
    with pytest.raises(KeyboardInterrupt):
        target.run(model, {"x": np.zeros((1, 2), np.float32)})
    wait_for(lambda: not alive(int(model.with_suffix(".pid").read_text() or "-1")))


ARRAYS = st.lists(
    st.sampled_from(
        [
            np.arange(6.0).reshape(2, 3),
            np.zeros((0, 2), np.int8),
            np.float16(3),
            np.array(["a", "bcd"]),
            np.array([True]),
        ]
    ),
    max_size=4,
)


@given(ARRAYS, st.integers(1, 200))
def test_messages_survive_any_cutting(arrays, cut):
    named = {str(index): np.asarray(array) for index, array in enumerate(arrays)}
    whole = b"".join(pipes.encode({"a": [1, None, "ü"]}, named)) * 2
    decoder = pipes.Decoder()
    found = [one for start in range(0, len(whole), cut) for one in decoder.feed(whole[start : start + cut])]
    assert len(found) == 2
    for message in [*found, pipes.read_message(io.BytesIO(whole))]:
        assert message is not None
        assert message.header == {"a": [1, None, "ü"]}
        assert message.arrays.keys() == named.keys()
        for name, array in named.items():
            assert message.arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(message.arrays[name], array)


def test_what_is_not_a_frame_is_refused():
    with pytest.raises(pipes.BrokenFrame):
        pipes.Decoder().feed(b"Segmentation fault (core dumped)")
    with pytest.raises(pipes.BrokenFrame):
        pipes.read_message(io.BytesIO(b"".join(pipes.encode({}, {"x": np.zeros(9)}))[:-3]))
    assert pipes.read_message(io.BytesIO(b"")) is None


def test_objects_are_sent_as_text_and_never_pickled():
    sent = b"".join(pipes.encode({}, {"x": np.array(["a", "bc"], dtype=object)}))
    (message,) = pipes.Decoder().feed(sent)
    assert message.arrays["x"].tolist() == ["a", "bc"]


def test_a_program_that_is_no_worker_is_said():
    launch = Launch((sys.executable, "-c", "print('Welcome to this machine', flush=True); input()"), os.environ)
    before = os.listdir("/proc/self/fd")
    with WorkerProcess({}, launch) as worker:
        said = "answered with garbage while looking: expected a frame, found b'Welcome to this "
        with pytest.raises(MeasurementError, match=said):
            worker.ask({"operation": "facts", "doing": "looking"})
        assert not worker.alive
        assert len(os.listdir("/proc/self/fd")) <= len(before), "pipes and files are closed, whoever still holds it"


def test_a_frame_that_does_not_hold_together_is_refused():
    whole = b"".join(bytes(chunk) for chunk in pipes.encode({"a": 1}, {"x": np.arange(3)}))
    assert pipes.Decoder().feed(whole)[0].header == {"a": 1}
    for wrong in (whole.replace(b'"arrays"', b'"arrows"'), whole.replace(b'"header"', b'"headed"')):
        with pytest.raises(pipes.BrokenFrame, match=r"a frame that does not hold together \(KeyError\)"):
            pipes.Decoder().feed(wrong)
    with pytest.raises(pipes.BrokenFrame, match="expected a frame, found b'Welcome"):
        pipes.read_message(io.BytesIO(b"Welcome to this machine"))


def test_what_is_no_file_is_not_measured(tmp_path):
    for path in (tmp_path / "absent.onnx", tmp_path / "absent" / "m.onnx"):
        with pytest.raises(ModelError, match=r"\.onnx: no such file$"):
            existing(path)
    with pytest.raises(ModelError, match=r"not a file; give the path of one \.onnx file"):
        existing(tmp_path)
    with pytest.raises(ModelError, match="File name too long"):
        existing(tmp_path / ("n" * 300))


def test_a_runtime_that_only_runs_counts_nothing():
    class Plain(Runtime):
        def load(self, path):
            return path

    with pytest.raises(MeasurementError, match="this runtime does not count instructions"):
        Plain({}).count(Path("m.onnx"), lambda _: {}, print)
    assert Plain({}).audit(Path("m.onnx")) is None


@pytest.mark.skipif(memory.resident() is None, reason="this system does not say what a process takes: needs /proc")
def test_samples_have_room_whatever_the_file_was_first_run_for(tmp_path: Path) -> None:
    """A file that was run on one sample has its memory already: that of more is not told from growth any more."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(0, 0.1, (8, k, 3, 3)).astype(np.float32), f"w{k}") for k in (1, 8)]
    nodes = [helper.make_node("Conv", ["x", "w1"], ["v0"], pads=[1, 1, 1, 1])]  # 8.4 MB each
    nodes += [helper.make_node("Conv", [f"v{k}", "w8"], [f"v{k + 1}"], pads=[1, 1, 1, 1]) for k in range(3)]
    nodes += [helper.make_node("GlobalAveragePool", ["v3"], ["y"])]
    shapes = (("x", ["n", 1, 512, 512]), ("y", ["n", 8, 1, 1]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], weights), opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    target = get("ort-cpu")
    try:
        images = rng.random((64, 1, 512, 512), dtype=np.float32)
        [alone] = target.run(tmp_path / "m.onnx", {"x": images[:2]}, batch=1)
        [found] = target.run(tmp_path / "m.onnx", {"x": images}, batch=64)
        np.testing.assert_allclose(found[:2], alone, atol=1e-5)
        most = max(memory.resident(pid) or 0 for pid in descendants(os.getpid()))
        peaks = [_peak(pid) for pid in descendants(os.getpid())]
        assert max(most, *peaks) < 1_000_000_000, "64 at once take more than that"
    finally:
        target.close()


def _peak(pid: int) -> int:
    """The most that a process has had in memory, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
