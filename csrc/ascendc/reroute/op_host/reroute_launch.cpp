#include "reroute_launch.h"

// A kernel can be launched only where it is compiled.
#include "../op_kernel/reroute.cpp"

namespace weave::ascendc {

void launch_reroute(void* stream, const RerouteTiling& tiling, void* topk_ids, void* token_slots, void* expert_map,
                    void* out) {
  weave_reroute<<<tiling.cores, nullptr, stream>>>(static_cast<GM_ADDR>(topk_ids), static_cast<GM_ADDR>(token_slots),
                                                   static_cast<GM_ADDR>(expert_map), static_cast<GM_ADDR>(out), tiling);
}

}  // namespace weave::ascendc
