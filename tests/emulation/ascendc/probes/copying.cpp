// One copy in each direction, and one with DataCopy; the other side is brought in or out whole.
#include "probe.h"

struct Copy {
  uint32_t count, bytes, source_stride, target_stride;
  uint32_t pad, left, right;
  int32_t value;
  uint32_t gm_bytes, ub_bytes;
};

namespace {

template <typename T>
AscendC::GlobalTensor<T> global(GM_ADDR address, uint32_t bytes) {
  AscendC::GlobalTensor<T> tensor;
  tensor.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(address), bytes / sizeof(T));
  return tensor;
}

AscendC::DataCopyExtParams runs(const Copy& copy) {
  return {static_cast<uint16_t>(copy.count), copy.bytes, copy.source_stride, copy.target_stride, 0};
}

AscendC::DataCopyParams blocks(const Copy& copy) {
  return {static_cast<uint16_t>(copy.count), static_cast<uint16_t>(copy.bytes),
          static_cast<uint16_t>(copy.source_stride), static_cast<uint16_t>(copy.target_stride)};
}

}  // namespace

// `ub` is what the Unified Buffer holds before and after.
extern "C" __global__ __aicore__ void copy_in(GM_ADDR gm, GM_ADDR ub, Copy copy) {
  AscendC::TPipe pipe;
  probe::Staged to(pipe, ub, copy.ub_bytes);
  AscendC::DataCopyPad(
      to.Get<int16_t>(), global<int16_t>(gm, copy.gm_bytes), runs(copy),
      AscendC::DataCopyPadExtParams<int16_t>{copy.pad != 0, static_cast<uint8_t>(copy.left),
                                             static_cast<uint8_t>(copy.right), static_cast<int16_t>(copy.value)});
  to.WriteBack();
}

extern "C" __global__ __aicore__ void copy_out(GM_ADDR gm, GM_ADDR ub, Copy copy) {
  AscendC::TPipe pipe;
  probe::Staged from(pipe, ub, copy.ub_bytes);
  AscendC::DataCopyPad(global<int16_t>(gm, copy.gm_bytes), from.Get<int16_t>(), runs(copy));
}

extern "C" __global__ __aicore__ void copy_blocks_in(GM_ADDR gm, GM_ADDR ub, Copy copy) {
  AscendC::TPipe pipe;
  probe::Staged to(pipe, ub, copy.ub_bytes);
  AscendC::DataCopy(to.Get<int16_t>(), global<int16_t>(gm, copy.gm_bytes), blocks(copy));
  to.WriteBack();
}

extern "C" __global__ __aicore__ void copy_blocks_out(GM_ADDR gm, GM_ADDR ub, Copy copy) {
  AscendC::TPipe pipe;
  probe::Staged from(pipe, ub, copy.ub_bytes);
  AscendC::DataCopy(global<int16_t>(gm, copy.gm_bytes), from.Get<int16_t>(), blocks(copy));
}
