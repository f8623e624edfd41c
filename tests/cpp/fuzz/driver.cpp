// Runs a fuzz target without libFuzzer: random inputs and mutations of those that reached something
// new, by the compiler's -fsanitize-coverage=trace-pc.
//
//   fuzz_NAME [--seconds N] [--seed N] [--failure FILE]   look for failures; the input goes to FILE
//   fuzz_NAME FILE…                                       run inputs again
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "fuzz.h"

extern "C" {
extern const char __executable_start;
void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));
void __sanitizer_cov_trace_pc();
}

namespace {

using Input = std::vector<std::uint8_t>;

constexpr std::size_t kLongest = 600;
constexpr std::size_t kSlots = std::size_t{1} << 16;
constexpr unsigned kHangSeconds = 20;

std::array<std::uint8_t, kSlots> edge_counts;  // of one input
std::array<std::uint32_t, kSlots> edges;       // those that this input took: its slots
std::size_t edge_count = 0;
std::array<std::uint8_t, kSlots> edges_seen;    // of all: a bit for each order of magnitude
std::array<bool, std::size_t{1} << 24> places;  // by address: basic blocks reached
std::uintptr_t last_place = 0;

const Input* current = nullptr;
std::string failure_file = "fuzz-failure";

// Only what a signal handler may call.
void keep_failure() {
  if (current == nullptr) return;
  const int file = open(failure_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (file < 0) return;
  const ssize_t written = write(file, current->data(), current->size());
  close(file);
  const char* const say = written < 0 ? "the input could not be kept\n" : "input kept\n";
  if (write(STDERR_FILENO, say, std::strlen(say)) < 0) return;
}

void on_signal(int signal) {
  keep_failure();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void run(const Input& input) {
  current = &input;
  last_place = 0;
  alarm(kHangSeconds);
  LLVMFuzzerTestOneInput(input.data(), input.size());
  alarm(0);
  current = nullptr;
}

// Whether the input took a path, or took one ten times more often, that none had before.
bool reaches_something_new(const Input& input) {
  edge_count = 0;
  run(input);
  bool is_new = false;
  for (std::size_t i = 0; i < edge_count; ++i) {
    const std::size_t slot = edges[i];
    const unsigned count = edge_counts[slot];
    edge_counts[slot] = 0;
    const auto bit = static_cast<std::uint8_t>(count == 1    ? 1
                                               : count < 4   ? 2
                                               : count < 16  ? 4
                                               : count < 128 ? 8
                                                             : 16);
    is_new |= (edges_seen[slot] & bit) == 0;
    edges_seen[slot] = static_cast<std::uint8_t>(edges_seen[slot] | bit);
  }
  return is_new;
}

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}

  std::size_t below(std::size_t end) { return end == 0 ? 0 : random_() % end; }

  Input fresh() {
    Input input(below(below(8) == 0 ? kLongest : 64));
    for (std::uint8_t& byte : input) byte = byte_();
    return input;
  }

  void mutate(Input& input, const std::vector<Input>& corpus) {
    for (std::size_t times = 1 + below(6); times > 0; --times) once(input, corpus);
    if (input.size() > kLongest) input.resize(kLongest);
  }

 private:
  void once(Input& input, const std::vector<Input>& corpus) {
    const std::size_t at = below(input.size() + 1);
    const auto place = input.begin() + static_cast<std::ptrdiff_t>(at);
    const std::size_t rest = input.size() - at;
    const std::size_t length = std::min(rest, 1 + below(below(4) == 0 ? 64 : 8));
    const auto end = place + static_cast<std::ptrdiff_t>(length);
    switch (below(8)) {
      case 0:
        if (rest > 0) *place = static_cast<std::uint8_t>(*place ^ (1U << below(8)));
        break;
      case 1:
        if (rest > 0) *place = byte_();
        break;
      case 2:
        if (rest > 0) *place = static_cast<std::uint8_t>(*place + below(9) - 4);
        break;
      case 3:
        input.insert(place, byte_());
        break;
      case 4:
        input.erase(place, end);
        break;
      case 5: {
        const Input copy(place, end);
        const std::size_t to = below(input.size() + 1);
        input.insert(input.begin() + static_cast<std::ptrdiff_t>(to), copy.begin(), copy.end());
        break;
      }
      case 6: {
        if (words_.empty()) break;
        const std::string_view word = words_[below(words_.size())];
        input.insert(place, word.begin(), word.end());
        break;
      }
      default: {
        if (corpus.empty()) break;
        const Input& other = corpus[below(corpus.size())];
        input.resize(at);
        input.insert(input.end(),
                     other.begin() + static_cast<std::ptrdiff_t>(below(other.size() + 1)),
                     other.end());
      }
    }
  }

  std::uint8_t byte_() { return static_cast<std::uint8_t>(random_()); }

  std::mt19937_64 random_;
  const std::vector<std::string_view> words_ = fuzz_dictionary();
};

int fuzz(double seconds, std::uint64_t seed) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  Mutator mutator(seed);
  std::vector<Input> corpus;
  std::size_t executions = 0;
  while (Clock::now() < end) {
    Input input;
    if (corpus.empty() || mutator.below(20) == 0) {
      input = mutator.fresh();
    } else {
      // The latest finding as often as all others together.
      input = mutator.below(2) == 0 ? corpus.back() : corpus[mutator.below(corpus.size())];
      mutator.mutate(input, corpus);
    }
    ++executions;
    if (reaches_something_new(input)) corpus.push_back(std::move(input));
  }
  std::printf("%zu executions, %zu inputs kept, %td basic blocks and %td paths reached\n",
              executions, corpus.size(), std::count(places.begin(), places.end(), true),
              std::count_if(edges_seen.begin(), edges_seen.end(), [](auto b) { return b != 0; }));
  return 0;
}

}  // namespace

// Called at every basic block of what is tested.
extern "C" __attribute__((no_sanitize("address", "undefined"))) void __sanitizer_cov_trace_pc() {
  const auto place = reinterpret_cast<std::uintptr_t>(__builtin_return_address(0)) -
                     reinterpret_cast<std::uintptr_t>(&__executable_start);
  places[place % places.size()] = true;
  const auto slot = static_cast<std::uint32_t>((place ^ last_place) * 0x9e3779b97f4a7c15U >> 48);
  std::uint8_t& count = edge_counts[slot];
  if (count == 0) edges[edge_count++] = slot;
  if (count < 255) ++count;
  last_place = place << 1;
}

int main(int argc, char** argv) {
  double seconds = 5;
  std::uint64_t seed = 1;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const bool has_value = i + 1 < argc;
    if (name == "--seconds" && has_value) {
      seconds = std::stod(argv[++i]);
    } else if (name == "--seed" && has_value) {
      seed = std::stoull(argv[++i]);
    } else if (name == "--failure" && has_value) {
      failure_file = argv[++i];
    } else if (name.starts_with("--")) {
      std::fprintf(stderr, "use: %s [--seconds N] [--seed N] [--failure FILE] [FILE…]\n", argv[0]);
      return 2;
    } else {
      files.push_back(name);
    }
  }
  for (const std::string& name : files) {
    std::ifstream file(name, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "%s cannot be read\n", name.c_str());
      return 2;
    }
    run(Input(std::istreambuf_iterator<char>(file), {}));
    std::printf("%s: no failure\n", name.c_str());
  }
  if (!files.empty()) return 0;

  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(keep_failure);
  for (const int signal : {SIGABRT, SIGALRM}) std::signal(signal, on_signal);
  return fuzz(seconds, seed);
}
