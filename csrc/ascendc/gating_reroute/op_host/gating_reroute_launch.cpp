#include "gating_reroute_launch.h"

// A kernel can be launched only where it is compiled.
#include "../op_kernel/gating_reroute.cpp"

namespace weave::ascendc {

void launch_gating_reroute(void* stream, const GatingTiling& tiling, void* logits, void* correction_bias,
                           void* token_slots, void* expert_map, void* weights, void* ids) {
  weave_gating_reroute<<<tiling.cores, nullptr, stream>>>(
      static_cast<GM_ADDR>(logits), static_cast<GM_ADDR>(correction_bias), static_cast<GM_ADDR>(token_slots),
      static_cast<GM_ADDR>(expert_map), static_cast<GM_ADDR>(weights), static_cast<GM_ADDR>(ids), tiling);
}

}  // namespace weave::ascendc
