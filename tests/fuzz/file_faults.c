/* Ends a process, or lets the disk be full, at a chosen operation on files below a folder.
 *
 *     gcc -O2 -shared -fPIC -o file_faults.so file_faults.c
 *     FILE_FAULTS=STATE FILE_FAULTS_ROOT=FOLDER LD_PRELOAD=./file_faults.so COMMAND
 *
 * STATE is a file of 32 bytes that all processes of a command share: the number of operations so far, that of the one
 * that fails (0: none), when (0: before it, 1: after half of it, 2: after it), how (0: SIGKILL, 1: the disk is full and
 * stays so), and whether it is full already. Operations are opening for writing, writing, flushing, renaming, removing
 * and making folders. If STATE.log exists, each is written to it. Only files of the process group are counted that
 * libc's functions reach.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct state { _Atomic int64_t done; int64_t fails; int32_t when, how; _Atomic int32_t full; int32_t unused; };

enum { BEFORE, HALF, AFTER };
enum { KILL, FULL };

static struct state *state;
static char root[PATH_MAX];
static int log_file = -1;

__attribute__((constructor)) static void start(void)
{
    const char *name = getenv("FILE_FAULTS"), *folder = getenv("FILE_FAULTS_ROOT");
    char text[PATH_MAX];
    int found;
    if (!name || !folder || (found = syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC)) < 0)
        return;
    state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, found, 0);
    if (state == MAP_FAILED)
        state = NULL;
    snprintf(root, sizeof root, "%s/", folder);
    snprintf(text, sizeof text, "%s.log", name);
    log_file = syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_APPEND | O_CLOEXEC);
}

static int below_root(const char *path) { return !strncmp(path, root, strlen(root)); }

/* Write the absolute path of a file into `full`, and return whether it is below the folder. */
static int watched_at(int folder, const char *path, char *full)
{
    char link[64];
    ssize_t length = 0;
    if (!state || !path)
        return 0;
    if (path[0] != '/') {
        if (folder == AT_FDCWD) {
            if (syscall(SYS_getcwd, full, PATH_MAX) < 0)
                return 0;
            length = strlen(full);
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            if ((length = readlink(link, full, PATH_MAX - 1)) < 0)
                return 0;
        }
        full[length++] = '/';
    }
    snprintf(full + length, PATH_MAX - length, "%s", path);
    return below_root(full);
}

static int watched(int file, char *full)
{
    char link[64];
    ssize_t length;
    if (!state)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    if ((length = readlink(link, full, PATH_MAX - 1)) < 0)
        return 0;
    full[length] = 0;
    return below_root(full);
}

static void stop(void)
{
    kill(0, SIGKILL); /* the command, and what it started */
    kill(getpid(), SIGKILL);
}

/* Count an operation. Return BEFORE, HALF or AFTER if it is the one that fails or the disk is full, otherwise -1. */
static int counted(const char *what, const char *path, int takes_room)
{
    char text[PATH_MAX + 64];
    int64_t number = atomic_fetch_add(&state->done, 1) + 1;
    if (log_file >= 0)
        syscall(SYS_write, log_file, text, snprintf(text, sizeof text, "%s\t%s\n", what, path + strlen(root)));
    if (state->full && takes_room)
        return BEFORE;
    if (number != state->fails)
        return -1;
    if (state->how == KILL && state->when == BEFORE)
        stop();
    if (state->how == FULL)
        state->full = 1;
    return state->when;
}

/* An operation that is done as a whole or not at all. */
#define AS_A_WHOLE(WHAT, PATH, TAKES_ROOM, CALL)                     \
    do {                                                             \
        int when = counted(WHAT, PATH, TAKES_ROOM);                  \
        if (when >= 0 && (state->how == FULL) && when != AFTER) {    \
            errno = ENOSPC;                                          \
            return -1;                                               \
        }                                                            \
        long result = CALL;                                          \
        if (when >= 0 && state->how == KILL)                         \
            stop();                                                  \
        return result;                                               \
    } while (0)

static long opened(int folder, const char *path, int flags, mode_t mode)
{
    char full[PATH_MAX];
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT;
    if (!writes || !watched_at(folder, path, full)) {
        long result = syscall(SYS_openat, folder, path, flags, mode);
        return result;
    }
    AS_A_WHOLE("open", full, flags & O_CREAT, syscall(SYS_openat, folder, path, flags, mode));
}

#define MODE(FLAGS)                                   \
    mode_t mode = 0;                                  \
    if ((FLAGS) & (O_CREAT | O_TMPFILE)) {            \
        va_list more;                                 \
        va_start(more, FLAGS);                        \
        mode = va_arg(more, mode_t);                  \
        va_end(more);                                 \
    }

int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int f, const char *path, int flags, ...) { MODE(flags) return opened(f, path, flags, mode); }
int openat64(int f, const char *path, int flags, ...) { MODE(flags) return opened(f, path, flags, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static ssize_t written(int file, const void *values, size_t size, off_t at, int has_place)
{
    char full[PATH_MAX];
    int when = watched(file, full) ? counted("write", full, 1) : -1;
    if (when == BEFORE) {
        errno = ENOSPC;
        return -1;
    }
    if (when == HALF)
        size = size / 2;
    ssize_t result = has_place ? syscall(SYS_pwrite64, file, values, size, at) : syscall(SYS_write, file, values, size);
    if (when >= 0 && state->how == KILL)
        stop();
    return result;
}

ssize_t write(int file, const void *values, size_t size) { return written(file, values, size, 0, 0); }
ssize_t pwrite(int file, const void *values, size_t size, off_t at) { return written(file, values, size, at, 1); }
ssize_t pwrite64(int file, const void *values, size_t size, off_t at) { return written(file, values, size, at, 1); }

ssize_t writev(int file, const struct iovec *parts, int count)
{
    char full[PATH_MAX];
    if (!watched(file, full))
        return syscall(SYS_writev, file, parts, count);
    ssize_t total = 0;
    for (int k = 0; k < count; k++) {
        ssize_t some = written(file, parts[k].iov_base, parts[k].iov_len, 0, 0);
        if (some < 0)
            return total ? total : -1;
        total += some;
        if ((size_t)some < parts[k].iov_len)
            break;
    }
    return total;
}

static long flushed(int file)
{
    char full[PATH_MAX];
    if (!watched(file, full))
        return syscall(SYS_fsync, file);
    AS_A_WHOLE("fsync", full, 1, syscall(SYS_fsync, file));
}

int fsync(int file) { return flushed(file); }
int fdatasync(int file) { return flushed(file); }

static long moved(int from, const char *old, int to, const char *new)
{
    char full[PATH_MAX];
    if (!watched_at(to, new, full))
        return syscall(SYS_renameat, from, old, to, new);
    AS_A_WHOLE("rename", full, 0, syscall(SYS_renameat, from, old, to, new));
}

int rename(const char *old, const char *new) { return moved(AT_FDCWD, old, AT_FDCWD, new); }
int renameat(int from, const char *old, int to, const char *new) { return moved(from, old, to, new); }

static long removed(int folder, const char *path, int flags)
{
    char full[PATH_MAX];
    if (!watched_at(folder, path, full))
        return syscall(SYS_unlinkat, folder, path, flags);
    /* A full disk hinders no removal. */
    int when = counted("unlink", full, 0);
    long result = syscall(SYS_unlinkat, folder, path, flags);
    if (when >= 0 && state->how == KILL)
        stop();
    return result;
}

int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int folder, const char *path, int flags) { return removed(folder, path, flags); }

static long made(int folder, const char *path, mode_t mode)
{
    char full[PATH_MAX];
    if (!watched_at(folder, path, full))
        return syscall(SYS_mkdirat, folder, path, mode);
    AS_A_WHOLE("mkdir", full, 1, syscall(SYS_mkdirat, folder, path, mode));
}

int mkdir(const char *path, mode_t mode) { return made(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return made(folder, path, mode); }
