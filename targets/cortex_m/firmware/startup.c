/* What runs before main() on an emulated Cortex-M: the vector table, the FPU, and memory as C expects it.
 *
 * The linker script (memory.ld) gives the addresses. Everything is loaded where it is linked, so .data needs no copy.
 */
#include <stddef.h>
#include <stdint.h>

#include "semihosting.h"
#include "stack.h"

#define PATTERN 0xc5c5c5c5u
#define RED_ZONE 64 /* bytes below the frame that are left alone while painting */
#define FAULT 70    /* exit status of a fault; the runner's own are below */

#define CPACR (*(volatile uint32_t *)0xe000ed88) /* who may use the FPU and the vector unit */
#define CCR (*(volatile uint32_t *)0xe000ed14)   /* configuration and control */
#define CCR_LOW_OVERHEAD_BRANCH (1u << 19)
#define CFSR (*(volatile uint32_t *)0xe000ed28) /* why there was a fault */
#define BFAR (*(volatile uint32_t *)0xe000ed38) /* at which address */

extern uint32_t stack_bottom[], stack_top[], bss_start[], bss_end[];
extern void (*init_array_start[])(void), (*init_array_end[])(void);
int main(void);
void reset(void);

static void print_hex(const char *what, uint32_t value)
{
    char text[12] = "00000000\n";
    for (int digit = 7; digit >= 0; digit--, value >>= 4) {
        text[digit] = "0123456789abcdef"[value & 15];
    }
    semi_print(what);
    semi_print(text);
}

__attribute__((used)) static void report_fault(const uint32_t *frame)
{
    print_hex("fault at ", frame[6]);
    print_hex("fault status ", CFSR);
    print_hex("fault address ", BFAR);
    semi_exit(FAULT);
}

/* The processor has pushed a frame, whose address is handed on; the stack itself may be what is broken. */
__attribute__((naked)) static void fault(void)
{
    __asm__ volatile("mov r0, sp\n"
                     "b report_fault");
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    stack_top, reset, fault, fault, fault, fault, fault, fault, NULL, NULL, NULL, fault, fault, NULL, fault, fault,
};

void stack_paint(void)
{
    uint32_t *end = (uint32_t *)((uintptr_t)__builtin_frame_address(0) - RED_ZONE);
    for (volatile uint32_t *word = stack_bottom; word < end; word++) {
        *word = PATTERN;
    }
}

uint32_t stack_depth(void)
{
    const volatile uint32_t *word = stack_bottom;
    while (word < stack_top && *word == PATTERN) {
        word++;
    }
    return (uint32_t)((uintptr_t)stack_top - (uintptr_t)word);
}

void reset(void)
{
    CPACR |= 0xfu << 20;
    __asm__ volatile("dsb\n isb");
#if defined(__ARM_FEATURE_MVE)
    CCR |= CCR_LOW_OVERHEAD_BRANCH;
    __asm__ volatile("dsb\n isb");
#endif
    for (uint32_t *word = bss_start; word < bss_end; word++) {
        *word = 0;
    }
    for (void (**constructor)(void) = init_array_start; constructor < init_array_end; constructor++) {
        (*constructor)();
    }
    semi_exit((uint32_t)main());
}
