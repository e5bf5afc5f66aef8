// What the host tells the reroute kernel: shapes and how to cut them. Plain data, passed by value, made from shapes
// alone, so that a captured graph replays with it.
#pragma once

#include <cstdint>

#include "../expert_map_key.h"

namespace weave::ascendc {

struct RerouteTiling {
  std::uint32_t key;        // ExpertMapKey
  std::uint32_t wide_ids;   // 1: expert ids are int64, 0: int32
  std::uint32_t tokens;     // T
  std::uint32_t top_k;      // K
  std::uint32_t map_rows;   // slots + 1
  std::uint32_t experts;    // M
  std::uint32_t cores;      // blocks to launch; a core takes tokens / cores consecutive tokens, the first ones one more
  std::uint32_t tile_rows;  // tokens a tile
  std::uint32_t row_pitch;  // elements from one row of the map to the next in the unified buffer
  std::uint32_t ub_bytes;   // what the kernel allocates of the unified buffer
};

}  // namespace weave::ascendc
