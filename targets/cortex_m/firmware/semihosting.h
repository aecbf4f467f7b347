/* Arm's semihosting: a program on an emulated core asks the emulator to do what an operating system would.
 *
 * A request is a number in r0 and the address of its arguments in r1, made by the instruction `bkpt 0xab`; the answer
 * is in r0 (Arm's "Semihosting for AArch32 and AArch64").
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SEMI_OPEN = 0x01, SEMI_CLOSE = 0x02, SEMI_PRINT = 0x04, SEMI_WRITE = 0x05, SEMI_READ = 0x06, SEMI_LENGTH = 0x0c,
       SEMI_EXIT = 0x20 };
enum { SEMI_READ_BINARY = 1, SEMI_WRITE_BINARY = 5 };
#define SEMI_APPLICATION_EXIT 0x20026u

static inline int32_t semi_ask(int32_t request, const void *arguments)
{
    register int32_t answer __asm__("r0") = request;
    register const void *at __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(answer) : "r"(at) : "memory");
    return answer;
}

static inline void semi_print(const char *text) { semi_ask(SEMI_PRINT, text); }

static inline void semi_exit(uint32_t status)
{
    uint32_t words[2] = {SEMI_APPLICATION_EXIT, status};
    for (;;) {
        semi_ask(SEMI_EXIT, words);
    }
}

/* A handle, or -1. */
static inline int32_t semi_open(const char *name, uint32_t mode)
{
    uint32_t length = 0;
    while (name[length] != 0) {
        length++;
    }
    uint32_t words[3] = {(uint32_t)(uintptr_t)name, mode, length};
    return semi_ask(SEMI_OPEN, words);
}

static inline int32_t semi_length(int32_t file)
{
    uint32_t words[1] = {(uint32_t)file};
    return semi_ask(SEMI_LENGTH, words);
}

/* The number of bytes that were not read, or not written: 0 where all were. */
static inline int32_t semi_read(int32_t file, void *to, uint32_t bytes)
{
    uint32_t words[3] = {(uint32_t)file, (uint32_t)(uintptr_t)to, bytes};
    return semi_ask(SEMI_READ, words);
}

static inline int32_t semi_write(int32_t file, const void *from, uint32_t bytes)
{
    uint32_t words[3] = {(uint32_t)file, (uint32_t)(uintptr_t)from, bytes};
    return semi_ask(SEMI_WRITE, words);
}

static inline void semi_close(int32_t file)
{
    uint32_t words[1] = {(uint32_t)file};
    semi_ask(SEMI_CLOSE, words);
}

#ifdef __cplusplus
}
#endif
