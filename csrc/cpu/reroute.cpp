#include "reroute.h"

#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "capability.h"
#include "expert_map.h"

namespace weave::cpu {
namespace {

// Expert ids a thread must have for itself before a second one is worth waking: some 50 us of work.
constexpr std::int64_t kGrainIds = 32768;
// Ids that are rerouted in one loop; they and what belongs to them stay in the first-level cache.
constexpr std::int64_t kTileIds = 1024;
constexpr std::int64_t kLanes = 16;
constexpr const char* kName = "reroute";

// Tokens a thread must have for itself.
std::int64_t grain(std::int64_t top_k) {
  return std::max<std::int64_t>(1, kGrainIds / std::max<std::int64_t>(1, top_k));
}

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

ExpertMap check(const at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map) {
  check_cpu(topk_ids, kName, "topk_ids");
  check_cpu(token_slots, kName, "token_slots");
  check_cpu(expert_map, kName, "expert_map");
  TORCH_CHECK_TYPE(topk_ids.scalar_type() == at::kInt || topk_ids.scalar_type() == at::kLong,
                   "reroute: topk_ids must be int32 or int64, got ", topk_ids.scalar_type());
  check_int32(token_slots, kName, "token_slots");
  check_int32(expert_map, kName, "expert_map");
  TORCH_CHECK_VALUE(topk_ids.dim() == 2, "reroute: topk_ids must be [tokens, top_k], got ", topk_ids.sizes());
  check_routing(token_slots, expert_map, topk_ids.size(0), kName);
  return {token_slots, expert_map};
}

// Calls `body(token, map row)` for every token; body returns whether all ids were inside. Returns the first token with
// a slot or an id outside of the map, or -1.
template <typename Body>
std::int64_t for_each_token(const at::Tensor& topk_ids, const ExpertMap& map, const Body& body) {
  const std::int64_t tokens = topk_ids.size(0);
  FirstBad bad(tokens);
  at::parallel_for(0, tokens, grain(topk_ids.size(1)), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      const std::int32_t* row = map.row(token);
      if (row != nullptr && body(token, row)) continue;
      return bad.note(token);
    }
  });
  return bad.token() < tokens ? bad.token() : -1;
}

template <typename Id>
[[noreturn]] void refuse(const ExpertMap& map, std::int64_t token, const Matrix<const Id>& ids, std::int64_t top_k) {
  TORCH_CHECK_INDEX(inside(map.slot(token), map.slots), "reroute: token ", token, " has slot ", map.slot(token),
                    ", but expert_map has the slots 0 to ", map.slots - 1);
  for (std::int64_t k = 0; k < top_k; ++k) {
    TORCH_CHECK_INDEX(inside(ids.at(token, k), map.experts), "reroute: token ", token, " has expert id ",
                      ids.at(token, k), " at position ", k, ", but expert_map has the experts 0 to ", map.experts - 1);
  }
  TORCH_CHECK(false, "reroute: token ", token, " changed while it was read");
}

// What dense rerouting works on: ids and rows without gaps, and a map without gaps that 32 bits address.
template <typename Id>
struct Dense {
  const Id* ids;
  Id* rows;
  const ExpertMap& map;
  std::int64_t top_k;
};

// rows[i] = table[offsets[i] + ids[i]]. An id beyond `last` reads that one's entry, and makes the answer false.
template <typename Id>
bool reroute_ids(const Id* ids, const std::int32_t* offsets, std::int64_t count, const std::int32_t* table,
                 std::make_unsigned_t<Id> last, Id* rows) {
  std::make_unsigned_t<Id> highest = 0;
  for (std::int64_t at = 0; at < count; ++at) {
    const auto id = static_cast<std::make_unsigned_t<Id>>(ids[at]);
    highest = std::max(highest, id);
    rows[at] = table[offsets[at] + static_cast<std::int32_t>(std::min(id, last))];
  }
  return highest <= last;
}

#if defined(__x86_64__)
// The compiler makes no gathers of the loop above.
WEAVE_AVX512 bool reroute_ids_avx512(const std::int32_t* ids, const std::int32_t* offsets, std::int64_t count,
                                     const std::int32_t* table, std::uint32_t last, std::int32_t* rows) {
  const __m512i limit = _mm512_set1_epi32(static_cast<int>(last));
  __m512i highest = _mm512_setzero_si512();
  for (std::int64_t at = 0; at < count; at += 16) {
    const auto here = static_cast<__mmask16>(count - at >= 16 ? 0xffff : (1 << (count - at)) - 1);
    const __m512i id = _mm512_maskz_loadu_epi32(here, ids + at);
    highest = _mm512_max_epu32(highest, id);
    const __m512i where = _mm512_add_epi32(_mm512_min_epu32(id, limit), _mm512_maskz_loadu_epi32(here, offsets + at));
    _mm512_mask_storeu_epi32(rows + at, here, _mm512_mask_i32gather_epi32(where, here, where, table, 4));
  }
  return _mm512_reduce_max_epu32(highest) <= last;
}
#endif

template <typename Id>
auto fastest() {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<Id, std::int32_t>) {
    if (capability() == Capability::kAvx512) return &reroute_ids_avx512;
  }
#endif
  return &reroute_ids<Id>;
}

// Reroutes tokens a tile at a time. Returns whether all slots and ids were inside of the map.
template <typename Id>
bool reroute_tiles(const Dense<Id>& dense, std::int64_t begin, std::int64_t end) {
  const auto reroute_tile = fastest<Id>();
  const std::int64_t tile = std::max<std::int64_t>(1, kTileIds / std::max<std::int64_t>(1, dense.top_k));
  std::array<std::int32_t, kTileIds + kLanes> offsets;
  for (std::int64_t first = begin; first < end; first += tile) {
    const std::int64_t tokens = std::min(tile, end - first);
    for (std::int64_t at = 0; at < tokens; ++at) {
      const std::int32_t* row = dense.map.row(first + at);
      if (row == nullptr) return false;
      std::int32_t* offset = offsets.data() + at * dense.top_k;
      // whole vectors: what is too much lies where the next token's come
      for (std::int64_t k = 0; k < dense.top_k; k += kLanes) {
        std::fill_n(offset + k, kLanes, static_cast<std::int32_t>(row - dense.map.table));
      }
    }
    const std::int64_t from = first * dense.top_k;
    if (!reroute_tile(dense.ids + from, offsets.data(), tokens * dense.top_k, dense.map.table, dense.map.experts - 1,
                      dense.rows + from)) {
      return false;
    }
  }
  return true;
}

// Returns false where a slot or an id is outside of the map; `rows` are not all written then.
template <typename Id>
bool run_dense(const Dense<Id>& dense, std::int64_t tokens) {
  if (tokens <= grain(dense.top_k)) return reroute_tiles(dense, 0, tokens);  // without what asks for threads
  std::atomic<bool> good{true};
  at::parallel_for(0, tokens, grain(dense.top_k), [&](std::int64_t begin, std::int64_t end) {
    if (!reroute_tiles(dense, begin, end)) good = false;
  });
  return good;
}

template <typename Id>
void run(const at::Tensor& topk_ids, const ExpertMap& map, const at::Tensor& out) {
  const auto ids = matrix<const Id>(topk_ids);
  const auto to = matrix<Id>(out);
  const std::int64_t top_k = topk_ids.size(1);
  if (topk_ids.is_contiguous() && out.is_contiguous() && map.is_dense() && top_k <= kTileIds) {
    if (run_dense<Id>({ids.data, to.data, map, top_k}, topk_ids.size(0))) return;
    TORCH_CHECK(ids.data != to.data, "reroute: topk_ids changed while they were read");
  }
  const std::int64_t bad = for_each_token(topk_ids, map, [&](std::int64_t token, const std::int32_t* row) {
    for (std::int64_t k = 0; k < top_k; ++k) {
      const Id id = ids.at(token, k);
      if (!inside(id, map.experts)) return false;
      to.at(token, k) = row[id * map.expert_stride];
    }
    return true;
  });
  if (bad >= 0) refuse<Id>(map, bad, ids, top_k);
}

template <typename Id>
void verify(const at::Tensor& topk_ids, const ExpertMap& map) {
  const auto ids = matrix<const Id>(topk_ids);
  const std::int64_t top_k = topk_ids.size(1);
  const std::int64_t bad = for_each_token(topk_ids, map, [&](std::int64_t token, const std::int32_t*) {
    bool good = true;
    for (std::int64_t k = 0; k < top_k; ++k) good &= inside(ids.at(token, k), map.experts);
    return good;
  });
  if (bad >= 0) refuse<Id>(map, bad, ids, top_k);
}

}  // namespace

at::Tensor reroute(const at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map) {
  const ExpertMap map = check(topk_ids, token_slots, expert_map);
  // without torch's dispatcher, as the call itself: see direct.h
  at::Tensor out = at::detail::empty_cpu(topk_ids.sizes(), topk_ids.scalar_type(), false, std::nullopt);
  AT_DISPATCH_INDEX_TYPES(topk_ids.scalar_type(), "reroute", [&] { run<index_t>(topk_ids, map, out); });
  return out;
}

void reroute_(at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map) {
  const ExpertMap map = check(topk_ids, token_slots, expert_map);
  at::assert_no_internal_overlap(topk_ids);
  at::assert_no_overlap(topk_ids, token_slots);
  at::assert_no_overlap(topk_ids, expert_map);
  AT_DISPATCH_INDEX_TYPES(topk_ids.scalar_type(), "reroute_", [&] {
    verify<index_t>(topk_ids, map);
    run<index_t>(topk_ids, map, topk_ids);
  });
}

}  // namespace weave::cpu
