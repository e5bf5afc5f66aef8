// Instructions that fill a tensor: Duplicate, CreateVecIndex, ArithProgression, Brcb.
#pragma once

#include "arithmetic.h"

namespace AscendC {

struct BrcbRepeatParams {
  BrcbRepeatParams() = default;
  BrcbRepeatParams(const uint16_t block, const uint16_t repeat) : dstRepStride(repeat), dstBlkStride(block) {}

  uint16_t dstRepStride = 8;
  uint16_t dstBlkStride = 1;
};

namespace vector {

template <typename T>
void duplicate(const Iterations& iterations, const LocalTensor<T>& dst, const T& value, uint32_t block,
               uint32_t repeat) {
  static_assert(emulated::is_move_type<T>, "Duplicate: this type is not supported on A2/A3");
  execute("Duplicate", iterations, Operand<T>("Duplicate", "destination", dst, block, repeat),
          [value] { return value; });
}

// first, first + step, ...: each value from the index, as the documented formula has it.
template <typename T>
void progression(const char* api, const Iterations& iterations, const LocalTensor<T>& dst, const T& first,
                 const T& step, uint32_t block, uint32_t repeat) {
  static_assert(emulated::is_arithmetic_type<T>, "CreateVecIndex, ArithProgression: this type is not supported");
  execute(api, iterations, Operand<T>(api, "destination", dst, block, repeat), [&](Lane lane) {
    const int64_t at = int64_t(lane.repeat) * iterations.lanes + lane.lane;
    if constexpr (emulated::is_floating<T>) return T(float(first) + float(at) * float(step));
    return emulated::fitted<T>(api, int64_t(first) + at * int64_t(step));
  });
}

}  // namespace vector

template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& value, const int32_t& count) {
  vector::duplicate(vector::by_count<isSetMask>("Duplicate", vector::lanes_of<T>, count), dst, value, 1, 8);
}

template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& value, uint64_t mask, RepeatTimes repeatTime,
               const uint16_t dstBlockStride, const uint8_t dstRepeatStride) {
  vector::duplicate(vector::by_mask<isSetMask>("Duplicate", vector::lanes_of<T>, mask, repeatTime), dst, value,
                    dstBlockStride, dstRepeatStride);
}

template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& value, uint64_t mask[], RepeatTimes repeatTime,
               const uint16_t dstBlockStride, const uint8_t dstRepeatStride) {
  vector::duplicate(vector::by_bits<isSetMask>("Duplicate", vector::lanes_of<T>, mask, repeatTime), dst, value,
                    dstBlockStride, dstRepeatStride);
}

template <typename T>
void CreateVecIndex(LocalTensor<T> dst, const T& firstValue, uint32_t count) {
  vector::progression("CreateVecIndex", vector::by_count<true>("CreateVecIndex", vector::lanes_of<T>, count), dst,
                      firstValue, T(1), 1, 8);
}

// A library function: several instructions on the device, counted as one.
template <typename T>
void ArithProgression(const LocalTensor<T>& dst, const T firstValue, const T diffValue, const int32_t count) {
  vector::progression("ArithProgression", vector::by_count<true>("ArithProgression", vector::lanes_of<T>, count), dst,
                      firstValue, diffValue, 1, 8);
}

// Each of 8 elements a repeat fills one block. It takes no mask and always reads 8 elements.
template <typename T>
void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, RepeatTimes repeatTime,
          const BrcbRepeatParams& params) {
  static_assert(emulated::is_move_type<T>, "Brcb: this type is not supported on A2/A3");
  constexpr const char* api = "Brcb";
  constexpr uint32_t ELEMENTS = 8;
  const uint32_t repeats = repeatTime.checked(api);
  if (params.dstBlkStride == 0) emulated::refuse(api, "dstBlkStride", "at least 1", 0);
  const vector::Operand<T> to(api, "destination", dst, params.dstBlkStride, params.dstRepStride);
  const vector::Operand<T> from(api, "source", src, 1, 0);
  const emulated::Stamp stamp = emulated::issue(api, emulated::V, repeats);
  emulated::Core& core = emulated::core(api);
  const vector::Overlap overlap(api);
  std::vector<T> values(size_t(repeats) * ELEMENTS);
  for (uint32_t i = 0; i < values.size(); ++i) {
    const uint32_t address = src.place().address + i * uint32_t(sizeof(T));
    from.touch(core, stamp, address, 1, emulated::Kind::READ);
    overlap.read(address / emulated::BLOCK, 0, 0);
    std::memcpy(&values[i], core.ub.at(address), sizeof(T));
  }
  constexpr uint32_t PER_BLOCK = emulated::BLOCK / sizeof(T);
  for (uint32_t i = 0; i < values.size(); ++i) {
    const uint32_t address = to.at(i / ELEMENTS, i % ELEMENTS * PER_BLOCK);
    to.touch(core, stamp, address, uint32_t((uint64_t{1} << PER_BLOCK) - 1), emulated::Kind::WRITE);
    overlap.write(address / emulated::BLOCK, 0, 1);
    std::fill_n(reinterpret_cast<T*>(core.ub.at(address)), PER_BLOCK, values[i]);
  }
}

}  // namespace AscendC
