#include "gating_reroute_tiling.h"

#include <algorithm>

#include "../../unified_buffer.h"

namespace weave::ascendc {
namespace {

constexpr std::int64_t kMaxExperts = 512;
// A vector instruction costs the same for 1 token and for 8, and some read eight in any case.
constexpr std::int64_t kTokensWorthACore = 8;
constexpr std::int64_t kTileStep = 8;
constexpr std::int64_t kMaxTileTokens = 64;
constexpr std::int64_t kSorted = 32;  // what one Sort32 sorts

constexpr std::int64_t power_of_two(std::int64_t at_least) {
  std::int64_t power = 1;
  while (power < at_least) power *= 2;
  return power;
}

const char* refusal(const GatingShape& shape, std::int64_t vector_cores) {
  if (shape.tokens < 1 || shape.map_rows < 1 || vector_cores < 1) return "every size must be 1 or more";
  if (shape.tokens >= INT32_MAX) return "at most 2147483646 tokens";
  if (shape.experts < 1 || shape.experts > kMaxExperts) return "1 to 512 experts";
  if (shape.n_group < 1 || shape.experts % shape.n_group != 0 || shape.topk_group < 1 ||
      shape.topk_group > shape.n_group) {
    return "experts must make n_group groups of equal size, and topk_group be 1 to n_group";
  }
  if (shape.biased && shape.n_group > 1 && shape.experts / shape.n_group < 2) {
    return "with a correction bias a group needs two experts or more";
  }
  if (shape.top_k < 1 || shape.top_k > kMaxTopK) return "top_k must be 1 to 16";
  if (shape.top_k > shape.topk_group * (shape.experts / shape.n_group)) {
    return "top_k must not exceed the experts of topk_group groups";
  }
  return nullptr;
}

// What the kernel's InitBuffers allocate, without the table.
std::int64_t tile_bytes(const GatingTiling& tiling, bool row_by_row, std::int64_t rows) {
  const std::int64_t columns = rows * tiling.row_pitch;
  const bool narrow = tiling.logits_type != kFloat32;
  std::int64_t bytes = 2 * columns * (narrow ? 2 : 4);  // logits, twice
  if (narrow) bytes += 4 * columns;                     // scores, which float32 logits make way for
  bytes += (4 + 4 + 8 + 4) * columns;                   // choice, columns, sorted pairs, their best
  bytes += columns / 8;                                 // which are numbers
  bytes += 2 * 2 * rows * kMaxTopK * 4;                 // weights and ids, twice
  bytes += 2 * rows * kMaxTopK * 4;                     // columns of the chosen, and in the map
  bytes += rows * (4 + 32);                             // a value of each row, and a block of it
  bytes += 3 * rows * 4;                                // slots, twice, and where the rows start
  if (tiling.biased) bytes += tiling.row_pitch * 4;
  if (tiling.groups > 1) bytes += 5 * rows * kSorted * 4 + rows * tiling.row_pitch / tiling.group_pitch * 4;
  if (row_by_row) return bytes + 2 * 4 * columns + block_aligned(rows * 4) - 3 * rows * 4;
  return bytes;
}

std::int64_t largest_tile(const GatingTiling& tiling, bool row_by_row, std::int64_t wanted, std::int64_t budget) {
  std::int64_t rows = std::min(ceil_div(wanted, kTileStep) * kTileStep, kMaxTileTokens);
  while (rows > 0 && tile_bytes(tiling, row_by_row, rows) > budget) rows -= kTileStep;
  return rows;
}

void lay_out_rows(const GatingShape& shape, GatingTiling* tiling) {
  const bool grouped = shape.n_group > 1 && shape.topk_group < shape.n_group;
  const std::int64_t groups = grouped ? shape.n_group : 1;
  const std::int64_t size = shape.experts / groups;
  const std::int64_t pitch = power_of_two(std::max(size, grouped ? kSorted : 2 * kSorted));
  tiling->groups = static_cast<std::uint32_t>(groups);
  tiling->topk_group = static_cast<std::uint32_t>(grouped ? shape.topk_group : 1);
  tiling->group_size = static_cast<std::uint32_t>(size);
  tiling->group_pitch = static_cast<std::uint32_t>(pitch);
  tiling->row_pitch = static_cast<std::uint32_t>(pitch * power_of_two(groups));
}

}  // namespace

const char* tile_gating_reroute(const GatingShape& shape, std::int64_t vector_cores, GatingTiling* tiling) {
  if (const char* why = refusal(shape, vector_cores)) return why;
  tiling->logits_type = shape.logits_type;
  tiling->sigmoid = shape.sigmoid ? 1 : 0;
  tiling->biased = shape.biased ? 1 : 0;
  tiling->renormalize = shape.renormalize ? 1 : 0;
  tiling->scale = shape.scale;
  tiling->tokens = static_cast<std::uint32_t>(shape.tokens);
  tiling->top_k = static_cast<std::uint32_t>(shape.top_k);
  tiling->experts = static_cast<std::uint32_t>(shape.experts);
  tiling->map_rows = static_cast<std::uint32_t>(shape.map_rows);
  lay_out_rows(shape, tiling);
  if (tiling->row_pitch > kMaxExperts) return "the groups, each padded to 32 or more columns, exceed 512 columns";

  const std::int64_t cores = std::min(vector_cores, ceil_div(shape.tokens, kTokensWorthACore));
  const std::int64_t tokens_per_core = ceil_div(shape.tokens, cores);
  const std::int64_t table_bytes = shape.map_rows * tiling->row_pitch * 4;
  std::int64_t rows = 0;
  if (tokens_per_core >= shape.map_rows && table_bytes < kUbBytes) {
    rows = largest_tile(*tiling, false, tokens_per_core, kUbBytes - table_bytes);
  }
  const bool row_by_row = rows < kTileStep;
  if (row_by_row) rows = largest_tile(*tiling, true, tokens_per_core, kUbBytes);
  if (rows < kTileStep) return "eight tokens do not fit into the unified buffer";

  tiling->key = row_by_row ? kRowByRow : kTableInUb;
  tiling->cores = static_cast<std::uint32_t>(cores);
  tiling->tile_rows = static_cast<std::uint32_t>(rows);
  tiling->ub_bytes = static_cast<std::uint32_t>(tile_bytes(*tiling, row_by_row, rows) + (row_by_row ? 0 : table_bytes));
  return nullptr;
}

}  // namespace weave::ascendc
