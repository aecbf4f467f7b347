"""What runs first on a device, run here: folders that cannot be used are said and left as they were."""

from __future__ import annotations

import hashlib
import os

import pytest

from targets.boards import boot

RUNNER = b"a runner"


def _asked(folder):
    return {"cache": str(folder), "runner": "r.zip", "sha256": hashlib.sha256(RUNNER).hexdigest(), "modules": ["json"]}


def test_the_runner_is_stored_once_it_has_come_whole(tmp_path):
    asked = _asked(tmp_path / "new" / "cache")
    assert boot.look(asked, b"")["there"] is False
    assert boot.look(asked, RUNNER[:-1])["there"] is False
    found = boot.look(asked, RUNNER)
    assert (found["there"], found["missing"], found["broken"]) == (True, [], "")
    assert boot.look(asked, b"")["there"] is True
    assert (tmp_path / "new" / "cache").stat().st_mode & 0o777 == 0o700


def test_a_folder_of_somebody_elses_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    found = boot.look(_asked(tmp_path), RUNNER)
    assert found["problem"] == [1, "it belongs to another user"]
    assert found["free"] > 0
    assert "there" not in found
    assert list(tmp_path.iterdir()) == []


def test_half_a_runner_is_not_left(tmp_path):
    (tmp_path / "r.zip" / "taken").mkdir(parents=True)
    found = boot.look(_asked(tmp_path), RUNNER)
    assert found["problem"][1] == "Is a directory"
    assert [path.name for path in tmp_path.iterdir()] == ["r.zip"]


@pytest.mark.parametrize("place", ["absent/below", "."])
def test_the_room_is_that_of_where_the_folder_would_be(tmp_path, place):
    assert boot._free(str(tmp_path / place)) > 0
