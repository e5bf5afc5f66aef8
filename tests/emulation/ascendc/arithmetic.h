// Elementwise vector instructions: with one source, with two, and with a scalar; each by count, by mask and by bits.
#pragma once

#include <cmath>
#include <limits>
#include <tuple>

#include "vector_instruction.h"

namespace emulated {

// What Max, Min and sorting do with a NaN is not documented for A2/A3, so by default they refuse one. A test may
// choose.
enum class NanRule : int { REFUSE, HIGHEST, LOWEST };

inline NanRule nan_rule = NanRule::REFUSE;

template <typename T>
bool is_nan(T value) {
  if constexpr (is_floating<T>) return value != value;
  return false;
}

// Whether a comes before b in descending order.
template <typename T>
bool above(const char* api, T a, T b) {
  if (!is_nan(a) && !is_nan(b)) return a > b;
  if (nan_rule == NanRule::REFUSE) refuse(api, "order of NaN", "numbers: it is not documented", "NaN");
  return nan_rule == NanRule::HIGHEST ? is_nan(a) && !is_nan(b) : !is_nan(a) && is_nan(b);
}

// An integer result that the type holds: what happens to others is not documented.
template <typename T>
T fitted(const char* api, int64_t value) {
  if (value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max()) {
    refuse(api, "integer result", "one that its type holds", value);
  }
  return T(value);
}

template <typename T>
T sum(const char* api, T a, T b) {
  if constexpr (is_floating<T>) return T(a + b);
  return fitted<T>(api, int64_t(a) + int64_t(b));
}

template <typename T>
T product(const char* api, T a, T b) {
  if constexpr (is_floating<T>) return T(a * b);
  return fitted<T>(api, int64_t(a) * int64_t(b));
}

template <typename T>
T difference(const char* api, T a, T b) {
  if constexpr (is_floating<T>) return T(a - b);
  return fitted<T>(api, int64_t(a) - int64_t(b));
}

template <typename T>
T greater(const char* api, T a, T b) {
  return above(api, b, a) ? b : a;
}

template <typename T>
T lesser(const char* api, T a, T b) {
  return above(api, a, b) ? b : a;
}

// The vector unit's reciprocal is off by more than 1e-4 (documented), so a result that rests on its last bits is wrong.
template <typename T>
T coarse_reciprocal(T value) {
  return T(float(1) / float(value) * (1 + 0x1p-12f));
}

template <typename T>
T shifted_left(T value, T bits) {
  return T(std::make_unsigned_t<T>(value) << bits);
}

template <typename T>
void check_shift(const char* api, T bits) {
  if (bits < 0 || size_t(bits) >= 8 * sizeof(T)) refuse(api, "shift", "less bits than the type has", int64_t(bits));
}

}  // namespace emulated

namespace AscendC {
namespace vector {

template <typename T, typename Function>
void unary(const char* api, const Iterations& iterations, const LocalTensor<T>& dst, const LocalTensor<T>& src,
           const UnaryRepeatParams& params, Function function) {
  execute(api, iterations, Operand<T>(api, "destination", dst, params.dstBlkStride, params.dstRepStride), function,
          Operand<T>(api, "source", src, params.srcBlkStride, params.srcRepStride));
}

template <typename T, typename Function>
void binary(const char* api, const Iterations& iterations, const LocalTensor<T>& dst, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, const BinaryRepeatParams& params, bool can_accumulate, Function function) {
  // Documented: the destination may be the second source of the next repeat if one of their repeat strides is 0.
  Operand<T> second(api, "second source", src1, params.src1BlkStride, params.src1RepStride);
  second.accumulates = can_accumulate && dst.place().address == src1.place().address &&
                       (params.dstRepStride == 0 || params.src1RepStride == 0) && !std::is_same_v<T, int16_t>;
  execute(api, iterations, Operand<T>(api, "destination", dst, params.dstBlkStride, params.dstRepStride), function,
          Operand<T>(api, "first source", src0, params.src0BlkStride, params.src0RepStride), second);
}

}  // namespace vector

// FUNCTION is an expression of the lane's value a, of T and of api.
#define EMULATED_UNARY(NAME, TYPES, FUNCTION)                                                                       \
  template <typename T, bool isSetMask = true>                                                                      \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count) {                           \
    static_assert(TYPES, #NAME ": this type is not supported on A2/A3");                                            \
    constexpr const char* api = #NAME;                                                                              \
    vector::unary(api, vector::by_count<isSetMask>(api, vector::lanes_of<T>, count), dst, src, UnaryRepeatParams{}, \
                  [](T a) -> T { return FUNCTION; });                                                               \
  }                                                                                                                 \
  template <typename T, bool isSetMask = true>                                                                      \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask, RepeatTimes repeatTime,            \
            const UnaryRepeatParams& params) {                                                                      \
    static_assert(TYPES, #NAME ": this type is not supported on A2/A3");                                            \
    constexpr const char* api = #NAME;                                                                              \
    vector::unary(api, vector::by_mask<isSetMask>(api, vector::lanes_of<T>, mask, repeatTime), dst, src, params,    \
                  [](T a) -> T { return FUNCTION; });                                                               \
  }                                                                                                                 \
  template <typename T, bool isSetMask = true>                                                                      \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask[], RepeatTimes repeatTime,          \
            const UnaryRepeatParams& params) {                                                                      \
    static_assert(TYPES, #NAME ": this type is not supported on A2/A3");                                            \
    constexpr const char* api = #NAME;                                                                              \
    vector::unary(api, vector::by_bits<isSetMask>(api, vector::lanes_of<T>, mask, repeatTime), dst, src, params,    \
                  [](T a) -> T { return FUNCTION; });                                                               \
  }

// FUNCTION is an expression of the lane's value a and of the scalar b.
#define EMULATED_SCALAR(NAME, TYPES, FUNCTION)                                                                      \
  template <typename T, bool isSetMask = true>                                                                      \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, const int32_t& count) {          \
    static_assert(TYPES, #NAME ": this type is not supported on A2/A3");                                            \
    constexpr const char* api = #NAME;                                                                              \
    vector::unary(api, vector::by_count<isSetMask>(api, vector::lanes_of<T>, count), dst, src, UnaryRepeatParams{}, \
                  [b = scalar](T a) -> T { return FUNCTION; });                                                     \
  }                                                                                                                 \
  template <typename T, bool isSetMask = true>                                                                      \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, uint64_t mask,                   \
            RepeatTimes repeatTime, const UnaryRepeatParams& params) {                                              \
    static_assert(TYPES, #NAME ": this type is not supported on A2/A3");                                            \
    constexpr const char* api = #NAME;                                                                              \
    vector::unary(api, vector::by_mask<isSetMask>(api, vector::lanes_of<T>, mask, repeatTime), dst, src, params,    \
                  [b = scalar](T a) -> T { return FUNCTION; });                                                     \
  }                                                                                                                 \
  template <typename T, bool isSetMask = true>                                                                      \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, uint64_t mask[],                 \
            RepeatTimes repeatTime, const UnaryRepeatParams& params) {                                              \
    static_assert(TYPES, #NAME ": this type is not supported on A2/A3");                                            \
    constexpr const char* api = #NAME;                                                                              \
    vector::unary(api, vector::by_bits<isSetMask>(api, vector::lanes_of<T>, mask, repeatTime), dst, src, params,    \
                  [b = scalar](T a) -> T { return FUNCTION; });                                                     \
  }

// FUNCTION is an expression of the lane's values a and b.
#define EMULATED_BINARY(NAME, TYPES, ACCUMULATES, FUNCTION)                                                            \
  template <typename T, bool isSetMask = true>                                                                         \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, const int32_t& count) { \
    static_assert(TYPES, #NAME ": this type is not supported on A2/A3");                                               \
    constexpr const char* api = #NAME;                                                                                 \
    vector::binary(api, vector::by_count<isSetMask>(api, vector::lanes_of<T>, count), dst, src0, src1,                 \
                   BinaryRepeatParams{}, ACCUMULATES, [](T a, T b) -> T { return FUNCTION; });                         \
  }                                                                                                                    \
  template <typename T, bool isSetMask = true>                                                                         \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, uint64_t mask,          \
            RepeatTimes repeatTime, const BinaryRepeatParams& params) {                                                \
    static_assert(TYPES, #NAME ": this type is not supported on A2/A3");                                               \
    constexpr const char* api = #NAME;                                                                                 \
    vector::binary(api, vector::by_mask<isSetMask>(api, vector::lanes_of<T>, mask, repeatTime), dst, src0, src1,       \
                   params, ACCUMULATES, [](T a, T b) -> T { return FUNCTION; });                                       \
  }                                                                                                                    \
  template <typename T, bool isSetMask = true>                                                                         \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, uint64_t mask[],        \
            RepeatTimes repeatTime, const BinaryRepeatParams& params) {                                                \
    static_assert(TYPES, #NAME ": this type is not supported on A2/A3");                                               \
    constexpr const char* api = #NAME;                                                                                 \
    vector::binary(api, vector::by_bits<isSetMask>(api, vector::lanes_of<T>, mask, repeatTime), dst, src0, src1,       \
                   params, ACCUMULATES, [](T a, T b) -> T { return FUNCTION; });                                       \
  }

EMULATED_UNARY(Exp, emulated::is_floating<T>, T(std::exp(float(a))))
EMULATED_UNARY(Ln, emulated::is_floating<T>, T(std::log(float(a))))
EMULATED_UNARY(Abs, emulated::is_floating<T>, T(std::fabs(float(a))))
EMULATED_UNARY(Sqrt, emulated::is_floating<T>, T(std::sqrt(float(a))))
EMULATED_UNARY(Reciprocal, emulated::is_floating<T>, emulated::coarse_reciprocal(a))
EMULATED_UNARY(Relu, (emulated::one_of<T, half, int32_t, float>), emulated::greater(api, a, T(0)))
EMULATED_UNARY(Not, (emulated::one_of<T, int16_t, uint16_t>), T(~a))

EMULATED_SCALAR(Adds, emulated::is_arithmetic_type<T>, emulated::sum(api, a, b))
EMULATED_SCALAR(Muls, emulated::is_arithmetic_type<T>, emulated::product(api, a, b))
EMULATED_SCALAR(Maxs, emulated::is_arithmetic_type<T>, emulated::greater(api, a, b))
EMULATED_SCALAR(Mins, emulated::is_arithmetic_type<T>, emulated::lesser(api, a, b))
EMULATED_SCALAR(ShiftLeft, (emulated::one_of<T, int16_t, uint16_t, int32_t, uint32_t>),
                (emulated::check_shift(api, b), emulated::shifted_left(a, b)))
EMULATED_SCALAR(ShiftRight, (emulated::one_of<T, int16_t, uint16_t, int32_t, uint32_t>),
                (emulated::check_shift(api, b), T(a >> b)))

EMULATED_BINARY(Add, emulated::is_arithmetic_type<T>, true, emulated::sum(api, a, b))
EMULATED_BINARY(Sub, emulated::is_arithmetic_type<T>, true, emulated::difference(api, a, b))
EMULATED_BINARY(Mul, emulated::is_arithmetic_type<T>, true, emulated::product(api, a, b))
EMULATED_BINARY(Div, emulated::is_floating<T>, false, T(a / b))
EMULATED_BINARY(Max, emulated::is_arithmetic_type<T>, true, emulated::greater(api, a, b))
EMULATED_BINARY(Min, emulated::is_arithmetic_type<T>, true, emulated::lesser(api, a, b))
EMULATED_BINARY(And, (emulated::one_of<T, int16_t, uint16_t>), false, T((a) & (b)))
EMULATED_BINARY(Or, (emulated::one_of<T, int16_t, uint16_t>), false, T((a) | (b)))

#undef EMULATED_UNARY
#undef EMULATED_SCALAR
#undef EMULATED_BINARY

}  // namespace AscendC
