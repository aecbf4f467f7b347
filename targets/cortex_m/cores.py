"""The emulated cores: how code for them is compiled, which machine of qemu has one, and where its memory lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Core:
    """One Cortex-M on one of Arm's development boards, as qemu emulates it; addresses and lengths in bytes."""

    title: str
    library: str
    """Which core's compiled library it runs."""
    options: tuple[str, ...]
    """The compiler's options for that library."""
    machine: str
    """qemu's name of the board."""
    flash: tuple[int, int]
    """Where code lies, and how much room there is."""
    ram: tuple[int, int]
    """Where static data and the stack lie."""
    big: tuple[int, int]
    """Where the model and the arena lie: more than a device has, since what they need is counted, not limited."""


_MIB = 1024 * 1024
_M4 = ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", "-mthumb")
_M55 = ("-mcpu=cortex-m55", "-mfpu=auto", "-mfloat-abi=hard", "-mthumb")

CORES: Mapping[str, Core] = {
    "m4": Core(
        "Cortex-M4", "m4", _M4, "mps2-an386",
        flash=(0x0000_0000, 4 * _MIB), ram=(0x2000_0000, 4 * _MIB), big=(0x2100_0000, 16 * _MIB),
    ),
    # The M7 executes the M4's instructions, and CMSIS-NN has no kernels of its own for it: what differs is cycles.
    "m7": Core(
        "Cortex-M7", "m4", _M4, "mps2-an500",
        flash=(0x0000_0000, 4 * _MIB), ram=(0x2000_0000, 4 * _MIB), big=(0x6000_0000, 16 * _MIB),
    ),
    "m55": Core(
        "Cortex-M55", "m55", _M55, "mps3-an547",
        flash=(0x1000_0000, 512 * 1024), ram=(0x3100_0000, 4 * _MIB), big=(0x7000_0000, 64 * _MIB),
    ),
}  # fmt: skip
