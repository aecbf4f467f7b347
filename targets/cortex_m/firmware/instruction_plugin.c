/* A TCG plugin for qemu's system emulation: writes down how many instructions were executed until each mark.
 *
 * Arguments: mark=ADDRESS, of the guest's function that is called at a mark; out=FILE, which holds the counts in the
 * end, one a line. Counted is by translation block, when it is entered.
 *
 * qemu's header is not needed: these functions are its documented interface, the same in all its versions.
 * API_VERSION is the interface's number: 1 up to qemu 8, 2 from qemu 9 on.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef API_VERSION
#define API_VERSION 1
#endif
#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
typedef uint64_t qemu_plugin_id_t;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *instruction);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*entered)(unsigned int, void *),
                                          enum qemu_plugin_cb_flags flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *instruction, void (*reached)(unsigned int, void *),
                                            enum qemu_plugin_cb_flags flags, void *data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*ended)(qemu_plugin_id_t, void *), void *data);

EXPORT int qemu_plugin_version = API_VERSION;

static uint64_t executed, mark_address;
static FILE *out;

static void entered(unsigned int vcpu, void *instructions)
{
    (void)vcpu;
    executed += (uintptr_t)instructions;
}

static void reached(unsigned int vcpu, void *data)
{
    (void)vcpu, (void)data;
    fprintf(out, "%llu\n", (unsigned long long)executed);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    size_t instructions = qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_cb(block, entered, QEMU_PLUGIN_CB_NO_REGS, (void *)(uintptr_t)instructions);
    for (size_t index = 0; index < instructions; index++) {
        struct qemu_plugin_insn *one = qemu_plugin_tb_get_insn(block, index);
        if (qemu_plugin_insn_vaddr(one) == mark_address) {
            qemu_plugin_register_vcpu_insn_exec_cb(one, reached, QEMU_PLUGIN_CB_NO_REGS, NULL);
        }
    }
}

static void ended(qemu_plugin_id_t id, void *data)
{
    (void)id, (void)data;
    fclose(out);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int index = 0; index < argc; index++) {
        if (strncmp(argv[index], "mark=", 5) == 0) {
            mark_address = strtoull(argv[index] + 5, NULL, 0) & ~UINT64_C(1);
        } else if (strncmp(argv[index], "out=", 4) == 0) {
            out = fopen(argv[index] + 4, "w");
        }
    }
    if (out == NULL || mark_address == 0) {
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
