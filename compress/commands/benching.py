"""The command ``bench`` between its options and its result: parse, show, compare, save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.reports.bench_progress import LiveBench
from compress.values.durations import parse_duration
from targets.benches import benching, regressions
from targets.benches.comparing import careful
from targets.errors import RequestError
from targets.registry import DEFAULT

if TYPE_CHECKING:
    import numpy as np

    from targets.benches.regressions import Change


@dataclass(frozen=True)
class Benched:
    """What a bench came to."""

    document: dict[str, Any]
    """Of ``bench --json``."""
    changes: list[Change]
    """Since the saved one."""
    refused: RequestError | None = None
    """Why it cannot be compared: known only when it is measured, and no reason to throw that away."""

    @property
    def worse(self) -> bool:
        """Whether there is a significant regression."""
        return any(change.verdict == "regression" for change in self.changes)


def run_bench(
    models: tuple[str, ...],
    *,
    targets: tuple[str, ...],
    shapes: tuple[str, ...],
    data: str | None,
    precise: str | None,
    time: str | None,
    save: str | None,
    compare: str | None,
) -> Benched:
    """Measure, compare with what ``compare`` names, write what ``save`` names.

    Everything that can be wrong in the options is found before anything is measured. Raises as ``targets.bench``.
    """
    then = regressions.read_saved(Path(compare)) if compare else None
    if save:
        regressions.check_place(Path(save))
    protocol = careful(parse_share(precise), parse_duration(time))
    sizes, inputs = benching.parse_shapes(shapes), read_inputs(data)
    with LiveBench(models, protocol) as live:
        found = benching.bench(
            models, targets or (DEFAULT,), shapes=sizes, inputs=inputs, protocol=protocol, watch=live
        )
    full = found.to_json(samples=True)
    benched = _compared(found.to_json(), full, then)
    if compare:
        listed = [change.to_json() for change in benched.changes]
        benched.document["compared"] = {"with": compare, "changes": listed}
    if save and _yardstick(benched, save, compare):
        regressions.save_bench(Path(save), full)
    return benched


def _compared(document: dict[str, Any], full: dict[str, Any], then: dict[str, Any] | None) -> Benched:
    if then is None:
        return Benched(document, [])
    try:
        return Benched(document, regressions.changes(then, full))
    except RequestError as error:
        return Benched(document, [], error)


def _yardstick(benched: Benched, save: str, compare: str | None) -> bool:
    """Whether to save: a regression must not become what the next run is compared with."""
    if not benched.worse or not compare or not Path(save).exists() or not Path(save).samefile(compare):
        return True
    benched.document["warnings"].append(f"not saved: a regression was found, so {save} keeps what it held")
    return False


def parse_share(text: str | None) -> float | None:
    """``0.5%`` as 0.005; raises RequestError."""
    if text is None:
        return None
    try:
        return float(text.strip().removesuffix("%")) / 100
    except ValueError:
        raise RequestError(f"--precise {text!r} is not allowed; write a percentage, as 0.5%") from None


def read_inputs(path: str | None) -> dict[str, np.ndarray] | None:
    """Arrays by input name, from an .npz file; raises RequestError."""
    if path is None:
        return None
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise RequestError(f"--data {path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, AttributeError, TypeError, zipfile.BadZipFile):
        raise RequestError(
            f"--data {path} is no .npz file of plain arrays; numpy.savez(FILE, x=...) writes one"
        ) from None
