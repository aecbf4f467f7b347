"""The one small file that is sent to a device: our own modules, as a zip that Python runs as it is.

It holds what ``remote.py`` and the runtimes import, and nothing else: found by following the imports, so that a module
that one of them comes to need is sent as well. The same sources give the same bytes; its name carries their hash.
"""

from __future__ import annotations

import ast
import base64
import functools
import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from targets.boards.boot import MARK
from targets.boards.remote import RUNTIMES

OLDEST = (3, 9)
"""The Python that what is sent needs at least."""
_ROOT = Path(__file__).resolve().parents[2]
"""The folder that the package ``targets`` lies in."""
_MAIN = "from targets.boards.remote import main\n\nmain()\n"
_OLD = "import sys;print('" + MARK + '{"python":%s}\' % list(sys.version_info[:3]))'


@dataclass(frozen=True)
class Bundle:
    """``name`` of the file, its bytes, and their SHA-256 in hex."""

    name: str
    data: bytes
    sha256: str


@functools.cache
def make() -> Bundle:
    """Make the file that a device runs, with all modules that it needs; made once in a process."""
    buffer = io.BytesIO()
    # Not compressed: zlib's output differs between versions, and a device may lack it.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry("__main__.py"), _MAIN)
        for module in modules():
            file = source_file(module)
            archive.writestr(_entry(file.relative_to(_ROOT).as_posix()), file.read_bytes())
    data = buffer.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    return Bundle(f"runner-{sha256[:16]}.zip", data, sha256)


def modules() -> tuple[str, ...]:
    """Names of our modules that a device needs, as ``targets.workers.worker``, sorted; with the folders they lie in."""
    places = [place.partition(":")[0] for place in RUNTIMES.values()]
    waiting = ["targets.boards.remote", "targets.workers.worker", *places]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found or not source_file(name).is_file():  # a function or a class, not a module
            continue
        found.add(name)
        waiting += [parent for parent in [name.rpartition(".")[0]] if parent]
        waiting += imported_modules(source_file(name).read_text(encoding="utf-8"))
    return tuple(sorted(found))


def source_file(module: str) -> Path:
    """The file of one of our modules by its name, of a folder its ``__init__.py``; there may be no such file."""
    place = _ROOT.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def imported_modules(source: str) -> list[str]:
    """What a source imports from our package, wherever in it: modules, and names of modules that may be modules too.

    ``from targets.machine import cpus`` gives ``targets.machine`` and ``targets.machine.cpus``. What is imported for
    type checkers alone does not count.
    """
    tree = ast.parse(source)
    unseen = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in node.body
        for part in ast.walk(inner)
    }
    found: list[str] = []
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names]
    return [name for name in found if name.partition(".")[0] == "targets"]


@functools.cache
def boot_code() -> str:
    """``boot.py`` as one line for ``python -c``; an interpreter that is too old only says which one it is."""
    packed = base64.b64encode(zlib.compress(source_file("targets.boards.boot").read_bytes(), 9)).decode()
    code = f'zlib.decompress(base64.b64decode("{packed}")).decode()'
    return f"import sys,zlib,base64;exec({code} if sys.version_info>={OLDEST!r} else {_OLD!r})"


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    return entry
