// One elementwise instruction between operands that are brought in and out whole.
#include "probe.h"

using probe::Plan;
using probe::Staged;
using probe::with_type;

namespace {

template <typename T>
void prepare_register(const Plan& plan) {
  if (plan.form != probe::kRegister) return;
  if (plan.mode) {
    AscendC::SetMaskCount();
    AscendC::SetVectorMask<T, AscendC::MaskMode::COUNTER>(static_cast<int32_t>(plan.low));
  } else {
    AscendC::SetVectorMask<T>(plan.high, plan.low);
  }
}

template <typename T>
void call_unary(const Plan& plan, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src) {
  switch (plan.op) {
    case 0:
      PROBE_CALL(Exp, T, plan, plan.unary(), dst, src)
    case 1:
      PROBE_CALL(Ln, T, plan, plan.unary(), dst, src)
    case 2:
      PROBE_CALL(Abs, T, plan, plan.unary(), dst, src)
    case 3:
      PROBE_CALL(Sqrt, T, plan, plan.unary(), dst, src)
    case 4:
      PROBE_CALL(Reciprocal, T, plan, plan.unary(), dst, src)
    default:
      PROBE_CALL(Relu, T, plan, plan.unary(), dst, src)
  }
}

template <typename T>
void call_scalar(const Plan& plan, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src) {
  const T scalar = static_cast<T>(plan.scalar);
  switch (plan.op) {
    case 0:
      PROBE_CALL(Adds, T, plan, plan.unary(), dst, src, scalar)
    case 1:
      PROBE_CALL(Muls, T, plan, plan.unary(), dst, src, scalar)
    case 2:
      PROBE_CALL(Maxs, T, plan, plan.unary(), dst, src, scalar)
    default:
      PROBE_CALL(Mins, T, plan, plan.unary(), dst, src, scalar)
  }
}

template <typename T>
void call_shift(const Plan& plan, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src) {
  const T scalar = static_cast<T>(plan.scalar);
  switch (plan.op) {
    case 0:
      PROBE_CALL(ShiftLeft, T, plan, plan.unary(), dst, src, scalar)
    default:
      PROBE_CALL(ShiftRight, T, plan, plan.unary(), dst, src, scalar)
  }
}

template <typename T>
void call_binary(const Plan& plan, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& a,
                 const AscendC::LocalTensor<T>& b) {
  switch (plan.op) {
    case 0:
      PROBE_CALL(Add, T, plan, plan.binary(), dst, a, b)
    case 1:
      PROBE_CALL(Sub, T, plan, plan.binary(), dst, a, b)
    case 2:
      PROBE_CALL(Mul, T, plan, plan.binary(), dst, a, b)
    case 3:
      PROBE_CALL(Max, T, plan, plan.binary(), dst, a, b)
    default:
      PROBE_CALL(Min, T, plan, plan.binary(), dst, a, b)
  }
}

template <typename T>
void call_bitwise(const Plan& plan, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& a,
                  const AscendC::LocalTensor<T>& b) {
  switch (plan.op) {
    case 0:
      PROBE_CALL(And, T, plan, plan.binary(), dst, a, b)
    case 1:
      PROBE_CALL(Or, T, plan, plan.binary(), dst, a, b)
    default:
      PROBE_CALL(Not, T, plan, plan.unary(), dst, a)
  }
}

}  // namespace

extern "C" __global__ __aicore__ void unary(GM_ADDR src, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged from(pipe, src, plan.bytes[0]), to(pipe, dst, plan.bytes[1]);
  with_type<float, half>(plan.type, [&](auto value) {
    using T = decltype(value);
    prepare_register<T>(plan);
    call_unary<T>(plan, to.Get<T>(), from.Get<T>());
  });
  to.WriteBack();
}

extern "C" __global__ __aicore__ void scalar(GM_ADDR src, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged from(pipe, src, plan.bytes[0]), to(pipe, dst, plan.bytes[1]);
  with_type<float, half, int32_t, int16_t>(plan.type, [&](auto value) {
    using T = decltype(value);
    prepare_register<T>(plan);
    call_scalar<T>(plan, to.Get<T>(), from.Get<T>());
  });
  to.WriteBack();
}

extern "C" __global__ __aicore__ void shift(GM_ADDR src, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged from(pipe, src, plan.bytes[0]), to(pipe, dst, plan.bytes[1]);
  with_type<int32_t, uint32_t, int16_t, uint16_t>(plan.type, [&](auto value) {
    using T = decltype(value);
    call_shift<T>(plan, to.Get<T>(), from.Get<T>());
  });
  to.WriteBack();
}

extern "C" __global__ __aicore__ void binary(GM_ADDR a, GM_ADDR b, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged first(pipe, a, plan.bytes[0]), second(pipe, b, plan.bytes[1]), to(pipe, dst, plan.bytes[2]);
  with_type<float, half, int32_t, int16_t>(plan.type, [&](auto value) {
    using T = decltype(value);
    prepare_register<T>(plan);
    call_binary<T>(plan, to.Get<T>(), first.Get<T>(), second.Get<T>());
  });
  to.WriteBack();
}

extern "C" __global__ __aicore__ void divide(GM_ADDR a, GM_ADDR b, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged first(pipe, a, plan.bytes[0]), second(pipe, b, plan.bytes[1]), to(pipe, dst, plan.bytes[2]);
  with_type<float, half>(plan.type, [&](auto value) {
    using T = decltype(value);
    AscendC::Div(to.Get<T>(), first.Get<T>(), second.Get<T>(), static_cast<int32_t>(plan.count));
  });
  to.WriteBack();
}

extern "C" __global__ __aicore__ void bitwise(GM_ADDR a, GM_ADDR b, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged first(pipe, a, plan.bytes[0]), second(pipe, b, plan.bytes[1]), to(pipe, dst, plan.bytes[2]);
  with_type<int16_t, uint16_t>(plan.type, [&](auto value) {
    using T = decltype(value);
    call_bitwise<T>(plan, to.Get<T>(), first.Get<T>(), second.Get<T>());
  });
  to.WriteBack();
}

// The sum of the rows of `src`, each a repeat, into the one row of `dst`: the destination is the second source again.
extern "C" __global__ __aicore__ void accumulate(GM_ADDR src, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged from(pipe, src, plan.bytes[0]), to(pipe, dst, plan.bytes[1]);
  AscendC::Add(to.Get<float>(), from.Get<float>(), to.Get<float>(), plan.low, plan.repeats, plan.binary());
  to.WriteBack();
}

// Two additions of one: the first counts by the mask register's counter mode, which ends with it.
extern "C" __global__ __aicore__ void mask_after_count(GM_ADDR src, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged from(pipe, src, plan.bytes[0]), to(pipe, dst, plan.bytes[1]);
  AscendC::SetMaskCount();
  AscendC::Adds(to.Get<float>(), from.Get<float>(), 1.0f, static_cast<int32_t>(plan.count));
  AscendC::PipeBarrier<PIPE_V>();
  AscendC::Adds<float, false>(to.Get<float>(), to.Get<float>(), 1.0f, AscendC::MASK_PLACEHOLDER, plan.repeats,
                              AscendC::UnaryRepeatParams{});
  to.WriteBack();
}
