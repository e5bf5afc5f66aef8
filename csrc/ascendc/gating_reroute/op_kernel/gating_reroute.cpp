// gating_reroute on the vector cores: a router's logits to weights and rows of the weight tensor, a tile of tokens at a
// time; every vector instruction serves all of the tile. python/weave_ops/schema.py has the semantics.
//
//   logits -> scores (softmax, sigmoid) -> choice (+ bias, only the best groups) -> its 16 best columns, sorted
//   columns -> weights (read from the scores, divided by their sum, scaled) and ids (read from the map)
//
// A column travels through the sort as the byte offset of its score in the tile. The map's rows lie as the scores do,
// so the same offset, moved by a row's start, finds the entry of the map.
#include "kernel_operator.h"

#include "../../core_tokens.h"
#include "best_groups.h"
#include "map_source.h"

namespace weave::ascendc {
namespace {

template <typename Logit>
class GatingReroute {
 public:
  __aicore__ inline GatingReroute(AscendC::TPipe* pipe, const GatingTiling& tiling)
      : pipe_(pipe),
        tiling_(tiling),
        layout_(tiling),
        scores_(layout_, row_values_),
        groups_(tiling, best_),
        map_(tiling, layout_) {}

  __aicore__ inline void Init(GM_ADDR logits, GM_ADDR correction_bias, GM_ADDR token_slots, GM_ADDR expert_map,
                              GM_ADDR weights, GM_ADDR ids) {
    const std::uint64_t chosen = std::uint64_t(tiling_.tokens) * tiling_.top_k;
    logits_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ Logit*>(logits),
                               std::uint64_t(tiling_.tokens) * tiling_.experts);
    weights_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(weights), chosen);
    ids_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ std::int32_t*>(ids), chosen);
    const std::uint32_t rows = tiling_.tile_rows;
    const std::uint32_t columns = rows * layout_.Pitch();
    // What Sort32 reads and writes comes first: it stands at multiples of 256 bytes then, as that asks for.
    pipe_->InitBuffer(logit_queue_, 2, columns * sizeof(Logit));
    if constexpr (sizeof(Logit) != sizeof(float)) pipe_->InitBuffer(score_buffer_, columns * sizeof(float));
    pipe_->InitBuffer(choice_buffer_, columns * sizeof(float));
    pipe_->InitBuffer(column_buffer_, columns * sizeof(std::int32_t));
    best_.Init(pipe_, columns);
    if (tiling_.groups > 1) groups_.Init(pipe_, rows);
    pipe_->InitBuffer(number_buffer_, columns / 8);
    pipe_->InitBuffer(chosen_buffer_, rows * kChosenBytes);
    pipe_->InitBuffer(offset_buffer_, rows * kChosenBytes);
    pipe_->InitBuffer(weight_queue_, 2, rows * kChosenBytes);
    pipe_->InitBuffer(id_queue_, 2, rows * kChosenBytes);
    row_values_.Init(pipe_, rows);
    if (tiling_.biased != 0) CopyInBias(correction_bias);
    map_.Init(pipe_, rows, token_slots, expert_map, tiling_);
    const AscendC::LocalTensor<std::int32_t> offsets = column_buffer_.Get<std::int32_t>();
    AscendC::CreateVecIndex(offsets, std::int32_t(0), columns);
    Then();
    AscendC::Muls(offsets, offsets, static_cast<std::int32_t>(sizeof(float)), static_cast<std::int32_t>(columns));
    Then();
  }

  __aicore__ inline void Run() {
    const CoreTokens tokens = TokensOfCore(tiling_.tokens, tiling_.cores);
    for (std::uint32_t token = tokens.begin; token < tokens.end; token += tiling_.tile_rows) {
      const std::uint32_t rows = Least(tokens.end - token, tiling_.tile_rows);
      AscendC::LocalTensor<Logit> logits = logit_queue_.template AllocTensor<Logit>();
      layout_.CopyIn(logits, logits_gm_, token, rows);
      logit_queue_.EnQue(logits);
      map_.CopyIn(token, rows);
      Compute(rows);
      CopyOut(token, rows);
    }
    if (tiling_.biased != 0) bias_queue_.FreeTensor(bias_);
    map_.Finish();
  }

 private:
  static constexpr std::uint32_t kChosenBytes = kMaxTopK * sizeof(float);
  static constexpr std::uint8_t kChosenBlocks = kMaxTopK / kBlockLanes;

  __aicore__ inline void CopyInBias(GM_ADDR correction_bias) {
    bias_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(correction_bias), tiling_.experts);
    pipe_->InitBuffer(bias_queue_, 1, layout_.Pitch() * sizeof(float));
    AscendC::LocalTensor<float> bias = bias_queue_.template AllocTensor<float>();
    layout_.CopyIn(bias, bias_gm_, 0, 1);
    bias_queue_.EnQue(bias);
    bias_ = bias_queue_.template DeQue<float>();
    layout_.Pad(bias_, 0.0f, 1);
  }

  __aicore__ inline void Compute(std::uint32_t rows) {
    AscendC::LocalTensor<Logit> logits = logit_queue_.template DeQue<Logit>();
    const AscendC::LocalTensor<float> scores = Widen(logits, rows);
    const AscendC::LocalTensor<float> choice = choice_buffer_.Get<float>();
    layout_.Pad(scores, -kInfinity, rows);
    if (tiling_.sigmoid != 0) {
      scores_.Sigmoid(scores, choice, rows);
    } else {
      scores_.Softmax(scores, best_.Pairs(), rows);
    }
    MakeChoice(choice, scores, rows);
    best_.Sort(choice, column_buffer_.Get<std::uint32_t>(), rows * layout_.Pitch() / kSorted, rows, tiling_.top_k);
    const AscendC::LocalTensor<std::int32_t> chosen = chosen_buffer_.Get<std::int32_t>();
    best_.Payloads(chosen, kMaxTopK, rows);
    Weigh(scores, chosen, rows);
    if constexpr (sizeof(Logit) == sizeof(float)) logit_queue_.FreeTensor(logits);

    AscendC::LocalTensor<std::int32_t> ids = id_queue_.template AllocTensor<std::int32_t>();
    map_.Look(ids, chosen, offset_buffer_.Get<std::int32_t>(), row_values_, rows);
    id_queue_.EnQue(ids);
  }

  // Logits as float32: themselves if they are, else a copy, for which they are given back.
  __aicore__ inline AscendC::LocalTensor<float> Widen(AscendC::LocalTensor<Logit>& logits, std::uint32_t rows) {
    if constexpr (sizeof(Logit) == sizeof(float)) {
      return logits;
    } else {
      const AscendC::LocalTensor<float> scores = score_buffer_.Get<float>();
      if (!layout_.Padded()) {
        AscendC::Cast(scores, logits, AscendC::RoundMode::CAST_NONE, rows * layout_.Pitch());
      } else {
        const auto logit_blocks = static_cast<std::uint8_t>(layout_.RowBlocks() / 2);
        for (std::uint32_t part = 0; part < layout_.Parts(); ++part) {
          std::uint64_t experts[2] = {layout_.Experts(part), 0};
          if (experts[0] == 0) continue;
          AscendC::Cast(scores[part * kLanes], logits[part * kLanes], AscendC::RoundMode::CAST_NONE, experts,
                        static_cast<std::uint8_t>(rows), {1, 1, layout_.RowBlocks(), logit_blocks});
        }
      }
      Then();
      logit_queue_.FreeTensor(logits);
      return scores;
    }
  }

  // What to select by: a NaN counts as +inf, a choice of -inf as kLowest, for below that there is the padding only.
  __aicore__ inline void MakeChoice(const AscendC::LocalTensor<float>& choice,
                                    const AscendC::LocalTensor<float>& scores, std::uint32_t rows) {
    const AscendC::LocalTensor<std::uint8_t> numbers = number_buffer_.Get<std::uint8_t>();
    const std::uint32_t count = rows * layout_.Pitch();
    if (tiling_.biased != 0) {
      for (std::uint32_t part = 0; part < layout_.Parts(); ++part) {
        AscendC::Add(choice[part * kLanes], scores[part * kLanes], bias_[part * kLanes], kLanes,
                     static_cast<std::uint8_t>(rows), {1, 1, 1, layout_.RowBlocks(), layout_.RowBlocks(), 0});
      }
      Then();
      RaiseNaN(choice, choice, numbers, count);
      AscendC::Maxs(choice, choice, kLowest, static_cast<std::int32_t>(count));
      Then();
    } else {
      RaiseNaN(choice, scores, numbers, count);
    }
    layout_.Pad(choice, -kInfinity, rows);
    if (tiling_.groups > 1) groups_.Restrict(choice, column_buffer_.Get<std::uint32_t>(), numbers, rows);
  }

  __aicore__ inline void Weigh(const AscendC::LocalTensor<float>& scores,
                               const AscendC::LocalTensor<std::int32_t>& chosen, std::uint32_t rows) {
    AscendC::LocalTensor<float> weights = weight_queue_.template AllocTensor<float>();
    AscendC::Gather(weights, scores, chosen.ReinterpretCast<std::uint32_t>(), 0, rows * kMaxTopK);
    Then();
    if (tiling_.renormalize != 0) {
      const AscendC::LocalTensor<float> sums = row_values_.Values();
      AscendC::WholeReduceSum(sums, weights, static_cast<std::int32_t>(tiling_.top_k), static_cast<std::int32_t>(rows),
                              1, 1, kChosenBlocks);
      Then();
      AscendC::Div(weights, weights, row_values_.Blocks(sums, rows), kMaxTopK, static_cast<std::uint8_t>(rows),
                   {1, 1, 0, kChosenBlocks, kChosenBlocks, 1});
      Then();
    }
    AscendC::Muls(weights, weights, tiling_.scale, static_cast<std::int32_t>(rows * kMaxTopK));
    Then();
    weight_queue_.EnQue(weights);
  }

  __aicore__ inline void CopyOut(std::uint32_t token, std::uint32_t rows) {
    const std::uint64_t first = std::uint64_t(token) * tiling_.top_k;
    const std::uint32_t bytes = tiling_.top_k * sizeof(float);
    const std::uint32_t gap_blocks = kChosenBlocks - CeilDiv(bytes, 32);
    const AscendC::DataCopyExtParams rows_of_results{static_cast<std::uint16_t>(rows), bytes, gap_blocks, 0, 0};
    AscendC::LocalTensor<float> weights = weight_queue_.template DeQue<float>();
    AscendC::DataCopyPad(weights_gm_[first], weights, rows_of_results);
    weight_queue_.FreeTensor(weights);
    AscendC::LocalTensor<std::int32_t> ids = id_queue_.template DeQue<std::int32_t>();
    AscendC::DataCopyPad(ids_gm_[first], ids, rows_of_results);
    id_queue_.FreeTensor(ids);
  }

  AscendC::TPipe* pipe_;
  GatingTiling tiling_;
  RowLayout layout_;
  RowValues row_values_;
  Scores scores_;
  BestExperts best_;
  BestGroups groups_;
  MapSource map_;
  AscendC::GlobalTensor<Logit> logits_gm_;
  AscendC::GlobalTensor<float> bias_gm_, weights_gm_;
  AscendC::GlobalTensor<std::int32_t> ids_gm_;
  AscendC::TQue<AscendC::TPosition::VECIN, 2> logit_queue_, bias_queue_;
  AscendC::TQue<AscendC::TPosition::VECOUT, 2> weight_queue_, id_queue_;
  AscendC::TBuf<AscendC::TPosition::VECCALC> score_buffer_, choice_buffer_, column_buffer_, number_buffer_,
      chosen_buffer_, offset_buffer_;
  AscendC::LocalTensor<float> bias_;
};

template <typename Logit>
__aicore__ inline void RunGatingReroute(GM_ADDR logits, GM_ADDR correction_bias, GM_ADDR token_slots,
                                        GM_ADDR expert_map, GM_ADDR weights, GM_ADDR ids, const GatingTiling& tiling) {
  AscendC::TPipe pipe;
  GatingReroute<Logit> gating_reroute(&pipe, tiling);
  gating_reroute.Init(logits, correction_bias, token_slots, expert_map, weights, ids);
  gating_reroute.Run();
}

}  // namespace
}  // namespace weave::ascendc

extern "C" __global__ __aicore__ void weave_gating_reroute(GM_ADDR logits, GM_ADDR correction_bias, GM_ADDR token_slots,
                                                           GM_ADDR expert_map, GM_ADDR weights, GM_ADDR ids,
                                                           weave::ascendc::GatingTiling tiling) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  switch (tiling.logits_type) {
    case weave::ascendc::kFloat32:
      weave::ascendc::RunGatingReroute<float>(logits, correction_bias, token_slots, expert_map, weights, ids, tiling);
      break;
    case weave::ascendc::kBfloat16:
      weave::ascendc::RunGatingReroute<bfloat16_t>(logits, correction_bias, token_slots, expert_map, weights, ids,
                                                   tiling);
      break;
    default:
      weave::ascendc::RunGatingReroute<half>(logits, correction_bias, token_slots, expert_map, weights, ids, tiling);
  }
}
