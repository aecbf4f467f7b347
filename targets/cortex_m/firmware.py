"""The library (TensorFlow Lite Micro with CMSIS-NN's kernels) and the programs that are linked with it, for one core.

A library is compiled once, in some minutes. With all its operators it makes the one program that runs any file; with
the operators of one file, the program that would be on a device, whose sections say how much flash and static memory
the code needs.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from targets.cortex_m.cores import CORES, Core
from targets.cortex_m.operators import registration
from targets.cortex_m.toolchain import Toolchain
from targets.errors import TargetUnavailable
from targets.machine.cpus import allowed

HERE = Path(__file__).with_name("firmware")
FILES = ("memory.ld.in", "runner.cc", "semihosting.h", "stack.h", "startup.c")
"""What of the programs is ours."""
_SHARED = (
    "-ffunction-sections", "-fdata-sections", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables",
    "-fmessage-length=0", "-fomit-frame-pointer", "-funsigned-char", "-w", "-DTF_LITE_STATIC_MEMORY",
    "-DTF_LITE_MCU_DEBUG_LOG", "-DNDEBUG", "-DKERNELS_OPTIMIZED_FOR_SPEED", "-DCMSIS_NN", "-DARM_NN_ENABLE_F16=0",
    "-DARM_NN_ENABLE_F32=0",
)  # fmt: skip
_INCLUDED = (
    "tflm", "gemmlowp", "flatbuffers/include", "ruy", "cmsis_nn", "cmsis_nn/Include", "cmsis/CMSIS/Core/Include", "."
)  # fmt: skip
_C = ("-std=c17",)
_CXX = ("-std=c++17", "-fno-rtti", "-fno-exceptions", "-fno-threadsafe-statics")
_SPEED, _SIZE = "-O2", "-Os"
"""As in TensorFlow Lite Micro's own build: kernels for speed, the rest for size."""
_PREFIX = """\
#include "tensorflow/lite/kernels/internal/quantization_util.h"
#include "tensorflow/lite/kernels/internal/tensor_ctypes.h"
#include "tensorflow/lite/kernels/kernel_util.h"
#include "tensorflow/lite/micro/kernels/kernel_util.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/schema/schema_generated.h"
"""
"""Headers that nearly every C++ source reads: compiled once, since reading them is most of the work."""
_LESS = {("m55", "resize_nearest_neighbor.cc"): "-O1"}
"""At -O2 gcc 12 writes an instruction for this one's rounding that its own assembler does not know."""
_MICRO = "tflm/tensorflow/lite/micro"
_WITHOUT = ("_test.cc", "_test_common.cc", "_f16.c", "_f32.c")
_HARNESS = """
    kernel_runner.cc test_helpers.cc test_helper_custom_ops.cc fake_micro_context.cc mock_micro_graph.cc debug_log.cc
    micro_time.cc system_setup.cc array.cc arm_nntables_flt.c
"""
"""What only tests use, what the runner replaces, and what belongs to kernels in float that are left out."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """What a program takes of a device, in bytes, without the model and the arena."""

    code: int
    """Instructions, constants and initial values: what lies in flash."""
    static: int
    """Variables: what lies in RAM as long as it runs, without the stack."""


@dataclass(frozen=True)
class Unit:
    """One source to compile: its path below the sources, and the options for it."""

    source: str
    optimized: str


def units(sources: Path) -> list[Unit]:
    """What the library is compiled from. A kernel of CMSIS-NN stands in for the portable one of its name."""
    micro = sources / _MICRO
    fast = {file.name: file for file in sorted((micro / "kernels" / "cmsis_nn").glob("*.cc"))}
    portable = {file.name: file for file in sorted((micro / "kernels").glob("*.cc"))}
    kernels = list((portable | fast).values())
    inner = [micro, micro / "arena_allocator", micro / "memory_planner", micro / "tflite_bridge"]
    rest = [file for folder in inner for file in sorted(folder.glob("*.cc"))]
    outer = (file for file in sorted((sources / "tflm" / "tensorflow").rglob("*.c*")) if file.suffix in (".c", ".cc"))
    rest += [file for file in outer if micro not in file.parents and "experimental" not in file.parts]
    nn = sorted((sources / "cmsis_nn" / "Source").rglob("*.c"))
    found = [
        *(Unit(str(file.relative_to(sources)), _SPEED) for file in kernels),
        *(Unit(str(file.relative_to(sources)), _SPEED) for file in nn),
        *(Unit(str(file.relative_to(sources)), _SIZE) for file in rest),
    ]
    return [one for one in found if not one.source.endswith(_WITHOUT) and Path(one.source).name not in _HARNESS.split()]


def build_library(tools: Toolchain, core: Core, sources: Path, folder: Path, say: Say) -> None:
    """Compile the library into ``folder/libtflm.a``; raises TargetUnavailable with the compiler's words."""
    folder.mkdir(parents=True, exist_ok=True)
    say(f"compiling for {core.title}: headers")
    prefixes = {optimized: folder / f"prefix{optimized}.h" for optimized in (_SPEED, _SIZE)}
    options = _options(tools, core, sources, _CXX)
    for optimized, prefix in prefixes.items():
        prefix.write_text(_PREFIX)
        run([tools.cxx, *options, optimized, "-x", "c++-header", str(prefix), "-o", f"{prefix}.gch"], tools)
    found = units(sources)
    objects = [folder / f"{number:03d}-{Path(unit.source).name}.o" for number, unit in enumerate(found)]

    def compiled(number: int) -> None:
        unit = found[number]
        is_c = unit.source.endswith(".c")
        # Compiled headers serve the level that they were compiled at alone; the compiler reads others itself.
        headers = [] if is_c else ["-include", str(prefixes[unit.optimized])]
        words = [tools.cc if is_c else tools.cxx, *_options(tools, core, sources, _C if is_c else _CXX)]
        optimized = _LESS.get((core.library, Path(unit.source).name), unit.optimized)
        run([*words, optimized, *headers, "-c", str(sources / unit.source), "-o", str(objects[number])], tools)
        if number % 20 == 0:
            say(f"compiling for {core.title}: {number} of {len(found)} files")

    with ThreadPoolExecutor(max(1, len(allowed()))) as pool:
        # The kernels first: they take longest.
        list(pool.map(compiled, range(len(found))))
    run([tools.ar, "rcs", str(folder / "libtflm.a"), *map(str, objects)], tools)
    for made in (*objects, *(Path(f"{prefix}.gch") for prefix in prefixes.values())):
        made.unlink()


def link_program(
    tools: Toolchain,
    name: str,
    sources: Path,
    library: Path,
    operators: Sequence[str],
    elf: Path,
    *,
    program: Path = HERE / "runner.cc",
) -> None:
    """Make the program for core ``name`` that knows ``operators``; raises TargetUnavailable with the linker's words.

    ``program`` is its C++ source: the runner of any file, unless another one is given.
    """
    core = CORES[name]
    folder = elf.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "memory.ld"
    script.write_text(_memory(core))
    cxx, c = _options(tools, core, sources, _CXX), _options(tools, core, sources, _C)
    defined = (
        f"-DOPERATOR_COUNT={max(1, len(operators))}",
        f"-DREGISTER_OPERATORS={' '.join(map(registration, operators))}",
    )
    run([tools.cc, *c, _SPEED, "-c", str(HERE / "startup.c"), "-o", str(folder / "startup.o")], tools)
    run([tools.cxx, *cxx, _SPEED, *defined, "-c", str(program), "-o", str(folder / "program.o")], tools)
    objects = [str(folder / "startup.o"), str(folder / "program.o"), str(library / "libtflm.a")]
    linker = [tools.cc, *core.options, *tools.libraries(core.options), "-nostartfiles", "-Wl,--gc-sections"]
    run([*linker, "-T", str(script), *objects, "-lm", "-lc", "-lgcc", "-o", str(elf)], tools)
    shutil.rmtree(folder)


def section_sizes(tools: Toolchain, elf: Path) -> Sizes:
    """What the sections of a program take of a device."""
    lines = (line.split() for line in run([tools.size, "-A", str(elf)], tools).splitlines())
    found = {words[0]: int(words[1]) for words in lines if len(words) == 3 and words[0].startswith(".")}
    code = found[".text"] + found.get(".ARM.exidx", 0)
    initial, zeroed = found.get(".data", 0), found.get(".bss", 0)
    return Sizes(code=code + initial, static=initial + zeroed)


def mark_address(tools: Toolchain, elf: Path) -> int:
    """Where the function lies that the plugin watches."""
    lines = (line.split() for line in run([tools.nm, str(elf)], tools).splitlines())
    return next(int(words[0], 16) for words in lines if words[-1] == "mark") & ~1


def recipe_hash() -> str:
    """A hash of all in this package that decides what a program executes, beside sources and compiler."""
    options = repr((_SHARED, _INCLUDED, _C, _CXX, _SPEED, _SIZE, _PREFIX, sorted(_LESS.items()), sorted(CORES.items())))
    return hashlib.sha256(b"".join([options.encode(), *((HERE / file).read_bytes() for file in FILES)])).hexdigest()


def run(words: Sequence[str], tools: Toolchain) -> str:
    """A program's output; raises TargetUnavailable with its first line about an error."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=tools.environment())
    except OSError as error:
        raise TargetUnavailable(f"{words[0]} cannot be started ({error.strerror or error})") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        said = next((line for line in lines if "error" in line), lines[-1])
        raise TargetUnavailable(f"{Path(words[0]).name} fails: {' '.join(said.split())[:300]}")
    return done.stdout


def _options(tools: Toolchain, core: Core, sources: Path, language: Sequence[str]) -> list[str]:
    included = [word for folder in _INCLUDED for word in ("-I", str(sources / folder))]
    return [*core.options, *language, *_SHARED, *included, *tools.headers(core.options, cxx=language is _CXX)]


def _memory(core: Core) -> str:
    text = (HERE / "memory.ld.in").read_text()
    for word, (start, length) in (("FLASH", core.flash), ("RAM", core.ram), ("BIG", core.big)):
        text = text.replace(f"@{word}@", f"{start:#x}").replace(f"@{word}_BYTES@", str(length))
    return text
