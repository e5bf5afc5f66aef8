// weave_ops._C: which C++ kernel stands behind which operator, and the calls that go past torch's dispatcher. The
// operators are defined in python/weave_ops/schema.py.
#include <Python.h>
#include <torch/library.h>

#include "../cpu/gating_reroute.h"
#include "../cpu/reroute.h"
#include "direct.h"

TORCH_LIBRARY_IMPL(npu_weave, CPU, library) {
  library.impl("gating_reroute", &weave::cpu::gating_reroute);
  library.impl("reroute", &weave::cpu::reroute);
  library.impl("reroute_", &weave::cpu::reroute_);
}

namespace {

template <PyObject* (*Function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyCFunction fast() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(Function));
}

PyMethodDef methods[] = {
    {"reroute", fast<&weave::direct::reroute>(), METH_FASTCALL, nullptr},
    {"fill_token_slots", fast<&weave::direct::fill_token_slots>(), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods};
  return PyModule_Create(&definition);
}
