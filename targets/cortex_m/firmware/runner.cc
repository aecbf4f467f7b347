// Runs any .tflite file on an emulated Cortex-M, on as many samples as there are.
//
// Files, by semihosting: model.tflite; input.bin, the samples, each one all inputs in order; output.bin, written
// likewise. What it finds is printed, a word and its value a line. mark() is called where something begins or ends: the
// emulator's plugin (instruction_plugin.c) writes down how many instructions were executed until then. If there is a
// file `profile`, marks are made around every operator of the first sample as well.
//
// OPERATOR_COUNT and REGISTER_OPERATORS say which operators are linked.
#include <stdarg.h>
#include <string.h>

#include <new>

#include "semihosting.h"
#include "stack.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/micro_profiler_interface.h"
#include "tensorflow/lite/schema/schema_generated.h"

extern "C" uint8_t big_start[], big_end[];

// What the library and the compiler expect of a system; nothing is ever deleted or ended here.
// Texts and whole numbers are put into what the library says; of floats only their place is shown.
extern "C" int DebugVsnprintf(char* to, size_t room, const char* text, va_list values) {
  size_t at = 0;
  const auto put = [&](char one) {
    if (at + 1 < room) to[at++] = one;
  };
  for (; *text != 0; text++) {
    if (*text != '%') {
      put(*text);
      continue;
    }
    do text++;
    while (*text != 0 && strchr("0123456789.-+lzhj ", *text) != nullptr);
    if (*text == 's') {
      for (const char* word = va_arg(values, const char*); *word != 0; word++) put(*word);
    } else if (*text == 'd' || *text == 'i' || *text == 'u') {
      uint32_t value = va_arg(values, uint32_t);
      if (*text != 'u' && static_cast<int32_t>(value) < 0) {
        put('-');
        value = 0 - value;
      }
      char digits[10];
      int count = 0;
      do digits[count++] = static_cast<char>('0' + value % 10);
      while ((value /= 10) != 0);
      while (count > 0) put(digits[--count]);
    } else if (*text == 0) {
      break;
    } else {
      if (strchr("fgeFGE", *text) != nullptr) {
        va_arg(values, double);
      } else {
        va_arg(values, uint32_t);
      }
      put('?');
    }
  }
  if (room > 0) to[at] = 0;
  return static_cast<int>(at);
}
extern "C" void DebugLog(const char* text, va_list values) {
  char line[200];
  DebugVsnprintf(line, sizeof line, text, values);
  semi_print(line);
  semi_print("\n");
}
extern "C" void __cxa_pure_virtual() { semi_exit(71); }
extern "C" int __cxa_atexit(void (*)(void*), void*, void*) { return 0; }
extern "C" int __aeabi_atexit(void*, void (*)(void*), void*) { return 0; }
extern "C" void _exit(int status) { semi_exit(status); }
void* __dso_handle;
void operator delete(void*) noexcept {}
void operator delete(void*, unsigned int) noexcept {}
namespace tflite {
uint32_t ticks_per_second() { return 0; }
uint32_t GetCurrentTimeTicks() { return 0; }
}  // namespace tflite

extern "C" __attribute__((noinline, used)) void mark() { __asm__ volatile("nop"); }

namespace {

constexpr uint32_t kRefused = 2;

void print_number(const char* name, uint32_t value) {
  char text[12] = {};
  int at = 10;
  text[at] = '\n';
  do {
    text[--at] = static_cast<char>('0' + value % 10);
    value /= 10;
  } while (value != 0);
  semi_print(name);
  semi_print(" ");
  semi_print(text + at);
}

[[noreturn]] void refuse(const char* why) {
  semi_print("refused ");
  semi_print(why);
  semi_print("\n");
  for (;;) semi_exit(kRefused);
}

// Made around operators: their names are printed in the order in which they run.
class Marks : public tflite::MicroProfilerInterface {
 public:
  uint32_t BeginEvent(const char* tag) override {
    if (on) {
      semi_print("operator ");
      semi_print(tag);
      semi_print("\n");
      mark();
    }
    return 0;
  }
  void EndEvent(uint32_t) override {
    if (on) mark();
  }
  bool on = false;
};

bool exists(const char* name) {
  const int32_t file = semi_open(name, SEMI_READ_BINARY);
  if (file < 0) return false;
  semi_close(file);
  return true;
}

uint8_t* load_model() {
  const int32_t file = semi_open("model.tflite", SEMI_READ_BINARY);
  const int32_t bytes = file < 0 ? -1 : semi_length(file);
  if (bytes < 0) refuse("there is no model");
  if (bytes + 64 > big_end - big_start) refuse("the file is larger than the emulated board's memory");
  if (semi_read(file, big_start, bytes) != 0) refuse("the model cannot be read");
  semi_close(file);
  return big_start + (bytes + 63) / 64 * 64;
}

using Operators = tflite::MicroMutableOpResolver<OPERATOR_COUNT>;
Operators operators;
Marks marks;
alignas(tflite::MicroInterpreter) uint8_t room[sizeof(tflite::MicroInterpreter)];

}  // namespace

int main() {
  uint8_t* arena = load_model();
  tflite::MicroProfilerInterface* profiler = exists("profile") ? &marks : nullptr;
  REGISTER_OPERATORS
  auto* interpreter = new (room)
      tflite::MicroInterpreter(tflite::GetModel(big_start), operators, arena, big_end - arena, nullptr, profiler);
  stack_paint();
  mark();
  if (interpreter->AllocateTensors() != kTfLiteOk) refuse("its tensors cannot be allocated");
  mark();
  uint32_t deepest = stack_depth();
  print_number("arena", interpreter->arena_used_bytes());

  const size_t inputs = interpreter->inputs_size(), outputs = interpreter->outputs_size();
  uint32_t sample_bytes = 0;
  for (size_t i = 0; i < inputs; i++) sample_bytes += interpreter->input_tensor(i)->bytes;
  const int32_t from = semi_open("input.bin", SEMI_READ_BINARY);
  const int32_t given = from < 0 ? 0 : semi_length(from);
  if (sample_bytes == 0 || given % sample_bytes != 0) refuse("input.bin holds no whole number of samples");
  const int32_t to = semi_open("output.bin", SEMI_WRITE_BINARY);

  for (uint32_t sample = 0; sample < given / sample_bytes; sample++) {
    for (size_t i = 0; i < inputs; i++) {
      TfLiteTensor* tensor = interpreter->input_tensor(i);
      semi_read(from, tensor->data.raw, tensor->bytes);
    }
    marks.on = sample == 0;
    stack_paint();
    mark();
    if (interpreter->Invoke() != kTfLiteOk) refuse("it cannot be run");
    mark();
    const uint32_t depth = stack_depth();
    if (depth > deepest) deepest = depth;
    for (size_t i = 0; i < outputs; i++) {
      const TfLiteTensor* tensor = interpreter->output_tensor(i);
      semi_write(to, tensor->data.raw, tensor->bytes);
    }
  }
  semi_close(to);
  print_number("stack", deepest);
  return 0;
}
