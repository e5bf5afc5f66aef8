// What the kernels take of torch_npu's tensors: checked, laid out as they read them, and started in order.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace weave::ascendc {

// Raises what python/weave_ops/reference.py raises for wrong dtypes and shapes, and a RuntimeError for a tensor on
// another device; `op` is the operator's name for messages. No values are read.
void check_on_npu(const at::Tensor& tensor, const at::Device& device, const char* op, const char* name);
void check_routing(const at::Tensor& token_slots, const at::Tensor& expert_map, std::int64_t tokens,
                   const at::Device& device, const char* op);

// Vector cores of the current device.
std::int64_t vector_cores();

// Lets torch_npu's task queue call `start` with the current stream, after what was queued before. Memory of tensors
// that the caller lets go stays theirs until then: the allocator gives it to later work of the same stream only.
void enqueue(const char* op, std::function<void(void* stream)> start);

}  // namespace weave::ascendc
