#include "replayer/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/errors.h"

namespace workbench {
namespace {

using Clock = std::chrono::steady_clock;

// A checkpoint takes Python's lock, and should not fall into a short measurement.
constexpr std::chrono::milliseconds kBetweenCheckpoints{200};

class Runner {
 public:
  explicit Runner(const ThreadWork& work) : work_(work) {}

  double run() {
    start();
    watch();
    for (std::thread& thread : threads_) thread.join();
    if (failure_ != nullptr) std::rethrow_exception(failure_);
    return std::chrono::duration<double, std::nano>(last_end_ - begin_).count();
  }

 private:
  void start() {
    threads_.reserve(work_.threads);
    try {
      for (std::size_t number = 0; number < work_.threads; ++number) {
        threads_.emplace_back([this, number] { live(number); });
      }
    } catch (const std::system_error& error) {
      fail(std::make_exception_ptr(
          EngineError("thread " + std::to_string(threads_.size() + 1) + " of " +
                      std::to_string(work_.threads) + " could not be started (" + error.what() +
                      "); allow more threads (ulimit -u), or replay in the order global")));
    }
    // The first would be far ahead before the last exists.
    while (ready_.load() < threads_.size()) std::this_thread::yield();
    begin_ = Clock::now();
    go_.store(true);
  }

  void live(std::size_t number) {
    ++ready_;
    while (!go_.load()) std::this_thread::yield();
    try {
      work_.work(number);
    } catch (...) {
      fail(std::current_exception());
    }
    const auto end = Clock::now();
    const std::lock_guard guard(mutex_);
    last_end_ = std::max(last_end_, end);
    ++ended_;
    all_ended_.notify_one();
  }

  void watch() {
    std::unique_lock guard(mutex_);
    const auto all = [this] { return ended_ == threads_.size(); };
    while (!all_ended_.wait_for(guard, kBetweenCheckpoints, all)) {
      guard.unlock();
      try {
        work_.checkpoint();
      } catch (...) {
        fail(std::current_exception());
        return;
      }
      guard.lock();
    }
  }

  void fail(std::exception_ptr failure) {
    {
      const std::lock_guard guard(mutex_);
      if (failure_ == nullptr) failure_ = std::move(failure);
    }
    work_.stop();
  }

  const ThreadWork& work_;
  std::vector<std::thread> threads_;
  std::atomic<std::size_t> ready_ = 0;
  std::atomic<bool> go_ = false;
  Clock::time_point begin_;

  std::mutex mutex_;  // around what follows
  std::condition_variable all_ended_;
  std::size_t ended_ = 0;
  Clock::time_point last_end_;
  std::exception_ptr failure_;
};

}  // namespace

double run_threads(const ThreadWork& work) { return Runner(work).run(); }

}  // namespace workbench
