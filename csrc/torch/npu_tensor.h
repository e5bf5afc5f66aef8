// Tensors over an NPU's memory. torch_npu is neither linked nor needed to build: what is needed of it is looked up in
// the library that `import torch_npu` has loaded.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <cstddef>
#include <cstdint>
#include <optional>

namespace weave::torch_binding {

// As `memory_tensor`, on an NPU. Nothing when torch_npu is not loaded or has no from_blob of the form we know.
std::optional<at::Tensor> npu_memory_tensor(std::uintptr_t address, std::size_t bytes, pybind11::object owner,
                                            c10::Device device);

}  // namespace weave::torch_binding
