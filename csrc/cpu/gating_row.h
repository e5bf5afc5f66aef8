// Gating of one token in vectors of sixteen floats, which the compiler makes of whatever registers the target has.
//
// Everything here is always inlined, into functions that name their target (gating_reroute.cpp).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "capability.h"

// All of it is inlined, so how a function would return a vector does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace weave::cpu {

typedef float Floats __attribute__((vector_size(64)));
typedef std::int32_t Ints __attribute__((vector_size(64)));
constexpr std::int64_t kLanes = 16;

// Memory for vectors, aligned for any target; the types above are so only where the target has such registers.
template <typename Vector>
class Vectors {
 public:
  explicit Vectors(std::int64_t count) : blocks_(count) {}
  Vector* data() { return reinterpret_cast<Vector*>(blocks_.data()); }

 private:
  struct alignas(64) Block {
    char bytes[64];
  };
  std::vector<Block> blocks_;
};

// How a router chooses; see python/weave_ops/schema.py.
struct Gating {
  std::int64_t experts, top_k, n_group, topk_group;
  bool softmax, renormalize;
  float scaling_factor;
  const Floats* bias;  // [vectors], or null

  std::int64_t vectors() const { return (experts + kLanes - 1) / kLanes; }
};

// What one token needs room for: `vectors` of each.
struct Scratch {
  Floats* scores;
  Ints* keys;
};

constexpr std::int32_t kTaken = INT32_MIN;            // below the key of any score
constexpr std::int32_t kMinusInfinity = -0x7f800001;  // the key of minus infinity
constexpr std::int32_t kNan = INT32_MAX;              // NaN counts as more than any number

// e^x to about one unit in the last place, denormal results and infinity included; NaN stays NaN.
WEAVE_INLINE Floats exponential(Floats x) {
  constexpr float kLog2E = 1.44269504f, kRound = 12582912.0f;          // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // the first has few bits, so products are exact
  x = x < -104.0f ? Floats{} - 104.0f : x;
  x = x > 89.0f ? Floats{} + 89.0f : x;
  const Floats rounded = (x * kLog2E + kRound) - kRound;
  const Floats rest = (x - rounded * kLn2High) - rounded * kLn2Low;
  Floats series = rest * (1.0f / 5040) + (1.0f / 720);  // Taylor's, for |rest| <= ln 2 / 2
  series = series * rest + (1.0f / 120);
  series = series * rest + (1.0f / 24);
  series = series * rest + (1.0f / 6);
  series = series * rest + 0.5f;
  series = series * (rest * rest) + rest + 1.0f;
  // the power of two in two halves, each of which a float can hold
  const Ints power = __builtin_convertvector(rounded, Ints);
  const Ints half = power >> 1;
  return series * (Floats)((half + 127) << 23) * (Floats)((power - half + 127) << 23);
}

template <typename Vector, typename Pick>
WEAVE_INLINE Vector across_lanes(Vector value, Pick pick) {
  value = pick(value, __builtin_shuffle(value, Ints{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}));
  value = pick(value, __builtin_shuffle(value, Ints{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}));
  value = pick(value, __builtin_shuffle(value, Ints{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}));
  return pick(value, __builtin_shuffle(value, Ints{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}));
}

template <typename Vector>
WEAVE_INLINE Vector larger(Vector left, Vector right) {
  return left > right ? left : right;
}

// In place. Logits of NaN, or plus infinity, or all minus infinity make all scores NaN.
WEAVE_INLINE void softmax(Floats* scores, std::int64_t vectors) {
  Floats most = scores[0];
  for (std::int64_t at = 1; at < vectors; ++at) most = larger(most, scores[at]);
  most = across_lanes(most, larger<Floats>);
  Floats sum = {};
  for (std::int64_t at = 0; at < vectors; ++at) sum += scores[at] = exponential(scores[at] - most);
  sum = across_lanes(sum, [](Floats left, Floats right) { return left + right; });
  for (std::int64_t at = 0; at < vectors; ++at) scores[at] /= sum;
}

WEAVE_INLINE void sigmoid(Floats* scores, std::int64_t vectors) {
  for (std::int64_t at = 0; at < vectors; ++at) scores[at] = 1.0f / (1.0f + exponential(-scores[at]));
}

// Integers in the order of the scores.
WEAVE_INLINE Ints key(Floats score) {
  const Ints bits = (Ints)score;
  const Ints ordered = bits ^ ((bits >> 31) & INT32_MAX);
  return score != score ? Ints{} + kNan : ordered;
}

WEAVE_INLINE std::int32_t key(float score) { return key(Floats{} + score)[0]; }

// The lowest index of the highest key, which is taken then.
WEAVE_INLINE std::int32_t take_best(Ints* keys, std::int64_t vectors) {
  constexpr Ints kFirst = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Ints best = keys[0], index = kFirst;
  for (std::int64_t at = 1; at < vectors; ++at) {
    const Ints more = keys[at] > best;
    best = more ? keys[at] : best;
    index = more ? kFirst + static_cast<std::int32_t>(at * kLanes) : index;
  }
  const Ints highest = across_lanes(best, larger<Ints>);
  index = best == highest ? index : Ints{} + INT32_MAX;
  const std::int32_t found = across_lanes(index, [](Ints left, Ints right) { return left < right ? left : right; })[0];
  reinterpret_cast<std::int32_t*>(keys)[found] = kTaken;
  return found;
}

// How good a group of experts is, as a key: its best score, or with a bias the sum of its two best.
WEAVE_INLINE std::int32_t worth(const std::int32_t* keys, const float* choice, std::int64_t begin, std::int64_t end,
                                bool by_two_best) {
  std::int64_t first = begin, second = -1;
  for (std::int64_t at = begin + 1; at < end; ++at) {
    if (keys[at] > keys[first]) {
      second = first;
      first = at;
    } else if (second < 0 || keys[at] > keys[second]) {
      second = at;
    }
  }
  return by_two_best ? key(choice[first] + choice[second]) : keys[first];
}

// Leaves the keys of the best groups; all others become those of minus infinity.
WEAVE_INLINE void keep_best_groups(const Gating& how, std::int32_t* keys, const float* choice, std::int32_t* worths) {
  const std::int64_t size = how.experts / how.n_group;
  for (std::int64_t group = 0; group < how.n_group; ++group) {
    worths[group] = worth(keys, choice, group * size, (group + 1) * size, how.bias != nullptr);
  }
  for (std::int64_t kept = 0; kept < how.topk_group; ++kept) {
    *std::max_element(worths, worths + how.n_group) = kTaken;  // the first of equals
  }
  for (std::int64_t group = 0; group < how.n_group; ++group) {
    if (worths[group] != kTaken) std::fill(keys + group * size, keys + (group + 1) * size, kMinusInfinity);
  }
}

// Chooses from the logits in `scratch.scores`, which are minus infinity beyond the experts.
//
// Writes `top_k` weights and expert ids, the best first. `choice` and `worths` have room for `vectors` and `n_group`.
WEAVE_INLINE void gate(const Gating& how, const Scratch& scratch, Floats* choice, std::int32_t* worths, float* weights,
                       std::int32_t* ids) {
  const std::int64_t vectors = how.vectors();
  how.softmax ? softmax(scratch.scores, vectors) : sigmoid(scratch.scores, vectors);
  for (std::int64_t at = 0; at < vectors; ++at) {
    choice[at] = how.bias == nullptr ? scratch.scores[at] : scratch.scores[at] + how.bias[at];
    scratch.keys[at] = key(choice[at]);
  }
  auto* keys = reinterpret_cast<std::int32_t*>(scratch.keys);
  std::fill(keys + how.experts, keys + vectors * kLanes, kTaken);
  if (how.n_group > 1) keep_best_groups(how, keys, reinterpret_cast<const float*>(choice), worths);
  const auto* scores = reinterpret_cast<const float*>(scratch.scores);
  float sum = 0;
  for (std::int64_t k = 0; k < how.top_k; ++k) {
    ids[k] = take_best(scratch.keys, vectors);
    weights[k] = scores[ids[k]];
    sum += weights[k];
  }
  for (std::int64_t k = 0; k < how.top_k; ++k) {
    weights[k] = (how.renormalize ? weights[k] / sum : weights[k]) * how.scaling_factor;
  }
}

}  // namespace weave::cpu
