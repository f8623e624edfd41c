// A shared library of the user's, loaded into this process.
#pragma once

#include <string>

namespace workbench {

class SharedLibrary {
 public:
  // A path; a name without a slash is looked for in the current folder, then where the system keeps
  // its libraries. Throws LibraryFaultError: cannot be loaded, and why.
  explicit SharedLibrary(const std::string& path);

  // The address of what the library itself defines under this name, not what another one that it
  // needs does; null where it does not.
  void* find(const std::string& name) const;
  template <class Function>
  Function* find_function(const std::string& name) const {
    return reinterpret_cast<Function*>(find(name));
  }

  const std::string& path() const { return path_; }

 private:
  const std::string path_;
  // Never closed: threads of its own and exit handlers may still run in it.
  void* handle_ = nullptr;
};

}  // namespace workbench
