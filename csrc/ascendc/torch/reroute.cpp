// torch.ops.npu_weave.reroute and reroute_ on an NPU. python/weave_ops/schema.py has the semantics.
#include "../reroute/op_host/reroute_launch.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../reroute/op_host/reroute_tiling.h"
#include "npu_tensors.h"

namespace weave::ascendc {
namespace {

void check(const at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map, const char* op) {
  TORCH_CHECK_TYPE(topk_ids.scalar_type() == at::kInt || topk_ids.scalar_type() == at::kLong, op,
                   ": topk_ids must be int32 or int64, got ", topk_ids.scalar_type());
  TORCH_CHECK_VALUE(topk_ids.dim() == 2, op, ": topk_ids must be [tokens, top_k], got ", topk_ids.sizes());
  check_routing(token_slots, expert_map, topk_ids.size(0), topk_ids.device(), op);
}

// `topk_ids` and `out` are contiguous, and may be the same.
void run(const at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map, const at::Tensor& out,
         const char* op) {
  if (topk_ids.numel() == 0) return;
  const RerouteShape shape{topk_ids.size(0), topk_ids.size(1), expert_map.size(0), expert_map.size(1),
                           topk_ids.scalar_type() == at::kLong};
  RerouteTiling tiling;
  const char* const refused = tile_reroute(shape, vector_cores(), &tiling);
  TORCH_CHECK_VALUE(refused == nullptr, op, ": on an NPU: ", refused, "; got topk_ids ", topk_ids.sizes(),
                    " and expert_map ", expert_map.sizes());
  const at::Tensor slots = token_slots.contiguous();
  const at::Tensor map = expert_map.contiguous();
  enqueue(op, [tiling, ids = topk_ids.data_ptr(), slots = slots.data_ptr(), map = map.data_ptr(),
               out = out.data_ptr()](void* stream) { launch_reroute(stream, tiling, ids, slots, map, out); });
}

at::Tensor reroute(const at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map) {
  check(topk_ids, token_slots, expert_map, "reroute");
  const at::Tensor ids = topk_ids.contiguous();
  at::Tensor out = at::empty_like(ids);
  run(ids, token_slots, expert_map, out, "reroute");
  return out;
}

void reroute_(at::Tensor& topk_ids, const at::Tensor& token_slots, const at::Tensor& expert_map) {
  check(topk_ids, token_slots, expert_map, "reroute_");
  at::assert_no_internal_overlap(topk_ids);
  at::assert_no_overlap(topk_ids, token_slots);
  at::assert_no_overlap(topk_ids, expert_map);
  if (topk_ids.is_contiguous()) {
    run(topk_ids, token_slots, expert_map, topk_ids, "reroute_");
    return;
  }
  const at::Tensor ids = topk_ids.contiguous();
  run(ids, token_slots, expert_map, ids, "reroute_");
  topk_ids.copy_(ids);
}

}  // namespace

TORCH_LIBRARY_IMPL(npu_weave, PrivateUse1, library) {
  library.impl("reroute", &reroute);
  library.impl("reroute_", &reroute_);
}

}  // namespace weave::ascendc
