// Reductions within a repeat (WholeReduce...) and within each of its blocks (BlockReduce...).
#pragma once

#include "arithmetic.h"

namespace AscendC {

enum class ReduceOrder : uint8_t { ORDER_VALUE_INDEX, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };

namespace vector {

// The active lanes of one repeat: values and where they stood.
template <typename T>
struct Lanes {
  T values[emulated::REPEAT_BYTES / sizeof(T)];
  bool active[emulated::REPEAT_BYTES / sizeof(T)];
};

template <typename T>
Lanes<T> read_repeat(emulated::Core& core, emulated::Stamp stamp, const Operand<T>& src, const Iterations& iterations,
                     const Overlap& overlap, uint32_t repeat) {
  Lanes<T> lanes{};
  const uint32_t width = iterations.lanes / CHUNKS;
  for (uint32_t chunk = 0; chunk < CHUNKS; ++chunk) {
    const uint32_t bits = iterations.bits(repeat, chunk * width, width);
    if (!bits) continue;
    const uint32_t address = src.at(repeat, chunk * width);
    src.touch(core, stamp, address, bits, emulated::Kind::READ);
    overlap.read(address / emulated::BLOCK, repeat, chunk);
    for (uint32_t i = 0; i < width; ++i) {
      lanes.active[chunk * width + i] = bits >> i & 1;
      std::memcpy(&lanes.values[chunk * width + i], core.ub.at(address) + i * sizeof(T), sizeof(T));
    }
  }
  return lanes;
}

// The first active lane of [begin, end) that no other beats, or `end`.
template <typename T, typename Better>
uint32_t best(const Lanes<T>& lanes, uint32_t begin, uint32_t end, Better better) {
  uint32_t found = end;
  for (uint32_t i = begin; i < end; ++i) {
    if (lanes.active[i] && (found == end || better(lanes.values[i], lanes.values[found]))) found = i;
  }
  return found;
}

// The active lanes of [begin, end) added as documented: neighbours in pairs, then the pairs, and so on.
template <typename T>
T tree_sum(const Lanes<T>& lanes, uint32_t begin, uint32_t end) {
  if (end - begin == 1) return lanes.active[begin] ? lanes.values[begin] : T(0);
  const uint32_t middle = begin + (end - begin) / 2;
  return T(tree_sum(lanes, begin, middle) + tree_sum(lanes, middle, end));
}

template <typename T>
bool any_active(const Lanes<T>& lanes, uint32_t begin, uint32_t end) {
  return std::any_of(lanes.active + begin, lanes.active + end, [](bool active) { return active; });
}

// Where the results of a reduction go: not in whole blocks.
class Results {
 public:
  Results(const char* api, const LocalPlace& place, uint32_t alignment) : api_(api), place_(place) {
    place_.check(api, place_.address, place_.address);
    place_.check_alignment(api, "destination", alignment);
  }

  template <typename Value>
  void put(emulated::Core& core, emulated::Stamp stamp, const Overlap& overlap, uint32_t repeat, uint64_t offset,
           const Value& value) const {
    const uint64_t at = place_.address + offset;
    place_.check(api_, int64_t(at), int64_t(at + sizeof value));
    core.ub.touch_range(api_, core.ordering, stamp, uint32_t(at), uint32_t(at + sizeof value), emulated::Kind::WRITE);
    overlap.write(uint32_t(at) / emulated::BLOCK, repeat, CHUNKS);
    std::memcpy(core.ub.at(uint32_t(at)), &value, sizeof value);
  }

 private:
  const char* api_;
  LocalPlace place_;
};

// One value a repeat (or its index, or both): reduce(lanes) gives {value, lane}.
template <typename T, typename Reduce>
void whole(const char* api, const Iterations& iterations, const LocalTensor<T>& dst, const LocalTensor<T>& src,
           uint32_t dst_stride, uint32_t src_block, uint32_t src_repeat, ReduceOrder order, Reduce reduce) {
  static_assert(emulated::is_floating<T>, "WholeReduce: this type is not supported on A2/A3, only half and float");
  using Index = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  const bool pair = order == ReduceOrder::ORDER_VALUE_INDEX || order == ReduceOrder::ORDER_INDEX_VALUE;
  const uint32_t unit = pair ? 2 * sizeof(T) : order == ReduceOrder::ORDER_ONLY_VALUE ? sizeof(T) : sizeof(uint32_t);
  const Results results(api, dst.place(), unit);
  const Operand<T> from(api, "source", src, src_block, src_repeat);
  const emulated::Stamp stamp = emulated::issue(api, emulated::V, iterations.repeats);
  emulated::Core& core = emulated::core(api);
  const Overlap overlap(api);
  for (uint32_t repeat = 0; repeat < iterations.repeats; ++repeat) {
    const Lanes<T> lanes = read_repeat(core, stamp, from, iterations, overlap, repeat);
    if (!any_active(lanes, 0, iterations.lanes)) continue;
    const auto [value, lane] = reduce(lanes);
    const uint64_t at = uint64_t(repeat) * dst_stride * unit;
    const uint32_t after_value = order == ReduceOrder::ORDER_VALUE_INDEX ? sizeof value : 0;
    const uint32_t after_index = order == ReduceOrder::ORDER_INDEX_VALUE ? sizeof(Index) : 0;
    if (pair) {
      results.put(core, stamp, overlap, repeat, at + after_index, value);
      results.put(core, stamp, overlap, repeat, at + after_value, Index(lane));
    } else if (order == ReduceOrder::ORDER_ONLY_VALUE) {
      results.put(core, stamp, overlap, repeat, at, value);
    } else {
      results.put(core, stamp, overlap, repeat, at, uint32_t(lane));
    }
  }
}

// One value a block, eight a repeat: reduce(lanes, begin, end). A block without active lanes leaves its result alone.
template <typename T, typename Reduce>
void blocks(const char* api, const Iterations& iterations, const LocalTensor<T>& dst, const LocalTensor<T>& src,
            uint32_t dst_stride, uint32_t src_block, uint32_t src_repeat, Reduce reduce) {
  static_assert(emulated::is_floating<T>, "BlockReduce: this type is not supported on A2/A3, only half and float");
  constexpr uint32_t UNIT = CHUNKS * sizeof(T);
  const Results results(api, dst.place(), UNIT);
  const Operand<T> from(api, "source", src, src_block, src_repeat);
  const emulated::Stamp stamp = emulated::issue(api, emulated::V, iterations.repeats);
  emulated::Core& core = emulated::core(api);
  const Overlap overlap(api);
  const uint32_t width = iterations.lanes / CHUNKS;
  for (uint32_t repeat = 0; repeat < iterations.repeats; ++repeat) {
    const Lanes<T> lanes = read_repeat(core, stamp, from, iterations, overlap, repeat);
    for (uint32_t chunk = 0; chunk < CHUNKS; ++chunk) {
      if (!any_active(lanes, chunk * width, (chunk + 1) * width)) continue;
      const T value = reduce(lanes, chunk * width, (chunk + 1) * width);
      results.put(core, stamp, overlap, repeat, uint64_t(repeat) * dst_stride * UNIT + chunk * sizeof(T), value);
    }
  }
}

template <typename T>
auto maximum(const char* api) {
  return [api](const Lanes<T>& lanes, uint32_t begin, uint32_t end) {
    return best(lanes, begin, end, [api](T a, T b) { return emulated::above(api, a, b); });
  };
}

template <typename T>
auto minimum(const char* api) {
  return [api](const Lanes<T>& lanes, uint32_t begin, uint32_t end) {
    return best(lanes, begin, end, [api](T a, T b) { return emulated::above(api, b, a); });
  };
}

template <typename T>
struct Extreme {
  T value;
  uint32_t lane;
};

}  // namespace vector

#define EMULATED_EXTREMUM(WHOLE, BLOCK_WISE, PICK)                                                                     \
  template <typename T, bool isSetMask = true>                                                                         \
  void WHOLE(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t mask, RepeatTimes repeatTime,         \
             const int32_t dstRepStride, const int32_t srcBlkStride, const int32_t srcRepStride,                       \
             ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX) {                                                     \
    vector::whole(#WHOLE, vector::by_mask<isSetMask>(#WHOLE, vector::lanes_of<T>, uint64_t(mask), repeatTime), dst,    \
                  src, uint32_t(dstRepStride), uint32_t(srcBlkStride), uint32_t(srcRepStride), order,                  \
                  [](const vector::Lanes<T>& lanes) {                                                                  \
                    const uint32_t lane = vector::PICK<T>(#WHOLE)(lanes, 0, vector::lanes_of<T>);                      \
                    return vector::Extreme<T>{lanes.values[lane], lane};                                               \
                  });                                                                                                  \
  }                                                                                                                    \
  template <typename T, bool isSetMask = true>                                                                         \
  void BLOCK_WISE(const LocalTensor<T>& dst, const LocalTensor<T>& src, RepeatTimes repeatTime, const int32_t mask,    \
                  const int32_t dstRepStride, const int32_t srcBlkStride, const int32_t srcRepStride) {                \
    vector::blocks(#BLOCK_WISE,                                                                                        \
                   vector::by_mask<isSetMask>(#BLOCK_WISE, vector::lanes_of<T>, uint64_t(mask), repeatTime), dst, src, \
                   uint32_t(dstRepStride), uint32_t(srcBlkStride), uint32_t(srcRepStride),                             \
                   [](const vector::Lanes<T>& lanes, uint32_t begin, uint32_t end) {                                   \
                     return lanes.values[vector::PICK<T>(#BLOCK_WISE)(lanes, begin, end)];                             \
                   });                                                                                                 \
  }

EMULATED_EXTREMUM(WholeReduceMax, BlockReduceMax, maximum)
EMULATED_EXTREMUM(WholeReduceMin, BlockReduceMin, minimum)

#undef EMULATED_EXTREMUM

template <typename T, bool isSetMask = true>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t mask, RepeatTimes repeatTime,
                    const int32_t dstRepStride, const int32_t srcBlkStride, const int32_t srcRepStride) {
  constexpr const char* api = "WholeReduceSum";
  vector::whole(api, vector::by_mask<isSetMask>(api, vector::lanes_of<T>, uint64_t(mask), repeatTime), dst, src,
                uint32_t(dstRepStride), uint32_t(srcBlkStride), uint32_t(srcRepStride), ReduceOrder::ORDER_ONLY_VALUE,
                [](const vector::Lanes<T>& lanes) {
                  return vector::Extreme<T>{vector::tree_sum(lanes, 0, vector::lanes_of<T>), 0};
                });
}

template <typename T, bool isSetMask = true>
void BlockReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, RepeatTimes repeatTime, const int32_t mask,
                    const int32_t dstRepStride, const int32_t srcBlkStride, const int32_t srcRepStride) {
  constexpr const char* api = "BlockReduceSum";
  vector::blocks(api, vector::by_mask<isSetMask>(api, vector::lanes_of<T>, uint64_t(mask), repeatTime), dst, src,
                 uint32_t(dstRepStride), uint32_t(srcBlkStride), uint32_t(srcRepStride), vector::tree_sum<T>);
}

}  // namespace AscendC
