#include "gating_reroute.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "capability.h"
#include "expert_map.h"
#include "gating_row.h"

namespace weave::cpu {
namespace {

constexpr const char* kName = "gating_reroute";
// Logits a thread must have for itself before a second one is worth waking: some 20 us of work.
constexpr std::int64_t kGrainLogits = 32768;

// A call's tensors. Strides in elements.
template <typename Logit>
struct Call {
  const Logit* logits;
  std::int64_t token_stride, expert_stride;
  ExpertMap map;
  float* weights;      // [tokens, top_k]
  std::int32_t* rows;  // [tokens, top_k]
};

// Gates and reroutes the tokens from `begin` to `end`. Returns the first whose slot is outside of the map, or `end`.
template <typename Logit>
WEAVE_INLINE std::int64_t serve(const Gating& how, const Call<Logit>& call, std::int64_t begin, std::int64_t end) {
  const std::int64_t vectors = how.vectors();
  Vectors<Floats> scores(vectors), choice(vectors);
  Vectors<Ints> keys(vectors);
  std::vector<std::int32_t> worths(how.n_group);
  for (std::int64_t token = begin; token < end; ++token) {
    const std::int32_t* row = call.map.row(token);
    if (row == nullptr) return token;
    auto* logits = reinterpret_cast<float*>(scores.data());
    const Logit* from = call.logits + token * call.token_stride;
    if (call.expert_stride == 1) {
      for (std::int64_t expert = 0; expert < how.experts; ++expert) logits[expert] = static_cast<float>(from[expert]);
    } else {
      for (std::int64_t expert = 0; expert < how.experts; ++expert) {
        logits[expert] = static_cast<float>(from[expert * call.expert_stride]);
      }
    }
    std::fill(logits + how.experts, logits + vectors * kLanes, -std::numeric_limits<float>::infinity());
    std::int32_t* ids = call.rows + token * how.top_k;
    gate(how, {scores.data(), keys.data()}, choice.data(), worths.data(), call.weights + token * how.top_k, ids);
    for (std::int64_t k = 0; k < how.top_k; ++k) ids[k] = row[ids[k] * call.map.expert_stride];
  }
  return end;
}

template <typename Logit>
using Serve = std::int64_t (*)(const Gating&, const Call<Logit>&, std::int64_t, std::int64_t);

template <typename Logit>
std::int64_t serve_anywhere(const Gating& how, const Call<Logit>& call, std::int64_t begin, std::int64_t end) {
  return serve(how, call, begin, end);
}

template <typename Logit>
WEAVE_AVX2 std::int64_t serve_avx2(const Gating& how, const Call<Logit>& call, std::int64_t begin, std::int64_t end) {
  return serve(how, call, begin, end);
}

template <typename Logit>
WEAVE_AVX512 std::int64_t serve_avx512(const Gating& how, const Call<Logit>& call, std::int64_t begin,
                                       std::int64_t end) {
  return serve(how, call, begin, end);
}

template <typename Logit>
Serve<Logit> fastest() {
  switch (capability()) {
    case Capability::kAvx512:
      return serve_avx512<Logit>;
    case Capability::kAvx2:
      return serve_avx2<Logit>;
    default:
      return serve_anywhere<Logit>;
  }
}

void check_logits(const at::Tensor& logits, const std::optional<at::Tensor>& bias) {
  const at::ScalarType type = logits.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
                   "gating_reroute: logits must be float32, bfloat16 or float16, got ", type);
  TORCH_CHECK_VALUE(logits.dim() == 2, "gating_reroute: logits must be [tokens, experts], got ", logits.sizes());
  if (!bias) return;
  check_cpu(*bias, kName, "correction_bias");
  TORCH_CHECK_TYPE(bias->scalar_type() == at::kFloat, "gating_reroute: correction_bias must be float32, got ",
                   bias->scalar_type());
  TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == logits.size(1), "gating_reroute: correction_bias must be [",
                    logits.size(1), "], got ", bias->sizes());
}

void check_choice(const Gating& how, bool has_bias, std::string_view scoring) {
  TORCH_CHECK_VALUE(how.softmax || scoring == "sigmoid",
                    "gating_reroute: scoring must be one of softmax, sigmoid, got '", scoring, "'");
  const bool groups = how.n_group >= 1 && how.experts % how.n_group == 0 && how.topk_group >= 1;
  TORCH_CHECK_VALUE(groups && how.topk_group <= how.n_group, "gating_reroute: ", how.experts, " experts do not make ",
                    how.n_group, " groups of equal size to take ", how.topk_group, " of");
  const std::int64_t size = how.experts / how.n_group;
  TORCH_CHECK_VALUE(!has_bias || how.n_group == 1 || size >= 2,
                    "gating_reroute: with a correction bias a group needs two experts or more");
  TORCH_CHECK_VALUE(how.top_k >= 1 && how.top_k <= how.topk_group * size, "gating_reroute: top_k must be 1 to ",
                    how.topk_group * size, ", got ", how.top_k);
}

ExpertMap check_map(const at::Tensor& token_slots, const at::Tensor& expert_map, std::int64_t tokens,
                    std::int64_t experts) {
  check_cpu(token_slots, kName, "token_slots");
  check_cpu(expert_map, kName, "expert_map");
  TORCH_CHECK_VALUE(expert_map.dim() != 2 || expert_map.size(1) == experts, "gating_reroute: expert_map must have ",
                    experts, " columns, got ", expert_map.sizes());
  check_int32(token_slots, kName, "token_slots");
  check_int32(expert_map, kName, "expert_map");
  check_routing(token_slots, expert_map, tokens, kName);
  return {token_slots, expert_map};
}

// The bias padded to whole vectors, which lie where vectors may.
Vectors<Floats> padded(const at::Tensor& bias, std::int64_t vectors) {
  Vectors<Floats> out(vectors);
  const float* from = bias.const_data_ptr<float>();
  for (std::int64_t at = 0; at < bias.size(0); ++at)
    reinterpret_cast<float*>(out.data())[at] = from[at * bias.stride(0)];
  return out;
}

template <typename Logit>
void run(const Gating& how, const Call<Logit>& call, std::int64_t tokens) {
  const Serve<Logit> serve_tokens = fastest<Logit>();
  FirstBad bad(tokens);
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainLogits / how.experts);
  at::parallel_for(0, tokens, grain, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t stopped = serve_tokens(how, call, begin, end);
    if (stopped < end) bad.note(stopped);
  });
  TORCH_CHECK_INDEX(bad.token() == tokens, "gating_reroute: token ", bad.token(), " has slot ",
                    call.map.slot(std::min(bad.token(), tokens - 1)), ", but expert_map has the slots 0 to ",
                    call.map.slots - 1);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> gating_reroute(const at::Tensor& logits,
                                                  const std::optional<at::Tensor>& correction_bias, std::int64_t top_k,
                                                  std::string_view scoring, bool renormalize, std::int64_t n_group,
                                                  std::int64_t topk_group, double routed_scaling_factor,
                                                  const at::Tensor& token_slots, const at::Tensor& expert_map) {
  check_cpu(logits, kName, "logits");
  check_logits(logits, correction_bias);
  Gating how{logits.size(1),
             top_k,
             n_group,
             topk_group,
             scoring == "softmax",
             renormalize,
             static_cast<float>(routed_scaling_factor),
             nullptr};
  check_choice(how, correction_bias.has_value(), scoring);
  const std::int64_t tokens = logits.size(0);
  const ExpertMap map = check_map(token_slots, expert_map, tokens, how.experts);
  Vectors<Floats> bias = correction_bias ? padded(*correction_bias, how.vectors()) : Vectors<Floats>(0);
  if (correction_bias) how.bias = bias.data();
  at::Tensor weights = at::empty({tokens, top_k}, logits.options().dtype(at::kFloat));
  at::Tensor rows = at::empty({tokens, top_k}, logits.options().dtype(at::kInt));
  const auto serve_all = [&](auto logit) {
    using Logit = decltype(logit);
    const Call<Logit> call{
        logits.const_data_ptr<Logit>(), logits.stride(0), logits.stride(1), map, weights.data_ptr<float>(),
        rows.data_ptr<std::int32_t>()};
    run(how, call, tokens);
  };
  switch (logits.scalar_type()) {
    case at::kFloat:
      serve_all(float{});
      break;
    case at::kBFloat16:
      serve_all(at::BFloat16{});
      break;
    default:
      serve_all(at::Half{});
  }
  return {weights, rows};
}

}  // namespace weave::cpu
