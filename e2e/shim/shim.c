/* A library for LD_PRELOAD with which a test stands between one process and its kernel. Test code only:
 * nothing that is shipped knows of it.
 *
 * SHIM_CLOCK=FILE   the wall clock is off by the nanoseconds in FILE (eight bytes, native order),
 *                        which may change at any time. The monotonic clock is left alone.
 * SHIM_ROOT=DIR     every change under DIR, and every fsync of something under DIR, is appended to
 * SHIM_LOG=FILE     this file in the order in which it took effect (powercut/journal.rs reads it).
 *
 * A change and its entry happen under one lock, so the order in the log is the order in the kernel. The
 * entry of an fsync names the last change that it covers: those that had happened when it was called.
 * System calls are made directly: nothing here calls what it replaces. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FDS_MAX 65536
#define EXPORT __attribute__((visibility("default")))

enum kind { CREATE = 1, WRITE, TRUNCATE, SYNC_FILE, SYNC_FOLDER, RENAME, UNLINK, MKDIR, RMDIR, LINK };

struct header {
  uint32_t magic;
  uint32_t kind;
  uint64_t number; /* of this change; of the last one covered in an fsync's entry */
  uint64_t inode;
  uint64_t offset; /* or length, for TRUNCATE */
  uint32_t data_len;
  uint16_t path_len;
  uint16_t other_len;
};

struct opened {
  uint64_t inode; /* 0: not ours */
  int is_folder;
  int is_append;
  char *path;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct opened fds[FDS_MAX];
static uint64_t changes;
static int log_fd = -1;
static char root[PATH_MAX];
static size_t root_len;
static const volatile int64_t *clock_offset;

__attribute__((constructor)) static void start(void) {
  const char *clock_path = getenv("SHIM_CLOCK");
  if (clock_path) {
    int fd = syscall(SYS_openat, AT_FDCWD, clock_path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) abort();
    void *at = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) abort();
    clock_offset = at;
    syscall(SYS_close, fd);
  }
  const char *dir = getenv("SHIM_ROOT"), *log = getenv("SHIM_LOG");
  if (dir && log && strlen(dir) < sizeof root) {
    log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) abort();
    strcpy(root, dir);
    root_len = strlen(root);
  }
}

/* ---- the clock ---- */

EXPORT int clock_gettime(clockid_t id, struct timespec *out) {
  int result = syscall(SYS_clock_gettime, id, out);
  if (result == 0 && clock_offset && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
    int64_t ns = (int64_t)out->tv_sec * 1000000000 + out->tv_nsec + *clock_offset;
    out->tv_sec = ns / 1000000000;
    out->tv_nsec = ns % 1000000000;
  }
  return result;
}

EXPORT int gettimeofday(struct timeval *out, void *zone) {
  (void)zone;
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
  out->tv_sec = now.tv_sec;
  out->tv_usec = now.tv_nsec / 1000;
  return 0;
}

EXPORT time_t time(time_t *out) {
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}

/* ---- the log ---- */

/* The whole path, if it lies under the root; `buffer` is of PATH_MAX. */
static const char *inside(int at, const char *path, char *buffer) {
  if (log_fd < 0 || !path) return NULL;
  if (path[0] != '/') {
    if (at < 0 || at >= FDS_MAX || !fds[at].inode || !fds[at].is_folder) return NULL;
    if (strlen(fds[at].path) + strlen(path) + 2 > PATH_MAX) abort();
    strcpy(buffer, fds[at].path);
    strcat(buffer, "/");
    strcat(buffer, path);
    path = buffer;
  }
  if (strncmp(path, root, root_len) != 0) return NULL;
  if (path[root_len] != '/' && path[root_len] != 0) return NULL;
  return path;
}

/* Appends an entry; without it the log would lie, so a failure ends the process. */
static void entry(enum kind kind, uint64_t number, uint64_t inode, uint64_t offset, const char *path,
                  const char *other, const struct iovec *data, int pieces, size_t len) {
  struct header header = {0x4c4f4754, kind, number, inode, offset, (uint32_t)len, 0, 0};
  if (path) path += root_len, header.path_len = strlen(path);
  if (other) other += root_len, header.other_len = strlen(other);
  struct iovec all[IOV_MAX];
  int count = 0;
  size_t total = sizeof header + header.path_len + header.other_len + len;
  all[count++] = (struct iovec){&header, sizeof header};
  if (path) all[count++] = (struct iovec){(void *)path, header.path_len};
  if (other) all[count++] = (struct iovec){(void *)other, header.other_len};
  for (int i = 0; i < pieces && len > 0; i++) {
    size_t part = data[i].iov_len < len ? data[i].iov_len : len;
    if (count == IOV_MAX) abort();
    all[count++] = (struct iovec){data[i].iov_base, part};
    len -= part;
  }
  int saved = errno;
  if (syscall(SYS_writev, log_fd, all, count) != (long)total) abort();
  errno = saved;
}

static void change(enum kind kind, uint64_t inode, uint64_t offset, const char *path, const char *other) {
  entry(kind, ++changes, inode, offset, path, other, NULL, 0, 0);
}

static int is_ours(int fd) { return log_fd >= 0 && fd >= 0 && fd < FDS_MAX && fds[fd].inode != 0; }

/* ---- opening and closing ---- */

static int open_at(int at, const char *path, int flags, mode_t mode) {
  char buffer[PATH_MAX];
  pthread_mutex_lock(&lock);
  const char *whole = inside(at, path, buffer);
  if (!whole) {
    pthread_mutex_unlock(&lock);
    return syscall(SYS_openat, at, path, flags, mode);
  }
  struct stat before, now;
  int was_there = syscall(SYS_newfstatat, AT_FDCWD, whole, &before, 0) == 0;
  int fd = syscall(SYS_openat, at, path, flags, mode);
  int saved = errno;
  if (fd >= FDS_MAX) abort();
  if (fd >= 0 && fstat(fd, &now) == 0) {
    fds[fd].inode = now.st_ino;
    fds[fd].is_folder = S_ISDIR(now.st_mode);
    fds[fd].is_append = flags & O_APPEND;
    free(fds[fd].path);
    fds[fd].path = strdup(whole);
    if (!was_there && (flags & O_CREAT)) {
      change(CREATE, now.st_ino, 0, whole, NULL);
    } else if (was_there && (flags & O_TRUNC) && before.st_size > 0) {
      change(TRUNCATE, now.st_ino, 0, NULL, NULL);
    }
  }
  pthread_mutex_unlock(&lock);
  errno = saved;
  return fd;
}

#define OPEN_MODE(flags)                            \
  mode_t mode = 0;                                  \
  if ((flags) & (O_CREAT | __O_TMPFILE)) {          \
    va_list rest;                                   \
    va_start(rest, flags);                          \
    mode = va_arg(rest, mode_t);                    \
    va_end(rest);                                   \
  }

EXPORT int open(const char *path, int flags, ...) { OPEN_MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
EXPORT int open64(const char *path, int flags, ...) { OPEN_MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
EXPORT int openat(int at, const char *path, int flags, ...) { OPEN_MODE(flags) return open_at(at, path, flags, mode); }
EXPORT int openat64(int at, const char *path, int flags, ...) { OPEN_MODE(flags) return open_at(at, path, flags, mode); }
EXPORT int __open_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
EXPORT int __open64_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
EXPORT int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
EXPORT int creat64(const char *path, mode_t mode) { return creat(path, mode); }

EXPORT int close(int fd) {
  if (!is_ours(fd)) return syscall(SYS_close, fd);
  pthread_mutex_lock(&lock);
  fds[fd].inode = 0;
  int result = syscall(SYS_close, fd);
  pthread_mutex_unlock(&lock);
  return result;
}

/* ---- contents ---- */

static ssize_t write_at(int fd, const struct iovec *data, int pieces, int64_t offset) {
  pthread_mutex_lock(&lock);
  struct stat now;
  int64_t start = offset;
  if (fds[fd].is_append && fstat(fd, &now) == 0) {
    start = now.st_size;
  } else if (offset < 0) {
    start = syscall(SYS_lseek, fd, 0, SEEK_CUR);
  }
  ssize_t done = offset < 0 ? syscall(SYS_writev, fd, data, pieces)
                            : syscall(SYS_pwritev, fd, data, pieces, offset, 0);
  int saved = errno;
  if (done > 0) entry(WRITE, ++changes, fds[fd].inode, start, NULL, NULL, data, pieces, done);
  pthread_mutex_unlock(&lock);
  errno = saved;
  return done;
}

EXPORT ssize_t write(int fd, const void *data, size_t len) {
  if (!is_ours(fd)) return syscall(SYS_write, fd, data, len);
  struct iovec one = {(void *)data, len};
  return write_at(fd, &one, 1, -1);
}

EXPORT ssize_t pwrite(int fd, const void *data, size_t len, off_t offset) {
  if (!is_ours(fd)) return syscall(SYS_pwrite64, fd, data, len, offset);
  struct iovec one = {(void *)data, len};
  return write_at(fd, &one, 1, offset);
}

EXPORT ssize_t pwrite64(int fd, const void *data, size_t len, off64_t offset) { return pwrite(fd, data, len, offset); }

EXPORT ssize_t writev(int fd, const struct iovec *data, int pieces) {
  return is_ours(fd) ? write_at(fd, data, pieces, -1) : syscall(SYS_writev, fd, data, pieces);
}

EXPORT ssize_t pwritev(int fd, const struct iovec *data, int pieces, off_t offset) {
  return is_ours(fd) ? write_at(fd, data, pieces, offset) : syscall(SYS_pwritev, fd, data, pieces, offset, 0);
}

EXPORT ssize_t pwritev64(int fd, const struct iovec *data, int pieces, off64_t offset) {
  return pwritev(fd, data, pieces, offset);
}

/* Not worth following, and callers fall back to reading and writing. */
EXPORT ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t len, unsigned flags) {
  if (is_ours(out)) return errno = ENOSYS, -1;
  return syscall(SYS_copy_file_range, in, in_at, out, out_at, len, flags);
}

EXPORT int ftruncate(int fd, off_t len) {
  if (!is_ours(fd)) return syscall(SYS_ftruncate, fd, len);
  pthread_mutex_lock(&lock);
  int result = syscall(SYS_ftruncate, fd, len);
  if (result == 0) change(TRUNCATE, fds[fd].inode, len, NULL, NULL);
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT int ftruncate64(int fd, off64_t len) { return ftruncate(fd, len); }

EXPORT int fallocate(int fd, int mode, off_t offset, off_t len) {
  if (!is_ours(fd)) return syscall(SYS_fallocate, fd, mode, offset, len);
  if (mode & ~FALLOC_FL_KEEP_SIZE) return errno = EOPNOTSUPP, -1;
  pthread_mutex_lock(&lock);
  struct stat now;
  int result = syscall(SYS_fallocate, fd, mode, offset, len);
  /* Room alone changes nothing that can be read. */
  if (result == 0 && mode == 0 && fstat(fd, &now) == 0) change(TRUNCATE, fds[fd].inode, now.st_size, NULL, NULL);
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t len) { return fallocate(fd, mode, offset, len); }

EXPORT int posix_fallocate(int fd, off_t offset, off_t len) { return fallocate(fd, 0, offset, len) == 0 ? 0 : errno; }
EXPORT int posix_fallocate64(int fd, off64_t offset, off64_t len) { return posix_fallocate(fd, offset, len); }

static int sync_with(long call, int fd) {
  if (!is_ours(fd)) return syscall(call, fd);
  pthread_mutex_lock(&lock);
  uint64_t covered = changes;
  struct opened file = fds[fd];
  char path[PATH_MAX];
  strncpy(path, file.path, sizeof path - 1);
  path[sizeof path - 1] = 0;
  pthread_mutex_unlock(&lock);
  int result = syscall(call, fd);
  if (result != 0) return result;
  pthread_mutex_lock(&lock);
  if (file.is_folder) {
    entry(SYNC_FOLDER, covered, file.inode, 0, path, NULL, NULL, 0, 0);
  } else {
    entry(SYNC_FILE, covered, file.inode, 0, NULL, NULL, NULL, 0, 0);
  }
  pthread_mutex_unlock(&lock);
  return 0;
}

EXPORT int fsync(int fd) { return sync_with(SYS_fsync, fd); }
EXPORT int fdatasync(int fd) { return sync_with(SYS_fdatasync, fd); }

/* ---- names ---- */

EXPORT int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
  char from_buffer[PATH_MAX], to_buffer[PATH_MAX];
  pthread_mutex_lock(&lock);
  const char *old = inside(from_at, from, from_buffer), *new = inside(to_at, to, to_buffer);
  int result = syscall(SYS_renameat2, from_at, from, to_at, to, flags);
  int saved = errno;
  /* In or out of the root, or an exchange: nobody does that here, and the log could not say it. */
  if (result == 0 && (!old != !new || (old && flags))) abort();
  if (result == 0 && old) change(RENAME, 0, 0, old, new);
  pthread_mutex_unlock(&lock);
  errno = saved;
  return result;
}

EXPORT int renameat(int from_at, const char *from, int to_at, const char *to) { return renameat2(from_at, from, to_at, to, 0); }
EXPORT int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

EXPORT int unlinkat(int at, const char *path, int flags) {
  char buffer[PATH_MAX];
  pthread_mutex_lock(&lock);
  const char *whole = inside(at, path, buffer);
  int result = syscall(SYS_unlinkat, at, path, flags);
  int saved = errno;
  if (result == 0 && whole) change(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, 0, whole, NULL);
  pthread_mutex_unlock(&lock);
  errno = saved;
  return result;
}

EXPORT int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
EXPORT int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
EXPORT int remove(const char *path) {
  int result = unlink(path);
  return result != 0 && errno == EISDIR ? rmdir(path) : result;
}

EXPORT int mkdirat(int at, const char *path, mode_t mode) {
  char buffer[PATH_MAX];
  pthread_mutex_lock(&lock);
  const char *whole = inside(at, path, buffer);
  int result = syscall(SYS_mkdirat, at, path, mode);
  int saved = errno;
  if (result == 0 && whole) change(MKDIR, 0, 0, whole, NULL);
  pthread_mutex_unlock(&lock);
  errno = saved;
  return result;
}

EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

EXPORT int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
  char from_buffer[PATH_MAX], to_buffer[PATH_MAX];
  pthread_mutex_lock(&lock);
  const char *old = inside(from_at, from, from_buffer), *new = inside(to_at, to, to_buffer);
  int result = syscall(SYS_linkat, from_at, from, to_at, to, flags);
  int saved = errno;
  if (result == 0 && !old != !new) abort();
  if (result == 0 && old) change(LINK, 0, 0, old, new);
  pthread_mutex_unlock(&lock);
  errno = saved;
  return result;
}

EXPORT int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
