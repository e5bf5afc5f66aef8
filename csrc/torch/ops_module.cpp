// weave_ops._C: which C++ kernel stands behind which operator. The operators are defined in python/weave_ops/schema.py.
#include <Python.h>
#include <torch/library.h>

#include "../cpu/gating_reroute.h"
#include "../cpu/reroute.h"

TORCH_LIBRARY_IMPL(npu_weave, CPU, library) {
  library.impl("gating_reroute", &weave::cpu::gating_reroute);
  library.impl("reroute", &weave::cpu::reroute);
  library.impl("reroute_", &weave::cpu::reroute_);
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
