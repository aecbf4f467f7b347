"""The C++ lines in docs/on-a-device.md: compiled for a Cortex-M4 as they stand there, and run in the emulator."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from golden_files import golden_file
from targets.cortex_m import cortex_installation, firmware
from targets.cortex_m.cortex_m import CortexM
from targets.cortex_m.emulator import execute
from targets.tflite.tflite_files import read_tflite

PAGE = Path(__file__).parents[3] / "docs" / "on-a-device.md"
MISSING = cortex_installation.missing()
GLUE = """
#include <stdarg.h>
#include "{firmware}/semihosting.h"

extern "C" int DebugVsnprintf(char* to, size_t room, const char*, va_list) {{ if (room) *to = 0; return 0; }}
extern "C" void DebugLog(const char* text, va_list) {{ semi_print(text); }}
extern "C" void __cxa_pure_virtual() {{ semi_exit(71); }}
extern "C" int __cxa_atexit(void (*)(void*), void*, void*) {{ return 0; }}
extern "C" int __aeabi_atexit(void*, void (*)(void*), void*) {{ return 0; }}
extern "C" void _exit(int status) {{ semi_exit(status); }}
void* __dso_handle;
void operator delete(void*) noexcept {{}}
void operator delete(void*, unsigned int) noexcept {{}}
namespace tflite {{
uint32_t ticks_per_second() {{ return 0; }}
uint32_t GetCurrentTimeTicks() {{ return 0; }}
}}

int main() {{
  if (!prepare()) semi_exit(3);
  char text[] = "arena 00000\\nstack 0\\n";
  uint32_t value = used();
  for (int at = 10; at > 5; at--, value /= 10) text[at] = static_cast<char>('0' + value % 10);
  semi_print(text);
  static float features[490];
  const int32_t from = semi_open("input.bin", SEMI_READ_BINARY), to = semi_open("output.bin", SEMI_WRITE_BINARY);
  while (semi_read(from, features, sizeof features) == 0) {{
    const uint8_t decision = static_cast<uint8_t>(classify(features));
    semi_write(to, &decision, 1);
  }}
  semi_close(to);
  return 0;
}}
"""
"""What a device's own program does: give inputs, take decisions, and what the library expects of a system."""


@pytest.mark.skipif(MISSING is not None, reason=f"needs {MISSING}; run: {cortex_installation.COMMAND}")
def test_the_lines_decide_as_the_target_does(tmp_path: Path) -> None:
    model, given = golden_file("kws_ref_model.tflite"), np.load(golden_file("kws_ref_model.in.npy"))
    wanted = np.load(golden_file("kws_ref_model.out.npy")).argmax(axis=1)
    [lines] = re.findall(r"^```cpp\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    numbers = ", ".join(map(str, model.read_bytes()))
    (tmp_path / "model.h").write_text(f"alignas(16) static const unsigned char model_tflite[] = {{{numbers}}};\n")
    (tmp_path / "main.cc").write_text(lines + GLUE.format(firmware=firmware.HERE))

    emulator, found = CortexM(cpu="m4")._emulator(), cortex_installation.installed()
    elf, folder = tmp_path / "program.elf", cortex_installation.place()
    firmware.link_program(
        cortex_installation.toolchain(found), "m4", folder / "sources", folder / "libraries" / "m4", (), elf,
        program=tmp_path / "main.cc",
    )  # fmt: skip
    taken = read_tflite(model).inputs[0].tensor
    features = ((given.astype(np.float32) - taken.zero_point) * taken.scale).astype(np.float32)
    run = execute(replace(emulator, program=elf), model, features.tobytes(), count=False)
    assert list(run.output) == wanted.tolist()
    assert run.arena == execute(emulator, model, given[:1].tobytes(), count=False).arena
