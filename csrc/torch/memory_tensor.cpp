#include "memory_tensor.h"

#include <ATen/ops/from_blob.h>

namespace weave::torch_binding {
namespace {

bool interpreter_runs() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsInitialized() != 0 && Py_IsFinalizing() == 0;
#else
  return Py_IsInitialized() != 0 && _Py_IsFinalizing() == 0;
#endif
}

// The last view may die in any thread, with or without the interpreter lock, or when the interpreter
// ends; then the end of the process gives everything back.
void drop(PyObject* owner) {
  if (!interpreter_runs()) return;
  const pybind11::gil_scoped_acquire lock;
  Py_DECREF(owner);
}

}  // namespace

at::Tensor memory_tensor(std::uintptr_t address, std::size_t bytes, pybind11::object owner) {
  PyObject* held = owner.release().ptr();
  return at::from_blob(
      reinterpret_cast<void*>(address), {static_cast<std::int64_t>(bytes)}, [held](void*) { drop(held); },
      at::TensorOptions().dtype(at::kByte).device(at::kCPU));
}

}  // namespace weave::torch_binding
