#include "reroute.h"

#include <ATen/Dispatch.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace weave::cpu {
namespace {

// Expert ids a thread must have for itself before a second one is worth waking: some 50 us of work.
constexpr std::int64_t kGrainIds = 32768;

struct Shape {
  std::int64_t tokens, top_k, slots, experts;
};

template <typename T>
struct Matrix {
  T* data;
  std::int64_t row_stride, column_stride;
  T& at(std::int64_t row, std::int64_t column) const { return data[row * row_stride + column * column_stride]; }
};

template <typename T>
Matrix<T> matrix(const at::Tensor& tensor) {
  return {tensor.data_ptr<std::remove_const_t<T>>(), tensor.stride(0), tensor.stride(1)};
}

void check_cpu(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.device().is_cpu(), "reroute: ", name, " must be on the CPU as the kernel is, got ",
              tensor.device());
}

Shape check(const at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map) {
  check_cpu(topk_ids, "topk_ids");
  check_cpu(token_slots, "token_slots");
  check_cpu(expert_map, "expert_map");
  TORCH_CHECK_TYPE(topk_ids.scalar_type() == at::kInt || topk_ids.scalar_type() == at::kLong,
                   "reroute: topk_ids must be int32 or int64, got ", topk_ids.scalar_type());
  TORCH_CHECK_TYPE(token_slots.scalar_type() == at::kInt, "reroute: token_slots must be int32, got ",
                   token_slots.scalar_type());
  TORCH_CHECK_TYPE(expert_map.scalar_type() == at::kInt, "reroute: expert_map must be int32, got ",
                   expert_map.scalar_type());
  TORCH_CHECK_VALUE(topk_ids.dim() == 2, "reroute: topk_ids must be [tokens, top_k], got ", topk_ids.sizes());
  TORCH_CHECK_VALUE(token_slots.dim() == 1, "reroute: token_slots must have one dimension, got ", token_slots.sizes());
  TORCH_CHECK_VALUE(expert_map.dim() == 2, "reroute: expert_map must be [slots + 1, experts], got ",
                    expert_map.sizes());
  TORCH_CHECK_VALUE(token_slots.size(0) >= topk_ids.size(0), "reroute: token_slots must have at least one entry for ",
                    "each of the ", topk_ids.size(0), " tokens, got ", token_slots.size(0));
  return {topk_ids.size(0), topk_ids.size(1), expert_map.size(0), expert_map.size(1)};
}

// Negative numbers wrap to huge ones, so one comparison covers both ends.
template <typename T>
bool inside(T value, std::int64_t end) {
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(value)) < static_cast<std::uint64_t>(end);
}

// Calls `body(token, map row)` for every token; body returns whether all ids were inside. Returns the first token with
// a slot or an id outside of the map, or -1.
template <typename Body>
std::int64_t for_each_token(const Shape& shape, const at::Tensor& token_slots, const at::Tensor& expert_map,
                            const Body& body) {
  const std::int32_t* slots = token_slots.const_data_ptr<std::int32_t>();
  const std::int32_t* map = expert_map.const_data_ptr<std::int32_t>();
  const std::int64_t slot_stride = token_slots.stride(0);
  const std::int64_t map_stride = expert_map.stride(0);
  std::atomic<std::int64_t> first_bad{shape.tokens};
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainIds / std::max<std::int64_t>(1, shape.top_k));
  at::parallel_for(0, shape.tokens, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      const std::int32_t slot = slots[token * slot_stride];
      if (inside(slot, shape.slots) && body(token, map + slot * map_stride)) continue;
      std::int64_t seen = first_bad.load();
      while (token < seen && !first_bad.compare_exchange_weak(seen, token)) {
      }
      return;
    }
  });
  return first_bad < shape.tokens ? first_bad.load() : -1;
}

template <typename Id>
[[noreturn]] void refuse(const Shape& shape, std::int64_t token, const Matrix<const Id>& ids,
                         const at::Tensor& token_slots) {
  const std::int32_t slot = token_slots.const_data_ptr<std::int32_t>()[token * token_slots.stride(0)];
  TORCH_CHECK_INDEX(inside(slot, shape.slots), "reroute: token ", token, " has slot ", slot,
                    ", but expert_map has the slots 0 to ", shape.slots - 1);
  for (std::int64_t k = 0; k < shape.top_k; ++k) {
    TORCH_CHECK_INDEX(inside(ids.at(token, k), shape.experts), "reroute: token ", token, " has expert id ",
                      ids.at(token, k), " at position ", k, ", but expert_map has the experts 0 to ",
                      shape.experts - 1);
  }
  TORCH_CHECK(false, "reroute: token ", token, " changed while it was read");
}

template <typename Id>
void run(const Shape& shape, const at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map,
         const at::Tensor& out) {
  const auto ids = matrix<const Id>(topk_ids);
  const auto to = matrix<Id>(out);
  const std::int64_t expert_stride = expert_map.stride(1);
  const std::int64_t bad = for_each_token(shape, token_slots, expert_map, [&](std::int64_t token, const auto* map) {
    for (std::int64_t k = 0; k < shape.top_k; ++k) {
      const Id id = ids.at(token, k);
      if (!inside(id, shape.experts)) return false;
      to.at(token, k) = map[id * expert_stride];
    }
    return true;
  });
  if (bad >= 0) refuse<Id>(shape, bad, ids, token_slots);
}

template <typename Id>
void verify(const Shape& shape, const at::Tensor& topk_ids, const at::Tensor& token_slots,
            const at::Tensor& expert_map) {
  const auto ids = matrix<const Id>(topk_ids);
  const std::int64_t bad = for_each_token(shape, token_slots, expert_map, [&](std::int64_t token, const auto*) {
    bool good = true;
    for (std::int64_t k = 0; k < shape.top_k; ++k) good &= inside(ids.at(token, k), shape.experts);
    return good;
  });
  if (bad >= 0) refuse<Id>(shape, bad, ids, token_slots);
}

}  // namespace

at::Tensor reroute(const at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map) {
  const Shape shape = check(topk_ids, token_slots, expert_map);
  at::Tensor out = at::empty(topk_ids.sizes(), topk_ids.options());
  AT_DISPATCH_INDEX_TYPES(topk_ids.scalar_type(), "reroute",
                          [&] { run<index_t>(shape, topk_ids, token_slots, expert_map, out); });
  return out;
}

void reroute_(at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map) {
  const Shape shape = check(topk_ids, token_slots, expert_map);
  at::assert_no_internal_overlap(topk_ids);
  at::assert_no_overlap(topk_ids, token_slots);
  at::assert_no_overlap(topk_ids, expert_map);
  AT_DISPATCH_INDEX_TYPES(topk_ids.scalar_type(), "reroute_", [&] {
    verify<index_t>(shape, topk_ids, token_slots, expert_map);
    run<index_t>(shape, topk_ids, token_slots, expert_map, topk_ids);
  });
}

}  // namespace weave::cpu
