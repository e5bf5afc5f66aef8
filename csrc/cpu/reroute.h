// Rerouting on the CPU: each token's expert ids are read through the row of the expert map that its slot names.
#pragma once

#include <ATen/core/Tensor.h>

namespace weave::cpu {

// out[t, k] = expert_map[token_slots[t], topk_ids[t, k]]. The semantics, and every refusal, are those of
// python/weave_ops/reference.py; python/weave_ops/schema.py has the signatures.
at::Tensor reroute(const at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map);

// The same, written over `topk_ids`; a refused call leaves it as it was.
void reroute_(at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map);

}  // namespace weave::cpu
