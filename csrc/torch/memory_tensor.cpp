#include "memory_tensor.h"

namespace weave::torch_binding {
namespace {

// The last view may die in any thread, with or without the interpreter lock, or after the interpreter has ended; then
// there is nothing left to give back to.
void drop(PyObject* owner) {
  if (!Py_IsInitialized()) return;
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
