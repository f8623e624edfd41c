/* An allocator of one's own in the Allocator Workbench: size classes in chunks.
 *
 * A request is rounded up to a power of two and served from a list of free blocks of that size and
 * stream, else from the end of a chunk. Larger ones than half a chunk are taken and given back one
 * by one. The memory itself is never read or written, so it works where there is none behind the
 * addresses too.
 *
 *     cc -shared -fPIC -O2 -I"$(python -c 'import workbench; print(workbench.include_folder())')" \
 *        -o arena.so arena_allocator.c
 *     wb replay run.parquet --allocator 'pluggable:arena.so,config:chunk_kib=4096'
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "workbench_allocator.h"

enum { CLASSES = 48, STREAMS = 64 };

/* A piece of memory in a list: a chunk, a free block, one that is used by another stream, or one
 * that has been freed and waits for that. */
typedef struct piece {
  struct piece* next;
  char* memory;
  uint64_t bytes;
  int32_t stream; /* of the allocation; of a block in use: the other one */
  uint64_t event; /* to wait for */
} piece;

typedef struct {
  const wb_host* host;
  pthread_mutex_t lock;
  uint64_t chunk_bytes, smallest;
  piece *chunks, *used_elsewhere, *waiting, *freed[CLASSES][STREAMS];
  char *bump, *bump_end; /* what is left of the newest chunk */
  wb_statistics now;
  int64_t small_live; /* blocks in chunks that are not in a free list */
} arena;

static void push(piece** list, piece content) {
  piece* first = malloc(sizeof *first);
  if (first == NULL) abort();
  *first = content;
  first->next = *list;
  *list = first;
}

static char* pop(piece** list) {
  piece* first = *list;
  char* memory = first->memory;
  *list = first->next;
  free(first);
  return memory;
}

static uint64_t rounded(const arena* self, uint64_t bytes, int* class_of) {
  if (bytes > self->chunk_bytes / 2) { /* a region of its own */
    *class_of = -1;
    return (bytes + self->smallest - 1) / self->smallest * self->smallest;
  }
  uint64_t size = self->smallest;
  for (*class_of = 0; size < bytes; ++*class_of) size *= 2;
  return size;
}

static char* take(arena* self, uint64_t bytes) {
  char* memory = self->host->take(self->host->context, bytes);
  if (memory == NULL) return NULL;
  self->now.reserved += (int64_t)bytes;
  self->now.segments += 1;
  return memory;
}

static void give(arena* self, char* memory, uint64_t bytes) {
  self->host->give(self->host->context, memory, bytes);
  self->now.reserved -= (int64_t)bytes;
  self->now.segments -= 1;
}

/* No stream uses the block any more. */
static void release(arena* self, char* memory, uint64_t bytes, int32_t stream) {
  int class_of;
  const uint64_t size = rounded(self, bytes, &class_of);
  self->now.active -= (int64_t)size;
  if (class_of < 0) {
    give(self, memory, size);
  } else {
    push(&self->freed[class_of][stream % STREAMS], (piece){.memory = memory});
    self->small_live -= 1;
  }
}

static int holds(const piece* list, const char* memory) {
  while (list != NULL && list->memory != memory) list = list->next;
  return list != NULL;
}

/* Releases the freed blocks that other streams no longer use; `wait`: waits until they do not. */
static void collect(arena* self, int wait) {
  for (piece** at = &self->waiting; *at != NULL;) {
    const piece one = **at;
    if (wait) self->host->event_wait(self->host->context, one.event);
    if (!self->host->event_query(self->host->context, one.event)) {
      at = &(*at)->next;
      continue;
    }
    pop(at);
    if (!holds(self->waiting, one.memory)) release(self, one.memory, one.bytes, one.stream);
  }
}

static void flush(arena* self) {
  collect(self, 1);
  if (self->small_live > 0) return;
  for (int class_of = 0; class_of < CLASSES; ++class_of) {
    for (int stream = 0; stream < STREAMS; ++stream) {
      while (self->freed[class_of][stream] != NULL) pop(&self->freed[class_of][stream]);
    }
  }
  while (self->chunks != NULL) give(self, pop(&self->chunks), self->chunk_bytes);
  self->bump = self->bump_end = NULL;
}

static char* from_chunk(arena* self, uint64_t size) {
  if ((uint64_t)(self->bump_end - self->bump) < size) {
    char* chunk = take(self, self->chunk_bytes);
    if (chunk == NULL) return NULL;
    push(&self->chunks, (piece){.memory = chunk});
    self->bump = chunk;
    self->bump_end = chunk + self->chunk_bytes;
  }
  char* memory = self->bump;
  self->bump += size;
  return memory;
}

static char* find(arena* self, uint64_t size, int class_of, int32_t stream) {
  if (class_of < 0) return take(self, size);
  piece** list = &self->freed[class_of][stream % STREAMS];
  return *list != NULL ? pop(list) : from_chunk(self, size);
}

static void* allocate(void* allocator, uint64_t bytes, int32_t stream, int32_t thread) {
  arena* self = allocator;
  (void)thread;
  if (bytes > (uint64_t)1 << 60) return NULL;
  pthread_mutex_lock(&self->lock);
  collect(self, 0);
  int class_of;
  const uint64_t size = rounded(self, bytes, &class_of);
  const int64_t reserved = self->now.reserved;
  char* memory = find(self, size, class_of, stream);
  if (memory == NULL) {
    flush(self);
    self->now.retries += 1;
    memory = find(self, size, class_of, stream);
  }
  if (memory != NULL) {
    *(self->now.reserved > reserved ? &self->now.misses : &self->now.hits) += 1;
    self->now.allocated += (int64_t)size;
    self->now.active += (int64_t)size;
    self->small_live += class_of >= 0;
  }
  pthread_mutex_unlock(&self->lock);
  return memory;
}

static void deallocate(void* allocator, void* memory, uint64_t bytes, int32_t stream,
                       int32_t thread) {
  arena* self = allocator;
  (void)thread;
  pthread_mutex_lock(&self->lock);
  int class_of;
  self->now.allocated -= (int64_t)rounded(self, bytes, &class_of);
  for (piece** at = &self->used_elsewhere; *at != NULL;) {
    if ((*at)->memory != memory) {
      at = &(*at)->next;
      continue;
    }
    const uint64_t event = self->host->event_record(self->host->context, (*at)->stream);
    push(&self->waiting, (piece){.memory = pop(at), bytes, stream, event});
  }
  if (!holds(self->waiting, memory)) release(self, memory, bytes, stream);
  pthread_mutex_unlock(&self->lock);
}

static void record_stream(void* allocator, void* memory, int32_t stream) {
  arena* self = allocator;
  pthread_mutex_lock(&self->lock);
  push(&self->used_elsewhere, (piece){.memory = memory, .stream = stream});
  pthread_mutex_unlock(&self->lock);
}

static void empty_cache(void* allocator) {
  arena* self = allocator;
  pthread_mutex_lock(&self->lock);
  flush(self);
  pthread_mutex_unlock(&self->lock);
}

static void statistics(void* allocator, wb_statistics* told) {
  arena* self = allocator;
  pthread_mutex_lock(&self->lock);
  const size_t size = told->size < sizeof self->now ? told->size : sizeof self->now;
  memcpy(told, &self->now, size);
  pthread_mutex_unlock(&self->lock);
}

static void* create(const wb_host* host, const char* configuration, char* error,
                    size_t error_size) {
  unsigned long long chunk_kib = 2048;
  if (*configuration != 0 && sscanf(configuration, "chunk_kib=%llu", &chunk_kib) != 1) {
    snprintf(error, error_size, "write chunk_kib=NUMBER");
    return NULL;
  }
  if (chunk_kib < 4 || chunk_kib > 1 << 20) {
    snprintf(error, error_size, "chunk_kib is %llu; give a number from 4 to 1048576", chunk_kib);
    return NULL;
  }
  arena* self = calloc(1, sizeof *self);
  if (self == NULL || pthread_mutex_init(&self->lock, NULL) != 0) abort();
  self->host = host;
  self->chunk_bytes = chunk_kib * 1024;
  self->smallest = host->is_device ? 512 : 64;
  self->now.size = sizeof self->now;
  self->now.stranded = self->now.largest_free = WB_NOT_REPORTED;
  return self;
}

static void destroy(void* allocator) {
  arena* self = allocator;
  flush(self);
  pthread_mutex_destroy(&self->lock);
  free(self);
}

static const wb_interface functions = {
    .size = sizeof functions,
    .version = WB_VERSION,
    .name = "arena",
    .create = create,
    .destroy = destroy,
    .allocate = allocate,
    .deallocate = deallocate,
    .record_stream = record_stream,
    .empty_cache = empty_cache,
    .statistics = statistics,
};

const wb_interface* workbench_allocator(uint32_t version) {
  return version >= WB_VERSION ? &functions : NULL;
}
