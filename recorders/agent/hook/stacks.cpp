// Finds the Python stack of an allocation and gives it a number; needs Python's own headers.

#include <Python.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "hook_face.h"

namespace workbench {
namespace {

constexpr std::size_t kDeepest = 512;  // frames; of deeper stacks, the innermost ones

HookFace hook;
std::string& own_folder = *new std::string;  // with a slash at its end

// Guarded by Python's lock, which is held wherever frames can be read.
std::unordered_map<std::uint64_t, std::uint32_t>& known_stacks() {
  static auto* const table = new std::unordered_map<std::uint64_t, std::uint32_t>;
  return *table;
}
std::uint64_t known_session = 0;

void append_text(std::string& folded, PyObject* text) {
  const char* const bytes = PyUnicode_AsUTF8(text);
  if (bytes == nullptr) PyErr_Clear();
  for (const char* at = bytes == nullptr ? "?" : bytes; *at != '\0'; ++at) {
    folded += *at == ';' ? ':' : *at;  // a semicolon parts the frames
  }
}

// Whether the frame is one of the recorder's own wrappers, which a plain run does not have.
bool is_ours(const PyCodeObject* code) {
  const char* const file = PyUnicode_AsUTF8(code->co_filename);
  if (file == nullptr) PyErr_Clear();
  return file != nullptr && std::strncmp(file, own_folder.c_str(), own_folder.size()) == 0;
}

struct Frame {
  PyCodeObject* code;  // owned
  int instruction;
};

std::uint32_t number_of(const std::vector<Frame>& frames, std::uint64_t hash) {
  std::string folded;
  for (auto frame = frames.rbegin(); frame != frames.rend(); ++frame) {
    if (is_ours(frame->code)) continue;
    if (!folded.empty()) folded += ';';
    append_text(folded, frame->code->co_filename);
    folded += ':' + std::to_string(PyCode_Addr2Line(frame->code, frame->instruction)) + ' ';
    append_text(folded, frame->code->co_name);
  }
  const std::uint32_t number = hook.define_name("stack", folded.c_str());
  // Code that is gone could leave its address to other code: what the table knows stays alive.
  for (const Frame& frame : frames) Py_INCREF(reinterpret_cast<PyObject*>(frame.code));
  known_stacks().emplace(hash, number);
  return number;
}

std::uint32_t find_with_lock(PyThreadState* thread) {
  if (const std::uint64_t session = hook.session(); session != known_session) {
    known_stacks().clear();
    known_session = session;
  }
  // An allocation may happen while an exception is on its way; it must arrive.
  PyObject *kind, *value, *trace;
  PyErr_Fetch(&kind, &value, &trace);
  static thread_local std::vector<Frame> frames;
  frames.clear();
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  PyFrameObject* frame = PyThreadState_GetFrame(thread);
  while (frame != nullptr) {
    if (frames.size() < kDeepest) {
      frames.push_back({PyFrame_GetCode(frame), PyFrame_GetLasti(frame)});
      hash = (hash ^ reinterpret_cast<std::uintptr_t>(frames.back().code)) * 0x9e3779b97f4a7c15ULL;
      hash = (hash ^ (hash >> 29) ^ static_cast<std::uint64_t>(frames.back().instruction)) *
             0xbf58476d1ce4e5b9ULL;
    }
    PyFrameObject* const outer = PyFrame_GetBack(frame);
    Py_DECREF(reinterpret_cast<PyObject*>(frame));
    frame = outer;
  }
  std::uint32_t number = 0;
  if (!frames.empty()) {
    const auto known = known_stacks().find(hash);
    number = known != known_stacks().end() ? known->second : number_of(frames, hash);
  }
  for (const Frame& held : frames) Py_DECREF(reinterpret_cast<PyObject*>(held.code));
  frames.clear();
  PyErr_Restore(kind, value, trace);
  return number;
}

std::uint32_t find_stack() {
  if (hook.session() == 0 || !Py_IsInitialized()) return 0;
  PyThreadState* const thread = PyGILState_GetThisThreadState();
  if (thread == nullptr) return 0;  // a thread that Python does not know has no Python stack
  const PyGILState_STATE state = PyGILState_Ensure();
  const std::uint32_t number = find_with_lock(thread);
  PyGILState_Release(state);
  return number;
}

}  // namespace
}  // namespace workbench

WORKBENCH_EXPORT void wb_stacks_start(const workbench::HookFace* face, const char* own_folder) {
  workbench::hook = *face;
  workbench::own_folder = own_folder;
  face->set_stack_finder(&workbench::find_stack);
}

WORKBENCH_EXPORT void wb_stacks_stop() {
  if (workbench::hook.set_stack_finder != nullptr) workbench::hook.set_stack_finder(nullptr);
}
