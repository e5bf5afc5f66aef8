#include "direct.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../cpu/reroute.h"

namespace weave::direct {
namespace {

void check_count(Py_ssize_t got, Py_ssize_t expected, const char* name) {
  TORCH_CHECK_TYPE(got == expected, name, " takes ", expected, " arguments, got ", got);
}

const at::Tensor& tensor(PyObject* object, const char* name) {
  TORCH_CHECK_TYPE(THPVariable_Check(object), "reroute: ", name, " must be a tensor, got ", Py_TYPE(object)->tp_name);
  return THPVariable_Unpack(object);
}

// An array of one dimension without gaps, of integers of 4 or 8 bytes. The memory stays while this lives.
class Integers {
 public:
  Integers(PyObject* object, const char* name, bool writable) {
    const int flags = PyBUF_ND | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &view_, flags) != 0) throw python_error();
    const char* format = view_.format == nullptr ? "B" : view_.format;
    // numpy's native signed integers: i, l, q
    const bool known = view_.ndim == 1 && std::strlen(format) == 1 && std::strchr("ilq", *format) != nullptr;
    if (!known) {
      PyBuffer_Release(&view_);
      TORCH_CHECK_TYPE(false, "fill_token_slots: ", name, " must be one dimension of int32 or int64");
    }
  }
  ~Integers() { PyBuffer_Release(&view_); }
  Integers(const Integers&) = delete;
  Integers& operator=(const Integers&) = delete;

  std::int64_t size() const { return view_.shape[0]; }
  std::int64_t operator[](std::int64_t at) const {
    return view_.itemsize == 8 ? static_cast<const std::int64_t*>(view_.buf)[at]
                               : static_cast<const std::int32_t*>(view_.buf)[at];
  }

  template <typename T>
  T* data(const char* name) const {
    TORCH_CHECK_TYPE(view_.itemsize == sizeof(T), "fill_token_slots: ", name, " must have ", sizeof(T), " bytes each");
    return static_cast<T*>(view_.buf);
  }

 private:
  Py_buffer view_;
};

std::int64_t integer(PyObject* object) {
  const long long value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred() != nullptr) throw python_error();
  return value;
}

}  // namespace

PyObject* reroute(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  check_count(count, 3, "reroute");
  return THPVariable_Wrap(weave::cpu::reroute(tensor(arguments[0], "topk_ids"), tensor(arguments[1], "token_slots"),
                                              tensor(arguments[2], "expert_map")));
  END_HANDLE_TH_ERRORS
}

PyObject* fill_token_slots(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  check_count(count, 7, "fill_token_slots");
  const Integers revisions(arguments[0], "revisions", false), tokens(arguments[1], "tokens", false);
  const Integers slot_of_revision(arguments[2], "slot_of_revision", false);
  const Integers last_used(arguments[3], "last_used", true), out(arguments[5], "out", true);
  const std::int64_t step = integer(arguments[4]), used = integer(arguments[6]);
  const std::int64_t requests = revisions.size();
  TORCH_CHECK_VALUE(tokens.size() == requests, "fill_token_slots: tokens of ", tokens.size(),
                    " requests, revisions of ", requests);
  TORCH_CHECK_VALUE(0 <= used && used <= out.size(), "fill_token_slots: ", used, " used of ", out.size());

  std::int64_t total = 0;
  for (std::int64_t at = 0; at < requests; ++at) {
    const std::int64_t revision = revisions[at];
    TORCH_CHECK_VALUE(revision >= 0 && tokens[at] >= 0, "fill_token_slots: request ", at, " has revision ", revision,
                      " and ", tokens[at], " tokens");
    if (revision >= slot_of_revision.size() || slot_of_revision[revision] < 0) return PyLong_FromLongLong(-1);
    TORCH_CHECK_VALUE(slot_of_revision[revision] < last_used.size(), "fill_token_slots: revision ", revision,
                      " has slot ", slot_of_revision[revision], " of ", last_used.size());
    total += tokens[at];
  }
  if (total > out.size()) return PyLong_FromLongLong(total);

  auto* const steps = last_used.data<std::int64_t>("last_used");
  auto* next = out.data<std::int32_t>("out");
  auto* const end = next + std::max(total, used);
  for (std::int64_t at = 0; at < requests; ++at) {
    const std::int64_t slot = slot_of_revision[revisions[at]];
    steps[slot] = step;
    next = std::fill_n(next, tokens[at], static_cast<std::int32_t>(slot));
  }
  std::fill(next, end, 0);
  return PyLong_FromLongLong(total);
  END_HANDLE_TH_ERRORS
}

}  // namespace weave::direct
