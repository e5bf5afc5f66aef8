// torch.ops.npu_weave.gating_reroute on an NPU. python/weave_ops/schema.py has the semantics.
#include "../gating_reroute/op_host/gating_reroute_launch.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "../gating_reroute/op_host/gating_reroute_tiling.h"
#include "npu_tensors.h"

namespace weave::ascendc {
namespace {

constexpr const char* kName = "gating_reroute";

LogitsType logits_type(const at::Tensor& logits) {
  switch (logits.scalar_type()) {
    case at::kFloat:
      return kFloat32;
    case at::kBFloat16:
      return kBfloat16;
    case at::kHalf:
      return kFloat16;
    default:
      TORCH_CHECK_TYPE(false, kName, ": logits must be float32, bfloat16 or float16, got ", logits.scalar_type());
  }
}

void check(const at::Tensor& logits, const std::optional<at::Tensor>& correction_bias, std::string_view scoring,
           const at::Tensor& token_slots, const at::Tensor& expert_map) {
  TORCH_CHECK_VALUE(logits.dim() == 2, kName, ": logits must be [tokens, experts], got ", logits.sizes());
  const std::int64_t experts = logits.size(1);
  if (correction_bias.has_value()) {
    check_on_npu(*correction_bias, logits.device(), kName, "correction_bias");
    TORCH_CHECK_TYPE(correction_bias->scalar_type() == at::kFloat, kName, ": correction_bias must be float32, got ",
                     correction_bias->scalar_type());
    TORCH_CHECK_VALUE(correction_bias->dim() == 1 && correction_bias->size(0) == experts, kName,
                      ": correction_bias must be [", experts, "], got ", correction_bias->sizes());
  }
  TORCH_CHECK_VALUE(scoring == "softmax" || scoring == "sigmoid", kName, ": scoring must be one of softmax, sigmoid, ",
                    "got '", scoring, "'");
  check_routing(token_slots, expert_map, logits.size(0), logits.device(), kName);
  TORCH_CHECK_VALUE(expert_map.size(1) == experts, kName, ": expert_map must have ", experts, " columns, got ",
                    expert_map.sizes());
}

std::tuple<at::Tensor, at::Tensor> gating_reroute(const at::Tensor& logits,
                                                  const std::optional<at::Tensor>& correction_bias, std::int64_t top_k,
                                                  std::string_view scoring, bool renormalize, std::int64_t n_group,
                                                  std::int64_t topk_group, double routed_scaling_factor,
                                                  const at::Tensor& token_slots, const at::Tensor& expert_map) {
  check(logits, correction_bias, scoring, token_slots, expert_map);
  const bool biased = correction_bias.has_value();
  // An empty batch is refused for what a full one would be.
  const GatingShape shape{std::max<std::int64_t>(1, logits.size(0)),
                          logits.size(1),
                          top_k,
                          expert_map.size(0),
                          n_group,
                          topk_group,
                          logits_type(logits),
                          scoring == "sigmoid",
                          biased,
                          renormalize,
                          static_cast<float>(routed_scaling_factor)};
  GatingTiling tiling;
  const char* const refused = tile_gating_reroute(shape, vector_cores(), &tiling);
  TORCH_CHECK_VALUE(refused == nullptr, kName, ": on an NPU: ", refused, "; got logits ", logits.sizes(), ", top_k ",
                    top_k, ", n_group ", n_group, ", topk_group ", topk_group, " and expert_map ", expert_map.sizes());
  at::Tensor weights = at::empty({logits.size(0), top_k}, logits.options().dtype(at::kFloat));
  at::Tensor ids = at::empty({logits.size(0), top_k}, logits.options().dtype(at::kInt));
  if (logits.size(0) == 0) return {weights, ids};
  const at::Tensor values = logits.contiguous();
  const at::Tensor bias = biased ? correction_bias->contiguous() : at::Tensor();
  const at::Tensor slots = token_slots.contiguous();
  const at::Tensor map = expert_map.contiguous();
  enqueue(kName, [tiling, values = values.data_ptr(), bias = biased ? bias.data_ptr() : nullptr,
                  slots = slots.data_ptr(), map = map.data_ptr(), weights = weights.data_ptr(), ids = ids.data_ptr()](
                     void* stream) { launch_gating_reroute(stream, tiling, values, bias, slots, map, weights, ids); });
  return {weights, ids};
}

}  // namespace

TORCH_LIBRARY_IMPL(npu_weave, PrivateUse1, library) { library.impl("gating_reroute", &gating_reroute); }

}  // namespace weave::ascendc
