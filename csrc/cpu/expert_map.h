// What every CPU kernel that reroutes takes: token slots and expert map, checked, and read by token.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>

namespace weave::cpu {

// Negative numbers wrap to huge ones, so one comparison covers both ends.
template <typename T>
bool inside(T value, std::int64_t end) {
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(value)) < static_cast<std::uint64_t>(end);
}

inline void check_cpu(const at::Tensor& tensor, const char* op, const char* name) {
  TORCH_CHECK(tensor.device().is_cpu(), op, ": ", name, " must be on the CPU as the kernel is, got ", tensor.device());
}

inline void check_int32(const at::Tensor& tensor, const char* op, const char* name) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kInt, op, ": ", name, " must be int32, got ", tensor.scalar_type());
}

// Raises what python/weave_ops/reference.py raises; `op` is the operator's name for messages.
inline void check_routing(const at::Tensor& token_slots, const at::Tensor& expert_map, std::int64_t tokens,
                          const char* op) {
  TORCH_CHECK_VALUE(token_slots.dim() == 1, op, ": token_slots must have one dimension, got ", token_slots.sizes());
  TORCH_CHECK_VALUE(expert_map.dim() == 2, op, ": expert_map must be [slots + 1, experts], got ", expert_map.sizes());
  TORCH_CHECK_VALUE(token_slots.size(0) >= tokens, op, ": token_slots must have at least one entry for each of the ",
                    tokens, " tokens, got ", token_slots.size(0));
}

// The first of the tokens that threads could not serve.
class FirstBad {
 public:
  explicit FirstBad(std::int64_t tokens) : first_(tokens) {}

  void note(std::int64_t token) {
    std::int64_t seen = first_.load();
    while (token < seen && !first_.compare_exchange_weak(seen, token)) {
    }
  }

  // The number of tokens where all were served.
  std::int64_t token() const { return first_.load(); }

 private:
  std::atomic<std::int64_t> first_;
};

// Rows of an expert map by token. Holds no reference to the tensors.
struct ExpertMap {
  ExpertMap(const at::Tensor& token_slots, const at::Tensor& expert_map)
      : slots(expert_map.size(0)),
        experts(expert_map.size(1)),
        slot_of_token(token_slots.const_data_ptr<std::int32_t>()),
        token_stride(token_slots.stride(0)),
        table(expert_map.const_data_ptr<std::int32_t>()),
        slot_stride(expert_map.stride(0)),
        expert_stride(expert_map.stride(1)) {}

  std::int32_t slot(std::int64_t token) const { return slot_of_token[token * token_stride]; }

  // The expert map's row for `token`; null when its slot is outside of the map.
  const std::int32_t* row(std::int64_t token) const {
    const std::int32_t at = slot(token);
    return inside(at, slots) ? table + at * slot_stride : nullptr;
  }

  // Whether its entries lie side by side, few enough for offsets of 32 bits.
  bool is_dense() const {
    return experts > 0 && expert_stride == 1 && slot_stride == experts && slots * experts <= INT32_MAX;
  }

  std::int64_t slots, experts;
  const std::int32_t* slot_of_token;
  std::int64_t token_stride;
  const std::int32_t* table;
  std::int64_t slot_stride, expert_stride;
};

}  // namespace weave::cpu
