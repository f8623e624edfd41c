#include "allocators/shared_library.h"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <string_view>

#include "core/errors.h"
#include "core/last_words.h"

namespace workbench {
namespace {

std::string resolved(const std::string& path) {
  const bool is_here = path.find('/') == path.npos && access(path.c_str(), F_OK) == 0;
  return is_here ? "./" + path : path;
}

// What the loader says, in words.
std::string reason_of(const std::string& path, std::string_view said) {
  const auto says = [&](std::string_view text) { return said.find(text) != said.npos; };
  // The loader names the file that is at fault: the library, or one that it needs.
  const std::string_view culprit = said.substr(0, said.find(": "));
  const bool is_dependency = culprit != path && says(": cannot open shared object file");
  const bool exists = access(path.c_str(), F_OK) == 0;
  if (says("cannot open shared object file")) {
    if (is_dependency) {
      return "it needs " + std::string(culprit) +
             ", which is not there; install that, or name its folder in LD_LIBRARY_PATH";
    }
    if (exists) return "the system does not let it be opened (" + std::string(said) + ")";
    return "there is no such file; write its path";
  }
  if (says("invalid ELF header") || says("file too short") || says("cannot read file data")) {
    return "it is not a shared library; build one with cc -shared -fPIC";
  }
  if (says("wrong ELF class")) {
    return "it is built for another word size than this process; build it for 64 bits";
  }
  if (says("ET_DYN") || says("position-independent executable") ||
      says("cannot dynamically load")) {
    return "it is a program, not a shared library; build it with cc -shared -fPIC";
  }
  const std::string_view missing = "undefined symbol: ";
  if (const std::size_t at = said.find(missing); at != said.npos) {
    const std::string_view symbol = said.substr(at + missing.size());
    return "it needs the symbol " + std::string(symbol.substr(0, symbol.find_first_of(" ,\t"))) +
           ", which nothing defines; link it with what does";
  }
  if (says("static TLS")) {
    return "it needs more static thread-local memory than is left; set "
           "GLIBC_TUNABLES=glibc.rtld.optional_static_tls=16384";
  }
  return "the loader says: " + std::string(said);
}

}  // namespace

SharedLibrary::SharedLibrary(const std::string& path) : path_(resolved(path)) {
  // RTLD_LOCAL: a malloc of the library's must not become this process's. Its calls of its own
  // functions need no RTLD_DEEPBIND, which sanitizers refuse: no other library defines them.
  LastWords::say("load");
  handle_ = dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle_ == nullptr) {
    const char* const said = dlerror();
    throw LibraryFaultError("library " + path + " cannot be loaded: " +
                            reason_of(path_, said == nullptr ? "no reason" : said));
  }
}

void* SharedLibrary::find(const std::string& name) const {
  void* const address = dlsym(handle_, name.c_str());
  link_map* own = nullptr;
  Dl_info info;
  link_map* defining = nullptr;
  if (address == nullptr || dlinfo(handle_, RTLD_DI_LINKMAP, &own) != 0 ||
      dladdr1(address, &info, reinterpret_cast<void**>(&defining), RTLD_DL_LINKMAP) == 0) {
    return nullptr;
  }
  return defining == own ? address : nullptr;
}

}  // namespace workbench
