/* Makes the n-th change to the files below some folders kill the process, or fail.

The kernel hands each system call that may change files to `on_call` below (seccomp's SECCOMP_RET_TRAP), wherever it
comes from: Python, Rust, Arrow, torch or the C library itself, whose inner calls a preloaded library never sees. Calls
that concern other places are made as they are. What counts as a change, a "point": opening for writing, writing,
renaming, linking, truncating, synchronising and removing a file, making and removing a folder. A write of several
bytes is two points, one before it and one in the middle.

Linux on x86-64 and ARM64. There is no way back: a process is armed once, and processes that it starts are ended by
their first call of these kinds.
*/
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

enum action { COUNT, KILL, FAIL_ONCE, FAIL_FROM };  /* as in chaos_calls.py */

/* A system call: which arguments say where, and what it is. `fd` is that of an open file, `at` that of a folder which
   `path` starts from; -1 stands for none. */
struct call { long number; const char *name; int fd, at, path, at2, path2; enum { OPEN, WRITE, VECTOR, OTHER, FREE } kind; };

static const struct call CALLS[] = {
    {SYS_openat, "open", -1, 0, 1, -1, -1, OPEN},
    {SYS_write, "write", 0, -1, -1, -1, -1, WRITE},
    {SYS_pwrite64, "write", 0, -1, -1, -1, -1, WRITE},
    {SYS_writev, "write", 0, -1, -1, -1, -1, VECTOR},
    {SYS_pwritev, "write", 0, -1, -1, -1, -1, VECTOR},
    {SYS_pwritev2, "write", 0, -1, -1, -1, -1, VECTOR},
    {SYS_sendfile, "sendfile", 0, -1, -1, -1, -1, OTHER},
    {SYS_copy_file_range, "copy_file_range", 2, -1, -1, -1, -1, OTHER},
    {SYS_fallocate, "fallocate", 0, -1, -1, -1, -1, OTHER},
    {SYS_ftruncate, "truncate", 0, -1, -1, -1, -1, OTHER},
    {SYS_truncate, "truncate", -1, -1, 0, -1, -1, OTHER},
    {SYS_fsync, "fsync", 0, -1, -1, -1, -1, OTHER},
    {SYS_fdatasync, "fsync", 0, -1, -1, -1, -1, OTHER},
    {SYS_mkdirat, "mkdir", -1, 0, 1, -1, -1, OTHER},
    {SYS_unlinkat, "remove", -1, 0, 1, -1, -1, FREE},
    {SYS_renameat, "rename", -1, 0, 1, 2, 3, OTHER},
    {SYS_renameat2, "rename", -1, 0, 1, 2, 3, OTHER},
    {SYS_linkat, "link", -1, 0, 1, 2, 3, OTHER},
    {SYS_symlinkat, "symlink", -1, 1, 2, -1, -1, OTHER},
#ifdef __x86_64__ /* the forms that ARM64 never had */
    {SYS_open, "open", -1, -1, 0, -1, -1, OPEN},
    {SYS_creat, "open", -1, -1, 0, -1, -1, OTHER},
    {SYS_mkdir, "mkdir", -1, -1, 0, -1, -1, OTHER},
    {SYS_rmdir, "remove", -1, -1, 0, -1, -1, FREE},
    {SYS_unlink, "remove", -1, -1, 0, -1, -1, FREE},
    {SYS_rename, "rename", -1, -1, 0, -1, 1, OTHER},
    {SYS_link, "link", -1, -1, 0, -1, 1, OTHER},
    {SYS_symlink, "symlink", -1, -1, 1, -1, -1, OTHER},
#endif
};
enum { NUM_CALLS = sizeof CALLS / sizeof *CALLS };

#ifdef __x86_64__
#define ARCHITECTURE AUDIT_ARCH_X86_64
#define NUMBER(at) ((at)->uc_mcontext.gregs[REG_RAX])
#define RESULT NUMBER
static const int REGISTERS[] = {REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9};
#define ARGUMENT(at, i) ((at)->uc_mcontext.gregs[REGISTERS[i]])
/* chaos_call(number, a, b, c, d, e, f): the system call, from an address that the filter knows. */
__asm__(".globl chaos_call, chaos_after\nchaos_call:\nmov %rdi,%rax\nmov %rsi,%rdi\nmov %rdx,%rsi\nmov %rcx,%rdx\n"
        "mov %r8,%r10\nmov %r9,%r8\nmov 8(%rsp),%r9\nsyscall\nchaos_after:\nret\n");
#else
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#define NUMBER(at) ((long)(at)->uc_mcontext.regs[8])
#define RESULT(at) ((at)->uc_mcontext.regs[0])
#define ARGUMENT(at, i) ((at)->uc_mcontext.regs[i])
__asm__(".globl chaos_call, chaos_after\nchaos_call:\nmov x8,x0\nmov x0,x1\nmov x1,x2\nmov x2,x3\nmov x3,x4\n"
        "mov x4,x5\nmov x5,x6\nsvc #0\nchaos_after:\nret\n");
#endif
extern __attribute__((visibility("hidden"))) long chaos_call(long, long, long, long, long, long, long);
extern __attribute__((visibility("hidden"))) char chaos_after[];

static char folder[PATH_MAX];
static enum action action;
static long target, points;
static int failure, log_fd;

static long make(long number, const long a[6]) { return chaos_call(number, a[0], a[1], a[2], a[3], a[4], a[5]); }

static long simple(long number, long a, long b, long c, long d) {
    return chaos_call(number, a, b, c, d, 0, 0);
}

/* Whether a path, from the folder open as `at`, is below ours; it is written into `whole`. */
static bool is_below(int at, const char *path, char whole[PATH_MAX]) {
    size_t length = 0;
    if (!path || *path != '/') {
        char link[40] = "/proc/self/cwd";
        if (at != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        long size = simple(SYS_readlinkat, AT_FDCWD, (long)link, (long)whole, PATH_MAX - 2);
        if (size < 0) return false;
        length = size;
        if (path) whole[length++] = '/';
    }
    snprintf(whole + length, PATH_MAX - length, "%s", path ? path : "");
    size_t ours = strlen(folder);
    return !strncmp(whole, folder, ours) && (whole[ours] == '/' || whole[ours] == 0);
}

/* Counts a point; the error it shall end with, or 0. */
static int point(const struct call *call, const char *what, const char *where) {
    long number = __atomic_add_fetch(&points, 1, __ATOMIC_SEQ_CST);
    if (action == COUNT && log_fd >= 0) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%s%s %s\n", what, call->name, where);
        simple(SYS_write, log_fd, (long)line, size, 0);
    }
    if (number < target || action == COUNT || (number > target && action != FAIL_FROM)) return 0;
    if (action == KILL) simple(SYS_kill, simple(SYS_getpid, 0, 0, 0, 0), SIGKILL, 0, 0);
    /* Removing takes no room. */
    return call->kind == FREE && failure == ENOSPC ? 0 : failure;
}

/* The first half of a write; the rest of it will be asked for again, and fail if the point says so. */
static long half(const struct call *call, const long a[6]) {
    long less[6];
    memcpy(less, a, sizeof less);
    struct iovec first;
    if (call->kind == VECTOR && a[2] > 1) less[2] = a[2] / 2;
    else if (call->kind == VECTOR) {
        first = *(const struct iovec *)a[1];
        if (first.iov_len > 1) first.iov_len /= 2;
        less[1] = (long)&first;
    } else less[2] = a[2] / 2;
    return make(call->number, less);
}

static long changed(const struct call *call, const long a[6], const char *where) {
    int error = point(call, "", where);
    if (error) return -error;
    bool splits = (call->kind == WRITE && a[2] > 1) || (call->kind == VECTOR && a[2] > 0);
    if (!splits) return make(call->number, a);
    if (action == KILL && points + 1 == target) half(call, a);
    if (!point(call, "half ", where)) return make(call->number, a);
    target = points + 1;  /* what remains is the next to fail */
    return half(call, a);
}

static void on_call(int signal_number, siginfo_t *info, void *context) {
    (void)signal_number, (void)info;
    ucontext_t *at = context;
    long number = NUMBER(at), a[6];
    for (int i = 0; i < 6; i++) a[i] = ARGUMENT(at, i);
    const struct call *call = CALLS;
    while (call->number != number) call++;
    long flags = call->kind == OPEN ? a[call->path + 1] : O_WRONLY;
    char where[PATH_MAX];
    bool is_ours = flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC);
    if (call->fd >= 0) is_ours = is_below((int)a[call->fd], NULL, where);
    else if (is_ours) {
        is_ours = is_below(call->at < 0 ? AT_FDCWD : (int)a[call->at], (const char *)a[call->path], where);
        if (!is_ours && call->path2 >= 0)
            is_ours = is_below(call->at2 < 0 ? AT_FDCWD : (int)a[call->at2], (const char *)a[call->path2], where);
    }
    RESULT(at) = is_ours ? changed(call, a, where) : make(number, a);
}

/* Arms this process, for good. `log` is where to tell of each point, or -1. Returns 0, or -1 with errno. */
int chaos_arm(const char *below, int what, long n, int error, int log) {
    snprintf(folder, sizeof folder, "%s", below);
    action = what, target = n, failure = error, log_fd = log, points = 0;
    struct sigaction handler = {.sa_sigaction = on_call, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGSYS, &handler, NULL)) return -1;

    uintptr_t own = (uintptr_t)chaos_after;
    struct sock_filter filter[NUM_CALLS + 10] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)own, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)((uint64_t)own >> 32), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    int size = 8;
    for (int i = 0; i < NUM_CALLS; i++)
        filter[size++] = (struct sock_filter)BPF_JUMP(
            BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)CALLS[i].number, (uint8_t)(NUM_CALLS - i), 0);
    filter[size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    struct sock_fprog program = {.len = (unsigned short)size, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

long chaos_points(void) { return points; }
