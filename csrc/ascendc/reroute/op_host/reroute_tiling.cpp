#include "reroute_tiling.h"

#include <algorithm>

#include "../../unified_buffer.h"

namespace weave::ascendc {
namespace {

// Fewer tokens than this are not worth a core of their own: a vector instruction costs the same for them all.
constexpr std::int64_t kTokensWorthACore = 16;
// The kernel finds the token of an id by dividing in float32, exact up to here.
constexpr std::int64_t kMaxTileIds = 16384;
constexpr std::int64_t kMaxTopK = 1024;
// Larger tiles would leave a core too few of them to move one while it computes another.
constexpr std::int64_t kMaxTileTokens = 256;

// What the kernel's InitBuffers allocates, without the table.
std::int64_t tile_bytes(const RerouteShape& shape, bool row_by_row, std::int64_t row_pitch, std::int64_t rows) {
  const std::int64_t entries = block_aligned(rows * shape.top_k * 4);
  const std::int64_t ids = block_aligned(rows * shape.top_k * (shape.wide_ids ? 8 : 4));
  const std::int64_t slots = block_aligned(rows * 4);
  std::int64_t bytes = 4 * ids + 2 * entries;  // ids and results, twice each; the tokens of the ids, offsets
  if (shape.wide_ids) bytes += entries;        // results before they are widened
  if (row_by_row) return bytes + slots + 2 * rows * row_pitch * 4;
  return bytes + 3 * slots + entries;  // slots twice, where their rows start, and the same for each id
}

std::int64_t largest_tile(const RerouteShape& shape, bool row_by_row, std::int64_t row_pitch, std::int64_t wanted,
                          std::int64_t budget) {
  std::int64_t rows = std::min({wanted, kMaxTileTokens, kMaxTileIds / shape.top_k});
  while (rows > 0 && tile_bytes(shape, row_by_row, row_pitch, rows) > budget) --rows;
  return rows;
}

}  // namespace

const char* tile_reroute(const RerouteShape& shape, std::int64_t vector_cores, RerouteTiling* tiling) {
  if (shape.tokens < 1 || shape.top_k < 1 || shape.map_rows < 1 || shape.experts < 1 || vector_cores < 1) {
    return "every size must be 1 or more";
  }
  if (shape.tokens >= INT32_MAX) return "at most 2147483646 tokens";
  if (shape.top_k > kMaxTopK) return "at most 1024 expert ids a token";
  const std::int64_t cores = std::min(vector_cores, ceil_div(shape.tokens, kTokensWorthACore));
  const std::int64_t tokens_per_core = ceil_div(shape.tokens, cores);

  // In the unified buffer the whole map is contiguous, as it is in memory; single rows start at whole blocks. The map
  // is worth its room where that moves fewer bytes and does not make the tiles too small.
  const std::int64_t row_blocks_pitch = block_aligned(shape.experts * 4) / 4;
  const std::int64_t table_bytes = block_aligned(shape.map_rows * shape.experts * 4);
  const std::int64_t rows_by_row = largest_tile(shape, true, row_blocks_pitch, tokens_per_core, kUbBytes);
  const std::int64_t rows_beside_table =
      table_bytes < kUbBytes ? largest_tile(shape, false, shape.experts, tokens_per_core, kUbBytes - table_bytes) : 0;
  const bool row_by_row = tokens_per_core < shape.map_rows || rows_beside_table < 1 ||
                          rows_beside_table < std::min(rows_by_row / 2, kTokensWorthACore);
  const std::int64_t rows = row_by_row ? rows_by_row : rows_beside_table;
  const std::int64_t row_pitch = row_by_row ? row_blocks_pitch : shape.experts;
  if (rows < 1) return "a row of the expert map and a token's ids do not fit into the unified buffer";

  tiling->key = row_by_row ? kRowByRow : kTableInUb;
  tiling->wide_ids = shape.wide_ids ? 1 : 0;
  tiling->tokens = static_cast<std::uint32_t>(shape.tokens);
  tiling->top_k = static_cast<std::uint32_t>(shape.top_k);
  tiling->map_rows = static_cast<std::uint32_t>(shape.map_rows);
  tiling->experts = static_cast<std::uint32_t>(shape.experts);
  tiling->cores = static_cast<std::uint32_t>(cores);
  tiling->tile_rows = static_cast<std::uint32_t>(rows);
  tiling->row_pitch = static_cast<std::uint32_t>(row_pitch);
  tiling->ub_bytes =
      static_cast<std::uint32_t>(tile_bytes(shape, row_by_row, row_pitch, rows) + (row_by_row ? 0 : table_bytes));
  return nullptr;
}

}  // namespace weave::ascendc
