// out = 2 * (in + 1), tile by tile through double-buffered queues, over several cores; and the same with one step
// wrong.
#include "kernel_operator.h"

namespace {

enum class Fault {
  kNone,
  kNoBarrier,         // between two vector instructions of which one needs the other
  kNoEnQue,           // the producer does not hand its tensor over
  kNoDeQue,           // the consumer does not wait for it
  kNoFree,            // the consumer keeps it
  kUseAfterFree,      // the consumer gives it back too early
  kStaleTensor,       // a tensor of the tile before
  kWholeTail,         // the last tile is read as if it were full
  kWholeTailCompute,  // lanes that nobody filled
  kWrongOffset,       // a tile is written one element on
  kSharedTail,        // a core writes the last tile although another one does
};

constexpr uint32_t kTile = 64;

template <Fault fault>
class Pipeline {
 public:
  Pipeline(AscendC::TPipe& pipe, GM_ADDR in, GM_ADDR out, uint32_t count) : count_(count) {
    in_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(in));
    out_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(out));
    pipe.InitBuffer(in_queue_, 2, kTile * sizeof(float));
    pipe.InitBuffer(out_queue_, 2, kTile * sizeof(float));
  }

  void Run() {
    const uint32_t tiles = (count_ + kTile - 1) / kTile, cores = static_cast<uint32_t>(AscendC::GetBlockNum());
    for (uint32_t tile = static_cast<uint32_t>(AscendC::GetBlockIdx()); tile < tiles; tile += cores) Tile(tile);
    if (fault == Fault::kSharedTail && (tiles - 1) % cores != AscendC::GetBlockIdx()) Tile(tiles - 1);
  }

 private:
  void Tile(uint32_t tile) {
    const uint32_t first = tile * kTile, left = count_ - first, used = left < kTile ? left : kTile;
    CopyIn(first, fault == Fault::kWholeTail ? kTile : used);
    Compute(fault == Fault::kWholeTailCompute ? kTile : used);
    CopyOut(first + (fault == Fault::kWrongOffset ? 1 : 0), used);
  }

  void CopyIn(uint32_t first, uint32_t count) {
    AscendC::LocalTensor<float> in = in_queue_.AllocTensor<float>();
    AscendC::DataCopyPad(in, in_[first], Copy(count), AscendC::DataCopyPadExtParams<float>{false, 0, 0, 0});
    if (fault != Fault::kNoEnQue) in_queue_.EnQue(in);
    allocated_ = in;
  }

  void Compute(uint32_t used) {
    AscendC::LocalTensor<float> in = fault == Fault::kNoDeQue ? allocated_ : in_queue_.DeQue<float>();
    AscendC::LocalTensor<float> out = out_queue_.AllocTensor<float>();
    const auto count = static_cast<int32_t>(used);
    if (fault == Fault::kUseAfterFree) in_queue_.FreeTensor(in);
    AscendC::Adds(out, fault == Fault::kStaleTensor && stale_.GetSize() ? stale_ : in, 1.0f, count);
    if (fault != Fault::kNoBarrier) AscendC::PipeBarrier<PIPE_V>();
    AscendC::Muls(out, out, 2.0f, count);
    if (fault != Fault::kNoFree && fault != Fault::kUseAfterFree) in_queue_.FreeTensor(in);
    stale_ = in;
    out_queue_.EnQue(out);
  }

  void CopyOut(uint32_t first, uint32_t count) {
    AscendC::LocalTensor<float> out = out_queue_.DeQue<float>();
    AscendC::DataCopyPad(out_[first], out, Copy(count));
    out_queue_.FreeTensor(out);
  }

  static AscendC::DataCopyExtParams Copy(uint32_t count) {
    return {1, static_cast<uint32_t>(count * sizeof(float)), 0, 0, 0};
  }

  uint32_t count_;
  AscendC::GlobalTensor<float> in_, out_;
  AscendC::TQue<AscendC::QuePosition::VECIN, 2> in_queue_;
  AscendC::TQue<AscendC::QuePosition::VECOUT, 2> out_queue_;
  AscendC::LocalTensor<float> allocated_, stale_;
};

template <Fault fault>
void run(GM_ADDR in, GM_ADDR out, uint32_t count) {
  AscendC::TPipe pipe;
  Pipeline<fault>(pipe, in, out, count).Run();
}

}  // namespace

extern "C" __global__ __aicore__ void correct(GM_ADDR in, GM_ADDR out, uint32_t count) {
  run<Fault::kNone>(in, out, count);
}
extern "C" __global__ __aicore__ void no_barrier(GM_ADDR in, GM_ADDR out, uint32_t count) {
  run<Fault::kNoBarrier>(in, out, count);
}
extern "C" __global__ __aicore__ void no_enque(GM_ADDR in, GM_ADDR out, uint32_t count) {
  run<Fault::kNoEnQue>(in, out, count);
}
extern "C" __global__ __aicore__ void no_deque(GM_ADDR in, GM_ADDR out, uint32_t count) {
  run<Fault::kNoDeQue>(in, out, count);
}
extern "C" __global__ __aicore__ void no_free(GM_ADDR in, GM_ADDR out, uint32_t count) {
  run<Fault::kNoFree>(in, out, count);
}
extern "C" __global__ __aicore__ void use_after_free(GM_ADDR in, GM_ADDR out, uint32_t count) {
  run<Fault::kUseAfterFree>(in, out, count);
}
extern "C" __global__ __aicore__ void stale_tensor(GM_ADDR in, GM_ADDR out, uint32_t count) {
  run<Fault::kStaleTensor>(in, out, count);
}
extern "C" __global__ __aicore__ void whole_tail(GM_ADDR in, GM_ADDR out, uint32_t count) {
  run<Fault::kWholeTail>(in, out, count);
}
extern "C" __global__ __aicore__ void whole_tail_compute(GM_ADDR in, GM_ADDR out, uint32_t count) {
  run<Fault::kWholeTailCompute>(in, out, count);
}
extern "C" __global__ __aicore__ void wrong_offset(GM_ADDR in, GM_ADDR out, uint32_t count) {
  run<Fault::kWrongOffset>(in, out, count);
}
extern "C" __global__ __aicore__ void shared_tail(GM_ADDR in, GM_ADDR out, uint32_t count) {
  run<Fault::kSharedTail>(in, out, count);
}

extern "C" __global__ __aicore__ void by_tiling_key(GM_ADDR in, GM_ADDR out, uint32_t count) {
  if (TILING_KEY_IS(7)) run<Fault::kNone>(in, out, count);
}

namespace {

template <AscendC::HardEvent event>
void order() {
  const auto id = AscendC::GetTPipePtr()->FetchEventID(event);
  AscendC::SetFlag<event>(id);
  AscendC::WaitFlag<event>(id);
}

}  // namespace

// out = 4 * (in + 1), but 202 for the first: computed in two steps with the first one's result in global memory, and
// one value of it written by the scalar pipe.
extern "C" __global__ __aicore__ void ordered_by_flags(GM_ADDR in, GM_ADDR out, uint32_t count) {
  using AscendC::HardEvent;
  AscendC::TPipe pipe;
  AscendC::TBuf<AscendC::TPosition::VECIN> buffer;
  AscendC::GlobalTensor<float> source, target;
  const auto elements = static_cast<int32_t>(count);
  source.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(in), count);
  target.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(out), count);
  pipe.InitBuffer(buffer, static_cast<uint32_t>(count * sizeof(float)));
  const AscendC::LocalTensor<float> values = buffer.Get<float>();

  AscendC::DataCopy(values, source, count);
  order<HardEvent::MTE2_V>();
  AscendC::Adds(values, values, 1.0f, elements);
  AscendC::PipeBarrier<PIPE_V>();
  AscendC::Muls(values, values, 2.0f, elements);
  order<HardEvent::V_S>();
  values.SetValue(0, values.GetValue(0) + 99.0f);
  order<HardEvent::S_MTE3>();
  AscendC::DataCopy(target, values, count);
  order<HardEvent::MTE3_MTE2>();
  AscendC::DataCopy(values, target, count);
  order<HardEvent::MTE2_S>();
  order<HardEvent::S_V>();
  AscendC::Muls(values, values, 2.0f, elements);
  order<HardEvent::V_MTE3>();
  AscendC::DataCopy(target, values, count);
}

// out = in, but the first eight are the last of in: by a queue that no vector instruction touches.
extern "C" __global__ __aicore__ void without_computing(GM_ADDR in, GM_ADDR out, uint32_t count) {
  using AscendC::HardEvent;
  AscendC::TPipe pipe;
  AscendC::TQueBind<AscendC::TPosition::VECIN, AscendC::TPosition::VECOUT, 1> queue;
  AscendC::TBuf<AscendC::TPosition::VECOUT> buffer;
  AscendC::GlobalTensor<float> source, target;
  const auto bytes = static_cast<uint32_t>(count * sizeof(float));
  source.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(in), count);
  target.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(out), count);
  pipe.InitBuffer(queue, 1, bytes);
  pipe.InitBuffer(buffer, 96);
  const auto idle = [&] {
    if (!queue.HasIdleBuffer() || queue.HasTensorInQue())
      emulated::refuse("probe", "queue", "all idle", "another state");
  };
  idle();
  AscendC::LocalTensor<float> values = queue.AllocTensor<float>();
  AscendC::DataCopyPad(values, source, AscendC::DataCopyExtParams{1, bytes, 0, 0, 0},
                       AscendC::DataCopyPadExtParams<float>{false, 0, 0, 0});
  queue.EnQue(values);
  if (queue.GetTensorCountInQue() != 1 || queue.VacantInQue()) emulated::refuse("probe", "queue", "full", "not full");
  values = queue.DeQue<float>();
  AscendC::DataCopyPad(target, values, AscendC::DataCopyExtParams{1, bytes, 0, 0, 0});
  queue.FreeTensor(values);
  idle();

  const AscendC::LocalTensor<float> last = buffer.GetWithOffset<float>(8, 64);
  AscendC::Duplicate(last, source.GetValue(count - 1), 8);
  const auto event = pipe.AllocEventID<HardEvent::V_MTE3>();
  AscendC::SetFlag<HardEvent::V_MTE3>(event);
  AscendC::WaitFlag<HardEvent::V_MTE3>(event);
  pipe.ReleaseEventID<HardEvent::V_MTE3>(event);
  AscendC::PipeBarrier<PIPE_MTE3>();
  AscendC::DataCopy(target, last, 8);
}
