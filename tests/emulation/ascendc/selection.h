// Compare to bits, and Select by them.
#pragma once

#include "arithmetic.h"

namespace AscendC {

enum class CMPMODE : uint8_t { LT, GT, EQ, LE, GE, NE };
enum class SELMODE : uint8_t { VSEL_CMPMASK_SPR, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };

namespace vector {

template <typename T>
bool compares(T a, T b, CMPMODE mode) {
  switch (mode) {
    case CMPMODE::LT:
      return a < b;
    case CMPMODE::GT:
      return a > b;
    case CMPMODE::EQ:
      return a == b;
    case CMPMODE::LE:
      return a <= b;
    case CMPMODE::GE:
      return a >= b;
    default:
      return a != b;
  }
}

template <typename T>
void check_compare(const char* api, CMPMODE mode, uint32_t count) {
  static_assert(emulated::one_of<T, half, float, int32_t>, "Compare: this type is not supported on A2/A3");
  if (std::is_same_v<T, int32_t> && mode != CMPMODE::EQ) emulated::refuse(api, "mode for int32", "EQ", int(mode));
  if (uint64_t(count) * sizeof(T) % emulated::REPEAT_BYTES) {
    emulated::refuse(api, "count", "whole repeats of 256 bytes", count);
  }
}

// Bit i of the destination is compare(i).
template <typename T, typename U, typename... Sources, typename Compared>
void compare(const char* api, const LocalTensor<U>& dst, uint32_t count, Compared compared,
             const LocalTensor<Sources>&... sources) {
  static_assert(emulated::one_of<U, int8_t, uint8_t>, "Compare: the destination is int8 or uint8");
  const Operand<U> to(api, "destination", dst, 1, 8);
  emulated::core(api).mask = {};
  const uint32_t repeats = uint32_t(count / lanes_of<T>);
  const emulated::Stamp stamp = emulated::issue(api, emulated::V, repeats);
  emulated::Core& core = emulated::core(api);
  const auto touch = [&](const LocalPlace& place, uint64_t bytes, emulated::Kind kind) {
    place.check(api, place.address, int64_t(place.address + bytes));
    core.ub.touch_range(api, core.ordering, stamp, place.address, uint32_t(place.address + bytes), kind);
  };
  (touch(Operand<Sources>(api, "source", sources, 1, 8).place, uint64_t(count) * sizeof(T), emulated::Kind::READ), ...);
  (check_apart(api, dst.place().address, count / 8, sources.place().address, uint64_t(count) * sizeof(T)), ...);
  touch(dst.place(), count / 8, emulated::Kind::WRITE);
  for (uint32_t i = 0; i < count; i += 8) {
    uint8_t bits = 0;
    for (uint32_t bit = 0; bit < 8; ++bit) {
      bits |=
          uint8_t(compared(reinterpret_cast<const Sources*>(core.ub.at(sources.place().address))[i + bit]...) << bit);
    }
    *core.ub.at(dst.place().address + i / 8) = bits;
  }
}

// The library keeps the last 8 KiB of the Unified Buffer for these modes of Select.
inline void check_reserved() {
  constexpr uint32_t RESERVED = 8 * 1024;
  emulated::require_at_most<uint32_t>("Select", "Unified Buffer laid out beside the 8 KiB that Select needs",
                                      emulated::UB_BYTES - RESERVED, emulated::core("Select").laid_out);
}

// Whether the mask takes the first source in a lane; in CMPMASK mode every repeat uses the same bits.
template <typename U>
auto chooser(const LocalTensor<U>& mask, const Iterations& iterations, bool same_each_repeat) {
  static_assert(emulated::one_of<U, uint8_t, uint16_t, uint32_t, uint64_t>, "Select: the mask is of an unsigned type");
  constexpr const char* api = "Select";
  const Operand<U> bits(api, "mask", mask, 1, 8);
  const uint64_t used = uint64_t(same_each_repeat ? 1 : iterations.repeats) * iterations.lanes;
  const uint32_t begin = bits.place.address;
  const uint64_t bytes =
      iterations.counter && !same_each_repeat ? (iterations.count + 7) / 8 : (iterations.repeats ? used / 8 : 0);
  bits.place.check(api, begin, int64_t(begin + bytes));
  emulated::Core& core = emulated::core(api);
  // The mask is read by the instruction that execute() issues next.
  const emulated::Stamp next{emulated::V, core.ordering.issued(emulated::V) + 1};
  core.ub.touch_range(api, core.ordering, next, begin, uint32_t(begin + bytes), emulated::Kind::READ);
  return [&core, begin, lanes = iterations.lanes, same_each_repeat](Lane lane) {
    const uint64_t bit = (same_each_repeat ? 0 : uint64_t(lane.repeat) * lanes) + lane.lane;
    return bool(*core.ub.at(uint32_t(begin + bit / 8)) >> (bit % 8) & 1);
  };
}

template <typename T, typename U>
void select_tensor(const Iterations& iterations, const LocalTensor<T>& dst, const LocalTensor<U>& mask,
                   const LocalTensor<T>& src0, const LocalTensor<T>& src1, SELMODE mode,
                   const BinaryRepeatParams& params) {
  static_assert(emulated::is_floating<T>, "Select: this type is not supported on A2/A3, only half and float");
  if (mode == SELMODE::VSEL_TENSOR_SCALAR_MODE) emulated::refuse("Select", "mode", "one for two tensors", int(mode));
  if (mode == SELMODE::VSEL_TENSOR_TENSOR_MODE) check_reserved();
  const auto chosen = chooser(mask, iterations, mode == SELMODE::VSEL_CMPMASK_SPR);
  execute(
      "Select", iterations, Operand<T>("Select", "destination", dst, params.dstBlkStride, params.dstRepStride),
      [&](Lane lane, T a, T b) { return chosen(lane) ? a : b; },
      Operand<T>("Select", "first source", src0, params.src0BlkStride, params.src0RepStride),
      Operand<T>("Select", "second source", src1, params.src1BlkStride, params.src1RepStride));
}

template <typename T, typename U>
void select_scalar(const Iterations& iterations, const LocalTensor<T>& dst, const LocalTensor<U>& mask,
                   const LocalTensor<T>& src0, T scalar, SELMODE mode, const BinaryRepeatParams& params) {
  static_assert(emulated::is_floating<T>, "Select: this type is not supported on A2/A3, only half and float");
  if (mode != SELMODE::VSEL_TENSOR_SCALAR_MODE) emulated::refuse("Select", "mode", "the one for a scalar", int(mode));
  check_reserved();
  const auto chosen = chooser(mask, iterations, false);
  execute(
      "Select", iterations, Operand<T>("Select", "destination", dst, params.dstBlkStride, params.dstRepStride),
      [&](Lane lane, T a) { return chosen(lane) ? a : scalar; },
      Operand<T>("Select", "source", src0, params.src0BlkStride, params.src0RepStride));
}

}  // namespace vector

template <typename T, typename U>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode,
             uint32_t count) {
  vector::check_compare<T>("Compare", cmpMode, count);
  vector::compare<T>(
      "Compare", dst, count, [cmpMode](T a, T b) { return vector::compares(a, b, cmpMode); }, src0, src1);
}

template <typename T, typename U>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode,
                   uint32_t count) {
  vector::check_compare<T>("CompareScalar", cmpMode, count);
  vector::compare<T>(
      "CompareScalar", dst, count, [cmpMode, src1Scalar](T a) { return vector::compares(a, src1Scalar, cmpMode); },
      src0);
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, SELMODE selMode, uint32_t count) {
  vector::select_tensor(vector::by_count<true>("Select", vector::lanes_of<T>, count), dst, selMask, src0, src1, selMode,
                        BinaryRepeatParams{});
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, SELMODE selMode, uint64_t mask, RepeatTimes repeatTime,
            const BinaryRepeatParams& params) {
  vector::select_tensor(vector::by_mask<true>("Select", vector::lanes_of<T>, mask, repeatTime), dst, selMask, src0,
                        src1, selMode, params);
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
            SELMODE selMode, uint32_t count) {
  vector::select_scalar(vector::by_count<true>("Select", vector::lanes_of<T>, count), dst, selMask, src0, src1, selMode,
                        BinaryRepeatParams{});
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
            SELMODE selMode, uint64_t mask, RepeatTimes repeatTime, const BinaryRepeatParams& params) {
  vector::select_scalar(vector::by_mask<true>("Select", vector::lanes_of<T>, mask, repeatTime), dst, selMask, src0,
                        src1, selMode, params);
}

}  // namespace AscendC
