// How a vector instruction walks its operands: repeats of 256 bytes, a mask over the lanes, strides in 32-byte blocks.
#pragma once

#include "tensors.h"

namespace AscendC {

// In place of a mask where isSetMask is false.
constexpr uint64_t MASK_PLACEHOLDER = 0;

struct UnaryRepeatParams {
  UnaryRepeatParams() = default;
  UnaryRepeatParams(const uint16_t dst_block, const uint16_t src_block, const uint8_t dst_repeat,
                    const uint8_t src_repeat)
      : dstBlkStride(dst_block), srcBlkStride(src_block), dstRepStride(dst_repeat), srcRepStride(src_repeat) {}

  uint16_t dstBlkStride = 1;
  uint16_t srcBlkStride = 1;
  uint8_t dstRepStride = 8;
  uint8_t srcRepStride = 8;
};

struct BinaryRepeatParams {
  BinaryRepeatParams() = default;
  BinaryRepeatParams(const uint8_t dst_block, const uint8_t src0_block, const uint8_t src1_block,
                     const uint8_t dst_repeat, const uint8_t src0_repeat, const uint8_t src1_repeat)
      : dstBlkStride(dst_block),
        src0BlkStride(src0_block),
        src1BlkStride(src1_block),
        dstRepStride(dst_repeat),
        src0RepStride(src0_repeat),
        src1RepStride(src1_repeat) {}

  uint8_t dstBlkStride = 1;
  uint8_t src0BlkStride = 1;
  uint8_t src1BlkStride = 1;
  uint8_t dstRepStride = 8;
  uint8_t src0RepStride = 8;
  uint8_t src1RepStride = 8;
};

// A repeatTime: wider than the register it goes to, so that what does not fit is seen instead of cut off.
struct RepeatTimes {
  template <typename Integer, typename = std::enable_if_t<std::is_integral_v<Integer>>>
  RepeatTimes(Integer times) : value(int64_t(times)) {}

  uint32_t checked(const char* api) const {
    if (value < 0 || value > 255) emulated::refuse(api, "repeatTime", "0 to 255", value);
    return uint32_t(value);
  }

  int64_t value;
};

namespace vector {

constexpr uint32_t CHUNKS = emulated::REPEAT_BYTES / emulated::BLOCK;  // of the widest operand's blocks in a repeat

// Which lanes take part in which repeat.
struct Iterations {
  uint32_t repeats = 0;
  uint32_t lanes = 0;  // in a repeat
  bool counter = false;
  uint64_t count = 0;  // counter mode: lanes in all
  uint64_t low = 0, high = 0;

  // The lanes [first, first + width) of a repeat as bits; they never straddle a multiple of 64.
  uint32_t bits(uint32_t repeat, uint32_t first, uint32_t width) const {
    const uint32_t all = uint32_t((uint64_t{1} << width) - 1);
    if (!counter) return uint32_t((first < 64 ? low : high) >> (first % 64)) & all;
    const uint64_t begin = uint64_t(repeat) * lanes + first;
    if (begin >= count) return 0;
    return count - begin >= width ? all : uint32_t((uint64_t{1} << (count - begin)) - 1);
  }
};

inline Iterations from_register(const char* api, uint32_t lanes, uint32_t repeats) {
  const emulated::MaskRegister& mask = emulated::core(api).mask;
  if (mask.counter) return {uint32_t((mask.low + lanes - 1) / lanes), lanes, true, mask.low, 0, 0};
  return {repeats, lanes, false, 0, mask.low, lanes > 64 ? mask.high : 0};
}

// The form with a count: sets the register for one instruction, or takes it as it is.
template <bool set_mask>
Iterations by_count(const char* api, uint32_t lanes, int64_t count) {
  if constexpr (!set_mask) return from_register(api, lanes, 1);
  if (count < 0) emulated::refuse(api, "count", "0 or more", count);
  emulated::core(api).mask = {};  // documented: normal mode and a full mask afterwards
  return {uint32_t((count + lanes - 1) / lanes), lanes, true, uint64_t(count), 0, 0};
}

// The form with the first `mask` lanes of each repeat; in counter mode, `mask` elements in all.
template <bool set_mask>
Iterations by_mask(const char* api, uint32_t lanes, uint64_t mask, RepeatTimes times) {
  emulated::MaskRegister& held = emulated::core(api).mask;
  const uint32_t repeats = times.checked(api);
  if constexpr (set_mask) {
    if (held.counter) {
      held.low = mask;
      held.high = 0;
    } else {
      emulated::require_at_most<uint64_t>(api, "mask", lanes, mask);
      held.low = mask >= 64 ? ~uint64_t{0} : (uint64_t{1} << mask) - 1;
      held.high = mask <= 64 ? 0 : mask == 128 ? ~uint64_t{0} : (uint64_t{1} << (mask - 64)) - 1;
    }
  }
  return from_register(api, lanes, repeats);
}

// The form with a bit a lane.
template <bool set_mask>
Iterations by_bits(const char* api, uint32_t lanes, const uint64_t mask[], RepeatTimes times) {
  emulated::MaskRegister& held = emulated::core(api).mask;
  if constexpr (set_mask) {
    held.low = mask[0];
    held.high = lanes > 64 ? mask[1] : 0;
  }
  return from_register(api, lanes, times.checked(api));
}

template <typename... T>
constexpr uint32_t lanes_of = emulated::REPEAT_BYTES / uint32_t(std::max({sizeof(T)...}));

// An operand with its strides, in blocks.
template <typename T>
struct Operand {
  Operand(const char* api_in, const char* what, const LocalTensor<T>& tensor, uint32_t block_in, uint32_t repeat_in)
      : api(api_in), place(tensor.place()), block(block_in), repeat(repeat_in) {
    place.check(api, place.address, place.address);
    place.check_alignment(api, what, emulated::BLOCK);
  }

  // The address of a lane.
  uint32_t at(uint32_t times, uint32_t lane) const {
    const uint32_t byte = lane * uint32_t(sizeof(T));
    return place.address + (times * repeat + byte / emulated::BLOCK * block) * emulated::BLOCK + byte % emulated::BLOCK;
  }

  // Checks the lanes `bits` from `address` on, all in one block, and notes them.
  void touch(emulated::Core& core, emulated::Stamp stamp, uint32_t address, uint32_t bits, emulated::Kind kind) const {
    const uint32_t first = uint32_t(__builtin_ctz(bits)), last = 31 - uint32_t(__builtin_clz(bits));
    const uint32_t from = address + first * uint32_t(sizeof(T)), to = address + (last + 1) * uint32_t(sizeof(T));
    if (to > place.end) place.check(api, from, to);
    uint32_t mask = emulated::byte_mask(from % emulated::BLOCK, to - from);
    if (bits >> first != (uint32_t{1} << (last - first + 1)) - 1) {  // lanes between are left out
      mask = 0;
      for (uint32_t lane = first; lane <= last; ++lane) {
        if (bits >> lane & 1) mask |= emulated::byte_mask((address + lane * sizeof(T)) % emulated::BLOCK, sizeof(T));
      }
    }
    core.ub.touch(api, core.ordering, stamp, address / emulated::BLOCK, mask, kind);
  }

  const char* api;
  LocalPlace place;
  uint32_t block, repeat;
  bool accumulates = false;  // an earlier repeat may have written it
};

// Finds operands that overlap in a way the vector unit does not define: within a repeat the destination is a source
// or apart from it; a later repeat reads nothing that an earlier one wrote.
class Overlap {
 public:
  explicit Overlap(const char* api) : api_(api), serial_(++serials_) {}

  void read(uint32_t block, uint32_t repeat, uint32_t chunk, bool accumulates = false) const {
    if (uses_[block].writer >> 24 == serial_ && !accumulates) refuse_overlap(block);
    uses_[block].reader = key(repeat, chunk);
  }

  void write(uint32_t block, uint32_t repeat, uint32_t chunk) const {
    const uint64_t reader = uses_[block].reader;
    if (reader >> 8 == key(repeat, 0) >> 8 && reader != key(repeat, chunk)) refuse_overlap(block);
    uses_[block].writer = key(repeat, chunk);
  }

 private:
  struct Use {
    uint64_t reader, writer;
  };

  uint64_t key(uint32_t repeat, uint32_t chunk) const { return serial_ << 24 | uint64_t(repeat) << 8 | chunk; }

  [[noreturn]] void refuse_overlap(uint32_t block) const {
    emulated::refuse(api_, "operands that overlap", "source and destination apart, or the same in each repeat",
                     "block " + std::to_string(block) + " of the Unified Buffer as both");
  }

  static inline uint64_t serials_ = 0;
  static inline Use uses_[emulated::UB_BYTES / emulated::BLOCK]{};
  const char* api_;
  uint64_t serial_;
};

// For instructions whose operands are plain ranges: they may not share a byte.
inline void check_apart(const char* api, uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes) {
  if (a < b + b_bytes && b < a + a_bytes) {
    emulated::refuse(api, "operands that overlap", "source and destination apart",
                     "bytes " + emulated::range(std::max(a, b), std::min(a + a_bytes, b + b_bytes)) + " as both");
  }
}

// Which lane of which repeat.
struct Lane {
  uint32_t repeat, lane;
};

// Runs dst[lane] = function(sources[lane]...) over all active lanes; a function that wants it gets the Lane first.
template <typename D, typename Function, typename... S>
void execute(const char* api, const Iterations& iterations, const Operand<D>& dst, Function function,
             const Operand<S>&... sources) {
  const emulated::Stamp stamp = emulated::issue(api, emulated::V, iterations.repeats);
  emulated::Core& core = emulated::core(api);
  const Overlap overlap(api);
  const uint32_t width = iterations.lanes / CHUNKS;
  [[maybe_unused]] const auto source = [&](const auto& operand, uint32_t repeat, uint32_t chunk, uint32_t bits) {
    const uint32_t address = operand.at(repeat, chunk * width);
    operand.touch(core, stamp, address, bits, emulated::Kind::READ);
    overlap.read(address / emulated::BLOCK, repeat, chunk, operand.accumulates);
    return core.ub.at(address);
  };
  for (uint32_t repeat = 0; repeat < iterations.repeats; ++repeat) {
    for (uint32_t chunk = 0; chunk < CHUNKS; ++chunk) {
      const uint32_t bits = iterations.bits(repeat, chunk * width, width);
      if (!bits) continue;
      const std::tuple<const S*...> from{reinterpret_cast<const S*>(source(sources, repeat, chunk, bits))...};
      const uint32_t address = dst.at(repeat, chunk * width);
      dst.touch(core, stamp, address, bits, emulated::Kind::WRITE);
      overlap.write(address / emulated::BLOCK, repeat, chunk);
      D* to = reinterpret_cast<D*>(core.ub.at(address));
      std::apply(
          [&](const S*... lane) {
            for (uint32_t i = 0; i < width; ++i) {
              if (!(bits >> i & 1)) continue;
              if constexpr (std::is_invocable_v<Function, Lane, S...>) {
                to[i] = function(Lane{repeat, chunk * width + i}, lane[i]...);
              } else {
                to[i] = function(lane[i]...);
              }
            }
          },
          from);
    }
  }
}

}  // namespace vector

inline void SetMaskCount() { emulated::core("SetMaskCount").mask.counter = true; }
inline void SetMaskNorm() { emulated::core("SetMaskNorm").mask.counter = false; }

inline void ResetMask() {
  emulated::MaskRegister& mask = emulated::core("ResetMask").mask;
  mask.high = mask.low = ~uint64_t{0};
}

enum class MaskMode : uint8_t { NORMAL, COUNTER };

template <typename T, MaskMode mode = MaskMode::NORMAL>
void SetVectorMask(const uint64_t high, const uint64_t low) {
  emulated::MaskRegister& mask = emulated::core("SetVectorMask").mask;
  mask.high = high;
  mask.low = low;
}

template <typename T, MaskMode mode = MaskMode::NORMAL>
void SetVectorMask(int32_t length) {
  emulated::MaskRegister& mask = emulated::core("SetVectorMask").mask;
  if (mask.counter != (mode == MaskMode::COUNTER)) {
    emulated::refuse("SetVectorMask", "mask mode", mask.counter ? "COUNTER" : "NORMAL", "the other one");
  }
  if (mask.counter) {
    mask.low = uint64_t(length);
    mask.high = 0;
  } else {
    vector::by_mask<true>("SetVectorMask", vector::lanes_of<T>, uint64_t(length), 1);
  }
}

}  // namespace AscendC
