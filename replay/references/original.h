// What the references share.
#pragma once

#include <workbench_allocator.h>

#include <cstddef>
#include <cstdio>

namespace reference {

// Reaches a private member of an original, where the workbench has to see what has no public way:
// the language lets an explicit instantiation name one. For each, a tag with its type:
//
//     struct Tag { using type = …; friend type reach(Tag); };
//     template struct Reach<Tag, &Class::member>;
//     object.*reach(Tag{})
template <class Tag, typename Tag::type Member>
struct Reach {
  friend typename Tag::type reach(Tag) { return Member; }
};

// False, and says why, where the original's own calls for memory could not be served.
inline bool has_system_memory(const wb_host& host, char* error, std::size_t error_size) {
  if (host.has_memory != 0) return true;
  std::snprintf(error, error_size,
                "it takes its memory from the system by itself; replay it with --backend host");
  return false;
}

}  // namespace reference
