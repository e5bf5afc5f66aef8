// Tensors over memory that a driver manages.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>

namespace weave::torch_binding {

// A uint8 CPU tensor of `bytes` elements at `address`. It touches no byte of it and keeps `owner` alive for as long as
// any view of its storage lives. The caller has checked the range.
at::Tensor memory_tensor(std::uintptr_t address, std::size_t bytes, pybind11::object owner);

}  // namespace weave::torch_binding
