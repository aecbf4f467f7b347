"""The stage that finds out what untrained networks cost on the first target, for all costs that are searched.

Some twenty networks are cut, exported and measured, several at a time against one session of the baseline; a
regression makes the costs of all others of it (``sampling/cost_model.py``). Costs are shares of the baseline's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.baseline.contexts import Context, Training
from compress.measurement.latencies import latency_result
from compress.stages import measuring
from compress.stages.untrained import Untrained, make_untrained, provisional_files
from compress.values.candidates import Candidate
from compress.values.configs import OPERATORS, PruneSettings
from compress.values.networks import Network
from targets.errors import ModelError, SpaceError, StageError, TransientError
from targets.target import COUNTS

TOGETHER = 5
"""Networks that are measured in one process, in turns with the baseline."""


Costs = Mapping[str, float]
"""``latency``, ``size``, ``memory``, ``instructions``, ``cycles`` -> share of the baseline's, where it was measured."""
Measured = Mapping[str, Costs]
"""Precision (``fp32``, ``int8``) -> costs of one network in it."""


def prune_settings(network: Network, importance: str) -> PruneSettings:
    """The settings that mean one exact network."""
    return PruneSettings(widths=network.width_of, dropped=network.dropped, importance=importance)


def untrained(context: Context, training: Training, network: Network, importance: str) -> Untrained:
    """A network, cut and exported; raises SpaceError, PruneError or ExportError where it cannot be."""
    return make_untrained(context, training, prune_settings(network, importance), lambda _: None)


def measure_networks(
    context: Context,
    training: Training,
    networks: Sequence[Network],
    importance: str,
    precisions: Sequence[str],
    *,
    carefully: bool = False,
    operators: str = OPERATORS[0],
) -> dict[Network, Measured]:
    """The costs of ``networks`` on the first target, in those of ``precisions`` that there are files of.

    ``operators``: what static int8 quantizes. ``carefully``: again, and for longer than usual. One that cannot be cut,
    exported or run is left out. Raises TransientError where the target is gone.
    """
    files: dict[Network, dict[str, Path]] = {}
    for network in networks:
        try:
            made = untrained(context, training, network, importance)
            found = provisional_files(context, training, made, operators)
        except (StageError, SpaceError):
            continue
        first = context.targets.first.name
        files[network] = {path.stem: path for path, able in found.items() if first in able and path.stem in precisions}
    paths = list(dict.fromkeys(path for mine in files.values() for path in mine.values()))
    if not paths:
        return {}
    usual = context.instruments.protocol
    protocol = replace(usual, seconds=2 * usual.seconds, rounds=2 * usual.rounds) if carefully else usual
    try:
        infos, _ = measuring.measure_each(context.instruments, context.targets.first, paths, protocol)
    except TransientError:
        raise
    except (StageError, ModelError):
        return {}
    zero = context.baseline.candidate
    return {
        network: {
            name: costs_of_file(path, infos[path], zero, context.targets.first.name)
            for name, path in mine.items()
            if path in infos
        }
        for network, mine in files.items()
    }


def costs_of_file(path: Path, info: Mapping[str, Any], zero: Candidate, target: str) -> Costs:
    """Of a result of ``measure``; ``zero``: the baseline."""
    baseline = zero.measured[target]
    flash = info.get("flash")
    found = {"size": flash / baseline.flash if flash and baseline.flash else path.stat().st_size / zero.size}
    latency = latency_result(info)
    if latency is not None:
        found["latency"] = latency.ratio
    for name in (*COUNTS, "memory"):
        whole = getattr(baseline, name)
        if info.get(name) and whole:
            found[name] = info[name] / whole
    return found
