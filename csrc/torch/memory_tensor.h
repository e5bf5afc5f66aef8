// Tensors over memory that a driver manages.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <cstddef>
#include <cstdint>

namespace weave::torch_binding {

// A uint8 tensor of `bytes` elements at `address`, on a CPU or a CUDA device. It touches no byte of it and keeps
// `owner` alive for as long as any view of its storage lives. The caller has checked the range.
at::Tensor memory_tensor(std::uintptr_t address, std::size_t bytes, pybind11::object owner, c10::Device device);

// What the deleter of such a tensor does. The last view may die in any thread, with or without the interpreter lock, or
// when the interpreter ends; then the end of the process gives everything back.
void drop_owner(PyObject* owner);

}  // namespace weave::torch_binding
