// Instructions that move, sort, reduce, choose or convert: one each between operands brought in and out whole.
#include "probe.h"

using probe::Plan;
using probe::Staged;
using probe::with_type;

namespace {

template <typename To, typename From>
void call_cast(const Plan& plan, const AscendC::LocalTensor<To>& dst, const AscendC::LocalTensor<From>& src) {
  const auto mode = static_cast<AscendC::RoundMode>(plan.mode);
  if (plan.form == probe::kCount) {
    AscendC::Cast(dst, src, mode, plan.count);
  } else {
    AscendC::Cast(dst, src, mode, plan.low, plan.repeats, plan.unary());
  }
}

template <typename From, typename... To>
void cast_to(const Plan& plan, Staged& to, Staged& from) {
  with_type<To...>(plan.to_type, [&](auto value) {
    using T = decltype(value);
    call_cast<T, From>(plan, to.Get<T>(), from.Get<From>());
  });
}

template <typename T>
void call_reduce(const Plan& plan, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src) {
  const auto mask = static_cast<int32_t>(plan.low);
  const auto dst_repeat = static_cast<int32_t>(plan.dst_repeat), block = static_cast<int32_t>(plan.src_block);
  const auto repeat = static_cast<int32_t>(plan.src_repeat), repeats = static_cast<int32_t>(plan.repeats);
  const auto order = static_cast<AscendC::ReduceOrder>(plan.mode);
  switch (plan.op) {
    case 0:
      AscendC::WholeReduceMax(dst, src, mask, repeats, dst_repeat, block, repeat, order);
      break;
    case 1:
      AscendC::WholeReduceMin(dst, src, mask, repeats, dst_repeat, block, repeat, order);
      break;
    case 2:
      AscendC::WholeReduceSum(dst, src, mask, repeats, dst_repeat, block, repeat);
      break;
    case 3:
      AscendC::BlockReduceMax(dst, src, repeats, mask, dst_repeat, block, repeat);
      break;
    case 4:
      AscendC::BlockReduceMin(dst, src, repeats, mask, dst_repeat, block, repeat);
      break;
    default:
      AscendC::BlockReduceSum(dst, src, repeats, mask, dst_repeat, block, repeat);
  }
}

}  // namespace

extern "C" __global__ __aicore__ void cast(GM_ADDR src, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged from(pipe, src, plan.bytes[0]), to(pipe, dst, plan.bytes[1]);
  switch (plan.type) {
    case probe::kFloat:
      cast_to<float, float, half, bfloat16_t, int32_t, int16_t, int64_t>(plan, to, from);
      break;
    case probe::kHalf:
      cast_to<half, float, int32_t, int16_t, uint8_t>(plan, to, from);
      break;
    case probe::kBfloat16:
      cast_to<bfloat16_t, float, int32_t>(plan, to, from);
      break;
    case probe::kInt32:
      cast_to<int32_t, float, int16_t, int64_t>(plan, to, from);
      break;
    case probe::kInt16:
      cast_to<int16_t, float, half>(plan, to, from);
      break;
    case probe::kInt64:
      cast_to<int64_t, float, int32_t>(plan, to, from);
      break;
    default:
      cast_to<uint8_t, half>(plan, to, from);
  }
  to.WriteBack();
}

extern "C" __global__ __aicore__ void fill(GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged to(pipe, dst, plan.bytes[0]);
  with_type<float, half, int32_t, int16_t>(plan.type, [&](auto value) {
    using T = decltype(value);
    const T scalar = static_cast<T>(plan.scalar);
    uint64_t bits[2] = {plan.low, plan.high};
    const AscendC::LocalTensor<T> tensor = to.Get<T>();
    const auto block = static_cast<uint16_t>(plan.dst_block);
    const auto repeat = static_cast<uint8_t>(plan.dst_repeat);
    switch (plan.op) {
      case 0:
        AscendC::Duplicate(tensor, scalar, static_cast<int32_t>(plan.count));
        break;
      case 1:
        AscendC::Duplicate(tensor, scalar, plan.low, plan.repeats, block, repeat);
        break;
      case 2:
        AscendC::Duplicate(tensor, scalar, bits, plan.repeats, block, repeat);
        break;
      case 3:
        AscendC::CreateVecIndex(tensor, scalar, plan.count);
        break;
      default:
        AscendC::ArithProgression(tensor, scalar, static_cast<T>(3), static_cast<int32_t>(plan.count));
    }
  });
  to.WriteBack();
}

extern "C" __global__ __aicore__ void brcb(GM_ADDR src, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged from(pipe, src, plan.bytes[0]), to(pipe, dst, plan.bytes[1]);
  with_type<float, half, int32_t, bfloat16_t>(plan.type, [&](auto value) {
    using T = decltype(value);
    AscendC::Brcb(to.Get<T>(), from.Get<T>(), plan.repeats,
                  {static_cast<uint16_t>(plan.dst_block), static_cast<uint16_t>(plan.dst_repeat)});
  });
  to.WriteBack();
}

extern "C" __global__ __aicore__ void gather(GM_ADDR src, GM_ADDR offsets, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged from(pipe, src, plan.bytes[0]), places(pipe, offsets, plan.bytes[1]), to(pipe, dst, plan.bytes[2]);
  with_type<float, half, int32_t, bfloat16_t>(plan.type, [&](auto value) {
    using T = decltype(value);
    if (plan.form == probe::kCount) {
      AscendC::Gather(to.Get<T>(), from.Get<T>(), places.Get<uint32_t>(), plan.mode, plan.count);
    } else {
      AscendC::Gather(to.Get<T>(), from.Get<T>(), places.Get<uint32_t>(), plan.mode, plan.low, plan.repeats,
                      static_cast<uint16_t>(plan.dst_repeat));
    }
  });
  to.WriteBack();
}

// `kept`: how many elements the instruction says it kept.
extern "C" __global__ __aicore__ void gather_mask(GM_ADDR src, GM_ADDR dst, GM_ADDR kept, Plan plan) {
  AscendC::TPipe pipe;
  Staged from(pipe, src, plan.bytes[0]), to(pipe, dst, plan.bytes[1]), count(pipe, kept, plan.bytes[2]);
  uint64_t taken = 0;
  with_type<float, half, int32_t, uint32_t>(plan.type, [&](auto value) {
    using T = decltype(value);
    AscendC::GatherMask(to.Get<T>(), from.Get<T>(), static_cast<uint8_t>(plan.op), plan.mode != 0, plan.count,
                        {static_cast<uint8_t>(plan.src_block), static_cast<uint16_t>(plan.repeats),
                         static_cast<uint16_t>(plan.src_repeat), 0},
                        taken);
  });
  count.Get<int64_t>().SetValue(0, taken);
  count.WriteBack();
  to.WriteBack();
}

extern "C" __global__ __aicore__ void reduce(GM_ADDR src, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged from(pipe, src, plan.bytes[0]), to(pipe, dst, plan.bytes[1]);
  with_type<float, half>(plan.type, [&](auto value) {
    using T = decltype(value);
    call_reduce<T>(plan, to.Get<T>(), from.Get<T>());
  });
  to.WriteBack();
}

extern "C" __global__ __aicore__ void sort(GM_ADDR values, GM_ADDR indices, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged to(pipe, dst, plan.bytes[2]), places(pipe, indices, plan.bytes[1]), from(pipe, values, plan.bytes[0]);
  with_type<float, half>(plan.type, [&](auto value) {
    using T = decltype(value);
    AscendC::Sort32(to.Get<T>(), from.Get<T>(), places.Get<uint32_t>(), static_cast<int32_t>(plan.repeats));
  });
  to.WriteBack();
}

// Merges up to four lists of `count` pairs that lie `src_block` pairs apart; `mode` is validBit.
extern "C" __global__ __aicore__ void merge(GM_ADDR src, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged from(pipe, src, plan.bytes[0]), to(pipe, dst, plan.bytes[1]);
  with_type<float>(plan.type, [&](auto value) {
    using T = decltype(value);
    const AscendC::LocalTensor<T> pairs = from.Get<T>();
    const uint32_t step = plan.src_block * 2;
    AscendC::MrgSortSrcList<T> lists(pairs, pairs[step], pairs[plan.mode > 3 ? 2 * step : 0],
                                     pairs[plan.mode > 7 ? 3 * step : 0]);
    const auto length = static_cast<uint16_t>(plan.count);
    const uint16_t lengths[4] = {length, length, length, length};
    AscendC::MrgSort(to.Get<T>(), lists,
                     AscendC::MrgSort4Info(lengths, false, static_cast<uint16_t>(plan.mode), plan.repeats));
  });
  to.WriteBack();
}

extern "C" __global__ __aicore__ void compare(GM_ADDR a, GM_ADDR b, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged first(pipe, a, plan.bytes[0]), second(pipe, b, plan.bytes[1]), to(pipe, dst, plan.bytes[2]);
  const auto mode = static_cast<AscendC::CMPMODE>(plan.mode);
  with_type<float, half, int32_t>(plan.type, [&](auto value) {
    using T = decltype(value);
    if (plan.op == 0) {
      AscendC::Compare(to.Get<uint8_t>(), first.Get<T>(), second.Get<T>(), mode, plan.count);
    } else {
      AscendC::CompareScalar(to.Get<uint8_t>(), first.Get<T>(), static_cast<T>(plan.scalar), mode, plan.count);
    }
  });
  to.WriteBack();
}

extern "C" __global__ __aicore__ void select_by_mask(GM_ADDR mask, GM_ADDR a, GM_ADDR b, GM_ADDR dst, Plan plan) {
  AscendC::TPipe pipe;
  Staged bits(pipe, mask, plan.bytes[0]), first(pipe, a, plan.bytes[1]), second(pipe, b, plan.bytes[2]),
      to(pipe, dst, plan.bytes[3]);
  const auto mode = static_cast<AscendC::SELMODE>(plan.mode);
  with_type<float, half>(plan.type, [&](auto value) {
    using T = decltype(value);
    if (mode == AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE) {
      AscendC::Select(to.Get<T>(), bits.Get<uint8_t>(), first.Get<T>(), static_cast<T>(plan.scalar), mode, plan.count);
    } else {
      AscendC::Select(to.Get<T>(), bits.Get<uint8_t>(), first.Get<T>(), second.Get<T>(), mode, plan.count);
    }
  });
  to.WriteBack();
}
