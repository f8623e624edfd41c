/* An allocator of your own in the Allocator Workbench.
 *
 * Write a shared library in any language that can export a C function, have it export
 *
 *     const wb_interface *workbench_allocator(uint32_t version);
 *
 * and replay any trace against it:
 *
 *     wb replay run.parquet --allocator pluggable:library:LIB.so
 *
 * `version` is the newest interface that the workbench knows. The library returns the newest it
 * knows that is no newer, or NULL. Structures only ever grow at their end, so what is beyond the
 * `size` of either side is not there. examples/arena_allocator.c is a whole library.
 *
 * Sizes are bytes. Streams and threads are small numbers, as in the trace; 0 is the default stream
 * and the first thread. Nothing here may throw or call longjmp. Where several threads replay
 * (--order handoff, free) every function but `create` and `destroy` may be called by several at
 * once.
 */
#ifndef WORKBENCH_ALLOCATOR_H
#define WORKBENCH_ALLOCATOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WB_VERSION 1

/* A number that the library does not tell; shown as "not reported". */
#define WB_NOT_REPORTED INT64_MIN

/* What the library may ask of the workbench. It need not: a library may take memory where it likes.
 * Valid until `destroy` has returned. */
typedef struct wb_host {
  size_t size;   /* of this structure */
  void* context; /* to be passed to the functions below */

  int32_t
      is_device; /* whether the memory is a device's: blocks start at multiples of 512, not 64 */
  int32_t has_memory; /* whether addresses can be read and written */
  /* Whether statistics will be asked for. Timed passes do not: a library that counts only for them
   * may leave it. */
  int32_t counts;
  int32_t several_threads;
  uint64_t capacity; /* bytes there are; UINT64_MAX: no limit */

  /* `bytes` > 0 of raw memory; NULL where there is no room. */
  void* (*take)(void* context, uint64_t bytes);
  /* Gives back what take(bytes) handed out. */
  void (*give)(void* context, void* memory, uint64_t bytes);

  /* A CUDA event that marks the work submitted to `stream` so far; numbers are never used again. */
  uint64_t (*event_record)(void* context, int32_t stream);
  /* Whether that work is complete. */
  int32_t (*event_query)(void* context, uint64_t event);
  /* Waits until it is. */
  void (*event_wait)(void* context, uint64_t event);

  /* As take and give, of memory that the system may neither move nor swap out. */
  void* (*take_pinned)(void* context, uint64_t bytes);
  void (*give_pinned)(void* context, void* memory, uint64_t bytes);

  /* Bytes the device says it has, also where there is no limit, and those in use. */
  uint64_t total;
  uint64_t (*used)(void* context);
  /* A range of addresses without memory; NULL where there is no room. What of it has been mapped
   * must be unmapped before unreserve(bytes as reserved). */
  void* (*reserve)(void* context, uint64_t bytes);
  void (*unreserve)(void* context, void* address, uint64_t bytes);
  /* Puts memory behind a piece of a range; 1: all of it is there, 0: there is no room. */
  int32_t (*map)(void* context, void* address, uint64_t bytes);
  void (*unmap)(void* context, void* address, uint64_t bytes);
  /* The cudaStream_t of a stream where the device is a real one, else NULL. */
  void* (*stream)(void* context, int32_t stream);
} wb_host;

/* Where an allocation belongs in a trace with private pools (CUDA graphs, torch.cuda.MemPool):
 * the stream, and the pool; 0 is no private one. */
typedef struct wb_lane {
  int32_t stream;
  int32_t pool;
} wb_lane;

/* What the allocator holds, in PyTorch's words (docs/allocators.md). The workbench fills all but
 * `size` with WB_NOT_REPORTED before it asks. */
typedef struct wb_statistics {
  size_t size; /* of this structure */
  int64_t allocated;
  int64_t active;
  int64_t reserved;
  int64_t stranded;     /* of reserved: free, but in segments that are partly in use */
  int64_t largest_free; /* bytes of the largest free block */
  int64_t segments;
  int64_t hits;   /* allocations served without asking for memory */
  int64_t misses; /* allocations that asked for it */
  int64_t retries;
  int64_t requested; /* falls when a block is free for real; where not told, when it is freed */
  int64_t inactive_split;
  int64_t active_blocks;
  int64_t inactive_split_blocks;
  int64_t ooms;          /* requests refused for want of memory; where not told, all refused ones */
  int64_t device_allocs; /* calls that gave it memory, and that took some back; where not told, */
  int64_t device_frees;  /* take and give */
} wb_statistics;

/* The lifetimes of what is going to be allocated, by id: allocation 0, 1, 2, … of all threads. The
 * arrays have `count` elements each and are valid during the call. */
typedef struct wb_lifetimes {
  size_t size;           /* of this structure */
  uint64_t count;        /* of allocations */
  const uint64_t* bytes; /* requested */
  /* Number of allocations made before its free; UINT64_MAX: not freed. */
  const uint64_t* end;
  const int32_t* thread; /* that allocates */
} wb_lifetimes;

typedef struct wb_interface {
  size_t size;      /* of this structure */
  uint32_t version; /* WB_VERSION of the header it was compiled with */
  const char* name;

  /* An allocator; NULL where `configuration` will not do, with a sentence that says why in `error`
   * (`error_size` bytes, to be ended by 0). `configuration` is what the user wrote after
   * `config:`, or "". */
  void* (*create)(const wb_host* host, const char* configuration, char* error, size_t error_size);
  /* The program's blocks have been freed. */
  void (*destroy)(void* allocator);

  /* `bytes` > 0. Memory that starts at a multiple of 64, a device's at one of 512. NULL: out of
   * memory. */
  void* (*allocate)(void* allocator, uint64_t bytes, int32_t stream, int32_t thread);
  /* `stream` is that of the allocation, `thread` the one that frees. */
  void (*deallocate)(void* allocator, void* memory, uint64_t bytes, int32_t stream, int32_t thread);

  /* The functions from here on may be NULL. */

  /* Work of `stream` uses the block; it may be the stream of its allocation. */
  void (*record_stream)(void* allocator, void* memory, int32_t stream);
  void (*empty_cache)(void* allocator);
  void (*statistics)(void* allocator, wb_statistics* statistics);
  /* Called once after `create`, before the first allocation, with what is to come. 0; anything
   * else: it cannot be served, with a sentence in `error`. */
  int32_t (*prepare)(void* allocator, const wb_lifetimes* lifetimes, char* error,
                     size_t error_size);
  /* The program begins (again). */
  void (*program_begins)(void* allocator);
  /* The program comes to its end: what is freed from here on it did not free itself. */
  void (*program_ends)(void* allocator);

  /* Called once after `create` where the trace has private pools: from here on the `stream` of
   * allocate and deallocate is the number of one of these `count` lanes. Where it is NULL, it stays
   * a stream. */
  void (*lanes)(void* allocator, const wb_lane* lanes, size_t count);
  /* From here on allocations may go to a private pool, one more user of which there is (begin);
   * no more do (end); it has one user less, and may be given back where there is none left
   * (release). */
  void (*pool_begin)(void* allocator, int32_t pool);
  void (*pool_end)(void* allocator, int32_t pool);
  void (*pool_release)(void* allocator, int32_t pool);
  /* The work of a stream is captured into a CUDA graph, and no longer. */
  void (*capture_begin)(void* allocator, int32_t stream);
  void (*capture_end)(void* allocator, int32_t stream);
  /* The program may use this share of the device, in millionths. */
  void (*set_fraction)(void* allocator, int64_t millionths);
  /* The work of a stream is complete; -1: of all. */
  void (*synchronized)(void* allocator, int32_t stream);
} wb_interface;

#ifdef __cplusplus
}
#endif

#endif /* WORKBENCH_ALLOCATOR_H */
