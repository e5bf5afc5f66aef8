// How a row lies in the unified buffer (see GatingTiling), and what the parts of the kernel share: which columns are
// experts, and copies of rows between the memories.
#pragma once

#include "kernel_operator.h"

#include "../gating_reroute_tiling_data.h"

namespace weave::ascendc {

constexpr std::uint32_t kLanes = 64;        // float32 values that one repeat of a vector instruction takes
constexpr std::uint32_t kBlockLanes = 8;    // float32 values in a block of 32 bytes
constexpr std::uint32_t kSorted = 32;       // values that one repeat of Sort32 takes
constexpr std::uint32_t kMaxRepeats = 255;  // of one vector instruction
constexpr float kInfinity = __builtin_inff();
constexpr float kLowest = -3.40282347e+38f;

__aicore__ inline std::uint32_t CeilDiv(std::uint32_t value, std::uint32_t by) { return (value + by - 1) / by; }

__aicore__ inline std::uint32_t Least(std::uint32_t a, std::uint32_t b) { return a < b ? a : b; }

// The next vector instruction sees what those before it wrote.
__aicore__ inline void Then() { AscendC::PipeBarrier<PIPE_V>(); }

// `from`, with +inf where it is NaN: what Sort32 makes of a NaN is not documented. `count` is a multiple of 64.
__aicore__ inline void RaiseNaN(const AscendC::LocalTensor<float>& to, const AscendC::LocalTensor<float>& from,
                                const AscendC::LocalTensor<std::uint8_t>& numbers, std::uint32_t count) {
  AscendC::Compare(numbers, from, from, AscendC::CMPMODE::EQ, count);
  Then();
  AscendC::Select(to, numbers, from, kInfinity, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE, count);
  Then();
}

class RowLayout {
 public:
  __aicore__ inline explicit RowLayout(const GatingTiling& tiling)
      : groups_(tiling.groups),
        group_size_(tiling.group_size),
        group_pitch_(tiling.group_pitch),
        row_pitch_(tiling.row_pitch),
        padded_(tiling.row_pitch != tiling.experts) {}

  __aicore__ inline bool Padded() const { return padded_; }
  __aicore__ inline std::uint32_t Pitch() const { return row_pitch_; }
  // Vector instructions it takes to reach all columns, each reaching 64 columns of many rows.
  __aicore__ inline std::uint32_t Parts() const { return row_pitch_ / kLanes; }
  // Blocks from one row of float32 values to the next.
  __aicore__ inline std::uint8_t RowBlocks() const { return static_cast<std::uint8_t>(row_pitch_ / kBlockLanes); }

  // One bit a column of a part: whether it is an expert.
  __aicore__ inline std::uint64_t Experts(std::uint32_t part) const {
    std::uint64_t bits = 0;
    const std::uint32_t width = Least(group_pitch_, kLanes);
    for (std::uint32_t lane = 0; lane < kLanes; lane += width) {
      const std::uint32_t column = part * kLanes + lane;
      if (column / group_pitch_ >= groups_) continue;
      const std::uint32_t place = column % group_pitch_;
      const std::uint32_t experts = place < group_size_ ? Least(group_size_ - place, width) : 0;
      bits |= FirstBits(experts) << lane;
    }
    return bits;
  }

  static __aicore__ inline std::uint64_t FirstBits(std::uint32_t count) {
    return count >= kLanes ? ~std::uint64_t(0) : (std::uint64_t(1) << count) - 1;
  }

  // Writes `value` to all columns of `rows` that are no experts.
  __aicore__ inline void Pad(const AscendC::LocalTensor<float>& tensor, float value, std::uint32_t rows) const {
    if (!padded_) return;
    for (std::uint32_t part = 0; part < Parts(); ++part) {
      std::uint64_t padding[2] = {~Experts(part), 0};
      if (padding[0] == 0) continue;
      AscendC::Duplicate(tensor[part * kLanes], value, padding, static_cast<std::uint8_t>(rows), 1, RowBlocks());
    }
    Then();
  }

  // Copies rows that lie one after the other in `from`, beginning with `first`.
  template <typename T>
  __aicore__ inline void CopyIn(const AscendC::LocalTensor<T>& to, const AscendC::GlobalTensor<T>& from,
                                std::uint64_t first, std::uint32_t rows) const {
    const std::uint64_t experts = std::uint64_t(groups_) * group_size_;
    if (groups_ * group_pitch_ == row_pitch_) {
      CopySegments(to, from[first * experts], rows * groups_);
      return;
    }
    for (std::uint32_t row = 0; row < rows; ++row) {
      CopySegments(to[row * row_pitch_], from[(first + row) * experts], groups_);
    }
  }

 private:
  template <typename T>
  __aicore__ inline void CopySegments(const AscendC::LocalTensor<T>& to, const AscendC::GlobalTensor<T>& from,
                                      std::uint32_t segments) const {
    const std::uint32_t bytes = group_size_ * sizeof(T);
    const std::uint32_t gap_blocks = group_pitch_ * sizeof(T) / 32 - CeilDiv(bytes, 32);
    for (std::uint32_t done = 0; done < segments; done += kMaxSegments) {
      const auto count = static_cast<std::uint16_t>(Least(segments - done, kMaxSegments));
      AscendC::DataCopyPad(to[done * group_pitch_], from[std::uint64_t(done) * group_size_],
                           AscendC::DataCopyExtParams{count, bytes, 0, gap_blocks, 0},
                           AscendC::DataCopyPadExtParams<T>());
    }
  }

  static constexpr std::uint32_t kMaxSegments = 4095;  // of one copy

  std::uint32_t groups_, group_size_, group_pitch_, row_pitch_;
  bool padded_;
};

}  // namespace weave::ascendc
