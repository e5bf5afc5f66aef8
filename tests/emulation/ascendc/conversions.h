// Cast: the pairs of types and rounding modes of A2/A3.
#pragma once

#include "arithmetic.h"

namespace AscendC {

enum class RoundMode : uint8_t { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };

inline float ToFloat(const bfloat16_t& value) { return emulated::to_float(value); }

namespace vector {

// Which rounding modes a pair of types takes: the five that name a direction, or CAST_NONE, or both.
enum class Modes { NO_PAIR, NONE_ONLY, DIRECTED, BOTH };

template <typename To, typename From>
constexpr Modes modes() {
  using emulated::one_of;
  if (std::is_same_v<From, float>) {
    if (one_of<To, half>) return Modes::BOTH;
    return one_of<To, int16_t, bfloat16_t, int32_t, float, int64_t> ? Modes::DIRECTED : Modes::NO_PAIR;
  }
  if (std::is_same_v<From, half>) {
    if (one_of<To, int8_t, uint8_t>) return Modes::BOTH;
    if (one_of<To, int16_t, int32_t>) return Modes::DIRECTED;
    return one_of<To, float> ? Modes::NONE_ONLY : Modes::NO_PAIR;
  }
  if (std::is_same_v<From, bfloat16_t>) {
    if (one_of<To, int32_t>) return Modes::DIRECTED;
    return one_of<To, float> ? Modes::NONE_ONLY : Modes::NO_PAIR;
  }
  if (std::is_same_v<From, int32_t>) {
    if (one_of<To, float>) return Modes::BOTH;
    return one_of<To, int16_t, int64_t> ? Modes::NONE_ONLY : Modes::NO_PAIR;
  }
  if (std::is_same_v<From, int16_t>) {
    if (one_of<To, half>) return Modes::BOTH;
    return one_of<To, float> ? Modes::NONE_ONLY : Modes::NO_PAIR;
  }
  if (std::is_same_v<From, int64_t>) {
    if (one_of<To, float>) return Modes::DIRECTED;
    return one_of<To, int32_t> ? Modes::NONE_ONLY : Modes::NO_PAIR;
  }
  return one_of<From, int8_t, uint8_t> && one_of<To, half> ? Modes::NONE_ONLY : Modes::NO_PAIR;
}

template <typename To, typename From>
void check_mode(RoundMode mode) {
  constexpr Modes allowed = modes<To, From>();
  static_assert(allowed != Modes::NO_PAIR, "Cast: this pair of types is not supported on A2/A3");
  if (mode == RoundMode::CAST_NONE ? allowed == Modes::DIRECTED : allowed == Modes::NONE_ONLY) {
    emulated::refuse("Cast", "rounding mode",
                     allowed == Modes::DIRECTED ? "CAST_RINT, FLOOR, CEIL, ROUND or TRUNC" : "CAST_NONE", int(mode));
  }
  if (mode == RoundMode::CAST_ODD) emulated::refuse("Cast", "rounding mode", "one that is emulated", "CAST_ODD");
}

inline double rounded(double value, RoundMode mode) {
  switch (mode) {
    case RoundMode::CAST_FLOOR:
      return std::floor(value);
    case RoundMode::CAST_CEIL:
      return std::ceil(value);
    case RoundMode::CAST_ROUND:
      return std::round(value);
    case RoundMode::CAST_TRUNC:
      return std::trunc(value);
    default:
      return std::nearbyint(value);
  }
}

// The bfloat16 on either side of a float, whichever the mode says.
inline bfloat16_t to_bfloat16(float value, RoundMode mode) {
  const uint32_t bits = emulated::bit_copy<uint32_t>(value), cut = bits & 0xFFFF, half_way = 0x8000;
  if (value != value) return {uint16_t(bits >> 16 | 0x40)};
  const bool odd = bits >> 16 & 1, negative = bits >> 31;
  bool away = false;
  if (mode == RoundMode::CAST_NONE || mode == RoundMode::CAST_RINT) away = cut > half_way || (cut == half_way && odd);
  if (mode == RoundMode::CAST_ROUND) away = cut >= half_way;
  if (mode == RoundMode::CAST_FLOOR) away = cut && negative;
  if (mode == RoundMode::CAST_CEIL) away = cut && !negative;
  return {uint16_t((bits >> 16) + away)};
}

template <typename To, typename From>
To converted(From value, RoundMode mode) {
  if constexpr (std::is_same_v<From, bfloat16_t> && std::is_same_v<To, float>) {
    return emulated::to_float(value);
  } else if constexpr (std::is_same_v<From, bfloat16_t>) {
    return converted<To, float>(emulated::to_float(value), mode);
  } else if constexpr (std::is_same_v<To, bfloat16_t>) {
    return to_bfloat16(value, mode);
  } else if constexpr (std::is_same_v<To, From>) {
    return To(rounded(double(value), mode));
  } else if constexpr (std::is_integral_v<To> && !std::is_integral_v<From>) {
    const double whole = rounded(double(value), mode);
    // Both ends of the range are powers of two, which a double holds also for int64.
    const double limit = std::ldexp(1.0, std::numeric_limits<To>::digits);
    if (!(whole >= (std::is_signed_v<To> ? -limit : 0.0) && whole < limit)) {
      emulated::refuse("Cast", "number", "one that the integer type holds", double(value));
    }
    return To(whole);
  } else if constexpr (std::is_integral_v<To>) {
    return emulated::fitted<To>("Cast", int64_t(value));
  } else {
    const To result = To(value);
    const bool directed = mode != RoundMode::CAST_NONE && mode != RoundMode::CAST_RINT;
    if (directed && double(result) != double(value)) {
      emulated::refuse("Cast", "rounding mode of a lossy cast to a float type", "CAST_RINT or CAST_NONE", int(mode));
    }
    return result;
  }
}

template <typename To, typename From>
void cast(const Iterations& iterations, const LocalTensor<To>& dst, const LocalTensor<From>& src, RoundMode mode,
          const UnaryRepeatParams& params) {
  check_mode<To, From>(mode);
  execute(
      "Cast", iterations, Operand<To>("Cast", "destination", dst, params.dstBlkStride, params.dstRepStride),
      [mode](From value) { return converted<To, From>(value, mode); },
      Operand<From>("Cast", "source", src, params.srcBlkStride, params.srcRepStride));
}

}  // namespace vector

template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& mode, const uint32_t count) {
  UnaryRepeatParams params;  // contiguous: each operand steps by what a repeat takes of it
  constexpr uint32_t lanes = vector::lanes_of<T, U>;
  params.dstRepStride = uint8_t(lanes * sizeof(T) / emulated::BLOCK);
  params.srcRepStride = uint8_t(lanes * sizeof(U) / emulated::BLOCK);
  vector::cast(vector::by_count<true>("Cast", lanes, count), dst, src, mode, params);
}

template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& mode, const uint64_t mask,
          RepeatTimes repeatTime, const UnaryRepeatParams& params) {
  vector::cast(vector::by_mask<isSetMask>("Cast", vector::lanes_of<T, U>, mask, repeatTime), dst, src, mode, params);
}

template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& mode, const uint64_t mask[],
          RepeatTimes repeatTime, const UnaryRepeatParams& params) {
  vector::cast(vector::by_bits<isSetMask>("Cast", vector::lanes_of<T, U>, mask, repeatTime), dst, src, mode, params);
}

}  // namespace AscendC
