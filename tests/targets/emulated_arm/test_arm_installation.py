"""Installing the emulated ARM system: what is chosen from Debian's index, refused, and said to be missing."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest

from targets.emulated_arm import arm_installation, debian
from targets.errors import TargetUnavailable

INDEX = """\
Package: python3
Version: 3.11.2-1
Depends: libpython3 (= 3.11.2-1), editor | nano
Pre-Depends: libc6 (>= 2.34)
Description: a language
 Depends: not a field, a continuation
Filename: pool/python3.deb
SHA256: 11

Package: libpython3
Version: 3.11.2-1
Depends: libc6:any (>= 2.34) [arm64], media-types | mime-support
Filename: pool/libpython3.deb
SHA256: 22

Package: libc6
Version: 2.36-9
Depends: libgcc-s1
Filename: pool/libc6.deb
SHA256: 33

Package: libgcc-s1
Version: 12.2
Depends: libc6 (>= 2.35)
Filename: pool/libgcc.deb
SHA256: 44

Package: nano
Version: 7
Filename: pool/nano.deb
SHA256: 55

Package: mailcap
Version: 3
Provides: mime-support (= 3), something
Filename: pool/mailcap.deb
SHA256: 66

Package: nano
Version: 6
Filename: pool/older.deb
SHA256: 77
"""


@pytest.fixture
def no_gpgv(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *rest: None if name == "gpgv" else which(name, *rest))


def deb(files: dict[str, bytes], member: str = "data.tar.xz") -> bytes:
    """A package: an ``ar`` archive whose data member holds ``files``."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    out = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0"), (member, packed.getvalue())):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    return out


def mirror(index: str, packages: dict[str, bytes], *, lie: bool = False) -> Callable[[str], bytes]:
    """A fetch function that serves a signed-looking release."""
    packed = lzma.compress(index.encode())
    name = "main/binary-arm64/Packages.xz"
    listed = "0" * 64 if lie else hashlib.sha256(packed).hexdigest()
    release = (
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nSuite: s\nMD5Sum:\n x 1 y\nSHA256:\n"
        f" {'1' * 64} 5 {name}.other\n {listed} {len(packed)} {name}\n-----BEGIN PGP SIGNATURE-----\nabc\n"
    )
    served = {"m/dists/s/InRelease": release.encode(), f"m/dists/s/{name}": packed}
    served |= {f"m/{path}": data for path, data in packages.items()}
    return served.__getitem__


def test_all_that_is_depended_on_is_chosen_once():
    chosen = debian.closure(debian.parse_index(INDEX), ["python3"])
    assert [one.name for one in chosen] == ["libc6", "libgcc-s1", "libpython3", "mailcap", "nano", "python3"]
    assert {one.name: one.version for one in chosen}["nano"] == "7"


def test_what_is_left_out_is_not_followed():
    chosen = debian.closure(debian.parse_index(INDEX), ["python3"], {"libpython3", "editor"})
    assert [one.name for one in chosen] == ["libc6", "libgcc-s1", "python3"]


def test_an_alternative_that_was_chosen_already_is_enough():
    index = debian.parse_index(INDEX.replace("media-types | mime-support", "emacs | nano"))
    assert "mailcap" not in [one.name for one in debian.closure(index, ["python3"])]


def test_a_dependency_that_is_nowhere_is_named():
    index = debian.parse_index(INDEX.replace("Package: mailcap", "Package: other").replace("mime-support (= 3), ", ""))
    with pytest.raises(TargetUnavailable, match="no media-types or mime-support, which libpython3 depends on"):
        debian.closure(index, ["python3"])


@pytest.mark.usefixtures("no_gpgv")
def test_a_release_leads_to_checked_packages(tmp_path):
    package = deb({"./usr/bin/tool": b"content"})
    index = f"Package: tool\nVersion: 1\nFilename: pool/t.deb\nSHA256: {hashlib.sha256(package).hexdigest()}\n"
    release = debian.Release("m", "s", "arm64", mirror(index, {"pool/t.deb": package}))
    assert "not checked (gpgv is missing)" in release.signature
    debian.unpack(release.package(release.index["tool"]), tmp_path)
    assert (tmp_path / "usr" / "bin" / "tool").read_bytes() == b"content"


@pytest.mark.usefixtures("no_gpgv")
def test_a_package_or_an_index_that_was_changed_is_refused():
    index = f"Package: tool\nVersion: 1\nFilename: pool/t.deb\nSHA256: {'1' * 64}\n"
    release = debian.Release("m", "s", "arm64", mirror(index, {"pool/t.deb": b"other"}))
    with pytest.raises(TargetUnavailable, match=r"m/pool/t.deb has SHA-256 .*expected 1111"):
        release.package(release.index["tool"])
    with pytest.raises(TargetUnavailable, match=r"Packages.xz has SHA-256 .*expected 0000"):
        debian.Release("m", "s", "arm64", mirror(index, {}, lie=True))


@pytest.mark.usefixtures("no_gpgv")
def test_a_portal_in_debians_place_is_noticed():
    with pytest.raises(TargetUnavailable, match="not a signed text; is a proxy or a portal"):
        debian.Release("m", "s", "arm64", lambda _: b"<html>please log in</html>")


@pytest.mark.skipif(
    shutil.which("gpgv") is None or not debian.KEYRING.is_file(),
    reason="needs gpgv and Debian's keys; run: apt-get install gpgv debian-archive-keyring",
)
def test_a_release_that_debian_did_not_sign_is_refused():
    with pytest.raises(TargetUnavailable, match="not signed by a key of"):
        debian.Release("m", "s", "arm64", mirror(INDEX, {}))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"hello", "not a Debian package"),
        (b"!<arch>\n" + b"x" * 80, "damaged"),
        (deb({}, member="control.tar.xz"), "without files"),
        (deb({"./a": b"b" * 100}).replace(b"\xfd7zXZ", b"\xfd7zXX"), "cannot be unpacked"),
    ],
)
def test_what_is_no_package_is_said(data, said, tmp_path):
    with pytest.raises(TargetUnavailable, match=said):
        debian.unpack(data, tmp_path)


@pytest.mark.skipif(
    not hasattr(tarfile, "tar_filter"), reason="this Python's tarfile cannot refuse; take 3.11.4 or later"
)
def test_a_package_writes_nothing_outside(tmp_path):
    with pytest.raises(TargetUnavailable, match="cannot be unpacked"):
        debian.unpack(deb({"../outside": b"x"}), tmp_path / "root")
    assert not (tmp_path / "outside").exists()


def test_no_network_is_said_with_the_address(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(
        TargetUnavailable, match=r"https://x/y cannot be fetched \(Name or service not known\).*network"
    ):
        debian.fetch("https://x/y")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts programs that do as told on an otherwise empty PATH, and the installation in an empty place."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv(arm_installation.VARIABLE, str(tmp_path / "system"))

    def add(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return add


def test_all_missing_programs_are_named_at_once(programs):
    with pytest.raises(TargetUnavailable) as caught:
        arm_installation.install_system()
    assert "qemu-aarch64 (run: apt-get install qemu-user)" in str(caught.value)
    assert "C compiler (run: apt-get install gcc)" in str(caught.value)
    programs("qemu-aarch64", "echo 'qemu-aarch64 version 7.2.22'")
    with pytest.raises(TargetUnavailable) as caught:
        arm_installation.install_system()
    assert "qemu" not in str(caught.value)


def test_half_an_installation_is_none(programs, tmp_path):
    def offline(url: str) -> bytes:
        raise TargetUnavailable(f"{url} cannot be fetched")

    programs("qemu-aarch64", "echo 'qemu-aarch64 version 7.2.22'")
    programs("cc", "exit 0")
    with pytest.raises(TargetUnavailable, match="bookworm/InRelease cannot be fetched"):
        arm_installation.install_system(fetch=offline)
    assert [one.name for one in tmp_path.iterdir()] == ["bin"]
    assert "an ARM system" in str(arm_installation.missing())


@pytest.mark.parametrize(("version", "api"), [("7.2.22", 1), ("8.2.2", 1), ("9.0.0", 2), ("10.1.2", 2)])
def test_the_plugin_is_built_for_the_emulators_interface(programs, tmp_path, version, api):
    programs("cc", f'echo "$@" > {tmp_path}/said')
    arm_installation.build_plugin(tmp_path / "p.so", version)
    assert f"-DAPI_VERSION={api} " in (tmp_path / "said").read_text()


def test_a_compiler_that_fails_is_quoted(programs, tmp_path):
    programs("cc", "echo 'fatal error: stdint.h: No such file' >&2; exit 1")
    with pytest.raises(TargetUnavailable, match=r"counting plugin cannot be had: fatal error: stdint.h"):
        arm_installation.build_plugin(tmp_path / "p.so", "7.2")


def test_a_place_that_cannot_be_written_is_said(programs, tmp_path, monkeypatch):
    programs("qemu-aarch64", "exit 0")
    programs("cc", "exit 0")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(arm_installation.VARIABLE, str(tmp_path / "file" / "system"))
    with pytest.raises(TargetUnavailable, match=f"cannot be written .*set {arm_installation.VARIABLE}"):
        arm_installation.install_system()


def test_an_installation_of_another_version_does_not_serve(tmp_path):
    good = {"format": arm_installation.FORMAT, "plugin": arm_installation.file_hash(arm_installation.PLUGIN)}
    for document, serves in (
        (good, True),
        ({**good, "format": 0}, False),
        ({**good, "plugin": "x"}, False),
        ([], False),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(document))
        assert bool(arm_installation.manifest(tmp_path)) is serves
    (tmp_path / "manifest.json").write_text("{")
    assert arm_installation.manifest(tmp_path) is None


def test_the_place_is_in_the_users_data_folder(monkeypatch):
    monkeypatch.delenv(arm_installation.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert arm_installation.place() == Path("/data/paretopress/arm-emulated")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert arm_installation.place() == Path.home() / ".local/share/paretopress/arm-emulated"


def test_nothing_of_our_environment_reaches_the_guest(monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "x")
    monkeypatch.setenv("LD_PRELOAD", "y")
    variables = arm_installation.guest_environment()
    assert not {"SOME_SECRET", "LD_PRELOAD"} & set(variables)
    assert variables["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_command_says_what_is_missing(tmp_path):
    words = [sys.executable, "-m", "compress.commands.command_line", "targets", "--install", "arm-emulated"]
    environment = {**os.environ, "PATH": str(tmp_path), arm_installation.VARIABLE: str(tmp_path / "system")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "apt-get install qemu-user" in done.stderr
    assert done.stderr.count("\n") == 1
