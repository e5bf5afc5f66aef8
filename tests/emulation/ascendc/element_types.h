// half and bfloat16_t, and which types an API takes.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

using half = _Float16;

// Storage only: the vector unit has no bfloat16 arithmetic.
struct bfloat16_t {
  uint16_t bits;
};

namespace emulated {

template <typename T, typename... Allowed>
constexpr bool one_of = (std::is_same_v<T, Allowed> || ...);

template <typename T>
constexpr bool is_floating = one_of<T, half, float>;

template <typename T>
constexpr bool is_move_type = one_of<T, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>;

template <typename T>
constexpr bool is_arithmetic_type = one_of<T, int16_t, half, int32_t, float>;

inline float to_float(bfloat16_t value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

template <typename To, typename From>
To bit_copy(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace emulated
