/* Knows only interfaces that this workbench does not. */
#include "workbench_allocator.h"

const wb_interface* workbench_allocator(uint32_t version) {
  (void)version;
  return NULL;
}
