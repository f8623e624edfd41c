#include "backends/backend.h"

namespace workbench {

Registry<BackendEntry>& backend_registry() {
  static Registry<BackendEntry> registry("backend");
  return registry;
}

}  // namespace workbench
