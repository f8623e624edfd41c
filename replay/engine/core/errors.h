// What can go wrong, by name. Running out of memory is not here: it is a result.
//
//   EngineError              a fault of the program or of an allocator
//   ├── DoubleFreeError      a block that is already free was freed
//   ├── ForeignPointerError  an address no allocation starts at
//   ├── DamagedBlockError    a live block's bytes changed under its owner
//   ├── PlanMismatchError    the traffic is not what the plan was made of
//   ├── LibraryFaultError    a library of the user's does not do what an allocator must
//   │   └── LibraryCallError  found where it was called; who called it knows at which event
//   └── UnavailableError     the system does not let this process do what it takes
//   InputError               an unknown name, setting or value, or events that contradict
//   themselves
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace workbench {

class EngineError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class DoubleFreeError : public EngineError {
 public:
  using EngineError::EngineError;
};

class ForeignPointerError : public EngineError {
 public:
  using EngineError::EngineError;
};

class DamagedBlockError : public EngineError {
 public:
  using EngineError::EngineError;
};

class PlanMismatchError : public EngineError {
 public:
  PlanMismatchError(std::int64_t at_id, const std::string& was_expected, const std::string& was_got)
      : EngineError("id " + std::to_string(at_id) + ": the plan expects " + was_expected +
                    ", got " + was_got),
        id(at_id),
        expected(was_expected),
        got(was_got) {}

  const std::int64_t id;  // of the plan
  const std::string expected;
  const std::string got;
};

class LibraryFaultError : public EngineError {
 public:
  using EngineError::EngineError;
};

class LibraryCallError : public LibraryFaultError {
 public:
  using LibraryFaultError::LibraryFaultError;
};

class UnavailableError : public EngineError {
 public:
  using EngineError::EngineError;
};

class InputError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

}  // namespace workbench
