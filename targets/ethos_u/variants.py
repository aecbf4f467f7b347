"""The NPUs that Vela compiles for, and the memory beside each that its model assumes.

Cycles depend on how fast SRAM and flash are, so every family has one system of Vela's own configuration file, and all
have the same kind: fast SRAM for what is computed, slower flash for what is constant (``Shared_Sram``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CONFIGURATION = "Arm/vela.ini"
"""The file of systems that comes with Vela."""
MEMORY_MODE = "Shared_Sram"
"""SRAM is shared with the CPU, constants stay in flash and are read from there."""


@dataclass(frozen=True)
class Variant:
    """An NPU: its family, how many products of 8 bits it computes in a cycle, and Vela's name of the system."""

    family: str
    products: int
    system: str

    @property
    def title(self) -> str:
        """As Arm calls it, for example ``Ethos-U55-128``."""
        return f"Ethos-{self.family}-{self.products}"


_FAMILIES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "U55": ("Ethos_U55_High_End_Embedded", (32, 64, 128, 256)),
    "U65": ("Ethos_U65_Embedded", (256, 512)),
    "U85": ("Ethos_U85_SYS_Flash_High", (128, 256, 512, 1024, 2048)),
}
VARIANTS: Mapping[str, Variant] = {
    f"{family.lower()}-{products}": Variant(family, products, system)
    for family, (system, sizes) in _FAMILIES.items()
    for products in sizes
}
"""By the name that the setting ``variant`` takes, for example ``u55-128``."""
