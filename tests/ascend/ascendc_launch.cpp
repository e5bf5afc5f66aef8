// In place of CANN's compiler: the AscendC kernels, compiled against their emulation, as tasks on a stream of the
// emulated runtime. Everything else of csrc/ascendc is compiled as it is for an NPU.
#include "acl/acl.h"
#include "stream.h"

#include "../../csrc/ascendc/gating_reroute/op_host/gating_reroute_launch.h"
#include "../../csrc/ascendc/gating_reroute/op_kernel/gating_reroute.cpp"
#include "../../csrc/ascendc/reroute/op_host/reroute_launch.h"
#include "../../csrc/ascendc/reroute/op_kernel/reroute.cpp"

namespace {

constexpr std::int64_t kVectorCores = 3;

using Memory = std::vector<emulated::Session::Tensor>;

// All of a kernel's parameters must be copyable: the task outlives the call.
template <typename... Parameters>
void push(void* stream, std::int64_t cores, Memory memory, void (*kernel)(Parameters...), Parameters... arguments) {
  const auto on = cann::stream_of(stream);
  on->push([on = on.get(), cores, memory, kernel, values = std::tuple(arguments...)]() mutable {
    emulated::session().tensors = memory;
    std::apply(
        [&](auto&... each) {
          void* pointers[] = {&each...};
          if (emulated::launch(kernel, cores, 0, pointers) == 0) return;
          std::fprintf(stderr, "emulated AscendC: %s\n", emulated::session().error.c_str());
          on->device.fault();
        },
        values);
  });
}

emulated::Session::Tensor read(const void* address, std::uint64_t bytes) {
  return {reinterpret_cast<std::uintptr_t>(address), bytes, true, false};
}

emulated::Session::Tensor written(const void* address, std::uint64_t bytes) {
  return {reinterpret_cast<std::uintptr_t>(address), bytes, true, true};
}

}  // namespace

extern "C" aclError aclrtGetDeviceInfo(std::uint32_t, aclrtDevAttr attribute, std::int64_t* value) {
  if (attribute != ACL_DEV_ATTR_VECTOR_CORE_NUM) return ACL_ERROR_INVALID_PARAM;
  *value = kVectorCores;
  return ACL_SUCCESS;
}

namespace weave::ascendc {

void launch_reroute(void* stream, const RerouteTiling& tiling, void* topk_ids, void* token_slots, void* expert_map,
                    void* out) {
  const std::uint64_t bytes = std::uint64_t(tiling.tokens) * tiling.top_k * (tiling.wide_ids ? 8 : 4);
  Memory memory{read(token_slots, tiling.tokens * 4ull), read(expert_map, 4ull * tiling.map_rows * tiling.experts),
                written(out, bytes)};
  if (topk_ids != out) memory.push_back(read(topk_ids, bytes));
  push(stream, tiling.cores, memory, &weave_reroute, static_cast<GM_ADDR>(topk_ids), static_cast<GM_ADDR>(token_slots),
       static_cast<GM_ADDR>(expert_map), static_cast<GM_ADDR>(out), RerouteTiling(tiling));
}

void launch_gating_reroute(void* stream, const GatingTiling& tiling, void* logits, void* correction_bias,
                           void* token_slots, void* expert_map, void* weights, void* ids) {
  const std::uint64_t chosen = 4ull * tiling.tokens * tiling.top_k;
  const std::uint64_t logit_bytes = tiling.logits_type == kFloat32 ? 4 : 2;
  Memory memory{read(logits, logit_bytes * tiling.tokens * tiling.experts), read(token_slots, tiling.tokens * 4ull),
                read(expert_map, 4ull * tiling.map_rows * tiling.experts), written(weights, chosen),
                written(ids, chosen)};
  if (tiling.biased != 0) memory.push_back(read(correction_bias, 4ull * tiling.experts));
  push(stream, tiling.cores, memory, &weave_gating_reroute, static_cast<GM_ADDR>(logits),
       static_cast<GM_ADDR>(correction_bias), static_cast<GM_ADDR>(token_slots), static_cast<GM_ADDR>(expert_map),
       static_cast<GM_ADDR>(weights), static_cast<GM_ADDR>(ids), GatingTiling(tiling));
}

}  // namespace weave::ascendc
