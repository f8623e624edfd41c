// Puts the operator that is running into the records: the innermost one, by PyTorch's own
// callbacks.

#include <ATen/record_function.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "hook_face.h"

namespace workbench {
namespace {

constexpr std::size_t kDeepest = 256;  // operators within operators; deeper ones go by the 256th
constexpr std::uint32_t kMostNames = 0xffff;

HookFace hook;
at::CallbackHandle handle = 0;
bool installed = false;

struct ThreadOps {
  std::uint32_t* scope = nullptr;
  std::size_t depth = 0;
  std::uint16_t outer[kDeepest];  // what to go back to
  // Names are literals, or kept by PyTorch for as long as the operator: the pointer tells them
  // apart.
  std::unordered_map<const char*, std::uint16_t> numbers;
  std::uint64_t session = 0;  // that `numbers` belong to
};

// Never destroyed with its thread: tensors are freed, by operators too, until the very end.
ThreadOps& this_thread() {
  static thread_local auto* const ops = new ThreadOps;
  return *ops;
}

std::uint16_t number_of(ThreadOps& ops, const char* name) {
  if (const std::uint64_t session = hook.session(); session != ops.session) {
    ops.numbers.clear();
    ops.session = session;
  }
  const auto known = ops.numbers.find(name);
  if (known != ops.numbers.end()) return known->second;
  const std::uint32_t number = hook.define_name("op", name);
  const auto fits = static_cast<std::uint16_t>(number <= kMostNames ? number : 0);
  ops.numbers.emplace(name, fits);
  return fits;
}

std::unique_ptr<at::ObserverContext> at_start(const at::RecordFunction& function) {
  ThreadOps& ops = this_thread();
  if (ops.scope == nullptr) ops.scope = hook.thread_scope();
  if (ops.depth < kDeepest) {
    ops.outer[ops.depth] = static_cast<std::uint16_t>(*ops.scope & 0xffff);
    *ops.scope = (*ops.scope & 0xffff0000U) | number_of(ops, function.name());
  }
  ++ops.depth;
  return nullptr;
}

void at_end(const at::RecordFunction&, at::ObserverContext*) {
  ThreadOps& ops = this_thread();
  if (ops.depth == 0) return;  // began before we did
  if (--ops.depth < kDeepest) *ops.scope = (*ops.scope & 0xffff0000U) | ops.outer[ops.depth];
}

}  // namespace
}  // namespace workbench

WORKBENCH_EXPORT void wb_ops_start(const workbench::HookFace* face, const char*) {
  using namespace workbench;  // NOLINT
  if (installed) return;
  hook = *face;
  handle = at::addGlobalCallback(
      at::RecordFunctionCallback(&at_start, &at_end)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  installed = true;
}

WORKBENCH_EXPORT void wb_ops_stop() {
  using namespace workbench;  // NOLINT
  if (installed) at::removeCallback(handle);
  installed = false;
}
