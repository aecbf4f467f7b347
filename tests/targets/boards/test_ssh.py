"""A board behind ssh: what it computes is what it would be here, a file is sent once, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ssh_boards as devices
from processes import wait_for
from ssh_boards import RUNTIMES, Boards, external_model, needs_sshd
from targets import registry
from targets.boards import bundle
from targets.errors import ModelError, TargetError
from targets.machine import environment
from targets.runtimes.ort.ort_cpu import OrtCpu
from targets.target import Estimate, Target
from targets.testing import QUICK, TargetConformance, reference_model, reference_output, samples
from targets.tflite import installation

pytest.importorskip("onnx")
quiet, boards = devices.quiet, devices.boards
pytestmark = needs_sshd


class TestConformance(TargetConformance):
    @pytest.fixture(autouse=True)
    def _setting(self, quiet: Any, boards: Boards, monkeypatch: pytest.MonkeyPatch) -> None:
        self._quiet, self._boards = quiet, boards
        monkeypatch.syspath_prepend(RUNTIMES)

    def make(self) -> Target:
        return self._boards(self._quiet, threads=2)

    def make_crashing(self) -> Target | None:
        return self._boards(self._quiet, runtime="misbehaving", how="segfault")

    def asked_threads(self) -> int:
        return 2

    def thread_count(self, target: Target, model: Path) -> int | None:
        """One, and as many as the scoring process has beyond one of one thread."""
        counts = []
        for one in (self._boards(self._quiet), target):
            before = self._boards.runners()
            one.run(model, {"x": samples(1)})
            (worker,) = (
                p for p, said in self._boards.runners().items() if p not in before and "targets.workers.worker" in said
            )
            counts.append(len(os.listdir(f"/proc/{worker}/task")))
        return 1 + counts[1] - counts[0]


def test_it_is_what_it_would_be_here(quiet, boards, model, capfd):
    """The same code runs on the device: outputs bit for bit, capabilities, products, machine."""
    target, here, x = boards(quiet), OrtCpu(), samples(5)
    np.testing.assert_array_equal(target.run(model, {"x": x})[0], here.run(model, {"x": x})[0])
    assert target.capabilities() == here.capabilities()
    assert target.facts() == here.facts()
    assert target.audit(model) == here.audit(model)
    here.close()
    described = target.describe()
    assert described["packages"] == environment.installed_versions(OrtCpu.packages)
    machine = dict(described["machine"])
    machine.pop("board")
    assert machine == environment.machine()
    assert set(target.moment()) == {"load", "memory_available", "temperature", "frequency"}
    assert not {"temperature", "load"} & set(str(described).split("'"))
    assert target.remote
    assert capfd.readouterr().out == ""


@pytest.mark.skipif(installation.missing() is not None, reason=f"needs LiteRT; run: {installation.COMMAND}")
def test_a_board_with_litert_gets_converted_files(quiet, boards, model, tmp_path):
    """What is converted here is sent there; the board needs neither the converter nor onnx."""
    python = str(installation.place() / "bin" / "python")
    target, x = boards(quiet, runtime="litert-cpu", python=python), samples(3)
    np.testing.assert_allclose(target.run(model, {"x": x})[0], reference_output(x), atol=1e-4)
    int8 = target.convert(model, "int8", {"x": samples(64)}, tmp_path / "m.tflite")
    measured = target.measure([model, int8], protocol=QUICK)
    assert [one.path for one in measured] == [model, int8]
    assert [one.size for one in measured] == [model.stat().st_size, int8.stat().st_size]
    assert [one.integer for one in target.audit(int8)] == [True, True]
    assert target.capabilities().int8_format == "tflite"
    assert boards(quiet).convert(model, "fp32", {}, tmp_path / "other.tflite") is None
    with pytest.raises(ModelError, match=r"m\.tflite: ort-cpu runs \.onnx files; runtime=litert-cpu runs this one"):
        boards(quiet).run(int8, {"x": x})


def test_the_registry_makes_it_with_the_settings_of_its_runtime(quiet):
    target = registry.get(f"ssh:host=pi@board,port=22,runtime=ort-cpu,threads=2,config={quiet.config}")
    assert target.name == f"ssh:config={quiet.config},host=pi@board,port=22,threads=2"
    assert registry.get(target.name).name == target.name
    assert registry.get("ssh:host=b,runtime=openvino-cpu,precision=bf16").name == (
        "ssh:host=b,precision=bf16,runtime=openvino-cpu"
    )


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("ssh", "needs the name of a host: ssh:host=USER@HOST"),
        ("ssh:host=-oProxyCommand=touch", "host='-oProxyCommand=touch' is not allowed"),
        ("ssh:host=a@-b", "is not allowed; it is HOST or USER@HOST"),
        ("ssh:host=a b", "is not allowed"),
        ("ssh:host=a;b", "is not allowed"),
        ("ssh:host=$(b)", "is not allowed"),
        ("ssh:host=a'b", "is not allowed"),
        ("ssh:host=a\nb", "is not allowed"),
        ("ssh:host=a,port=70000", "port=70000 is not allowed; port is an integer, 0 to 65535"),
        ("ssh:host=a,cache=-x", "cache='-x' is not allowed"),
        ("ssh:host=a,config=-x", "config='-x' is not allowed"),
        ("ssh:host=a,python=a\tb", "is not allowed"),
        ("ssh:host=a,runtime=tflite", "runtime=tflite is not allowed; runtime is one of ort-cpu"),
        ("ssh:host=a,precision=bf16", "no setting 'precision'; it takes cache, config, host, opt, port, python"),
        ("ssh:host=a,opt=fast", "opt=fast is not allowed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(spec, said):
    with pytest.raises(TargetError) as caught:
        registry.get(spec)
    assert said in str(caught.value)


def test_a_file_is_sent_once(quiet, boards, model, tmp_path):
    told: list[Estimate] = []

    def copied() -> list[str]:
        found = [one.stage for one in told if one.stage.startswith("copying")]
        told.clear()
        return found

    target = boards(quiet)
    target.measure([model], protocol=QUICK, watch=told.append)
    assert {one.target for one in told} == {target.name}
    assert f"loading {model}" in {one.stage for one in told}
    assert copied() == [f"copying {model} to board (0.0 of 0.0 MB)"]
    again = Path(shutil.copy(model, tmp_path / "again.onnx"))
    measured = boards(quiet).measure([model, again], protocol=QUICK, watch=told.append)
    assert [one.path for one in measured] == [model, again]
    assert copied() == []
    reference_model(again, seed=3)
    target.measure([model, again], protocol=QUICK, watch=told.append)
    assert copied() == [f"copying {again} to board (0.0 of 0.0 MB)"]
    assert all(str(boards.cache) not in one.stage for one in told)


def test_weights_in_files_of_their_own_are_sent_along(quiet, boards, tmp_path):
    path = external_model(tmp_path, "weights/external.bin")
    target = boards(quiet)
    (y,) = target.run(path, {"x": np.zeros((2, 300), np.float32)})
    np.testing.assert_array_equal(y, np.ones((2, 300)))
    (tmp_path / "weights/external.bin").write_bytes(np.full((1, 300), 2, np.float32).tobytes())
    (y,) = target.run(path, {"x": np.zeros((2, 300), np.float32)})
    np.testing.assert_array_equal(y, np.full((2, 300), 2))
    shutil.rmtree(boards.cache / "models")


def test_weights_outside_the_models_folder_are_refused(quiet, boards, tmp_path):
    (tmp_path / "inner").mkdir()
    path = external_model(tmp_path / "inner", "../secret.bin")
    with pytest.raises(ModelError, match=r"its weights lie outside its folder, in '\.\./secret\.bin'"):
        boards(quiet).measure([path], protocol=QUICK)


def test_any_cache_folder_can_be_named(quiet, tmp_path, model):
    boards = Boards(tmp_path / 'it\'s "my" $HOME; `x` & (cache)')
    try:
        assert len(boards(quiet).measure([model], protocol=QUICK)) == 1
        assert list(boards.cache.glob("runner-*.zip"))
    finally:
        boards.close()
    boards.see_nothing_left()


def test_nothing_stays_when_it_is_forgotten(quiet, boards, model):
    """Without ``close``: what runs there ends, and so does the connection."""
    target = boards(quiet)
    target.run(model, {"x": samples(1)})
    folder = target.line.folder
    before = quiet.sessions()
    assert (folder / "s").exists()
    boards.made.clear()
    del target
    gc.collect()
    boards.see_nothing_left()
    wait_for(lambda: not folder.exists())
    wait_for(lambda: len(quiet.sessions()) < len(before))


def test_an_interruption_ends_what_runs_there(quiet, boards, model):
    def interrupt(estimate: Estimate) -> None:
        if estimate.ratios:
            raise KeyboardInterrupt

    target = boards(quiet)
    with pytest.raises(KeyboardInterrupt):
        target.measure([model, model], protocol=type(QUICK)(width=1e-9, seconds=60), watch=interrupt)
    boards.see_nothing_left()
    np.testing.assert_allclose(target.run(model, {"x": samples(2)})[0], reference_output(samples(2)), atol=1e-4)


def test_a_runner_ends_with_its_host(quiet, boards, model):
    """Killed without warning, the host leaves nothing running there."""
    code = (
        "import sys, targets\n"
        "from targets.target import Protocol\n"
        "target = targets.get(sys.argv[1])\n"
        "target.measure([sys.argv[2]] * 2, protocol=Protocol(width=1e-9, seconds=60),\n"
        "               watch=lambda estimate: estimate.ratios and print(target.line.folder, flush=True))\n"
    )
    name = boards(quiet).name
    with subprocess.Popen([sys.executable, "-c", code, name, str(model)], stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        folder = Path(host.stdout.readline().decode().strip())
        assert len(boards.runners()) >= 2
        host.kill()
    boards.see_nothing_left()
    shutil.rmtree(folder)  # here, where nobody was left to do it


def test_an_old_runner_is_not_used(quiet, boards, model):
    """A file of the right name with other bytes, as a crash of the device may leave it, is replaced."""
    (boards.cache / bundle.make().name).write_bytes(b"PK")
    assert len(boards(quiet).measure([model], protocol=QUICK)) == 1
    assert (boards.cache / bundle.make().name).read_bytes() == bundle.make().data
