// What the host tells the gating_reroute kernel: settings, shapes and how to cut them. Plain data, passed by value,
// made from settings and shapes alone, so that a captured graph replays with it.
#pragma once

#include <cstdint>

#include "../expert_map_key.h"

namespace weave::ascendc {

enum LogitsType : std::uint32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

// Entries that the kernel keeps for each token while it chooses: the most experts a token can have.
constexpr std::uint32_t kMaxTopK = 16;

// In the unified buffer a row of logits, of scores or of the map is `groups` segments of `group_pitch` columns, of
// which the first `group_size` are experts, in order; what is left of the `row_pitch` columns is padding as well.
struct GatingTiling {
  std::uint32_t key;          // ExpertMapKey
  std::uint32_t logits_type;  // LogitsType
  std::uint32_t sigmoid;      // 1: sigmoid scores, 0: softmax
  std::uint32_t biased;       // 1: there is a correction bias
  std::uint32_t renormalize;
  float scale;               // routed_scaling_factor
  std::uint32_t tokens;      // T
  std::uint32_t top_k;       // K
  std::uint32_t experts;     // M
  std::uint32_t map_rows;    // slots + 1
  std::uint32_t groups;      // 1 where groups change nothing
  std::uint32_t topk_group;  // groups to choose from
  std::uint32_t group_size;
  std::uint32_t group_pitch;  // a power of two, 32 or more
  std::uint32_t row_pitch;    // a power of two, 64 to 512
  std::uint32_t cores;        // blocks to launch; a core takes tokens / cores consecutive tokens, the first one more
  std::uint32_t tile_rows;    // tokens a tile, a multiple of 8
  std::uint32_t ub_bytes;     // what the kernel allocates of the unified buffer
};

}  // namespace weave::ascendc
