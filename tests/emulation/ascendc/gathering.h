// Gather by byte offsets, and GatherMask by a pattern.
#pragma once

#include "arithmetic.h"

namespace AscendC {

struct GatherMaskParams {
  GatherMaskParams() = default;
  GatherMaskParams(const uint8_t block, const uint16_t repeats, const uint16_t repeat_stride,
                   const uint8_t pattern_stride)
      : src0BlockStride(block),
        repeatTimes(repeats),
        src0RepeatStride(repeat_stride),
        src1RepeatStride(pattern_stride) {}

  uint8_t src0BlockStride = 1;
  uint16_t repeatTimes = 0;
  uint16_t src0RepeatStride = 8;
  uint8_t src1RepeatStride = 8;
};

namespace vector {

template <typename T>
void gather(const Iterations& iterations, const LocalTensor<T>& dst, const LocalTensor<T>& src,
            const LocalTensor<uint32_t>& offsets, uint32_t base, uint32_t repeat_stride) {
  static_assert(emulated::is_move_type<T>, "Gather: this type is not supported on A2/A3 (int64 compiles to nothing)");
  constexpr const char* api = "Gather";
  if (base % sizeof(T)) emulated::refuse(api, "srcBaseAddr", "a multiple of the element's size", base);
  const Operand<T> to(api, "destination", dst, 1, repeat_stride);
  const Operand<T> from(api, "source", src, 1, 0);
  const Operand<uint32_t> places(api, "offsets", offsets, 1, iterations.lanes * 4 / emulated::BLOCK);
  const emulated::Stamp stamp = emulated::issue(api, emulated::V, iterations.repeats);
  emulated::Core& core = emulated::core(api);
  const Overlap overlap(api);
  for (uint32_t repeat = 0; repeat < iterations.repeats; ++repeat) {
    for (uint32_t lane = 0; lane < iterations.lanes; ++lane) {
      if (!iterations.bits(repeat, lane, 1)) continue;
      const uint32_t place = places.at(repeat, lane), address = to.at(repeat, lane);
      places.touch(core, stamp, place, 1, emulated::Kind::READ);
      overlap.read(place / emulated::BLOCK, 0, 0);
      uint32_t offset;
      std::memcpy(&offset, core.ub.at(place), sizeof offset);
      if (offset % sizeof(T)) emulated::refuse(api, "byte offset", "a multiple of the element's size", offset);
      const uint64_t source = uint64_t(src.place().address) + base + offset;
      src.place().check(api, int64_t(source), int64_t(source + sizeof(T)));
      from.touch(core, stamp, uint32_t(source), 1, emulated::Kind::READ);
      overlap.read(uint32_t(source) / emulated::BLOCK, 0, 0);
      to.touch(core, stamp, address, 1, emulated::Kind::WRITE);
      overlap.write(address / emulated::BLOCK, 0, 1);
      std::memcpy(core.ub.at(address), core.ub.at(uint32_t(source)), sizeof(T));
    }
  }
}

// Whether a built-in pattern takes element i.
inline bool pattern_takes(uint8_t pattern, uint64_t i) {
  if (pattern <= 2) return i % 2 == uint64_t(pattern - 1);
  return pattern == 7 || i % 4 == uint64_t(pattern - 3);
}

}  // namespace vector

template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset,
            const uint32_t srcBaseAddr, const uint32_t count) {
  vector::gather(vector::by_count<true>("Gather", vector::lanes_of<T>, count), dst, src, srcOffset, srcBaseAddr, 8);
}

template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset,
            const uint32_t srcBaseAddr, const uint64_t mask, RepeatTimes repeatTime, const uint16_t dstRepStride) {
  vector::gather(vector::by_mask<true>("Gather", vector::lanes_of<T>, mask, repeatTime), dst, src, srcOffset,
                 srcBaseAddr, dstRepStride);
}

// Compacts the elements a built-in pattern takes. Counter mode (reduceMode): `mask` elements a repeat; else 256 bytes.
template <typename T>
void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const uint8_t src1Pattern, const bool reduceMode,
                const uint32_t mask, const GatherMaskParams& params, uint64_t& rsvdCnt) {
  static_assert(emulated::is_move_type<T>, "GatherMask: this type is not supported on A2/A3");
  constexpr const char* api = "GatherMask";
  if (src1Pattern < 1 || src1Pattern > 7) emulated::refuse(api, "pattern", "1 to 7", int(src1Pattern));
  if (reduceMode && mask == 0) emulated::refuse(api, "mask in counter mode", "at least 1", mask);
  emulated::require_at_most<uint32_t>(api, "repeatTimes", 255, params.repeatTimes);
  const vector::Operand<T> to(api, "destination", dst, 1, 0);
  const vector::Operand<T> from(api, "source", src0, params.src0BlockStride, params.src0RepeatStride);
  const emulated::Stamp stamp = emulated::issue(api, emulated::V, params.repeatTimes);
  emulated::Core& core = emulated::core(api);
  const uint64_t elements = reduceMode ? mask : emulated::REPEAT_BYTES / sizeof(T);
  std::vector<T> taken;
  for (uint32_t repeat = 0; repeat < params.repeatTimes; ++repeat) {
    for (uint64_t i = 0; i < elements; ++i) {
      if (!vector::pattern_takes(src1Pattern, i)) continue;
      const uint32_t address = from.at(repeat, uint32_t(i));
      from.touch(core, stamp, address, 1, emulated::Kind::READ);
      taken.emplace_back();
      std::memcpy(&taken.back(), core.ub.at(address), sizeof(T));
    }
  }
  if (!taken.empty() && dst.place().address != src0.place().address) {  // in place it packs behind what it read
    const uint64_t end = from.at(params.repeatTimes - 1u, uint32_t(elements - 1)) + sizeof(T);
    vector::check_apart(api, dst.place().address, taken.size() * sizeof(T), src0.place().address,
                        end - src0.place().address);
  }
  for (uint32_t i = 0; i < taken.size(); ++i) {
    const uint32_t address = to.at(0, i);
    to.touch(core, stamp, address, 1, emulated::Kind::WRITE);
    std::memcpy(core.ub.at(address), &taken[i], sizeof(T));
  }
  core.mask = {};  // documented: normal mode afterwards
  rsvdCnt = taken.size();
}

}  // namespace AscendC
