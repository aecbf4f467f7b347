/* A TCG plugin for qemu's user mode: counts the instructions every virtual CPU (thread) executes.
 *
 * The counters lie in a memory file that the emulated program inherits, as it is in the same process: it finds it by
 * its name in /proc/self/fd, maps it, and reads number i for thread i, without a system call. Counted is by
 * translation block, when it is entered; a block that is left early (a signal, a fault) counts whole.
 *
 * qemu's header is not needed: these four functions are its documented interface, the same in all its versions.
 * API_VERSION is the interface's number: 1 up to qemu 8, 2 from qemu 9 on.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef API_VERSION
#define API_VERSION 1
#endif
#define EXPORT __attribute__((visibility("default")))
#define BYTES 4096
#define COUNTERS (BYTES / sizeof(uint64_t))

struct qemu_plugin_tb;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
typedef uint64_t qemu_plugin_id_t;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*entered)(unsigned int, void *),
                                          enum qemu_plugin_cb_flags flags, void *data);

EXPORT int qemu_plugin_version = API_VERSION;

static volatile uint64_t *counters;

static void entered(unsigned int vcpu, void *instructions)
{
    if (vcpu < COUNTERS) {
        counters[vcpu] += (uintptr_t)instructions;
    }
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, entered, QEMU_PLUGIN_CB_NO_REGS,
                                         (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    int file = memfd_create("paretopress-counters", 0);
    if (file < 0 || ftruncate(file, BYTES) != 0) {
        return 1;
    }
    void *mapped = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) {
        return 1;
    }
    counters = mapped;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
