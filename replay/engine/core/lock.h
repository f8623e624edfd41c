// A mutex for allocators and backends that several threads may call at once.
#pragma once

#include <mutex>

namespace workbench {

// Where one thread replays it costs a branch; where several do, it tells a thread that it waited.
// For std::lock_guard and its likes.
class Lock {
 public:
  // `several_threads`: whether more than one will come.
  explicit Lock(bool several_threads) : in_use_(several_threads) {}

  void lock() {
    if (!in_use_ || mutex_.try_lock()) [[likely]]
      return;
    waited_ = true;
    mutex_.lock();
  }
  void unlock() {
    if (in_use_) mutex_.unlock();
  }

  bool in_use() const { return in_use_; }

  // Whether the calling thread had to wait for any lock since it last asked.
  static bool take_waited() {
    const bool waited = waited_;
    waited_ = false;
    return waited;
  }

 private:
  [[gnu::tls_model("initial-exec")]] static inline constinit thread_local bool waited_ = false;
  std::mutex mutex_;
  const bool in_use_;
};

}  // namespace workbench
