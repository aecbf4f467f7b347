"""A board behind ssh: a real sshd on the loopback interface, and everything that can go wrong on the way."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets import bundle, environment, pipes, registry
from targets.errors import MeasurementError, ModelError, TargetError, TargetUnavailable, TransientError
from targets.ort_cpu import OrtCpu
from targets.ssh import Ssh
from targets.target import Estimate, Target
from targets.testing import QUICK, TargetConformance, reference_model, reference_output, samples

HERE = Path(__file__).parent
onnx = pytest.importorskip("onnx")


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"tests_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = _load("sshd")
pytestmark = pytest.mark.skipif(servers.find() is None, reason=servers.MISSING)


class Board(Ssh):
    """With a runtime more, which goes wrong as it is told to."""

    runtimes = {**Ssh.runtimes, "misbehaving": "misbehaving_target:Misbehaving"}  # noqa: RUF012


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An sshd for those who do not kill it."""
    made = servers.Sshd(tmp_path_factory.mktemp("quiet") / "sshd", {"PYTHONPATH": str(HERE / "runtimes")})
    made.start()
    yield made
    made.kill()


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Any]:
    """An sshd to be killed."""
    made = servers.Sshd(tmp_path / "sshd")
    made.start()
    yield made
    made.kill()


class _Boards:
    """Makes targets, closes them, and sees what they leave behind."""

    def __init__(self, cache: Path, *, seeded: bool = False) -> None:
        self.cache = cache
        self.made: list[Target] = []
        if seeded:
            cache.mkdir(exist_ok=True)
            (cache / bundle.make().name).write_bytes(bundle.make().data)

    def __call__(self, server: Any, **settings: Any) -> Board:
        known = {"host": "board", "config": str(server.config), "cache": str(self.cache), "python": sys.executable}
        target = Board(**{**known, **settings})
        self.made.append(target)
        return target

    def runners(self) -> dict[int, str]:
        """Processes on the device."""
        return {pid: said for pid, said in servers.naming(f"{self.cache}/runner-").items() if "ssh -F" not in said}

    def left(self) -> list[str]:
        """Files in the cache that are neither a runner nor a whole model."""
        # The misbehaving runtime notes its process id beside the model.
        kept = ("runner-*.zip", "models/*/model.onnx", "models/*/model.pid")
        found = [path for path in self.cache.rglob("*") if path.is_file()] + [*self.cache.glob("session-*")]
        return [str(path) for path in found if not any(path.match(pattern) for pattern in kept)]

    def see_nothing_left(self) -> None:
        """Soon, no process and no half file."""
        servers.wait_for(lambda: not self.runners(), self.runners)
        assert self.left() == []

    def close(self) -> None:
        for target in self.made:
            target.close()


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[_Boards]:
    """A device that has the runner already: to send it takes a second."""
    made = _Boards(tmp_path / "device", seeded=True)
    yield made
    made.close()
    made.see_nothing_left()


class TestConformance(TargetConformance):
    @pytest.fixture(autouse=True)
    def _setting(self, quiet: Any, boards: _Boards, monkeypatch: pytest.MonkeyPatch) -> None:
        self._quiet, self._boards = quiet, boards
        monkeypatch.syspath_prepend(str(HERE / "runtimes"))

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
                p for p, said in self._boards.runners().items() if p not in before and "targets.worker" in said
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
    assert described["packages"] == environment.versions(OrtCpu.packages)
    machine = dict(described["machine"])
    machine.pop("board")
    assert machine == environment.machine()
    assert set(target.moment()) == {"load", "memory_available", "temperature", "frequency"}
    assert not {"temperature", "load"} & set(str(described).split("'"))
    assert target.remote
    assert capfd.readouterr().out == ""


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


def external_model(folder: Path, location: str) -> Path:
    """y = x + 1, with the constant (1, 300) in a file of its own."""
    value = onnx.numpy_helper.from_array(np.ones((1, 300), np.float32), "one")
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "one"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", float32, ["n", 300])],
        [onnx.helper.make_tensor_value_info("y", float32, ["n", 300])],
        [value],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.external_data_helper.set_external_data(value, location)
    made.graph.initializer[0].CopyFrom(value)
    raw = made.graph.initializer[0].raw_data
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    (folder / location).write_bytes(raw)
    made.graph.initializer[0].ClearField("raw_data")
    (folder / "external.onnx").write_bytes(made.SerializeToString())
    return folder / "external.onnx"


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
    boards = _Boards(tmp_path / 'it\'s "my" $HOME; `x` & (cache)')
    try:
        assert len(boards(quiet).measure([model], protocol=QUICK)) == 1
        assert list(boards.cache.glob("runner-*.zip"))
    finally:
        boards.close()
    boards.see_nothing_left()


# What is wrong with the connection or the device.


def test_an_sshd_that_is_gone_when_connecting(sshd, boards, model):
    target = boards(sshd)
    sshd.kill()
    with pytest.raises(TransientError, match=r"cannot connect to board \(.*Connection refused\)"):
        target.measure([model], protocol=QUICK)
    sshd.start()
    assert len(target.measure([model], protocol=QUICK)) == 1


def test_an_sshd_that_dies_while_a_file_is_copied(sshd, boards, tmp_path):
    big = reference_model(tmp_path / "big.onnx")
    # A field that protobuf does not know is stepped over.
    big.write_bytes(big.read_bytes() + b"\xfa\x7f\x80\x80\x80\x02" + bytes(4 << 20))
    target = boards(sshd)

    def kill(estimate: Estimate) -> None:
        if estimate.stage.startswith("copying"):
            sshd.kill()

    with pytest.raises(TransientError, match=r"lost the connection to board while copying .*big\.onnx to board"):
        target.measure([big], protocol=QUICK, watch=kill)
    boards.see_nothing_left()
    assert not list(boards.cache.rglob("model.onnx"))
    sshd.start()
    assert len(target.measure([big], protocol=QUICK)) == 1


def test_an_sshd_that_dies_while_measuring(sshd, boards, model):
    target = boards(sshd)

    def kill(estimate: Estimate) -> None:
        if estimate.ratios:
            sshd.kill()

    long = type(QUICK)(width=1e-9, seconds=60)
    with pytest.raises(TransientError, match="lost the connection to board while timing"):
        target.measure([model, model], protocol=long, watch=kill)
    boards.see_nothing_left()
    sshd.start()
    assert len(target.measure([model], protocol=QUICK)) == 1


def test_an_sshd_that_dies_while_a_result_is_read(sshd, boards, tmp_path, monkeypatch):
    target, model = boards(sshd), external_model(tmp_path, "external.bin")
    x = np.zeros((4_000, 300), np.float32)  # 5 MB, which no pipe holds
    feed = pipes.Decoder.feed

    def kill(decoder: pipes.Decoder, data: bytes) -> list[pipes.Message]:
        if len(data) + len(decoder._buffer) > 100_000:
            sshd.kill()
        return feed(decoder, data)

    target.run(model, {"x": x[:1]})
    with monkeypatch.context() as patched:
        patched.setattr(pipes.Decoder, "feed", kill)
        with pytest.raises(TransientError, match=r"lost the connection to board while running .*external\.onnx"):
            target.run(model, {"x": x})
    servers.wait_for(lambda: not boards.runners(), boards.runners)
    sshd.start()
    assert target.run(model, {"x": x})[0].shape == x.shape
    shutil.rmtree(boards.cache / "models")


def _full(folder: Path) -> Callable[[], None]:
    """Mount a file system of 3 MB at a folder; returns what frees half of it."""
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs", str(folder)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a file system cannot be mounted here: run as root, in a container with --cap-add SYS_ADMIN")
    filler = folder / "filler"
    filler.write_bytes(bytes(2_500_000))
    return filler.unlink


def test_a_full_disk_on_the_device(quiet, tmp_path):
    big = reference_model(tmp_path / "big.onnx")
    big.write_bytes(big.read_bytes() + b"\xfa\x7f\x80\x80\x80\x01" + bytes(2 << 20))
    boards = _Boards(tmp_path / "device")
    free = _full(boards.cache)
    try:
        target = boards(quiet)
        said = (
            rf"no space left on the device in {boards.cache} \(needs 2\.1 MB, has 0\.\d MB\): free some, "
            "or choose another folder with cache=FOLDER"
        )
        for _ in range(2):
            with pytest.raises(TransientError, match=said):
                target.measure([big], protocol=QUICK)
        assert not list(boards.cache.rglob("part"))
        free()
        assert len(target.measure([big], protocol=QUICK)) == 1
        target.close()
        boards.see_nothing_left()
    finally:
        boards.close()
        servers.wait_for(lambda: subprocess.run(["umount", str(boards.cache)], capture_output=True).returncode == 0)


def test_a_disk_too_full_for_the_runner(quiet, tmp_path, model):
    boards = _Boards(tmp_path / "device")
    free = _full(boards.cache)
    try:
        more = boards.cache / "more"
        more.write_bytes(bytes(3_000_000 - 2_500_000))
        with pytest.raises(TransientError, match=r"no space left on the device in .* \(needs 0\.\d MB, has 0\.\d MB\)"):
            boards(quiet).measure([model], protocol=QUICK)
        assert not list(boards.cache.glob(".part-*"))
        free()
        assert len(boards(quiet).measure([model], protocol=QUICK)) == 1
    finally:
        boards.close()
        servers.wait_for(lambda: subprocess.run(["umount", str(boards.cache)], capture_output=True).returncode == 0)


def test_a_runner_that_is_frozen_and_what_a_killed_one_leaves(sshd, boards, model):
    """Silence is said, nothing waits for ever; and a new runner clears up after one that could not."""
    target = boards(sshd)
    target.silence = 3.0
    target.run(model, {"x": samples(1)})
    (runner,) = (pid for pid, said in boards.runners().items() if "targets.worker" not in said)
    os.kill(runner, signal.SIGSTOP)
    with pytest.raises(TransientError, match="hung: no answer in 3 s while looking which models are there"):
        target.measure([model], protocol=QUICK)
    os.kill(runner, signal.SIGKILL)
    servers.wait_for(lambda: not boards.runners(), boards.runners)
    assert len(list(boards.cache.glob("session-*"))) == 1
    assert len(target.measure([model], protocol=QUICK)) == 1
    assert len(list(boards.cache.glob("session-*"))) == 1
    (runner,) = (pid for pid, said in boards.runners().items() if "targets.worker" not in said)
    os.kill(runner, signal.SIGKILL)
    servers.wait_for(lambda: not target._runner.alive)
    assert len(target.measure([model], protocol=QUICK)) == 1


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("abort", MeasurementError, r"killed by SIGABRT while running .*model\.onnx for the first time"),
        ("hang", MeasurementError, r"hung: no answer in 3 s while running .*model\.onnx for the first time"),
        ("eat", TransientError, r"more than the limit of 0\.\d\d GB, while running .*model\.onnx for the first time"),
        ("import", TargetUnavailable, r"board: target 'misbehaving': its runtime is missing"),
    ],
)
def test_a_runtime_that_goes_wrong_on_the_device(quiet, boards, model, monkeypatch, how, kind, said):
    monkeypatch.syspath_prepend(str(HERE / "runtimes"))
    target = boards(quiet, runtime="misbehaving", how=how)
    if how == "hang":
        target.patience = 3.0
    if how == "eat":
        target.memory_limit = 300_000_000
    with pytest.raises(kind, match=said) as caught:
        target.measure([model], protocol=QUICK)
    assert type(caught.value) is kind
    assert str(caught.value).startswith("board" if kind is TargetUnavailable else target.name)
    assert str(boards.cache / "models") not in str(caught.value)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo 'paretopress:{\"python\": [3, 6, 9]}'", "is 3.6.9, Python 3.9 or newer is needed; name another with"),
        (f"exec {sys.executable} -S \"$@\"", "numpy, onnxruntime is missing for"),
        (f"exec {sys.executable} -S \"$@\"", "-m pip install numpy onnxruntime"),
        (f"echo Welcome; exec {sys.executable} \"$@\"", "prints 'Welcome' when it starts; make its startup files"),
        ("echo no way >&2; exit 3", "ended with status 3: no way"),
    ],
)  # fmt: skip
def test_an_interpreter_that_does_not_do(quiet, boards, model, tmp_path, text, said):
    target = boards(quiet, python=script(tmp_path / "python", text))
    with pytest.raises(TargetUnavailable) as caught:
        target.measure([model], protocol=QUICK)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interpreter_that_is_not_there(quiet, boards, model):
    with pytest.raises(TargetUnavailable, match=r"there is no no-such-python on board \(.*\); install Python"):
        boards(quiet, python="no-such-python").measure([model], protocol=QUICK)


def test_an_interpreter_in_the_home_folder(quiet, boards, model):
    """``~`` is the home folder there, not here."""
    with pytest.raises(TargetUnavailable, match=r"\(.*: /.*/no such/python: .*\)"):
        boards(quiet, python="~/no such/python").measure([model], protocol=QUICK)


def test_a_numpy_that_cannot_be_loaded(quiet, boards, model, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "numpy.py").write_text("raise OSError('libopenblas.so.0: cannot open shared object file')")
    python = script(tmp_path / "python", f'PYTHONPATH={tmp_path / "lib"} exec {sys.executable} "$@"')
    with pytest.raises(TargetUnavailable, match=r"numpy cannot be loaded on board: libopenblas\.so\.0"):
        boards(quiet, python=python).measure([model], protocol=QUICK)


def test_a_cache_that_cannot_be_used(quiet, tmp_path, model):
    (tmp_path / "file").write_text("")
    boards = _Boards(tmp_path / "file" / "cache")
    with pytest.raises(TargetUnavailable, match=r"cannot use .*file/cache on board \(Not a directory, error 20\)"):
        boards(quiet).measure([model], protocol=QUICK)
    boards.close()


@pytest.mark.parametrize(
    ("name", "replaced", "said"),
    [
        ("user", None, "cannot connect to board: it does not let us in without a password: set up a key"),
        ("known", "", "cannot connect to board: its host key is not known or has changed"),
    ],
)
def test_a_host_that_refuses(sshd, boards, model, name, replaced, said):
    folder = sshd.config.parent
    (folder / name).unlink()
    if replaced is None:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, input=b"y"
        )
    else:
        (folder / name).write_text(replaced)
    with pytest.raises(TargetUnavailable) as caught:
        boards(sshd).measure([model], protocol=QUICK)
    assert said in str(caught.value)


def test_nothing_stays_when_it_is_forgotten(quiet, boards, model):
    """Without ``close``: what runs there ends, and so does the connection."""
    target = boards(quiet)
    target.run(model, {"x": samples(1)})
    folder = target._line._folder
    before = quiet.sessions()
    assert (folder / "s").exists()
    boards.made.clear()
    del target
    gc.collect()
    boards.see_nothing_left()
    servers.wait_for(lambda: not folder.exists())
    servers.wait_for(lambda: len(quiet.sessions()) < len(before))


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
        "               watch=lambda estimate: estimate.ratios and print(target._line._folder, flush=True))\n"
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


def test_models_that_were_not_used_for_long_make_room(tmp_path, monkeypatch):
    from targets import device_cache

    def put(cache, fill: int, size: int) -> str:
        import hashlib

        data = bytes([fill]) * size
        key = hashlib.sha256(data).hexdigest()
        assert cache.receive(device_cache.Piece(key, "model.onnx", size, key, 0), data)
        return key

    monkeypatch.setattr(device_cache, "LIMIT", 1000)
    cache = device_cache.DeviceCache(tmp_path)
    old, new = put(cache, 1, 400), put(cache, 2, 400)
    long_ago = time.time() - 7200
    os.utime(tmp_path / "models" / old, (long_ago, long_ago))
    third = put(cache, 3, 400)
    wanted = {key: {"model.onnx": 400} for key in (old, new, third)}
    assert cache.missing(wanted) == {old: ["model.onnx"], new: [], third: []}
    # What was used lately stays, even if that is too much.
    fourth = put(cache, 4, 400)
    assert not any(cache.missing({key: {"model.onnx": 400} for key in (new, third, fourth)}).values())
    cache.close()
    assert not list(tmp_path.glob("session-*"))
