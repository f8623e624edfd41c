#include "core/last_words.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace workbench {

LastWords::Page* LastWords::page_ = nullptr;

void LastWords::keep_in(const std::string& path) {
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  void* memory = MAP_FAILED;
  if (file >= 0 && ftruncate(file, sizeof(Page)) == 0) {
    memory = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  const int error = errno;
  if (file >= 0) close(file);
  if (memory == MAP_FAILED) {
    throw std::runtime_error("cannot keep last words in " + path + ": " + std::strerror(error));
  }
  page_ = static_cast<Page*>(memory);
  say("");
}

void LastWords::say(const char* doing, std::int64_t event) {
  if (page_ == nullptr) return;
  // Volatile: nobody here reads it, and a crash may come at once.
  volatile Page& page = *page_;
  page.event = event;
  std::size_t i = 0;
  for (; i + 1 < sizeof page.doing && doing[i] != 0; ++i) page.doing[i] = doing[i];
  page.doing[i] = 0;
}

LastWords::While::While(const char* doing) {
  if (page_ != nullptr) before_ = *page_;
  say(doing);
}

LastWords::While::~While() { say(before_.doing, before_.event); }

}  // namespace workbench
