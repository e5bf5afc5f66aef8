// What runs in every layer or step, callable from Python without torch's dispatcher: after weights went through the
// caches, each line of code that a call touches comes from memory, and the dispatcher touches many.
#pragma once

#include <Python.h>

namespace weave::direct {

// reroute(topk_ids, token_slots, expert_map) -> Tensor: weave::cpu::reroute.
PyObject* reroute(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

// fill_token_slots(revisions, tokens, slot_of_revision, last_used, step, out, used) -> int: see
// python/weave_ops/_C.pyi.
PyObject* fill_token_slots(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

}  // namespace weave::direct
