"""The pinned sources: every file is checked, a patch is applied as its authors meant it, and what is wrong is named."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from targets.cortex_m import sources
from targets.errors import TargetUnavailable

PATCH = """\
From: someone
diff --git a/include/one.h b/include/one.h
index 1..2 100644
--- a/include/one.h
+++ b/include/one.h
@@ -1,3 +1,4 @@
 first
+added
 second
 third
@@ -6,3 +7,2 @@ a heading
 sixth
-seventh
 eighth
diff --git a/tests/other.h b/tests/other.h
--- a/tests/other.h
+++ b/tests/other.h
@@ -1 +1 @@
-x
+y
--
2.52.0
"""
BEFORE = b"first\nsecond\nthird\nfourth\nfifth\nsixth\nseventh\neighth\nninth\n"
AFTER = b"first\nadded\nsecond\nthird\nfourth\nfifth\nsixth\neighth\nninth\n"


def _archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def lock(tmp_path, monkeypatch) -> dict[str, bytes]:
    """Two files are wanted."""
    files = {"tflm/a.cc": b"int a;\n", "flatbuffers/include/one.h": AFTER}
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    (tmp_path / "lock").write_text("# names\n" + "".join(lines))
    monkeypatch.setattr(sources, "LOCK", tmp_path / "lock")
    return files


def test_the_lock_names_every_repository():
    folders = {path.partition("/")[0] for path in sources.locked()}
    assert folders == set(sources.REPOSITORIES)
    assert all(len(digest) == 64 and ".." not in path for path, digest in sources.locked().items())


def test_an_archive_is_unpacked_and_what_is_not_wanted_is_left(tmp_path, lock):
    archive = _archive(tmp_path / "s.tar.xz", {**lock, "tflm/b.cc": b"int b;\n", "../evil": b"!"})
    sources.put_sources(tmp_path / "made", archive, print)
    assert {str(p.relative_to(tmp_path / "made")) for p in (tmp_path / "made").rglob("*") if p.is_file()} == set(lock)
    assert (tmp_path / "made" / "tflm/a.cc").read_bytes() == lock["tflm/a.cc"]


def test_another_file_than_the_pinned_one_is_refused(tmp_path, lock):
    archive = _archive(tmp_path / "s.tar.xz", {**lock, "tflm/a.cc": b"int c;\n"})
    with pytest.raises(TargetUnavailable, match=r"s\.tar\.xz: tflm/a\.cc is not the pinned file"):
        sources.put_sources(tmp_path / "made", archive, print)


@pytest.mark.usefixtures("lock")
def test_a_missing_file_and_a_missing_archive_are_named(tmp_path):
    with pytest.raises(TargetUnavailable, match=r"there is no tflm/a\.cc; other sources than the pinned"):
        sources.put_sources(tmp_path / "made", _archive(tmp_path / "s.tar.xz", {}), print)
    with pytest.raises(TargetUnavailable, match=r"none\.tar' cannot be read \(No such file or directory\)"):
        sources.put_sources(tmp_path / "made", tmp_path / "none.tar", print)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(TargetUnavailable, match=r"text' cannot be read"):
        sources.put_sources(tmp_path / "made", tmp_path / "text", print)


@pytest.mark.usefixtures("lock")
def test_repositories_are_fetched_by_commit_and_patched(tmp_path):
    def packed(folder: str, files: dict[str, bytes]) -> bytes:
        inside = {f"{folder}-0123/{name}": data for name, data in files.items()}
        return _archive(tmp_path / "fetched.tar", inside).read_bytes()

    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        if "tflite-micro" in url:
            return packed("tflite-micro", {"a.cc": b"int a;\n", sources._PATCH: PATCH.encode()})
        return packed("flatbuffers", {"include/one.h": BEFORE, "tests/other.h": b"x\n"} if "flatbuffers" in url else {})

    said: list[str] = []
    sources.put_sources(tmp_path / "made", None, said.append, fetch)
    assert (tmp_path / "made" / "flatbuffers/include/one.h").read_bytes() == AFTER
    assert len(asked) == len(said) == len(sources.REPOSITORIES)
    assert all(one.commit in url for one, url in zip(sources.REPOSITORIES.values(), asked, strict=True))


@pytest.mark.usefixtures("lock")
def test_without_the_network_the_archive_is_the_remedy(tmp_path):
    def fetch(url: str) -> bytes:
        raise TargetUnavailable(f"{url} cannot be fetched (no route)")

    with pytest.raises(TargetUnavailable, match=r"no route\); or give an archive with --sources FILE or PARETOPRESS_"):
        sources.put_sources(tmp_path / "made", None, print, fetch)


def test_a_patch_that_does_not_fit_is_refused():
    with pytest.raises(TargetUnavailable, match=r"patch of flatbuffers/include/one\.h does not fit"):
        dict(sources.patched(PATCH, {"flatbuffers/include/one.h": BEFORE.replace(b"seventh", b"7th")}))


def test_a_source_given_by_the_environment(monkeypatch):
    monkeypatch.setenv(sources.VARIABLE, "~/s.tar.xz")
    assert sources.given_archive() == Path.home() / "s.tar.xz"
    monkeypatch.delenv(sources.VARIABLE)
    assert sources.given_archive() is None
