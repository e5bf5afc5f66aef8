// Where a tile finds its tokens' rows of the expert map: in a copy of the whole map, or in copies of single rows.
#pragma once

#include "scores.h"

namespace weave::ascendc {

class MapSource {
 public:
  __aicore__ inline MapSource(const GatingTiling& tiling, const RowLayout& layout)
      : layout_(layout),
        table_in_ub_(tiling.key == kTableInUb),
        map_rows_(tiling.map_rows),
        zeroed_(tiling.experts < kMaxTopK) {}

  __aicore__ inline void Init(AscendC::TPipe* pipe, std::uint32_t tile_rows, GM_ADDR token_slots, GM_ADDR expert_map,
                              const GatingTiling& tiling) {
    slots_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ std::int32_t*>(token_slots), tiling.tokens);
    map_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ std::int32_t*>(expert_map),
                            std::uint64_t(tiling.map_rows) * tiling.experts);
    const std::uint32_t slot_bytes = tile_rows * sizeof(std::int32_t);
    const std::uint32_t row_bytes = layout_.Pitch() * sizeof(std::int32_t);
    pipe_ = pipe;
    if (!table_in_ub_) {
      pipe->InitBuffer(read_slot_buffer_, slot_bytes);
      pipe->InitBuffer(map_queue_, 2, tile_rows * row_bytes);
      return;
    }
    pipe->InitBuffer(slot_queue_, 2, slot_bytes);
    pipe->InitBuffer(start_buffer_, slot_bytes);
    pipe->InitBuffer(map_queue_, 1, map_rows_ * row_bytes);
    // Brcb reads eight of them at a time, also where a tile has fewer rows.
    AscendC::Duplicate(start_buffer_.Get<std::int32_t>(), 0, static_cast<std::int32_t>(tile_rows));
    Then();
    AscendC::LocalTensor<std::int32_t> table = Allocate(map_rows_);
    layout_.CopyIn(table, map_gm_, 0, map_rows_);
    map_queue_.EnQue(table);
    table_ = map_queue_.DeQue<std::int32_t>();
  }

  __aicore__ inline void CopyIn(std::uint32_t token, std::uint32_t rows) {
    if (!table_in_ub_) {
      CopyInRows(token, rows);
      return;
    }
    AscendC::LocalTensor<std::int32_t> slots = slot_queue_.AllocTensor<std::int32_t>();
    CopyInSlots(slots, token, rows);
    slot_queue_.EnQue(slots);
  }

  // Reads the map at the chosen columns, 16 a row; `columns` are bytes from the start of a tile whose rows lie as the
  // map's do. `offsets` is room for as many.
  __aicore__ inline void Look(const AscendC::LocalTensor<std::int32_t>& to,
                              const AscendC::LocalTensor<std::int32_t>& columns,
                              const AscendC::LocalTensor<std::int32_t>& offsets, RowValues& row_values,
                              std::uint32_t rows) {
    if (table_in_ub_) {
      AscendC::LocalTensor<std::int32_t> starts = RowStarts(rows);
      AscendC::Add(offsets, columns, row_values.Blocks(starts, rows), kMaxTopK, static_cast<std::uint8_t>(rows),
                   {1, 1, 0, kMaxTopK / kBlockLanes, kMaxTopK / kBlockLanes, 1});
      Then();
      AscendC::Gather(to, table_, offsets.ReinterpretCast<std::uint32_t>(), 0, rows * kMaxTopK);
      Then();
      return;
    }
    AscendC::LocalTensor<std::int32_t> map_rows = map_queue_.DeQue<std::int32_t>();
    AscendC::Gather(to, map_rows, columns.ReinterpretCast<std::uint32_t>(), 0, rows * kMaxTopK);
    Then();
    map_queue_.FreeTensor(map_rows);
  }

  __aicore__ inline void Finish() {
    if (table_in_ub_) map_queue_.FreeTensor(table_);
  }

 private:
  // Of fewer than 16 experts, padding is looked up as well, for results that are not written.
  __aicore__ inline AscendC::LocalTensor<std::int32_t> Allocate(std::uint32_t rows) {
    AscendC::LocalTensor<std::int32_t> tensor = map_queue_.AllocTensor<std::int32_t>();
    if (!zeroed_) return tensor;
    AscendC::Duplicate(tensor, 0, static_cast<std::int32_t>(rows * layout_.Pitch()));
    const auto zeroed = pipe_->FetchEventID(AscendC::HardEvent::V_MTE2);
    AscendC::SetFlag<AscendC::HardEvent::V_MTE2>(zeroed);
    AscendC::WaitFlag<AscendC::HardEvent::V_MTE2>(zeroed);
    return tensor;
  }

  __aicore__ inline void CopyInSlots(const AscendC::LocalTensor<std::int32_t>& slots, std::uint32_t token,
                                     std::uint32_t rows) {
    const std::uint32_t bytes = rows * sizeof(std::int32_t);
    AscendC::DataCopyPad(slots, slots_gm_[token], AscendC::DataCopyExtParams{1, bytes, 0, 0, 0},
                         AscendC::DataCopyPadExtParams<std::int32_t>());
  }

  // The slots of the tile are read one by one: each names the row of the map to fetch for its token.
  __aicore__ inline void CopyInRows(std::uint32_t token, std::uint32_t rows) {
    const AscendC::LocalTensor<std::int32_t> slots = read_slot_buffer_.Get<std::int32_t>();
    CopyInSlots(slots, token, rows);
    const auto copied = pipe_->FetchEventID(AscendC::HardEvent::MTE2_S);
    AscendC::SetFlag<AscendC::HardEvent::MTE2_S>(copied);
    AscendC::WaitFlag<AscendC::HardEvent::MTE2_S>(copied);
    AscendC::LocalTensor<std::int32_t> map_rows = Allocate(rows);
    for (std::uint32_t row = 0; row < rows; ++row) {
      layout_.CopyIn(map_rows[row * layout_.Pitch()], map_gm_, static_cast<std::uint64_t>(slots.GetValue(row)), 1);
    }
    const auto read = pipe_->FetchEventID(AscendC::HardEvent::S_MTE2);
    AscendC::SetFlag<AscendC::HardEvent::S_MTE2>(read);
    AscendC::WaitFlag<AscendC::HardEvent::S_MTE2>(read);
    map_queue_.EnQue(map_rows);
  }

  // For each row of a tile: bytes from where it starts in the tile to where the row that its slot names starts in the
  // table.
  __aicore__ inline AscendC::LocalTensor<std::int32_t> RowStarts(std::uint32_t rows) {
    const AscendC::LocalTensor<std::int32_t> starts = start_buffer_.Get<std::int32_t>();
    AscendC::LocalTensor<std::int32_t> slots = slot_queue_.DeQue<std::int32_t>();
    const auto count = static_cast<std::int32_t>(rows);
    AscendC::CreateVecIndex(starts, std::int32_t(0), rows);
    Then();
    AscendC::Sub(starts, slots, starts, count);
    Then();
    slot_queue_.FreeTensor(slots);
    AscendC::Muls(starts, starts, static_cast<std::int32_t>(layout_.Pitch() * sizeof(std::int32_t)), count);
    Then();
    return starts;
  }

  const RowLayout& layout_;
  bool table_in_ub_;
  std::uint32_t map_rows_;
  bool zeroed_;
  AscendC::TPipe* pipe_ = nullptr;
  AscendC::GlobalTensor<std::int32_t> slots_gm_, map_gm_;
  AscendC::TQue<AscendC::TPosition::VECIN, 2> slot_queue_, map_queue_;
  AscendC::TBuf<AscendC::TPosition::VECIN> read_slot_buffer_;
  AscendC::TBuf<AscendC::TPosition::VECCALC> start_buffer_;
  AscendC::LocalTensor<std::int32_t> table_;
};

}  // namespace weave::ascendc
