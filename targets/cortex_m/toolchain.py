"""Where the programs are that compile for a Cortex-M and emulate one: on this machine, or unpacked for us alone.

Debian's packages bring them. Where they are not installed, they are fetched and unpacked into a folder, without root;
a compiler that lies elsewhere than it was built for has to be told where its headers and libraries are.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

EMULATOR = "qemu-system-arm"
COMPILER = "arm-none-eabi-g++"
EMULATOR_PACKAGES = ("qemu-system-arm",)
COMPILER_PACKAGES = ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi", "libstdc++-arm-none-eabi-dev")
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")


@dataclass(frozen=True)
class Toolchain:
    """The compiler and the emulator; ``root`` is where they were unpacked, None where they are on the PATH."""

    root: Path | None = None

    @property
    def emulator(self) -> str:
        """The program that emulates a board."""
        return self._program(EMULATOR)

    @property
    def cc(self) -> str:
        """The C compiler."""
        return self._program("arm-none-eabi-gcc")

    @property
    def cxx(self) -> str:
        """The C++ compiler."""
        return self._program(COMPILER)

    @property
    def ar(self) -> str:
        """The program that makes libraries."""
        return self._program("arm-none-eabi-ar")

    @property
    def size(self) -> str:
        """The program that prints the sizes of sections."""
        return self._program("arm-none-eabi-size")

    @property
    def nm(self) -> str:
        """The program that prints where functions lie."""
        return self._program("arm-none-eabi-nm")

    def environment(self) -> dict[str, str]:
        """The environment in which they run."""
        own = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        if self.root is None:
            return own
        return {
            **own,
            "PATH": f"{self.root / 'usr/bin'}:{own['PATH']}",
            "LD_LIBRARY_PATH": ":".join(str(self.root / folder) for folder in _LIBRARIES),
        }

    def headers(self, options: Sequence[str], *, cxx: bool) -> list[str]:
        """The options that tell an unpacked compiler where its headers are."""
        if self.root is None:
            return []
        newlib = self.root / "usr/include/newlib"
        standard = newlib / "c++" / self._version
        folders = [standard, standard / "arm-none-eabi" / self._multilib(options)] if cxx else []
        return [word for folder in (*folders, newlib) for word in ("-isystem", str(folder))]

    def libraries(self, options: Sequence[str]) -> list[str]:
        """The option that tells an unpacked linker where its libraries are."""
        return (
            []
            if self.root is None
            else ["-L", str(self.root / "usr/lib/arm-none-eabi/newlib" / self._multilib(options))]
        )

    @cached_property
    def _version(self) -> str:
        return self._said("-dumpversion")

    def _multilib(self, options: Sequence[str]) -> str:
        return self._said(*options, "-print-multi-directory")

    def _said(self, *options: str) -> str:
        return subprocess.run(
            [self.cxx, *options], capture_output=True, text=True, check=True, env=self.environment()
        ).stdout.strip()

    def _program(self, name: str) -> str:
        return name if self.root is None else str(self.root / "usr/bin" / name)
