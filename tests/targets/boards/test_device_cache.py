"""Models on a device: what was not used for long makes room."""

from __future__ import annotations

import hashlib
import json
import os
import time

import pytest

from targets.boards import device_cache


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
