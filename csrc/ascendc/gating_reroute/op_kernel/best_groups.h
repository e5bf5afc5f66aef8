// Grouped top-k: takes the experts outside of a row's best groups out of the choice.
#pragma once

#include "best_experts.h"

namespace weave::ascendc {

class BestGroups {
 public:
  __aicore__ inline BestGroups(const GatingTiling& tiling, BestExperts& best)
      : best_(best),
        groups_(tiling.groups),
        topk_group_(tiling.topk_group),
        pitch_(tiling.group_pitch),
        segments_(tiling.row_pitch / tiling.group_pitch),
        by_two_best_(tiling.biased != 0) {}

  __aicore__ inline void Init(AscendC::TPipe* pipe, std::uint32_t tile_rows) {
    const std::uint32_t bytes = tile_rows * kSorted * sizeof(float);
    pipe->InitBuffer(worth_buffer_, bytes);
    pipe->InitBuffer(second_buffer_, bytes);
    pipe->InitBuffer(offset_buffer_, bytes);
    pipe->InitBuffer(order_buffer_, bytes);
    pipe->InitBuffer(limit_buffer_, bytes);
    pipe->InitBuffer(group_limit_buffer_, tile_rows * segments_ * sizeof(float));
    // Some instructions take rows by twos or values by eights, also where a tile ends between them.
    AscendC::Duplicate(worth_buffer_.Get<float>(), 0.0f, static_cast<std::int32_t>(tile_rows * kSorted));
    AscendC::Duplicate(group_limit_buffer_.Get<float>(), 0.0f, static_cast<std::int32_t>(tile_rows * segments_));
    Then();
    InitOffsets(tile_rows);
    InitLimits(tile_rows);
  }

  // Lowers `choice` to at most kLowest where a column's group is not among its row's best, the lower one among equals.
  // `numbers` holds a bit for each column of a tile.
  __aicore__ inline void Restrict(const AscendC::LocalTensor<float>& choice,
                                  const AscendC::LocalTensor<std::uint32_t>& columns,
                                  const AscendC::LocalTensor<std::uint8_t>& numbers, std::uint32_t rows) {
    best_.Sort(choice, columns, rows * segments_ * pitch_ / kSorted, rows * segments_, kBestOfGroup);
    const AscendC::LocalTensor<float> worth = Worth(numbers, rows);
    // The groups in order of worth, as payloads -0, -1, ...; sorted by them, the limits that go with the ranks come to
    // stand in the order of the groups.
    const AscendC::LocalTensor<float> ranked = second_buffer_.Get<float>();
    best_.Sort(worth, order_buffer_.Get<std::uint32_t>(), rows);
    best_.Payloads(ranked, kSorted, rows);
    best_.Sort(ranked, limit_buffer_.Get<std::uint32_t>(), rows);
    const AscendC::LocalTensor<float> limits = group_limit_buffer_.Get<float>();
    best_.Payloads(limits, segments_, rows);
    Lower(choice, limits, rows);
  }

 private:
  // For group g of row r, where the row has 32 values: the byte at which the group's list of pairs starts.
  __aicore__ inline void InitOffsets(std::uint32_t tile_rows) {
    const auto count = static_cast<std::int32_t>(tile_rows * kSorted);
    const AscendC::LocalTensor<std::int32_t> offset = offset_buffer_.Get<std::int32_t>();
    const AscendC::LocalTensor<std::int32_t> row = second_buffer_.Get<std::int32_t>();
    const AscendC::LocalTensor<float> order = order_buffer_.Get<float>();
    AscendC::CreateVecIndex(offset, std::int32_t(0), static_cast<std::uint32_t>(count));
    Then();
    AscendC::ShiftRight(row, offset, kSortedBits, count);
    Then();
    AscendC::Muls(limit_buffer_.Get<std::int32_t>(), row, -static_cast<std::int32_t>(kSorted), count);
    AscendC::Muls(row, row, static_cast<std::int32_t>(segments_), count);
    Then();
    AscendC::Add(offset, offset, limit_buffer_.Get<std::int32_t>(), count);
    Then();
    AscendC::Cast(order, offset, AscendC::RoundMode::CAST_NONE, static_cast<std::uint32_t>(count));
    AscendC::Mins(offset, offset, static_cast<std::int32_t>(segments_ - 1), count);
    Then();
    AscendC::Muls(order, order, -1.0f, count);
    AscendC::Add(offset, offset, row, count);
    Then();
    AscendC::Muls(offset, offset, kListBytes, count);
    Then();
  }

  // The limit that goes with each rank of each row.
  __aicore__ inline void InitLimits(std::uint32_t tile_rows) {
    const AscendC::LocalTensor<float> limits = limit_buffer_.Get<float>();
    AscendC::Duplicate(limits, kLowest, static_cast<std::int32_t>(tile_rows * kSorted));
    Then();
    std::uint64_t best[2] = {OfTwoRows(RowLayout::FirstBits(topk_group_)), 0};
    AscendC::Duplicate(limits, kInfinity, best, static_cast<std::uint8_t>(tile_rows / 2), 1, kLanes / kBlockLanes);
    Then();
  }

  // How good each group is, 32 values a row: its best choice, or the sum of its two best; -inf where there is no group.
  __aicore__ inline AscendC::LocalTensor<float> Worth(const AscendC::LocalTensor<std::uint8_t>& numbers,
                                                      std::uint32_t rows) {
    const AscendC::LocalTensor<float> worth = worth_buffer_.Get<float>();
    const AscendC::LocalTensor<std::uint32_t> offset = offset_buffer_.Get<std::uint32_t>();
    const auto count = static_cast<std::int32_t>(rows * kSorted);
    const std::uint32_t pairs_of_rows = CeilDiv(rows, 2);
    AscendC::Gather(worth, best_.Pairs(), offset, 0, count);
    if (by_two_best_) {
      const AscendC::LocalTensor<float> second = second_buffer_.Get<float>();
      AscendC::Gather(second, best_.Pairs(), offset, kPairBytes, count);
      Then();
      // Doubling keeps the order of the sums, and makes -inf of kLowest, which stands for it in `choice`.
      AscendC::Muls(worth, worth, 2.0f, count);
      AscendC::Muls(second, second, 2.0f, count);
      Then();
      AscendC::Add(worth, worth, second, count);
      Then();
      RaiseNaN(worth, worth, numbers, pairs_of_rows * kLanes);
    } else {
      Then();
    }
    std::uint64_t none[2] = {OfTwoRows(~RowLayout::FirstBits(groups_)), 0};
    AscendC::Duplicate(worth, -kInfinity, none, static_cast<std::uint8_t>(pairs_of_rows), 1, kLanes / kBlockLanes);
    Then();
    return worth;
  }

  __aicore__ inline void Lower(const AscendC::LocalTensor<float>& choice, const AscendC::LocalTensor<float>& limits,
                               std::uint32_t rows) {
    const std::uint32_t all = rows * segments_;
    const AscendC::LocalTensor<float> blocks = best_.Pairs();
    AscendC::Brcb(blocks, limits, static_cast<std::uint8_t>(CeilDiv(all, kBlockLanes)),
                  AscendC::BrcbRepeatParams{1, kBlockLanes});
    Then();
    const std::uint32_t width = Least(pitch_, kLanes);
    const auto apart = static_cast<std::uint8_t>(pitch_ / kBlockLanes);
    for (std::uint32_t done = 0; done < all; done += kMaxRepeats) {
      const auto repeats = static_cast<std::uint8_t>(Least(all - done, kMaxRepeats));
      for (std::uint32_t lane = 0; lane < pitch_; lane += width) {
        const AscendC::LocalTensor<float> part = choice[done * pitch_ + lane];
        AscendC::Min(part, part, blocks[done * kBlockLanes], width, repeats, {1, 1, 0, apart, apart, 1});
      }
    }
    Then();
  }

  static __aicore__ inline std::uint64_t OfTwoRows(std::uint64_t bits) {
    const std::uint64_t row = bits & RowLayout::FirstBits(kSorted);
    return row | row << kSorted;
  }

  static constexpr std::uint32_t kBestOfGroup = 2;
  static constexpr std::int32_t kSortedBits = 5;
  static constexpr std::int32_t kPairBytes = 8;
  static constexpr std::int32_t kListBytes = kSorted * kPairBytes;

  BestExperts& best_;
  std::uint32_t groups_, topk_group_, pitch_, segments_;
  bool by_two_best_;
  AscendC::TBuf<AscendC::TPosition::VECCALC> worth_buffer_, second_buffer_, offset_buffer_, order_buffer_,
      limit_buffer_, group_limit_buffer_;
};

}  // namespace weave::ascendc
