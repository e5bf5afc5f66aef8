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

}  // namespace

void drop_owner(PyObject* owner) {
  if (!interpreter_runs()) return;
  const pybind11::gil_scoped_acquire lock;
  Py_DECREF(owner);
}

// The device is named: asked about a pointer to memory that is not mapped yet, CUDA would not know it.
at::Tensor memory_tensor(std::uintptr_t address, std::size_t bytes, pybind11::object owner, c10::Device device) {
  PyObject* held = owner.release().ptr();
  return at::from_blob(
      reinterpret_cast<void*>(address), {static_cast<std::int64_t>(bytes)}, [held](void*) { drop_owner(held); },
      at::TensorOptions().dtype(at::kByte).device(device), device);
}

}  // namespace weave::torch_binding
