// Logits to scores, in place, for a tile of rows at once: softmax over a row, or sigmoid.
#pragma once

#include "row_layout.h"

namespace weave::ascendc {

// One value a row, and the same value in all eight lanes of a block, to combine with whole rows.
class RowValues {
 public:
  __aicore__ inline void Init(AscendC::TPipe* pipe, std::uint32_t tile_rows) {
    pipe->InitBuffer(value_buffer_, tile_rows * sizeof(float));
    pipe->InitBuffer(block_buffer_, tile_rows * 32);
    // Brcb reads eight values at a time, also where a tile has fewer rows.
    AscendC::Duplicate(value_buffer_.Get<float>(), 0.0f, static_cast<std::int32_t>(tile_rows));
    Then();
  }

  __aicore__ inline AscendC::LocalTensor<float> Values() { return value_buffer_.Get<float>(); }

  template <typename T>
  __aicore__ inline AscendC::LocalTensor<T> Blocks(const AscendC::LocalTensor<T>& values, std::uint32_t rows) {
    AscendC::LocalTensor<T> blocks = block_buffer_.Get<T>();
    AscendC::Brcb(blocks, values, static_cast<std::uint8_t>(CeilDiv(rows, kBlockLanes)),
                  AscendC::BrcbRepeatParams{1, kBlockLanes});
    Then();
    return blocks;
  }

 private:
  AscendC::TBuf<AscendC::TPosition::VECCALC> value_buffer_, block_buffer_;
};

class Scores {
 public:
  __aicore__ inline Scores(const RowLayout& layout, RowValues& row_values) : layout_(layout), row_values_(row_values) {}

  // exp(x - max) / sum. Padding must be -inf, and becomes 0. A NaN or +inf makes its row NaN, and so do only -inf: the
  // sum is NaN then, whatever Max makes of a NaN. `spare` holds 64 values a row.
  __aicore__ inline void Softmax(const AscendC::LocalTensor<float>& x, const AscendC::LocalTensor<float>& spare,
                                 std::uint32_t rows) {
    const AscendC::LocalTensor<float> values = row_values_.Values();
    const AscendC::LocalTensor<float> largest = Fold<true>(x, spare, rows);
    AscendC::WholeReduceMax(values, largest, kLanes, rows, 1, 1, FoldedBlocks(),
                            AscendC::ReduceOrder::ORDER_ONLY_VALUE);
    Then();
    const AscendC::LocalTensor<float> maxima = row_values_.Blocks(values, rows);
    for (std::uint32_t part = 0; part < layout_.Parts(); ++part) {
      AscendC::Sub(x[part * kLanes], x[part * kLanes], maxima, kLanes, rows, WithBlocks());
    }
    Then();
    AscendC::Exp(x, x, rows * layout_.Pitch());
    Then();
    const AscendC::LocalTensor<float> sums = Fold<false>(x, spare, rows);
    AscendC::WholeReduceSum(values, sums, kLanes, rows, 1, 1, FoldedBlocks());
    Then();
    const AscendC::LocalTensor<float> divisors = row_values_.Blocks(values, rows);
    for (std::uint32_t part = 0; part < layout_.Parts(); ++part) {
      AscendC::Div(x[part * kLanes], x[part * kLanes], divisors, kLanes, rows, WithBlocks());
    }
    Then();
  }

  // 1 / (1 + exp(-x)). `ones` holds as much as `x`.
  __aicore__ inline void Sigmoid(const AscendC::LocalTensor<float>& x, const AscendC::LocalTensor<float>& ones,
                                 std::uint32_t rows) {
    const auto count = static_cast<std::int32_t>(rows * layout_.Pitch());
    AscendC::Muls(x, x, -1.0f, count);
    AscendC::Duplicate(ones, 1.0f, count);
    Then();
    AscendC::Exp(x, x, count);
    Then();
    AscendC::Adds(x, x, 1.0f, count);
    Then();
    AscendC::Div(x, ones, x, count);
    Then();
  }

 private:
  // Rows of x as they are, combined with one block a row.
  __aicore__ inline AscendC::BinaryRepeatParams WithBlocks() const {
    return {1, 1, 0, layout_.RowBlocks(), layout_.RowBlocks(), 1};
  }

  // Blocks from one folded row to the next.
  __aicore__ inline std::int32_t FoldedBlocks() const { return kLanes / kBlockLanes; }

  // Combines the parts of each row into 64 values: their largest, or their sum.
  template <bool kLargest>
  __aicore__ inline AscendC::LocalTensor<float> Fold(const AscendC::LocalTensor<float>& x,
                                                     const AscendC::LocalTensor<float>& spare, std::uint32_t rows) {
    if (layout_.Parts() == 1) return x;
    const std::uint8_t apart = layout_.RowBlocks();
    const auto folded = static_cast<std::uint8_t>(FoldedBlocks());
    Combine<kLargest>(spare, x, x[kLanes], rows, {1, 1, 1, folded, apart, apart});
    for (std::uint32_t part = 2; part < layout_.Parts(); ++part) {
      Combine<kLargest>(spare, spare, x[part * kLanes], rows, {1, 1, 1, folded, folded, apart});
    }
    return spare;
  }

  template <bool kLargest>
  __aicore__ inline void Combine(const AscendC::LocalTensor<float>& to, const AscendC::LocalTensor<float>& a,
                                 const AscendC::LocalTensor<float>& b, std::uint32_t rows,
                                 const AscendC::BinaryRepeatParams& strides) {
    if constexpr (kLargest) {
      AscendC::Max(to, a, b, kLanes, static_cast<std::uint8_t>(rows), strides);
    } else {
      AscendC::Add(to, a, b, kLanes, static_cast<std::uint8_t>(rows), strides);
    }
    Then();
  }

  const RowLayout& layout_;
  RowValues& row_values_;
};

}  // namespace weave::ascendc
