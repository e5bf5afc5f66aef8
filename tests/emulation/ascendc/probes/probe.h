// What the probes share: a plan of one vector instruction, and operands brought in and out whole.
#pragma once

#include "kernel_operator.h"

namespace probe {

// How an instruction is called: by a count, by the first lanes of a repeat, by a bit a lane, by the mask register.
enum Form : uint32_t { kCount, kMask, kBits, kRegister };
enum Type : uint32_t { kFloat, kHalf, kInt32, kInt16, kUint32, kUint16, kBfloat16, kInt64, kUint8 };

struct Plan {
  uint32_t op, type, to_type, form, mode;
  uint32_t count, repeats;
  uint64_t low, high;
  uint32_t dst_block, src_block, src1_block, dst_repeat, src_repeat, src1_repeat;
  float scalar;
  uint32_t bytes[4];  // of the operands, in the order of the kernel's parameters

  AscendC::UnaryRepeatParams unary() const {
    return {static_cast<uint16_t>(dst_block), static_cast<uint16_t>(src_block), static_cast<uint8_t>(dst_repeat),
            static_cast<uint8_t>(src_repeat)};
  }

  AscendC::BinaryRepeatParams binary() const {
    return {static_cast<uint8_t>(dst_block),  static_cast<uint8_t>(src_block),  static_cast<uint8_t>(src1_block),
            static_cast<uint8_t>(dst_repeat), static_cast<uint8_t>(src_repeat), static_cast<uint8_t>(src1_repeat)};
  }
};

// One operand in a buffer of its own.
class Staged {
 public:
  Staged(AscendC::TPipe& pipe, GM_ADDR address, uint32_t bytes) : bytes_(bytes) {
    global_.SetGlobalBuffer(address, bytes);
    pipe.InitBuffer(buffer_, bytes);
    AscendC::DataCopyPad(Get<uint8_t>(), global_, AscendC::DataCopyExtParams{1, bytes_, 0, 0, 0},
                         AscendC::DataCopyPadExtParams<uint8_t>{false, 0, 0, 0});
    AscendC::PipeBarrier<PIPE_ALL>();
  }

  template <typename T>
  AscendC::LocalTensor<T> Get() {
    return buffer_.Get<T>();
  }

  void WriteBack() {
    AscendC::PipeBarrier<PIPE_ALL>();
    AscendC::DataCopyPad(global_, Get<uint8_t>(), AscendC::DataCopyExtParams{1, bytes_, 0, 0, 0});
  }

 private:
  AscendC::GlobalTensor<uint8_t> global_;
  AscendC::TBuf<AscendC::TPosition::VECIN> buffer_;
  uint32_t bytes_;
};

// Calls run(T{}) for the type of that number among Types.
template <typename... Types, typename Run>
void with_type(uint32_t wanted, Run run) {
  constexpr uint32_t kMissing = 99;
  const auto number = [](auto value) -> uint32_t {
    using T = decltype(value);
    if (std::is_same_v<T, float>) return kFloat;
    if (std::is_same_v<T, half>) return kHalf;
    if (std::is_same_v<T, int32_t>) return kInt32;
    if (std::is_same_v<T, int16_t>) return kInt16;
    if (std::is_same_v<T, uint32_t>) return kUint32;
    if (std::is_same_v<T, uint16_t>) return kUint16;
    if (std::is_same_v<T, bfloat16_t>) return kBfloat16;
    if (std::is_same_v<T, int64_t>) return kInt64;
    return std::is_same_v<T, uint8_t> ? kUint8 : kMissing;
  };
  const bool found = ((number(Types{}) == wanted ? (run(Types{}), true) : false) || ...);
  if (!found) emulated::refuse("probe", "type", "one that the probe knows", wanted);
}

}  // namespace probe

// NAME in the form of the plan; isSetMask is false for the register's form.
#define PROBE_CALL(NAME, T, PLAN, PARAMS, ...)                                                 \
  switch ((PLAN).form) {                                                                       \
    case probe::kCount:                                                                        \
      AscendC::NAME(__VA_ARGS__, static_cast<int32_t>((PLAN).count));                          \
      break;                                                                                   \
    case probe::kMask:                                                                         \
      AscendC::NAME(__VA_ARGS__, (PLAN).low, (PLAN).repeats, PARAMS);                          \
      break;                                                                                   \
    case probe::kBits: {                                                                       \
      uint64_t bits[2] = {(PLAN).low, (PLAN).high};                                            \
      AscendC::NAME(__VA_ARGS__, bits, (PLAN).repeats, PARAMS);                                \
      break;                                                                                   \
    }                                                                                          \
    default:                                                                                   \
      AscendC::NAME<T, false>(__VA_ARGS__, AscendC::MASK_PLACEHOLDER, (PLAN).repeats, PARAMS); \
  }                                                                                            \
  break;
