/* Preloaded: reads and writes of files under $FAILING_UNDER fail with EIO, every n-th of them, n = $FAILING_EVERY. */
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

static atomic_int count;

static int fails(int file) {
  const char *under = getenv("FAILING_UNDER"), *every = getenv("FAILING_EVERY");
  char link[64], path[4096];
  if (under == NULL || every == NULL) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t n = readlink(link, path, sizeof path - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return strncmp(path, under, strlen(under)) == 0 && strstr(path, "segment") != NULL &&
         (atomic_fetch_add(&count, 1) + 1) % atoi(every) == 0;
}

ssize_t pwrite(int file, const void* data, size_t size, off_t at) {
  static ssize_t (*real)(int, const void*, size_t, off_t);
  if (real == NULL) real = (ssize_t (*)(int, const void*, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
  if (!fails(file)) return real(file, data, size > 7 ? size - size / 3 : size, at); /* short ones, too */
  errno = EIO;
  return -1;
}

ssize_t preadv(int file, const struct iovec* to, int n, off_t at) {
  static ssize_t (*real)(int, const struct iovec*, int, off_t);
  if (real == NULL) real = (ssize_t (*)(int, const struct iovec*, int, off_t))dlsym(RTLD_NEXT, "preadv");
  if (!fails(file)) return real(file, to, n > 1 ? n - 1 : n, at);
  errno = EIO;
  return -1;
}
