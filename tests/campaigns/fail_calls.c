/* Fails one of the system calls that write below a folder; for LD_PRELOAD.

   FAULT_CONTROL names a file that is shared with the test and all processes. While `armed` is set,
   calls below FAULT_FOLDER are counted; call number `number` fails with `error`, and if `persistent`
   is set so does each one after it. The first call that fails is described in `call`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
    long count, number, error, persistent;
    char call[1024];
};
static struct control *control;
static const char *folder;

__attribute__((constructor)) static void start(void) {
    const char *name = getenv("FAULT_CONTROL");
    folder = getenv("FAULT_FOLDER");
    int file = name && folder ? open(name, O_RDWR) : -1;
    if (file >= 0) {
        void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (shared != MAP_FAILED) control = shared;
    }
}

/* Count a call for `path`; return whether it must fail, with errno set. */
static int fails(const char *call, const char *path) {
    if (strncmp(path, folder, strlen(folder)) != 0) return 0;
    long count = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
    if (count == control->number) snprintf(control->call, sizeof control->call, "%s %s", call, path);
    if (count < control->number || (count > control->number && !control->persistent)) return 0;
    errno = (int)control->error;
    return 1;
}

static int descriptor_fails(const char *call, int descriptor) {
    if (!control || !control->number) return 0;
    char link[64], path[PATH_MAX];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

static int path_fails(const char *call, int directory, const char *name) {
    if (!control || !control->number) return 0;
    char link[64] = "/proc/self/cwd", path[2 * PATH_MAX];
    ssize_t length = 0;
    int before = errno;
    if (directory != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    if (name[0] != '/' && (length = readlink(link, path, PATH_MAX)) < 0) length = 0;
    snprintf(path + length, sizeof path - length, "%s%s", length ? "/" : "", name);
    errno = before;
    return fails(call, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_DESCRIPTOR(type, name, parameters, descriptor, arguments)                               \
    type name parameters {                                                                         \
        return descriptor_fails(#name, descriptor) ? -1 : REAL(name) arguments;                    \
    }
#define ON_PATH(name, parameters, directory, path, arguments)                                      \
    int name parameters { return path_fails(#name, directory, path) ? -1 : REAL(name) arguments; }
#define OPENS(name, parameters, directory, ...)                                                    \
    int name parameters {                                                                          \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;                  \
        va_end(rest);                                                                              \
        int writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT;                           \
        if (writes && path_fails(#name, directory, path)) return -1;                               \
        return REAL(name)(__VA_ARGS__, flags, mode);                                               \
    }

ON_DESCRIPTOR(ssize_t, write, (int f, const void *b, size_t n), f, (f, b, n))
ON_DESCRIPTOR(ssize_t, pwrite, (int f, const void *b, size_t n, off_t o), f, (f, b, n, o))
ON_DESCRIPTOR(ssize_t, pwrite64, (int f, const void *b, size_t n, off64_t o), f, (f, b, n, o))
ON_DESCRIPTOR(ssize_t, writev, (int f, const struct iovec *v, int n), f, (f, v, n))
ON_DESCRIPTOR(ssize_t, sendfile, (int f, int i, off_t *o, size_t n), f, (f, i, o, n))
ON_DESCRIPTOR(ssize_t, sendfile64, (int f, int i, off64_t *o, size_t n), f, (f, i, o, n))
ON_DESCRIPTOR(int, fsync, (int f), f, (f))
ON_DESCRIPTOR(int, fdatasync, (int f), f, (f))
ON_DESCRIPTOR(int, ftruncate, (int f, off_t n), f, (f, n))
ON_DESCRIPTOR(int, ftruncate64, (int f, off64_t n), f, (f, n))
ON_PATH(rename, (const char *old, const char *new), AT_FDCWD, new, (old, new))
ON_PATH(renameat, (int d, const char *old, int e, const char *new), e, new, (d, old, e, new))
ON_PATH(renameat2, (int d, const char *old, int e, const char *new, unsigned g), e, new,
        (d, old, e, new, g))
ON_PATH(link, (const char *old, const char *new), AT_FDCWD, new, (old, new))
ON_PATH(linkat, (int d, const char *old, int e, const char *new, int g), e, new,
        (d, old, e, new, g))
ON_PATH(mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ON_PATH(creat, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ON_PATH(creat64, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
OPENS(open, (const char *path, int flags, ...), AT_FDCWD, path)
OPENS(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPENS(openat, (int directory, const char *path, int flags, ...), directory, directory, path)
OPENS(openat64, (int directory, const char *path, int flags, ...), directory, directory, path)

FILE *fopen(const char *path, const char *mode) {
    if (strpbrk(mode, "wa+") && path_fails("fopen", AT_FDCWD, path)) return NULL;
    return REAL(fopen)(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    if (strpbrk(mode, "wa+") && path_fails("fopen64", AT_FDCWD, path)) return NULL;
    return REAL(fopen64)(path, mode);
}
