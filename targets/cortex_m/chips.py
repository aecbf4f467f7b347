"""Well-known microcontrollers: which core, how much RAM and flash, and where that is written.

RAM is all static RAM of the chip, though some of them have it in banks that do not lie side by side, and a program has
other uses for both: what fits here has a chance on the device, what does not fit has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_KIB, _MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Chip:
    """A microcontroller; ``ram`` and ``flash`` in bytes."""

    title: str
    cpu: str
    """The name of its core among the emulated ones."""
    ram: int
    flash: int
    source: str
    """The maker's document that says so."""


CHIPS: Mapping[str, Chip] = {
    "apollo3": Chip("Ambiq Apollo3 Blue", "m4", 384 * _KIB, 1 * _MIB, "Ambiq, Apollo3 Blue SoC datasheet"),
    "atsamd51j19": Chip("Microchip ATSAMD51J19A", "m4", 192 * _KIB, 512 * _KIB, "Microchip DS60001507"),
    "nrf52832": Chip("Nordic nRF52832 (QFAA)", "m4", 64 * _KIB, 512 * _KIB, "Nordic, nRF52832 product specification"),
    "nrf52840": Chip("Nordic nRF52840", "m4", 256 * _KIB, 1 * _MIB, "Nordic, nRF52840 product specification"),
    "stm32f407": Chip("STM32F407VG", "m4", 192 * _KIB, 1 * _MIB, "ST DS8626"),
    "stm32f446": Chip("STM32F446RE", "m4", 128 * _KIB, 512 * _KIB, "ST DS10693"),
    "stm32f746": Chip("STM32F746NG", "m7", 320 * _KIB, 1 * _MIB, "ST DS10916"),
    "stm32f767": Chip("STM32F767ZI", "m7", 512 * _KIB, 2 * _MIB, "ST DS11532"),
    "stm32h743": Chip("STM32H743ZI", "m7", 1 * _MIB, 2 * _MIB, "ST DS12110"),
    "stm32l4r5": Chip("STM32L4R5ZI, MLPerf Tiny's reference board", "m4", 640 * _KIB, 2 * _MIB, "ST DS12023"),
}
