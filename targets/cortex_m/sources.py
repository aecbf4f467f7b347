"""The public sources that the interpreter is built from: pinned by commit, checked file by file.

``sources.lock`` names every file that is used, with its SHA-256; whatever else an archive holds is left alone. The
files come from the projects' repositories on GitHub, or from an archive that is given (``--sources FILE``, or the
environment variable PARETOPRESS_SOURCES), which holds the same files in the same folders: tflm/, cmsis_nn/, cmsis/,
flatbuffers/, gemmlowp/, ruy/.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from targets.emulated_arm import debian
from targets.errors import TargetUnavailable

VARIABLE = "PARETOPRESS_SOURCES"
LOCK = Path(__file__).with_name("sources.lock")
_PATCH = "tensorflow/lite/micro/tools/make/flatbuffers.patch"
"""What TensorFlow Lite Micro changes in flatbuffers, in its own repository."""


@dataclass(frozen=True)
class Repository:
    """Where a folder of the sources comes from."""

    name: str
    commit: str

    @property
    def archive(self) -> str:
        """The address of everything in it at that commit, as a ``.tar.gz`` file."""
        return f"https://github.com/{self.name}/archive/{self.commit}.tar.gz"


REPOSITORIES: Mapping[str, Repository] = {
    "tflm": Repository("tensorflow/tflite-micro", "90b983c2b3f1480642e040bbd2ddb37b998f3424"),
    "cmsis_nn": Repository("ARM-software/CMSIS-NN", "4ab83cc3cc98fb85ed6dafb55e8ca02f1628dcae"),
    "cmsis": Repository("ARM-software/CMSIS_6", "5782d6f8057906d360f4b95ec08a2354afe5c9b9"),
    "flatbuffers": Repository("google/flatbuffers", "187240970746d00bbd26b0f5873ed54d2477f9f3"),
    "gemmlowp": Repository("google/gemmlowp", "719139ce755a0f31cbf1c37f7f98adcc7fc9f425"),
    "ruy": Repository("google/ruy", "d37128311b445e758136b8602d1bbd2a755e115d"),
}

Say = Callable[[str], None]


def locked() -> dict[str, str]:
    """Path below the sources -> SHA-256, of every file that is used."""
    lines = (line.split(maxsplit=1) for line in LOCK.read_text().splitlines() if line and not line.startswith("#"))
    return {path: digest for digest, path in lines}


def lock_hash() -> str:
    """A hash of all sources."""
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def given_archive() -> Path | None:
    """The archive that the environment names."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else None


def put_sources(folder: Path, archive: Path | None, say: Say, fetch: debian.Fetch = debian.fetch) -> None:
    """Write all sources below ``folder``, from ``archive`` or from their repositories.

    Raises TargetUnavailable, naming the file, where one is missing or is not the pinned one.
    """
    wanted = locked()
    found = _from_archive(archive, wanted) if archive else _from_repositories(wanted, say, fetch)
    origin = str(archive) if archive else "the repositories"
    for path, digest in wanted.items():
        data = found.get(path)
        if data is None:
            raise TargetUnavailable(f"{origin}: there is no {path}; other sources than the pinned ones do not serve")
        if hashlib.sha256(data).hexdigest() != digest:
            raise TargetUnavailable(f"{origin}: {path} is not the pinned file; get the sources anew")
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def _from_archive(archive: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    try:
        with tarfile.open(archive) as opened:
            return {path: data for path, data in _files(opened) if path in wanted}
    except (OSError, tarfile.TarError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TargetUnavailable(f"the archive of sources {str(archive)!r} cannot be read ({reason})") from None


def _from_repositories(wanted: Mapping[str, str], say: Say, fetch: debian.Fetch) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    patch = ""
    for folder, repository in REPOSITORIES.items():
        say(f"sources: {repository.name} at {repository.commit[:12]}")
        try:
            packed = fetch(repository.archive)
        except TargetUnavailable as error:
            raise TargetUnavailable(f"{error}; or give an archive with --sources FILE or {VARIABLE}") from None
        with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
            for inside, data in _files(opened):
                # All lies in one folder, named after repository and commit.
                path = f"{folder}/{inside.partition('/')[2]}"
                if path in wanted:
                    found[path] = data
                elif path == f"tflm/{_PATCH}":
                    patch = data.decode()
    for path, text in patched(patch, {path: data for path, data in found.items() if path.startswith("flatbuffers/")}):
        found[path] = text
    return found


def _files(opened: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in opened:
        content = opened.extractfile(member) if member.isfile() else None
        if content is not None:
            yield member.name.removeprefix("./"), content.read()


def patched(patch: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """The files that a unified diff changes, changed; those that are not there are passed over.

    Raises TargetUnavailable where the patch does not fit.
    """
    for part in patch.split("\n+++ b/")[1:]:
        name, _, rest = part.partition("\n")
        path = f"flatbuffers/{name.strip()}"
        if path in files:
            yield path, _changed(path, files[path].decode(), rest.partition("\ndiff --git ")[0]).encode()


def _changed(path: str, text: str, hunks: str) -> str:
    lines = text.split("\n")
    kept: list[str] = []
    done = 0
    for hunk in hunks.split("\n@@ -" if not hunks.startswith("@@ -") else "@@ -"):
        header, _, body = hunk.partition("\n")
        if not header.strip():
            continue
        start, _, length = header.split()[0].partition(",")
        first, count = int(start) - 1, int(length or 1)
        changed = [line for line in body.split("\n") if line[:1] in ("", " ", "+", "-")]
        before, after, taken = list[str](), list[str](), 0
        for line in changed:
            if taken == count and line[:1] != "+":
                break
            if line[:1] != "+":
                before.append(line[1:])
                taken += 1
            if line[:1] != "-":
                after.append(line[1:])
        if lines[first : first + count] != before:
            raise TargetUnavailable(f"the patch of {path} does not fit; get the sources anew")
        kept += [*lines[done:first], *after]
        done = first + count
    return "\n".join([*kept, *lines[done:]])
