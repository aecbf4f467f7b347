"""Which precisions are produced, in which int8 format, and on which targets each is measured: the targets are asked.

A scheme is produced where any target gains by it; one that only stores weights smaller, where it is asked for and
runs, or where a target declares that it gains. Targets whose integer kernels want different formats (u8s8 on x86 with
VNNI, s8s8 on ARM) each get a file in theirs; every file is measured on every target that can run it at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress.values.configs import QAT, SCHEMES, SEARCHED, STORED
from compress.values.domains import Choice
from compress.values.search_spaces import SearchSpace
from targets.errors import TargetError
from targets.target import Capabilities

Abilities = Mapping[str, Capabilities]
"""Target's name -> what it can do; the first is the search's main one."""
_FOUR_BITS = "com.microsoft:MatMulNBits"
"""The operator of ``int4-weights``."""


@dataclass(frozen=True)
class Variant:
    """One of the files that every trained network is written as: a precision, in the format of some targets."""

    name: str
    """End of a candidate's id: the scheme, with its format where there are several."""
    scheme: str
    capabilities: Capabilities
    """Of the target whose format it has."""
    targets: tuple[str, ...]
    """Where it is measured."""

    @property
    def converted(self) -> bool:
        """Whether its file is a ``.tflite`` one, which the targets convert the float file to."""
        return converts(self.capabilities)

    @property
    def suffix(self) -> str:
        """How the name of its file ends."""
        return ".tflite" if self.converted else ".onnx"

    @property
    def format(self) -> str:
        """Types of activations and weights: ``u8s8`` or ``s8s8``; empty for float; ``tflite`` of a converted file."""
        if self.converted:
            return self.capabilities.int8_format
        if self.scheme in STORED:
            return ""
        return {"fp32": "", "int8-dynamic": "u8s8"}.get(self.scheme, self.capabilities.int8_format)


def converts(one: Capabilities) -> bool:
    """Whether a target takes ``.tflite`` files, and converts float ones to them."""
    return one.int8_format.startswith("tflite")


def wanted(space: SearchSpace, gained: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The precisions of the space; where it leaves them open, also those of STORED that a target gains by.

    ``gained``: for every target, the precisions that it declares to gain by.
    """
    declared = {scheme for precisions in gained for scheme in precisions}
    left_open = space.precision == Choice(*SEARCHED)
    return (*space.schemes(), *(scheme for scheme in STORED if left_open and scheme in declared))


def refused(refuses: Sequence[str], lacks: Sequence[str] = ()) -> tuple[str, ...]:
    """Precisions that do not run on a target, from what its capabilities say."""
    also = [QAT] if "int8" in refuses else []
    if _FOUR_BITS in lacks:
        also.append("int4-weights")
    return tuple(dict.fromkeys([*refuses, *also]))


def offers(scheme: str, one: Capabilities) -> bool:
    """Whether a scheme that is asked for is made for a target."""
    if scheme in one.precisions:
        return True
    if scheme in refused(one.refuses, one.lacks):
        return False
    return scheme in STORED or (scheme == QAT and "int8" in one.precisions)


def left_out(space: SearchSpace, abilities: Abilities) -> dict[str, list[tuple[str, str]]]:
    """{target's name: the precisions that are not made for it, and why}."""
    asked = wanted(space, [one.precisions for one in abilities.values()])
    found: dict[str, list[tuple[str, str]]] = {}
    for name, one in abilities.items():
        found[name] = [
            (scheme, _why_not(scheme, asked, one))
            for scheme in SCHEMES
            if scheme not in asked or not offers(scheme, one)
        ]
    return found


def _why_not(scheme: str, asked: Sequence[str], one: Capabilities) -> str:
    if scheme in refused(one.refuses, one.lacks):
        return "does not run there"
    if scheme in asked:
        return "nothing is gained by it there"
    if scheme == QAT:
        return "qat_epochs is 0 in the space"
    return "not asked for; name it in the precision of the space"


def offered(schemes: Sequence[str], abilities: Abilities) -> tuple[str, ...]:
    """Those of the space's ``schemes`` that some target offers; raises TargetError where there are none."""
    found = tuple(scheme for scheme in schemes if any(offers(scheme, one) for one in abilities.values()))
    if not found:
        raise TargetError(f"{', '.join(abilities)}: none of the precisions {', '.join(schemes)} runs there")
    return found


def variants(schemes: Sequence[str], abilities: Abilities) -> tuple[Variant, ...]:
    """The files to make of every network, the first target's format first; raises TargetError where none are left."""
    found: list[Variant] = []
    for scheme in offered(schemes, abilities):
        able = [name for name, one in abilities.items() if scheme not in refused(one.refuses, one.lacks)]
        formats: dict[tuple[object, ...], Capabilities] = {}
        for one in abilities.values():
            if offers(scheme, one):
                formats.setdefault(_format(scheme, one), one)
        for number, capabilities in enumerate(formats.values()):
            suffix = f"-{_named(scheme, capabilities)}" if number else ""
            mine = tuple(name for name in able if _takes(abilities[name], capabilities))
            found.append(Variant(scheme + suffix, scheme, capabilities, mine))
    return tuple(found)


def _named(scheme: str, one: Capabilities) -> str:
    """What tells a file from the first one of its scheme."""
    if not converts(one) and scheme in ("fp32", *STORED):
        return "onnx"
    return f"{one.int8_format}{'-7bit' * one.reduce_range}"


def _takes(here: Capabilities, made_for: Capabilities) -> bool:
    """Whether a target runs files that were made for what another one can do."""
    if converts(here) or converts(made_for):
        return here.int8_format == made_for.int8_format
    return True


def runs(here: Capabilities, scheme: str, int8_format: str, *, converted: bool) -> bool:
    """Whether a target runs a file that is there: of that precision and format, ``.tflite`` (converted) or not."""
    if scheme in refused(here.refuses, here.lacks):
        return False
    if converted:
        return int8_format == here.int8_format
    return not converts(here) or scheme == "fp32"


def _format(scheme: str, one: Capabilities) -> tuple[object, ...]:
    """What tells two files of one scheme apart."""
    if converts(one):
        return (one.int8_format,)
    if scheme in STORED:
        return ()
    return {"fp32": (), "int8-dynamic": (one.reduce_range,)}.get(scheme, (one.int8_format, one.reduce_range))


def channel_step(schemes: Sequence[str], abilities: Abilities) -> int:
    """A step of widths that is good on every target, in every precision that is searched."""
    return int(np.lcm.reduce([_step(schemes, one) for one in abilities.values()]))


def _step(schemes: Sequence[str], one: Capabilities) -> int:
    """A step of widths that is good on one target."""
    steps = [one.channel_step] if {"fp32", "int8-dynamic", *STORED} & set(schemes) else []
    # A precision that is not searched there does not narrow the widths.
    if {"int8", "mixed", QAT} & {scheme for scheme in schemes if offers(scheme, one)}:
        steps.append(one.int8_step)
    return int(np.lcm.reduce(steps or [one.channel_step]))


def steps_in_words(schemes: Sequence[str], abilities: Abilities) -> str:
    """The step of widths in words, as in ``widths in steps of 16 (ort-cpu 16, openvino-cpu 8)``."""
    step = channel_step(schemes, abilities)
    each = ", ".join(f"{name} {_step(schemes, one)}" for name, one in abilities.items())
    return f"widths in steps of {step}" + (f" ({each})" if len(abilities) > 1 else "")
