"""Models on a device: what was not used for long makes room."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time

import pytest

from targets.boards import device_cache
from targets.errors import MeasurementError, TransientError


def test_models_that_were_not_used_for_long_make_room(tmp_path, monkeypatch):
    def put(cache, fill: int, size: int) -> str:
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


@pytest.mark.parametrize("parts", [["model.onnx"], ["model.onnx", "weights.bin"]])
def test_a_model_that_went_bad_on_the_device_is_sent_again(tmp_path, parts):
    content = {name: name.encode() * 50 for name in parts}
    hashes = [[name, hashlib.sha256(data).hexdigest()] for name, data in content.items()]
    key = hashes[0][1] if len(parts) == 1 else hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    wanted = {key: {name: len(data) for name, data in content.items()}}
    cache = device_cache.DeviceCache(tmp_path)

    def send():
        for name, sha256 in hashes:
            assert cache.receive(device_cache.Piece(key, name, len(content[name]), sha256, 0), content[name])

    assert cache.missing(wanted) == {key: parts}
    send()
    assert cache.missing(wanted) == {key: []}
    last = tmp_path / "models" / key / parts[-1]
    last.write_bytes(b"#" + last.read_bytes()[1:])  # as many bytes as before
    assert cache.missing(wanted) == {key: parts}
    send()
    assert cache.missing(wanted) == {key: []}
    last.write_bytes(b"")
    assert cache.missing(wanted) == {key: parts[-1:]}
    cache.close()


DATA = b"a model" * 10
KEY = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def cache(tmp_path):
    made = device_cache.DeviceCache(tmp_path / "cache")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("key", "name"),
    [(KEY, "../m.onnx"), (KEY, "/etc/passwd"), (KEY, ""), (KEY[:-1], "m.onnx"), ("../" + KEY[3:], "m.onnx")],
)
def test_names_that_lead_elsewhere_are_no_place_for_a_model(cache, key, name):
    assert cache.path(KEY, "weights/w.bin").parent.parent.name == KEY
    with pytest.raises(MeasurementError, match=r"is no place for a model$"):
        cache.path(key, name)


def _piece(offset, sha256=KEY):
    return device_cache.Piece(KEY, "model.onnx", len(DATA), sha256, offset)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([(_piece(7), DATA[7:])], "a part of a file is missing before byte 7"),
        ([(_piece(0), DATA[:7]), (_piece(14), DATA[14:])], "a part of a file is missing before byte 14"),
        ([(_piece(0), DATA + b"more")], "the file changed while it was sent"),
        ([(_piece(0), DATA[:-1] + b"!")], "the file changed while it was sent"),
        ([(_piece(0, sha256="0" * 64), DATA)], "the file changed while it was sent"),
    ],
)
def test_bytes_that_are_not_those_announced_are_not_kept(cache, pieces, said):
    *before, last = pieces
    assert not any(cache.receive(*one) for one in before)
    with pytest.raises(TransientError, match=said):
        cache.receive(*last)
    assert not list(cache.folder.rglob("part"))
    assert cache.missing({KEY: {"model.onnx": len(DATA)}}) == {KEY: ["model.onnx"]}
    assert not cache.receive(_piece(0), DATA[:9])
    assert cache.receive(_piece(9), DATA[9:]), "it can be sent again"


def test_a_model_for_which_there_is_no_room_is_not_begun(cache, monkeypatch):
    real = shutil.disk_usage(cache.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=len(DATA) - 1))
    with pytest.raises(TransientError, match=r"no space left on the device in .* free some, or choose another folder"):
        cache.receive(_piece(0), DATA)
    assert not list(cache.folder.rglob("part"))


def test_a_folder_that_became_read_only_is_said(cache, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(TransientError, match=r"^cannot write to .*cache on the device: Read-only file system$"):
        cache.receive(_piece(0), DATA)
