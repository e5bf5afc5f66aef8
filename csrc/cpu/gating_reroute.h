// Gating and rerouting of a MoE layer's tokens on the CPU, in one pass over the logits.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace weave::cpu {

// The semantics, and every refusal, are those of python/weave_ops/gating_reference.py.
std::tuple<at::Tensor, at::Tensor> gating_reroute(const at::Tensor& logits,
                                                  const std::optional<at::Tensor>& correction_bias, std::int64_t top_k,
                                                  std::string_view scoring, bool renormalize, std::int64_t n_group,
                                                  std::int64_t topk_group, double routed_scaling_factor,
                                                  const at::Tensor& token_slots, const at::Tensor& expert_map);

}  // namespace weave::cpu
