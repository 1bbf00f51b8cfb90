/* Fails the nth write or sync on files whose path holds a word. Preloaded (LD_PRELOAD) into the process under test.
 *
 *   BRANCHLINE_FAIL_PATH   the word; without it nothing fails
 *   BRANCHLINE_FAIL_NTH    which one, from 1; counted over all threads from the process's start
 *   BRANCHLINE_FAIL_WHAT   "write", "sync" or "any": what is counted and fails
 *   BRANCHLINE_FAIL_HOW    "once": that one alone; "since": it and every later one; "torn": once, half of it written
 *
 * A failed write is ENOSPC (torn: EIO), a failed sync EIO. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITES = 1, SYNCS = 2 };
enum verdict { GOOD, FAILS, TORN };

static const char *word;
static long nth;
static int counted = WRITES | SYNCS;
static int since, torn;
static atomic_long seen;

__attribute__((constructor)) static void read_orders(void) {
    const char *text = getenv("BRANCHLINE_FAIL_NTH");
    const char *what = getenv("BRANCHLINE_FAIL_WHAT");
    const char *how = getenv("BRANCHLINE_FAIL_HOW");
    word = getenv("BRANCHLINE_FAIL_PATH");
    nth = text ? atol(text) : 0;
    if (what && strcmp(what, "write") == 0) counted = WRITES;
    if (what && strcmp(what, "sync") == 0) counted = SYNCS;
    since = how && strcmp(how, "since") == 0;
    torn = how && strcmp(how, "torn") == 0;
}

static enum verdict judge(int fd, enum kind kind) {
    char link[64], path[4096];
    ssize_t length;
    long n;
    if (!word || nth < 1 || !(counted & kind)) return GOOD;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return GOOD;
    path[length] = 0;
    if (!strstr(path, word)) return GOOD;
    n = atomic_fetch_add(&seen, 1) + 1;
    if (n == nth) return torn && kind == WRITES ? TORN : FAILS;
    return since && n > nth ? FAILS : GOOD;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define WRITE(name, call_half, call_whole) \
    REAL(name); \
    switch (judge(fd, WRITES)) { \
    case FAILS: errno = ENOSPC; return -1; \
    case TORN: (void)!(call_half); errno = EIO; return -1; \
    default: return call_whole; \
    }

ssize_t write(int fd, const void *data, size_t size) {
    WRITE(write, real(fd, data, size / 2), real(fd, data, size))
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    WRITE(pwrite, real(fd, data, size / 2, at), real(fd, data, size, at))
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    WRITE(pwrite64, real(fd, data, size / 2, at), real(fd, data, size, at))
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    WRITE(writev, real(fd, parts, count / 2), real(fd, parts, count))
}

int ftruncate(int fd, off_t size) {
    WRITE(ftruncate, 0, real(fd, size))
}

int ftruncate64(int fd, off64_t size) {
    WRITE(ftruncate64, 0, real(fd, size))
}

#define SYNC(name) \
    REAL(name); \
    if (judge(fd, SYNCS) != GOOD) { errno = EIO; return -1; } \
    return real(fd)

int fsync(int fd) { SYNC(fsync); }

int fdatasync(int fd) { SYNC(fdatasync); }
