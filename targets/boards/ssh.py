"""A real board, reached with ``ssh``: models are sent there, measured there, and the samples come back.

    ssh:host=pi@board,port=22,runtime=ort-cpu,threads=4

The board needs Python 3.9, numpy and the runtime. What runs there is this package's own code (``bundle.py``), so that
measuring is the same as here: fresh worker processes, paired blocks, raw samples. Files go to a cache folder there,
each once; nothing else is left behind.

After any failure of the connection the next call begins from scratch.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from targets.boards import bundle
from targets.boards.board_pools import BoardPool
from targets.boards.parcels import MODEL, Parcel, ParcelFile, pack_model
from targets.boards.preparing import Preparation
from targets.boards.remote import RUNTIMES, load_target
from targets.boards.ssh_line import FAILED, SshLine, quoted
from targets.errors import (
    CompressError,
    Disconnected,
    MeasurementError,
    ModelError,
    TargetError,
    TargetUnavailable,
    TransientError,
)  # fmt: skip
from targets.settings import Setting, canonical_name, checked_settings
from targets.target import Capabilities, Estimate, Latency, Layer, Measurement, Protocol, Samples, Target, Watch
from targets.tflite import conversion, installation
from targets.tflite.tflite_files import SUFFIX
from targets.tflite.tflite_target import made_for
from targets.workers import measuring
from targets.workers.inputs import checked_shapes, join
from targets.workers.local import LocalTarget, check_request, first_samples, pieces
from targets.workers.process import Heard, Launch, WorkerProcess
from targets.workers.worker import one_line

_OWN: Mapping[str, Setting] = {
    "host": Setting("", help="HOST or USER@HOST, as ssh takes it; HOST+HOST+...: boards of one kind"),
    "port": Setting(0, least=0, most=65535, help="of the host's sshd; 0: what the ssh configuration says"),
    "runtime": Setting("ort-cpu", words=tuple(RUNTIMES), help="runtime there; its settings are passed on"),
    "cache": Setting("~/.cache/paretopress", help="folder there that files are kept in"),
    "python": Setting("python3", help="interpreter there"),
    "config": Setting("", help="ssh configuration here, instead of ~/.ssh/config"),
}
_PATHS = ("cache", "python", "config")
_PIECE = 1 << 20
"""Bytes of a file sent at once."""
_MEGA = 1e6
_Answer = TypeVar("_Answer")


def _all_settings() -> dict[str, Setting]:
    """Ours and those of every runtime; which of them fit is looked at when the runtime is known."""
    found: dict[str, Setting] = {}
    for place in RUNTIMES.values():
        for key, setting in load_target(place).settings.items():
            known = found.get(key, setting)
            words = tuple(dict.fromkeys([*known.words, *setting.words]))
            found[key] = Setting(known.default, words, known.least, known.most, known.help)
    return {**found, **_OWN}


class Ssh(Target):
    """A board reached with ssh, and a runtime on its CPU."""

    base = "ssh"
    remote = True
    settings: ClassVar[Mapping[str, Setting]] = _all_settings()
    runtimes: ClassVar[Mapping[str, str]] = RUNTIMES
    """Name -> ``module:class`` of the target that runs there."""
    patience: float = 120.0
    """Seconds of silence after which a worker there is taken to hang."""
    memory_limit: int | None = None
    """Resident bytes a worker there may use; None: 90 % of what is free."""
    silence: float = 30.0
    """Seconds of silence after which the device is taken to be gone."""
    first: float = 120.0
    """Seconds the device may take for its first answer: it may have to load numpy from a slow card."""
    pauses: tuple[float, ...] = (2.0, 5.0, 10.0, 20.0)
    """Seconds to wait before what a lost connection has cut off is done again: a board may be starting anew."""

    def __init__(self, **settings: Any) -> None:
        name = str(settings.get("runtime", _OWN["runtime"].default))
        if name not in self.runtimes:
            raise TargetError(f"target 'ssh': runtime={name} is not allowed; runtime is one of {_list(self.runtimes)}")
        self._runtime: type[LocalTarget] = load_target(self.runtimes[name])
        known = {**self._runtime.settings, **_OWN, "runtime": Setting("ort-cpu")}
        # The registry fills in every setting there is; a default says nothing.
        asked = {key: value for key, value in settings.items() if not _default(self.settings, key, value)}
        self.values = checked_settings(self.base, known, asked)
        _check_paths(self.values)
        self.name = canonical_name(self.base, known, self.values)
        self.probed = self._runtime.probed
        self.line = SshLine(self.values["host"], self.values["port"], self.values["config"])
        self.runner: WorkerProcess | None = None
        self._folder = ""
        self._facts: dict[str, Any] | None = None
        self._lock = threading.RLock()

    @classmethod
    def from_settings(cls, **settings: Any) -> Target:
        """The board of these settings, or several of one kind where ``host`` names several with ``+`` between them.

        Raises TargetError where a setting is not allowed, or a board is named twice.
        """
        whole = str(settings.get("host", ""))
        hosts = whole.split("+")
        if len(hosts) == 1:
            return cls(**settings)
        twice = next((host for host in hosts if hosts.count(host) > 1), None)
        if twice is not None:
            raise TargetError(f"target 'ssh': host={whole} names {twice!r} more than once; once is enough")
        boards = {host: cls(**{**settings, "host": host}) for host in hosts}
        for board in boards.values():
            board.pauses = ()  # another one takes its work at once
        first = boards[hosts[0]]
        return BoardPool(boards, first.name.replace(f"host={hosts[0]}", f"host={whole}", 1))

    def capabilities(self) -> Capabilities:
        """What the runtime on the board can do on its CPU; asked of the board once."""
        return Capabilities(**_tuples(self._known()["capabilities"]))

    def describe(self) -> dict[str, Any]:
        """Runtime, settings, versions and machine of the board; what changes from minute to minute is left out."""
        found = {**self._known()["describe"], "settings": dict(self.values)}
        return {**found, "installation": installation.identity()} if self._converts else found

    def facts(self) -> dict[str, Any]:
        """What only the runtime on the board can say, once it is loaded (versions, limits)."""
        return dict(self._known()["facts"])

    def moment(self) -> dict[str, Any]:
        """What changes there from minute to minute: load, free memory, temperature (degrees Celsius), frequency."""

        def ask() -> dict[str, Any]:
            self._connect()
            return dict(self._ask({"operation": "moment", "doing": "asking for the load"}, {}, []).header["moment"])

        return self._insisting(ask)

    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,
    ) -> list[Measurement]:
        """Measure ``models`` against ``models[0]`` there, as on this machine (see ``Target``)."""
        protocol = protocol or Protocol()
        paths = [Path(model) for model in models]
        check_request(paths, protocol)
        parcels = [self._packed(path) for path in paths]
        header = {
            "operation": "measure",
            "models": [parcel.key for parcel in parcels],
            "shapes": checked_shapes(shapes or {}),
            "protocol": asdict(protocol),
            "doing": "starting to measure",
        }
        arrays = {name: first_samples(array) for name, array in (inputs or {}).items()}

        def ask() -> Any:
            self._send(parcels, watch)
            return self._ask(header, arrays, parcels, watch)

        reply = self._insisting(ask, watch)
        return [self._measurement(*pair) for pair in zip(parcels, reply.header["measured"], strict=True)]

    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        """Outputs for all samples, computed there (see ``Target``)."""
        if batch < 1:
            raise TargetError(f"batch={batch} is not allowed; it must be 1 or more")
        parcel = self._packed(Path(model))
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        header = {"operation": "run", "model": parcel.key, "batch": batch, "doing": f"running {parcel.path}"}

        def ask() -> list[np.ndarray]:
            parts: list[list[np.ndarray]] = []
            counts: list[int] = []
            self._send([parcel])
            for piece in pieces(arrays, batch):
                reply = self._ask(header, piece, [parcel])
                parts.append([reply.arrays[str(number)] for number in range(reply.header["outputs"])])
                counts.append(len(next(iter(piece.values()))))
            return join(parts, counts)

        return self._insisting(ask)

    def audit(self, model: Path) -> tuple[Layer, ...] | None:
        """The products of the graph that is really executed there; None where the runtime does not show it."""
        parcel = self._packed(Path(model))
        header = {"operation": "audit", "model": parcel.key, "doing": f"auditing {parcel.path}"}

        def ask() -> Any:
            self._send([parcel])
            return self._ask(header, {}, [parcel]).header["layers"]

        found = self._insisting(ask)
        return None if found is None else tuple(Layer(**one) for one in found)

    def convert(self, model: Path, precision: str, samples: Mapping[str, np.ndarray], made: Path) -> Path | None:
        """Write what a runtime there takes in place of a float ``.onnx`` file, here (see ``Target``)."""
        if not self._converts:
            return None
        return conversion.convert(model, made_for(precision, self.capabilities()), samples, made).path

    @property
    def _converts(self) -> bool:
        return SUFFIX in self._runtime.takes

    def _packed(self, path: Path) -> Parcel:
        """What is sent for a file: where the runtime takes other ones, what it is converted to."""
        if path.suffix == SUFFIX and not self._converts:
            raise ModelError(f"{path}: {self.values['runtime']} runs .onnx files; runtime=litert-cpu runs this one")
        if not self._converts or path.suffix == SUFFIX:
            return pack_model(path)
        return replace(pack_model(conversion.float_file(path).path), path=path)

    def close(self) -> None:
        """End what runs on the board, and the connection to it."""
        with self._lock:
            if self.runner is not None and self.runner.alive:
                with suppress(CompressError):
                    self.runner.ask({"operation": "end", "doing": "ending"})
            self._part()

    def _known(self) -> dict[str, Any]:
        with self._lock:
            if self._facts is None:
                self._facts = self._insisting(self._ask_facts)
            return self._facts

    def _ask_facts(self) -> dict[str, Any]:
        self._connect()
        return dict(self._ask({"operation": "facts", "doing": "loading the runtime"}, {}, []).header)

    def _insisting(self, ask: Callable[[], _Answer], watch: Watch | None = None) -> _Answer:
        """What the board answers; what a lost connection cuts off is done again, after a pause that gets longer."""
        with self._lock:
            for pause in self.pauses:
                try:
                    return ask()
                except Disconnected as error:
                    if watch is not None:
                        watch(Estimate(self.name, f"{one_line(error)}; again in {pause:g} s"))
                time.sleep(pause)
            return ask()

    def _send(self, parcels: Sequence[Parcel], watch: Watch | None = None) -> None:
        """Connect, and bring over what is not there yet."""
        self._connect()
        wanted = {parcel.key: {part.name: part.size for part in parcel.parts} for parcel in parcels}
        header = {"operation": "has", "models": wanted, "doing": "looking which models are there"}
        missing = self._ask(header, {}, []).header["missing"]
        for key, parcel in {parcel.key: parcel for parcel in parcels}.items():
            for part in parcel.parts:
                if part.name in missing[key]:
                    self._copy(key, part, watch)

    def _copy(self, key: str, part: ParcelFile, watch: Watch | None) -> None:
        header = {"operation": "put", "key": key, "name": part.name, "size": part.size, "sha256": part.sha256}
        doing = f"copying {part.path} to {self.line.host}"
        with part.path.open("rb") as file:
            for offset in range(0, max(part.size, 1), _PIECE):
                data = np.frombuffer(file.read(_PIECE), np.uint8)
                self._ask({**header, "offset": offset, "doing": doing}, {"data": data}, [])
                if watch is not None:
                    done = f"{(offset + len(data)) / _MEGA:.1f} of {part.size / _MEGA:.1f} MB"
                    watch(Estimate(self.name, f"{doing} ({done})"))

    def _ask(
        self,
        header: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        parcels: Sequence[Parcel],
        watch: Watch | None = None,
    ) -> Any:
        """Ask the runner there; errors name files as they are called here."""
        with self._lock:
            if self.runner is None:
                raise TransientError(f"{self.name}: closed while {header['doing']}")
            ours = partial(self._ours, {f"{self._folder}/models/{one.key}/{MODEL}": str(one.path) for one in parcels})
            try:
                return self.runner.ask(header, arrays, self._heard(watch, ours))
            except TargetUnavailable as error:
                raise TargetUnavailable(f"{self.line.host}: {ours(str(error))}") from None
            except MeasurementError as error:
                text = ours(str(error))
                if text.startswith(self.name):  # said by the target there
                    raise type(error)(text) from None
                # What happens to the connection or to the runner has nothing to do with the model.
                kind = Disconnected if isinstance(error, Disconnected) else TransientError
                raise kind(f"{self.name}: {text}") from None
            except CompressError as error:
                raise type(error)(ours(str(error))) from None

    @staticmethod
    def _ours(names: Mapping[str, str], text: str) -> str:
        for there, here in names.items():
            text = text.replace(there, here)
        return text

    def _heard(self, watch: Watch | None, ours: Any) -> Heard:
        def heard(header: Mapping[str, Any]) -> None:
            if watch is not None and "beat" not in header:
                ratios = tuple((value, low, high) for value, low, high in header["ratios"])
                watch(Estimate(self.name, ours(header["stage"]), header["process"], header["processes"], ratios))

        return heard

    def _connect(self) -> None:
        """See that a runner is there. Once in an operation: one that goes away in the middle of it is a failure."""
        if self.runner is None or not self.runner.alive:
            self._part()
            try:
                self._folder = self._preparation().done()
            except MeasurementError as error:
                raise type(error)(f"{self.name}: {error}") from None
            path = f"{self._folder}/{bundle.make().name}"
            setup = {
                "name": self.name,
                "runtime": self.runtimes[self.values["runtime"]],
                "settings": {key: self.values[key] for key in self._runtime.settings},
                "cache": self._folder,
                "patience": self.patience,
                "memory_limit": self.memory_limit,
                "beat": min(2.0, self.silence / 5),
            }
            command = self.line.command(f"exec {quoted(self.values['python'])} {quoted(path)}")
            launch = Launch(command, os.environ, self._explain, remote=True)
            self.runner = WorkerProcess(setup, launch, patience=self.first)
            self._ask({"operation": "hello", "doing": "starting the runner"}, {}, [])
            self.runner.patience = self.silence

    def _part(self) -> None:
        """Let go of the runner and of the connection."""
        if self.runner is not None:
            self.runner.close()
            self.runner = None
        self.line.drop()

    def _preparation(self) -> Preparation:
        modules = ["numpy", *(name for name in self._runtime.requires if name != "numpy")]
        return Preparation(
            self.line, self.name, self.values["python"], self.values["cache"], modules, seconds=self.first
        )

    def _explain(self, status: int, stage: str, words: str) -> CompressError | None:
        host = self.line.host
        if status in (0, FAILED) or status < 0:
            said = f": {words}" if words else ""
            return Disconnected(f"lost the connection to {host} while {stage}{said}")
        if "no space" in words.lower():
            return TransientError(f"{words} on {host}; free some, or choose another folder with cache=FOLDER")
        return None

    def _measurement(self, parcel: Parcel, found: Mapping[str, Any]) -> Measurement:
        samples = tuple(Samples(**_tuples(one)) for one in found["samples"])
        latency: Latency = measuring.latency(samples)
        rest = {key: value for key, value in _tuples(found).items() if key != "samples"}
        size = parcel.path.stat().st_size
        return Measurement(path=parcel.path, target=self.name, size=size, latency=latency, samples=samples, **rest)


def _check_paths(values: Mapping[str, Any]) -> None:
    if not values["host"]:
        raise TargetError("target 'ssh' needs the name of a host: ssh:host=USER@HOST")
    for key in _PATHS:
        value = str(values[key])
        if value.startswith("-") or "," in value or not value.isprintable():
            raise TargetError(f"target 'ssh': {key}={value!r} is not allowed; {key} is a path without commas")


def _default(known: Mapping[str, Setting], key: str, value: Any) -> bool:
    return key in known and value == known[key].default


def _tuples(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in document.items()}


def _list(names: Any) -> str:
    return ", ".join(names)
