// Kernels that each make one call that breaks a documented rule. `data` is 4,096 bytes of zeros, which they may write.
#include "kernel_operator.h"

namespace {

using AscendC::LocalTensor;

constexpr uint32_t kBytes = 4096;

// 4,096 bytes of the Unified Buffer with `data` in them, and as many with nothing in them.
class Bench {
 public:
  explicit Bench(GM_ADDR data) {
    global.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(data));
    pipe.InitBuffer(filled_, kBytes);
    pipe.InitBuffer(empty_, kBytes);
    pipe.InitBuffer(local_, kBytes);
    AscendC::DataCopy(filled<float>(), global, kBytes / 4);
    AscendC::PipeBarrier<PIPE_ALL>();
  }

  template <typename T>
  LocalTensor<T> filled() {
    return filled_.Get<T>();
  }
  template <typename T>
  LocalTensor<T> empty() {
    return empty_.Get<T>();
  }
  template <typename T>
  LocalTensor<T> calculation() {
    return local_.Get<T>();
  }

  AscendC::TPipe pipe;
  AscendC::GlobalTensor<float> global;

 private:
  AscendC::TBuf<AscendC::TPosition::VECIN> filled_, empty_;
  AscendC::TBuf<AscendC::TPosition::VECCALC> local_;
};

AscendC::DataCopyExtParams run_of(uint32_t bytes) { return {1, bytes, 0, 0, 0}; }
AscendC::DataCopyPadExtParams<float> unpadded() { return {false, 0, 0, 0}; }

}  // namespace

extern "C" __global__ __aicore__ void ub_overflow(GM_ADDR) {
  AscendC::TPipe pipe;
  AscendC::TQue<AscendC::TPosition::VECIN, 2> queue;
  pipe.InitBuffer(queue, 2, 96 * 1024 + 32);
}
extern "C" __global__ __aicore__ void too_many_buffers(GM_ADDR) {
  AscendC::TPipe pipe;
  AscendC::TQue<AscendC::TPosition::VECIN, 1> queue;
  pipe.InitBuffer(queue, 65, 32);
}
extern "C" __global__ __aicore__ void outside_of_a_tensor(GM_ADDR data) {
  Bench bench(data);
  AscendC::Duplicate(bench.empty<float>()[1000], 0.0f, 64);
}
extern "C" __global__ __aicore__ void outside_of_a_part(GM_ADDR data) {
  Bench bench(data);
  AscendC::TBuf<AscendC::TPosition::VECCALC> buffer;
  bench.pipe.InitBuffer(buffer, kBytes);
  AscendC::Duplicate(buffer.Get<float>(8), 0.0f, 16);
}
extern "C" __global__ __aicore__ void brcb_over_read(GM_ADDR data) {
  Bench bench(data);
  AscendC::TBuf<AscendC::TPosition::VECIN> buffer;
  bench.pipe.InitBuffer(buffer, 32);
  AscendC::Duplicate(buffer.Get<float>(), 0.0f, 8);
  AscendC::PipeBarrier<PIPE_V>();
  AscendC::Brcb(bench.empty<float>(), buffer.Get<float>(), 2, {1, 8});
}
extern "C" __global__ __aicore__ void brcb_of_fewer_than_eight(GM_ADDR data) {
  Bench bench(data);
  AscendC::Duplicate(bench.empty<float>(), 0.0f, 5);
  AscendC::PipeBarrier<PIPE_V>();
  AscendC::Brcb(bench.calculation<float>(), bench.empty<float>(), 1, {1, 8});
}
extern "C" __global__ __aicore__ void uninitialised_read(GM_ADDR data) {
  Bench bench(data);
  AscendC::Adds(bench.calculation<float>(), bench.empty<float>(), 1.0f, 64);
}
extern "C" __global__ __aicore__ void uninitialised_padding(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopyPad(bench.empty<float>(), bench.global, run_of(20),
                       AscendC::DataCopyPadExtParams<float>{false, 0, 3, 0});
  AscendC::PipeBarrier<PIPE_ALL>();
  AscendC::Adds(bench.calculation<float>(), bench.empty<float>(), 1.0f, 8);
}
extern "C" __global__ __aicore__ void uninitialised_copy_out(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopyPad(bench.global, bench.empty<float>(), run_of(4));
}
extern "C" __global__ __aicore__ void queue_memory_of_the_tensor_before(GM_ADDR data) {
  Bench bench(data);
  AscendC::TQue<AscendC::TPosition::VECIN, 1> queue;
  bench.pipe.InitBuffer(queue, 1, 256);
  for (int turn = 0; turn < 2; ++turn) {
    LocalTensor<float> tensor = queue.AllocTensor<float>();
    if (turn == 0) AscendC::DataCopyPad(tensor, bench.global, run_of(256), unpadded());
    queue.EnQue(tensor);
    tensor = queue.DeQue<float>();
    AscendC::Adds(bench.empty<float>(), tensor, 1.0f, 64);
    AscendC::PipeBarrier<PIPE_V>();
    queue.FreeTensor(tensor);
  }
}
extern "C" __global__ __aicore__ void repeat_over_255(GM_ADDR data) {
  Bench bench(data);
  AscendC::Adds(bench.empty<float>(), bench.filled<float>(), 1.0f, 64, 256, {1, 1, 0, 0});
}
extern "C" __global__ __aicore__ void mask_over_64_lanes(GM_ADDR data) {
  Bench bench(data);
  AscendC::Adds(bench.empty<float>(), bench.filled<float>(), 1.0f, 128, 1, {1, 1, 8, 8});
}
extern "C" __global__ __aicore__ void unaligned_vector_operand(GM_ADDR data) {
  Bench bench(data);
  AscendC::Adds(bench.empty<float>(), bench.filled<float>()[1], 1.0f, 8);
}
extern "C" __global__ __aicore__ void unaligned_copy_target(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopyPad(bench.empty<float>()[4], bench.global, run_of(32), unpadded());
}
extern "C" __global__ __aicore__ void copy_of_part_of_a_block(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopy(bench.empty<float>(), bench.global, 12);
}
extern "C" __global__ __aicore__ void copy_of_part_of_an_element(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopyPad(bench.empty<float>(), bench.global, run_of(30), unpadded());
}
extern "C" __global__ __aicore__ void copy_of_too_many_blocks(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopyPad(bench.empty<float>(), bench.global, AscendC::DataCopyExtParams{4096, 4, 0, 0, 0}, unpadded());
}
extern "C" __global__ __aicore__ void copy_with_wide_padding(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopyPad(bench.empty<float>(), bench.global, run_of(32),
                       AscendC::DataCopyPadExtParams<float>{true, 9, 0, 0});
}
extern "C" __global__ __aicore__ void copy_into_a_calculation_buffer(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopyPad(bench.calculation<float>(), bench.global, run_of(32), unpadded());
}
extern "C" __global__ __aicore__ void read_past_global_memory(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopyPad(bench.empty<float>(), bench.global[1020], run_of(20), unpadded());
}
extern "C" __global__ __aicore__ void read_past_a_global_tensor(GM_ADDR data) {
  Bench bench(data);
  bench.global.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(data), 10);
  AscendC::DataCopyPad(bench.empty<float>(), bench.global[8], run_of(12), unpadded());
}
extern "C" __global__ __aicore__ void gather_past_its_source(GM_ADDR data) {
  Bench bench(data);
  AscendC::Duplicate(bench.calculation<int32_t>(), static_cast<int32_t>(kBytes), 8);
  AscendC::PipeBarrier<PIPE_V>();
  AscendC::Gather(bench.empty<float>(), bench.filled<float>(), bench.calculation<uint32_t>(), 0, 8);
}
extern "C" __global__ __aicore__ void gather_between_elements(GM_ADDR data) {
  Bench bench(data);
  AscendC::Duplicate(bench.calculation<int32_t>(), 6, 8);
  AscendC::PipeBarrier<PIPE_V>();
  AscendC::Gather(bench.empty<float>(), bench.filled<float>(), bench.calculation<uint32_t>(), 0, 8);
}
extern "C" __global__ __aicore__ void gather_onto_its_source(GM_ADDR data) {
  Bench bench(data);
  AscendC::Gather(bench.filled<float>(), bench.filled<float>(), bench.filled<uint32_t>()[512], 0, 8);
}
extern "C" __global__ __aicore__ void partial_overlap(GM_ADDR data) {
  Bench bench(data);
  AscendC::Adds(bench.filled<float>()[8], bench.filled<float>(), 1.0f, 128);
}
extern "C" __global__ __aicore__ void later_repeat_reads_result(GM_ADDR data) {
  Bench bench(data);
  AscendC::Adds(bench.filled<float>()[64], bench.filled<float>(), 1.0f, 64, 2, {1, 1, 8, 8});
}
extern "C" __global__ __aicore__ void accumulation_in_the_first_source(GM_ADDR data) {
  Bench bench(data);
  const LocalTensor<float> sums = bench.filled<float>();
  AscendC::Add(sums, sums, sums[64], 64, 2, {1, 1, 1, 0, 0, 8});
}
extern "C" __global__ __aicore__ void reduction_onto_its_source(GM_ADDR data) {
  Bench bench(data);
  AscendC::WholeReduceSum(bench.filled<float>(), bench.filled<float>(), 64, 1, 1, 1, 8);
}
extern "C" __global__ __aicore__ void comparison_onto_its_source(GM_ADDR data) {
  Bench bench(data);
  AscendC::Compare(bench.filled<uint8_t>(), bench.filled<float>(), bench.filled<float>(), AscendC::CMPMODE::EQ, 64);
}
extern "C" __global__ __aicore__ void packing_over_its_source(GM_ADDR data) {
  Bench bench(data);
  uint64_t kept = 0;
  AscendC::GatherMask(bench.filled<float>()[8], bench.filled<float>(), 1, false, 0, {1, 2, 8, 0}, kept);
}
extern "C" __global__ __aicore__ void integer_overflow(GM_ADDR data) {
  Bench bench(data);
  AscendC::Adds(bench.filled<int32_t>(), bench.filled<int32_t>(), 2147483647, 8);
  AscendC::PipeBarrier<PIPE_V>();
  AscendC::Adds(bench.filled<int32_t>(), bench.filled<int32_t>(), 1, 8);
}
extern "C" __global__ __aicore__ void cast_mode_of_another_pair(GM_ADDR data) {
  Bench bench(data);
  AscendC::Cast(bench.empty<int32_t>(), bench.filled<float>(), AscendC::RoundMode::CAST_NONE, 8);
}
extern "C" __global__ __aicore__ void compare_of_part_of_a_repeat(GM_ADDR data) {
  Bench bench(data);
  AscendC::Compare(bench.empty<uint8_t>(), bench.filled<float>(), bench.filled<float>(), AscendC::CMPMODE::LT, 32);
}
extern "C" __global__ __aicore__ void order_of_integers(GM_ADDR data) {
  Bench bench(data);
  AscendC::Compare(bench.empty<uint8_t>(), bench.filled<int32_t>(), bench.filled<int32_t>(), AscendC::CMPMODE::GT, 64);
}
extern "C" __global__ __aicore__ void select_without_room(GM_ADDR data) {
  Bench bench(data);
  AscendC::TBuf<AscendC::TPosition::VECCALC> buffer;
  bench.pipe.InitBuffer(buffer, 176 * 1024);
  AscendC::Select(bench.empty<float>(), bench.filled<uint8_t>(), bench.filled<float>()[512], 0.0f,
                  AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE, 64);
}
extern "C" __global__ __aicore__ void sort_unaligned(GM_ADDR data) {
  Bench bench(data);
  AscendC::Sort32(bench.empty<float>()[8], bench.filled<float>(), bench.filled<uint32_t>()[512], 1);
}
extern "C" __global__ __aicore__ void sort_of_nan(GM_ADDR data) {
  Bench bench(data);
  AscendC::Duplicate(bench.calculation<float>(), __builtin_nanf(""), 32);
  AscendC::PipeBarrier<PIPE_V>();
  AscendC::Sort32(bench.empty<float>(), bench.calculation<float>(), bench.filled<uint32_t>(), 1);
}
extern "C" __global__ __aicore__ void merge_of_long_lists(GM_ADDR data) {
  Bench bench(data);
  const uint16_t lengths[4] = {4096, 1, 0, 0};
  const LocalTensor<float> list = bench.filled<float>();
  AscendC::MrgSort(bench.empty<float>(), AscendC::MrgSortSrcList<float>(list, list, list, list),
                   AscendC::MrgSort4Info(lengths, false, 3, 1));
}
extern "C" __global__ __aicore__ void merge_of_five_lists(GM_ADDR data) {
  Bench bench(data);
  const uint16_t lengths[4] = {1, 1, 1, 1};
  const LocalTensor<float> list = bench.filled<float>();
  AscendC::MrgSort(bench.empty<float>(), AscendC::MrgSortSrcList<float>(list, list, list, list),
                   AscendC::MrgSort4Info(lengths, false, 31, 1));
}
extern "C" __global__ __aicore__ void merge_repeating_three_lists(GM_ADDR data) {
  Bench bench(data);
  const uint16_t lengths[4] = {4, 4, 4, 4};
  const LocalTensor<float> list = bench.filled<float>();
  AscendC::MrgSort(bench.empty<float>(), AscendC::MrgSortSrcList<float>(list, list[8], list[16], list[24]),
                   AscendC::MrgSort4Info(lengths, false, 7, 2));
}
extern "C" __global__ __aicore__ void merge_of_an_unsorted_list(GM_ADDR data) {
  Bench bench(data);
  AscendC::CreateVecIndex(bench.calculation<float>(), 0.0f, 64);
  AscendC::PipeBarrier<PIPE_V>();
  const uint16_t lengths[4] = {8, 8, 0, 0};
  const LocalTensor<float> list = bench.calculation<float>();
  AscendC::MrgSort(bench.empty<float>(), AscendC::MrgSortSrcList<float>(list, list[16], list, list),
                   AscendC::MrgSort4Info(lengths, false, 3, 1));
}
extern "C" __global__ __aicore__ void merge_onto_a_list(GM_ADDR data) {
  Bench bench(data);
  const uint16_t lengths[4] = {8, 8, 0, 0};
  const LocalTensor<float> list = bench.filled<float>();
  AscendC::MrgSort(list[24], AscendC::MrgSortSrcList<float>(list, list[16], list, list),
                   AscendC::MrgSort4Info(lengths, false, 3, 1));
}
extern "C" __global__ __aicore__ void no_flag_before_scalar_read(GM_ADDR data) {
  Bench bench(data);
  AscendC::Adds(bench.empty<float>(), bench.filled<float>(), 1.0f, 8);
  bench.empty<float>().GetValue(0);
}
extern "C" __global__ __aicore__ void no_flag_after_scalar_write(GM_ADDR data) {
  Bench bench(data);
  bench.empty<float>().SetValue(0, 1.0f);
  AscendC::DataCopyPad(bench.global, bench.empty<float>(), run_of(4));
}
extern "C" __global__ __aicore__ void flag_of_another_pair(GM_ADDR data) {
  Bench bench(data);
  AscendC::Adds(bench.empty<float>(), bench.filled<float>(), 1.0f, 8);
  AscendC::SetFlag<AscendC::HardEvent::V_S>(EVENT_ID0);
  AscendC::WaitFlag<AscendC::HardEvent::V_S>(EVENT_ID0);
  AscendC::DataCopyPad(bench.global, bench.empty<float>(), run_of(4));
}
extern "C" __global__ __aicore__ void write_over_what_is_copied_out(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopyPad(bench.global, bench.filled<float>(), run_of(32));
  AscendC::Duplicate(bench.filled<float>(), 0.0f, 8);
}
extern "C" __global__ __aicore__ void two_copies_into_one_place(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopyPad(bench.empty<float>(), bench.global, run_of(32), unpadded());
  AscendC::DataCopyPad(bench.empty<float>(), bench.global[8], run_of(32), unpadded());
}
extern "C" __global__ __aicore__ void read_of_what_is_being_written_out(GM_ADDR data) {
  Bench bench(data);
  AscendC::DataCopyPad(bench.global, bench.filled<float>(), run_of(32));
  AscendC::DataCopyPad(bench.empty<float>(), bench.global, run_of(32), unpadded());
}
extern "C" __global__ __aicore__ void flag_set_twice(GM_ADDR data) {
  Bench bench(data);
  AscendC::SetFlag<AscendC::HardEvent::V_MTE3>(EVENT_ID1);
  AscendC::SetFlag<AscendC::HardEvent::V_MTE3>(EVENT_ID1);
}
extern "C" __global__ __aicore__ void flag_never_set(GM_ADDR data) {
  Bench bench(data);
  AscendC::WaitFlag<AscendC::HardEvent::V_MTE3>(EVENT_ID1);
}
extern "C" __global__ __aicore__ void flag_never_waited_for(GM_ADDR data) {
  Bench bench(data);
  AscendC::SetFlag<AscendC::HardEvent::V_MTE3>(EVENT_ID1);
}
extern "C" __global__ __aicore__ void event_id_out_of_range(GM_ADDR data) {
  Bench bench(data);
  AscendC::SetFlag<AscendC::HardEvent::V_MTE3>(8);
}
extern "C" __global__ __aicore__ void event_id_of_a_queue(GM_ADDR data) {
  Bench bench(data);
  AscendC::TQue<AscendC::TPosition::VECOUT, 1> queue;
  bench.pipe.InitBuffer(queue, 1, 32);
  LocalTensor<float> tensor = queue.AllocTensor<float>();
  const auto event = bench.pipe.FetchEventID(AscendC::HardEvent::V_MTE3);
  queue.EnQue(tensor);
  AscendC::SetFlag<AscendC::HardEvent::V_MTE3>(event);
}
extern "C" __global__ __aicore__ void event_of_a_freed_buffer(GM_ADDR data) {
  Bench bench(data);
  AscendC::TQue<AscendC::TPosition::VECIN, 1> queue;
  bench.pipe.InitBuffer(queue, 1, 32);
  LocalTensor<float> tensor = queue.AllocTensor<float>();
  queue.FreeTensor(tensor);
  AscendC::WaitFlag<AscendC::HardEvent::V_MTE2>(EVENT_ID0);
}
extern "C" __global__ __aicore__ void queue_deeper_than_declared(GM_ADDR data) {
  Bench bench(data);
  AscendC::TQue<AscendC::TPosition::VECIN, 1> queue;
  bench.pipe.InitBuffer(queue, 2, 32);
  LocalTensor<float> first = queue.AllocTensor<float>(), second = queue.AllocTensor<float>();
  queue.EnQue(first);
  queue.EnQue(second);
}
extern "C" __global__ __aicore__ void more_tensors_than_buffers(GM_ADDR data) {
  Bench bench(data);
  AscendC::TQue<AscendC::TPosition::VECIN, 2> queue;
  bench.pipe.InitBuffer(queue, 2, 32);
  for (int i = 0; i < 3; ++i) queue.AllocTensor<float>();
}
extern "C" __global__ __aicore__ void enque_twice(GM_ADDR data) {
  Bench bench(data);
  AscendC::TQue<AscendC::TPosition::VECIN, 2> queue;
  bench.pipe.InitBuffer(queue, 2, 32);
  LocalTensor<float> tensor = queue.AllocTensor<float>();
  queue.EnQue(tensor);
  queue.EnQue(tensor);
}
extern "C" __global__ __aicore__ void free_twice(GM_ADDR data) {
  Bench bench(data);
  AscendC::TQue<AscendC::TPosition::VECIN, 2> queue;
  bench.pipe.InitBuffer(queue, 2, 32);
  LocalTensor<float> tensor = queue.AllocTensor<float>();
  queue.FreeTensor(tensor);
  queue.FreeTensor(tensor);
}
extern "C" __global__ __aicore__ void free_by_another_queue(GM_ADDR data) {
  Bench bench(data);
  AscendC::TQue<AscendC::TPosition::VECIN, 2> queue, other;
  bench.pipe.InitBuffer(queue, 1, 32);
  bench.pipe.InitBuffer(other, 1, 32);
  LocalTensor<float> tensor = queue.AllocTensor<float>();
  other.FreeTensor(tensor);
}
extern "C" __global__ __aicore__ void queue_without_buffers(GM_ADDR data) {
  Bench bench(data);
  AscendC::TQue<AscendC::TPosition::VECIN, 2> queue;
  queue.AllocTensor<float>();
}
extern "C" __global__ __aicore__ void tensor_of_nothing(GM_ADDR data) {
  Bench bench(data);
  AscendC::Adds(bench.empty<float>(), LocalTensor<float>(), 1.0f, 8);
}
