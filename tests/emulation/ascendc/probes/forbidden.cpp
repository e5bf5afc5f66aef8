// Calls that must not compile: types and interfaces that A2/A3 do not have.
#include "kernel_operator.h"

extern "C" __global__ __aicore__ void forbidden(GM_ADDR) {
  AscendC::TBuf<AscendC::TPosition::VECCALC> buffer;
  const auto wide = buffer.Get<int64_t>();
  const auto integers = buffer.Get<int32_t>();
  const auto small = buffer.Get<bfloat16_t>();
  const auto places = buffer.Get<uint32_t>();
  const auto floats = buffer.Get<float>();
  AscendC::Gather(wide, wide, places, 0, 8);
  AscendC::Add(small, small, small, 8);
  AscendC::Exp(integers, integers, 8);
  AscendC::WholeReduceMax(integers, integers, 64, 1, 1, 1, 8);
  AscendC::Sort32(integers, integers, places, 1);
  AscendC::ShiftLeft(floats, floats, 1.0f, 8);
  AscendC::And(integers, integers, integers, 8);
  AscendC::Duplicate(wide, int64_t(0), 8);
  AscendC::Cast(integers, small, AscendC::RoundMode::CAST_RINT, 8);
  AscendC::Cast(wide, small, AscendC::RoundMode::CAST_RINT, 8);
  AscendC::Select(integers, buffer.Get<uint8_t>(), integers, integers, AscendC::SELMODE::VSEL_TENSOR_TENSOR_MODE, 64);
  AscendC::PipeBarrier<PIPE_S>();
}
