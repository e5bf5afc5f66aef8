// reroute on the vector cores: out[t, k] = expert_map[token_slots[t], topk_ids[t, k]], a tile of tokens at a time.
//
// An id becomes a byte offset into the map's copy in the unified buffer, by arithmetic that covers the whole tile, and
// one Gather reads them all. python/weave_ops/schema.py has the semantics; slots and ids are not checked here, for that
// would take a read of values on the host.
#include "kernel_operator.h"

#include "../../core_tokens.h"
#include "../reroute_tiling_data.h"

namespace weave::ascendc {
namespace {

constexpr std::int32_t kEntryBytes = sizeof(std::int32_t);

template <typename Id>
class Reroute {
 public:
  __aicore__ inline Reroute(AscendC::TPipe* pipe, const RerouteTiling& tiling) : pipe_(pipe), tiling_(tiling) {}

  __aicore__ inline void Init(GM_ADDR topk_ids, GM_ADDR token_slots, GM_ADDR expert_map, GM_ADDR out) {
    const std::uint64_t ids = std::uint64_t(tiling_.tokens) * tiling_.top_k;
    ids_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ Id*>(topk_ids), ids);
    out_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ Id*>(out), ids);
    slots_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ std::int32_t*>(token_slots), tiling_.tokens);
    map_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ std::int32_t*>(expert_map),
                            std::uint64_t(tiling_.map_rows) * tiling_.experts);
    InitBuffers();
    PlaceTokens();
    if (tiling_.key == kTableInUb) CopyInTable();
  }

  __aicore__ inline void Run() {
    const CoreTokens tokens = TokensOfCore(tiling_.tokens, tiling_.cores);
    for (std::uint32_t token = tokens.begin; token < tokens.end; token += tiling_.tile_rows) {
      const std::uint32_t left = tokens.end - token;
      const std::uint32_t rows = left < tiling_.tile_rows ? left : tiling_.tile_rows;
      CopyIn(token, rows);
      Compute(rows);
      CopyOut(token, rows);
    }
    if (tiling_.key == kTableInUb) map_queue_.FreeTensor(table_);
  }

 private:
  __aicore__ inline void InitBuffers() {
    const std::uint32_t rows = tiling_.tile_rows;
    const std::uint32_t ids = rows * tiling_.top_k;
    pipe_->InitBuffer(id_queue_, 2, Aligned(ids * sizeof(Id)));
    pipe_->InitBuffer(out_queue_, 2, Aligned(ids * sizeof(Id)));
    pipe_->InitBuffer(token_buffer_, Aligned(ids * kEntryBytes));
    pipe_->InitBuffer(offset_buffer_, Aligned(ids * kEntryBytes));
    if (sizeof(Id) != kEntryBytes) pipe_->InitBuffer(narrow_buffer_, Aligned(ids * kEntryBytes));
    if (tiling_.key == kTableInUb) {
      pipe_->InitBuffer(slot_queue_, 2, Aligned(rows * kEntryBytes));
      pipe_->InitBuffer(start_buffer_, Aligned(rows * kEntryBytes));
      pipe_->InitBuffer(id_start_buffer_, Aligned(ids * kEntryBytes));
      pipe_->InitBuffer(map_queue_, 1, Aligned(tiling_.map_rows * tiling_.experts * kEntryBytes));
    } else {
      pipe_->InitBuffer(read_slot_buffer_, Aligned(rows * kEntryBytes));
      pipe_->InitBuffer(map_queue_, 2, rows * tiling_.row_pitch * kEntryBytes);
    }
  }

  // For each id of a tile, once: its token's place in the tile, as the offset at which that token's datum stands. The
  // half keeps the quotient clear of the whole numbers, so that the float division floors right.
  __aicore__ inline void PlaceTokens() {
    const std::uint32_t ids = tiling_.tile_rows * tiling_.top_k;
    const std::int32_t step = tiling_.key == kTableInUb ? kEntryBytes : tiling_.row_pitch * kEntryBytes;
    AscendC::LocalTensor<float> position = offset_buffer_.Get<float>();
    AscendC::LocalTensor<std::int32_t> token = token_buffer_.Get<std::int32_t>();
    AscendC::CreateVecIndex(position, 0.0f, ids);
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::Adds(position, position, 0.5f, ids);
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::Muls(position, position, 1.0f / static_cast<float>(tiling_.top_k), ids);
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::Cast(token, position, AscendC::RoundMode::CAST_FLOOR, ids);
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::Muls(token, token, step, ids);
    AscendC::PipeBarrier<PIPE_V>();
  }

  __aicore__ inline void CopyInTable() {
    AscendC::LocalTensor<std::int32_t> table = map_queue_.AllocTensor<std::int32_t>();
    CopyToUb(table, map_gm_, 0, tiling_.map_rows * tiling_.experts);
    map_queue_.EnQue(table);
    table_ = map_queue_.DeQue<std::int32_t>();
  }

  __aicore__ inline void CopyIn(std::uint32_t token, std::uint32_t rows) {
    AscendC::LocalTensor<Id> ids = id_queue_.AllocTensor<Id>();
    CopyToUb(ids, ids_gm_, std::uint64_t(token) * tiling_.top_k, rows * tiling_.top_k);
    id_queue_.EnQue(ids);
    if (tiling_.key == kTableInUb) {
      AscendC::LocalTensor<std::int32_t> slots = slot_queue_.AllocTensor<std::int32_t>();
      CopyToUb(slots, slots_gm_, token, rows);
      slot_queue_.EnQue(slots);
    } else {
      CopyInRows(token, rows);
    }
  }

  // The slots of the tile are read one by one: each names the row of the map to fetch for its token.
  __aicore__ inline void CopyInRows(std::uint32_t token, std::uint32_t rows) {
    AscendC::LocalTensor<std::int32_t> slots = read_slot_buffer_.Get<std::int32_t>();
    CopyToUb(slots, slots_gm_, token, rows);
    const auto copied = pipe_->FetchEventID(AscendC::HardEvent::MTE2_S);
    AscendC::SetFlag<AscendC::HardEvent::MTE2_S>(copied);
    AscendC::WaitFlag<AscendC::HardEvent::MTE2_S>(copied);
    AscendC::LocalTensor<std::int32_t> map_rows = map_queue_.AllocTensor<std::int32_t>();
    for (std::uint32_t row = 0; row < rows; ++row) {
      const std::uint64_t slot = slots.GetValue(row);
      CopyToUb(map_rows[row * tiling_.row_pitch], map_gm_, slot * tiling_.experts, tiling_.experts);
    }
    const auto read = pipe_->FetchEventID(AscendC::HardEvent::S_MTE2);
    AscendC::SetFlag<AscendC::HardEvent::S_MTE2>(read);
    AscendC::WaitFlag<AscendC::HardEvent::S_MTE2>(read);
    map_queue_.EnQue(map_rows);
  }

  __aicore__ inline void Compute(std::uint32_t rows) {
    const std::uint32_t ids = rows * tiling_.top_k;
    AscendC::LocalTensor<std::int32_t> offsets = offset_buffer_.Get<std::int32_t>();
    OffsetInRow(offsets, ids);
    if (tiling_.key == kTableInUb) {
      AscendC::Add(offsets, offsets, RowStarts(rows), ids);
      AscendC::PipeBarrier<PIPE_V>();
      Look(table_, offsets, ids);
    } else {
      AscendC::Add(offsets, offsets, token_buffer_.Get<std::int32_t>(), ids);
      AscendC::PipeBarrier<PIPE_V>();
      AscendC::LocalTensor<std::int32_t> map_rows = map_queue_.DeQue<std::int32_t>();
      Look(map_rows, offsets, ids);
      map_queue_.FreeTensor(map_rows);
    }
  }

  // Bytes from the start of a row of the map to each id's entry. Neither Gather nor Muls takes int64.
  __aicore__ inline void OffsetInRow(const AscendC::LocalTensor<std::int32_t>& offsets, std::uint32_t count) {
    AscendC::LocalTensor<Id> ids = id_queue_.template DeQue<Id>();
    if constexpr (sizeof(Id) != kEntryBytes) {
      AscendC::Cast(offsets, ids, AscendC::RoundMode::CAST_NONE, count);
      AscendC::PipeBarrier<PIPE_V>();
      AscendC::Muls(offsets, offsets, kEntryBytes, count);
    } else {
      AscendC::Muls(offsets, ids, kEntryBytes, count);
    }
    AscendC::PipeBarrier<PIPE_V>();
    id_queue_.FreeTensor(ids);
  }

  // For each id, where the row of the map begins that its token's slot names.
  __aicore__ inline AscendC::LocalTensor<std::int32_t> RowStarts(std::uint32_t rows) {
    AscendC::LocalTensor<std::int32_t> starts = start_buffer_.Get<std::int32_t>();
    AscendC::LocalTensor<std::int32_t> id_starts = id_start_buffer_.Get<std::int32_t>();
    AscendC::LocalTensor<std::int32_t> slots = slot_queue_.DeQue<std::int32_t>();
    AscendC::Muls(starts, slots, static_cast<std::int32_t>(tiling_.row_pitch * kEntryBytes), rows);
    AscendC::PipeBarrier<PIPE_V>();
    slot_queue_.FreeTensor(slots);
    AscendC::Gather(id_starts, starts, token_buffer_.Get<std::uint32_t>(), 0, rows * tiling_.top_k);
    AscendC::PipeBarrier<PIPE_V>();
    return id_starts;
  }

  __aicore__ inline void Look(const AscendC::LocalTensor<std::int32_t>& map,
                              const AscendC::LocalTensor<std::int32_t>& offsets, std::uint32_t count) {
    AscendC::LocalTensor<Id> out = out_queue_.template AllocTensor<Id>();
    if constexpr (sizeof(Id) != kEntryBytes) {
      AscendC::LocalTensor<std::int32_t> narrow = narrow_buffer_.Get<std::int32_t>();
      AscendC::Gather(narrow, map, offsets.template ReinterpretCast<std::uint32_t>(), 0, count);
      AscendC::PipeBarrier<PIPE_V>();
      AscendC::Cast(out, narrow, AscendC::RoundMode::CAST_NONE, count);
    } else {
      AscendC::Gather(out, map, offsets.template ReinterpretCast<std::uint32_t>(), 0, count);
    }
    AscendC::PipeBarrier<PIPE_V>();
    out_queue_.EnQue(out);
  }

  __aicore__ inline void CopyOut(std::uint32_t token, std::uint32_t rows) {
    AscendC::LocalTensor<Id> out = out_queue_.template DeQue<Id>();
    const std::uint32_t bytes = rows * tiling_.top_k * sizeof(Id);
    AscendC::DataCopyPad(out_gm_[std::uint64_t(token) * tiling_.top_k], out,
                         AscendC::DataCopyExtParams{1, bytes, 0, 0, 0});
    out_queue_.FreeTensor(out);
  }

  template <typename T>
  __aicore__ inline void CopyToUb(const AscendC::LocalTensor<T>& to, const AscendC::GlobalTensor<T>& from,
                                  std::uint64_t first, std::uint32_t count) {
    const std::uint32_t bytes = count * sizeof(T);
    AscendC::DataCopyPad(to, from[first], AscendC::DataCopyExtParams{1, bytes, 0, 0, 0},
                         AscendC::DataCopyPadExtParams<T>());
  }

  static __aicore__ inline std::uint32_t Aligned(std::uint32_t bytes) { return (bytes + 31) / 32 * 32; }

  AscendC::TPipe* pipe_;
  RerouteTiling tiling_;
  AscendC::GlobalTensor<Id> ids_gm_, out_gm_;
  AscendC::GlobalTensor<std::int32_t> slots_gm_, map_gm_;
  AscendC::TQue<AscendC::TPosition::VECIN, 2> id_queue_, slot_queue_, map_queue_;
  AscendC::TQue<AscendC::TPosition::VECOUT, 2> out_queue_;
  AscendC::TBuf<AscendC::TPosition::VECIN> read_slot_buffer_;
  AscendC::TBuf<AscendC::TPosition::VECCALC> token_buffer_, offset_buffer_, narrow_buffer_, start_buffer_,
      id_start_buffer_;
  AscendC::LocalTensor<std::int32_t> table_;
};

template <typename Id>
__aicore__ inline void RunReroute(GM_ADDR topk_ids, GM_ADDR token_slots, GM_ADDR expert_map, GM_ADDR out,
                                  const RerouteTiling& tiling) {
  AscendC::TPipe pipe;
  Reroute<Id> reroute(&pipe, tiling);
  reroute.Init(topk_ids, token_slots, expert_map, out);
  reroute.Run();
}

}  // namespace
}  // namespace weave::ascendc

// `out` may be `topk_ids`: a tile is read before it is written, and no two overlap.
extern "C" __global__ __aicore__ void weave_reroute(GM_ADDR topk_ids, GM_ADDR token_slots, GM_ADDR expert_map,
                                                    GM_ADDR out, weave::ascendc::RerouteTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  if (tiling.wide_ids != 0) {
    weave::ascendc::RunReroute<std::int64_t>(topk_ids, token_slots, expert_map, out, tiling);
  } else {
    weave::ascendc::RunReroute<std::int32_t>(topk_ids, token_slots, expert_map, out, tiling);
  }
}
