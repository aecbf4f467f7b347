"""Packages of a Debian release for another architecture, fetched and unpacked without apt, dpkg or root.

    InRelease (signed) -> hash of Packages.xz -> hash of every package -> its files

Nothing is configured: no maintainer script runs, so packages that only serve that are left out by the caller.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.errors import TargetUnavailable

Fetch = Callable[[str], bytes]
"""The bytes at an address; raises TargetUnavailable where it cannot be had."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SECONDS = 60
"""Of silence after which a server is given up."""
_BEGIN = "-----BEGIN PGP SIGNED MESSAGE-----"
_END = "-----BEGIN PGP SIGNATURE-----"
_STRANGER = "is a proxy or a portal answering in Debian's place?"


@dataclass(frozen=True)
class Package:
    """One paragraph of the index; ``depends`` holds, for each dependency, the names that satisfy it, best first."""

    name: str
    version: str
    filename: str
    sha256: str
    depends: tuple[tuple[str, ...], ...] = ()
    provides: tuple[str, ...] = ()


def fetch(url: str) -> bytes:
    """The bytes at ``url``, asked for twice at most; raises TargetUnavailable where they cannot be fetched."""
    try:
        return _read(url)
    except OSError:
        try:
            return _read(url)
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise TargetUnavailable(f"{url} cannot be fetched ({reason}); this needs the network") from None


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
        data: bytes = answer.read()
    return data


def parse_index(text: str) -> dict[str, Package]:
    """Name -> package, from the text of a ``Packages`` file; of several versions the first."""
    found: dict[str, Package] = {}
    for paragraph in text.split("\n\n"):
        fields = dict(_fields(paragraph))
        if "Package" not in fields or "Filename" not in fields:
            continue
        package = Package(
            fields["Package"],
            fields["Version"],
            fields["Filename"],
            fields["SHA256"],
            (*_alternatives(fields.get("Pre-Depends", "")), *_alternatives(fields.get("Depends", ""))),
            tuple(names[0] for names in _alternatives(fields.get("Provides", ""))),
        )
        found.setdefault(package.name, package)
    return found


def _fields(paragraph: str) -> Iterator[tuple[str, str]]:
    for line in paragraph.splitlines():
        name, colon, value = line.partition(":")
        if colon and not line[:1].isspace():
            yield name, value.strip()


def _alternatives(text: str) -> tuple[tuple[str, ...], ...]:
    """``a (>= 1), b:any | c`` as ``(("a",), ("b", "c"))``: a release fits together, so versions are not compared."""
    groups = []
    for group in text.split(","):
        names = [re.split(r"[\s:(\[<]", one.strip(), maxsplit=1)[0] for one in group.split("|")]
        if names != [""]:
            groups.append(tuple(names))
    return tuple(groups)


def closure(index: Mapping[str, Package], wanted: Sequence[str], without: Collection[str] = ()) -> list[Package]:
    """``wanted`` and all they depend on, by name; alternatives are tried in order.

    ``without`` are names taken to be there. Raises TargetUnavailable for a dependency the index lacks.
    """
    providers: dict[str, Package] = {}
    for package in index.values():
        for name in package.provides:
            providers.setdefault(name, package)
    chosen: dict[str, Package] = {}
    waiting: list[tuple[tuple[str, ...], str]] = [((name,), "what was asked for") for name in wanted]
    while waiting:
        names, owner = waiting.pop()
        if any(name in without or name in chosen for name in names):
            continue
        found = next((one for name in names if (one := index.get(name) or providers.get(name))), None)
        if found is None:
            raise TargetUnavailable(f"the package index has no {' or '.join(names)}, which {owner} depends on")
        if found.name not in chosen:
            chosen[found.name] = found
            waiting += [(group, found.name) for group in found.depends]
    return sorted(chosen.values(), key=lambda package: package.name)


class Release:
    """A release on a mirror: its index, checked against its signed list of hashes."""

    def __init__(self, mirror: str, suite: str, architecture: str, fetch: Fetch = fetch) -> None:
        self._mirror, self._fetch = mirror, fetch
        folder = f"{mirror}/dists/{suite}"
        signed = fetch(f"{folder}/InRelease")
        self.signature = check_signature(signed)
        """How the index is known to be Debian's, in words."""
        name = f"main/binary-{architecture}/Packages.xz"
        packed = checked(fetch(f"{folder}/{name}"), _hash_of(_signed_part(signed), name), f"{folder}/{name}")
        self.index = parse_index(lzma.decompress(packed).decode(errors="replace"))

    def package(self, package: Package) -> bytes:
        """The ``.deb`` file; raises TargetUnavailable where it is not the one of the index."""
        url = f"{self._mirror}/{package.filename}"
        return checked(self._fetch(url), package.sha256, url)


def check_signature(signed: bytes, keyring: Path = KEYRING) -> str:
    """How an ``InRelease`` file was checked, in words; raises TargetUnavailable if its signature is wrong."""
    gpgv = shutil.which("gpgv")
    if gpgv is None or not keyring.is_file():
        lacking = "gpgv" if gpgv is None else str(keyring)
        return f"signature not checked ({lacking} is missing), fetched over https"
    with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
        file = Path(folder) / "InRelease"
        file.write_bytes(signed)
        said = subprocess.run(
            [gpgv, "--status-fd", "1", "--keyring", str(keyring), str(file)], capture_output=True, text=True
        ).stdout
    # It may be signed by keys this machine does not know yet as well; one good signature is enough.
    if "[GNUPG:] GOODSIG" not in said or "[GNUPG:] BADSIG" in said:
        raise TargetUnavailable(f"the release file is not signed by a key of {keyring}; {_STRANGER}")
    return f"signature checked with gpgv and {keyring}"


def _signed_part(signed: bytes) -> str:
    """What the signature covers: text before or after it is nobody's."""
    text = signed.decode(errors="replace")
    if not text.startswith(_BEGIN) or text.count(_END) != 1:
        raise TargetUnavailable(f"the release file is not a signed text; {_STRANGER}")
    return text[len(_BEGIN) : text.index(_END)]


def _hash_of(release: str, name: str) -> str:
    """SHA-256 of a file in the release's list."""
    listed = release.partition("\nSHA256:\n")[2]
    found = re.search(rf"^ ([0-9a-f]{{64}})\s+\d+ {re.escape(name)}$", listed, re.MULTILINE)
    if found is None:
        raise TargetUnavailable(f"the release file lists no {name}")
    return found.group(1)


def checked(data: bytes, sha256: str, what: str) -> bytes:
    """Give ``data`` back if its SHA-256 is that one; raises TargetUnavailable, naming ``what``, if not."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise TargetUnavailable(f"{what} has SHA-256 {found[:16]}…, expected {sha256[:16]}…; try again later")
    return data


def unpack(deb: bytes, folder: Path) -> None:
    """Write a package's files below ``folder``; raises TargetUnavailable for what is no package."""
    for name, body in _members(deb):
        if name.startswith("data.tar"):
            # Refuses what leads outside; a Python that lacks it has only the signature to trust.
            careful: Any = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
            try:
                with tarfile.open(fileobj=io.BytesIO(body)) as archive:
                    archive.extractall(folder, **careful)
            except (tarfile.TarError, OSError, EOFError) as error:
                raise TargetUnavailable(f"a package cannot be unpacked into {folder}: {error}") from None
            return
    raise TargetUnavailable("a package without files; it cannot be unpacked")


def _members(deb: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an ``ar`` archive: a header of 60 bytes before each, all at even places."""
    if not deb.startswith(b"!<arch>\n"):
        raise TargetUnavailable("not a Debian package; it cannot be unpacked")
    place = 8
    while place + 60 <= len(deb):
        name, size = deb[place : place + 16].decode(errors="replace").strip().rstrip("/"), deb[place + 48 : place + 58]
        if not size.strip().isdigit():
            raise TargetUnavailable("a damaged Debian package; it cannot be unpacked")
        yield name, deb[place + 60 : place + 60 + int(size)]
        place += 60 + int(size) + int(size) % 2
