/* How deep the stack gets: it is filled with a pattern, and what no longer holds the pattern was used. */
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Fill what lies below the caller's frame. */
void stack_paint(void);
/* Bytes between the top of the stack and the deepest word that was written since it was painted. */
uint32_t stack_depth(void);

#ifdef __cplusplus
}
#endif
