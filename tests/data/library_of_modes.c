// A library that does what its configuration says, each a way to go wrong outside the checking pass.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "workbench_allocator.h"

static char mode[64];
static int counts;
static long calls;

static int is(const char* name) { return strcmp(mode, name) == 0; }

static void wait_for_ever(void) {
  for (;;) pause();
}

static void* create(const wb_host* host, const char* config, char* error, size_t size) {
  (void)error;
  (void)size;
  counts = host->counts;
  strncpy(mode, config == NULL ? "" : config, sizeof mode - 1);
  if (is("chdir") && chdir("/") != 0) abort();
  if (is("forks") && fork() == 0) wait_for_ever();
  if (is("says much")) {
    for (int line = 0; line < 200000; ++line) fprintf(stderr, "line %d of many\n", line);
    abort();
  }
  if (is("no files")) {
    const struct rlimit none = {0, 0};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &none);
  }
  if (is("hangs at exit")) atexit(wait_for_ever);
  return malloc(1);
}

static void destroy(void* allocator) { free(allocator); }

static void* allocate(void* allocator, uint64_t bytes, int32_t stream, int32_t thread) {
  (void)allocator;
  (void)stream;
  (void)thread;
  ++calls;
  if (!counts && is("null when timed") && calls > 2) return NULL;
  if (!counts && is("hangs when timed")) wait_for_ever();
  return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static void deallocate(void* allocator, void* memory, uint64_t bytes, int32_t stream,
                       int32_t thread) {
  (void)allocator;
  (void)bytes;
  (void)stream;
  (void)thread;
  free(memory);
}

const wb_interface* workbench_allocator(uint32_t version);
const wb_interface* workbench_allocator(uint32_t version) {
  static const wb_interface interface = {
      .size = sizeof(wb_interface),
      .version = WB_VERSION,
      .name = "modes",
      .create = create,
      .destroy = destroy,
      .allocate = allocate,
      .deallocate = deallocate,
  };
  return version < WB_VERSION ? NULL : &interface;
}

__attribute__((destructor)) static void unload(void) {
  if (is("exit code 5")) _exit(5);
}
