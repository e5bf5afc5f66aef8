// The columns with the highest values of each row, best first, by sorting 32 at a time: no instruction per row.
#pragma once

#include "row_layout.h"

namespace weave::ascendc {

// Sorted lists, as Sort32 leaves them: 32 pairs (value, payload) of 8 bytes each, the highest value first. Of equal
// values the one that stood first comes first. A payload is 32 bits that travel with a value.
class BestExperts {
 public:
  __aicore__ inline void Init(AscendC::TPipe* pipe, std::uint32_t columns) {
    pipe->InitBuffer(pair_buffer_, columns * kPairBytes);
    pipe->InitBuffer(best_buffer_, columns * sizeof(float));
    half_ = columns / 2;
  }

  // Room for two values a column, which the next sort writes over.
  __aicore__ inline AscendC::LocalTensor<float> Pairs() { return pair_buffer_.Get<float>(); }

  // Sorts `lists` times 32 values.
  __aicore__ inline void Sort(const AscendC::LocalTensor<float>& values,
                              const AscendC::LocalTensor<std::uint32_t>& payloads, std::uint32_t lists) {
    const AscendC::LocalTensor<float> pairs = Pairs();
    for (std::uint32_t done = 0; done < lists; done += kMaxRepeats) {
      AscendC::Sort32(pairs[done * 2 * kSorted], values[done * kSorted], payloads[done * kSorted],
                      static_cast<std::int32_t>(Least(lists - done, kMaxRepeats)));
    }
    Then();
  }

  // Sorts, and then lets neighbouring lists (a power of two of them) play for one: of each the best 16 go on, or the
  // best 8 where `wanted` is no more. Leaves `segments` lists whose best `wanted` are those of as many equal segments
  // of `values`, and whose best 16 are values all the same.
  __aicore__ inline void Sort(const AscendC::LocalTensor<float>& values,
                              const AscendC::LocalTensor<std::uint32_t>& payloads, std::uint32_t lists,
                              std::uint32_t segments, std::uint32_t wanted) {
    const AscendC::LocalTensor<float> best = best_buffer_.Get<float>();
    const AscendC::LocalTensor<std::uint32_t> best_payloads = best[half_].template ReinterpretCast<std::uint32_t>();
    Sort(values, payloads, lists);
    while (lists > segments) {
      const std::uint32_t count = wanted <= kSorted / 4 && lists >= 4 * segments ? kSorted / 4 : kSorted / 2;
      Take<float, kEven>(best, count, lists);
      Take<std::uint32_t, kOdd>(best_payloads, count, lists);
      Then();
      lists = lists * count / kSorted;
      Sort(best, best_payloads, lists);
    }
  }

  // The first `count` payloads of each list, without gaps.
  template <typename T>
  __aicore__ inline void Payloads(const AscendC::LocalTensor<T>& to, std::uint32_t count, std::uint32_t lists) {
    Take<T, kOdd>(to, count, lists);
    Then();
  }

 private:
  static constexpr std::uint32_t kPairBytes = 8;
  static constexpr std::uint8_t kEven = 1, kOdd = 2;  // GatherMask's names for values and payloads

  template <typename T, std::uint8_t kPattern>
  __aicore__ inline void Take(const AscendC::LocalTensor<T>& to, std::uint32_t count, std::uint32_t lists) {
    const AscendC::LocalTensor<T> pairs = pair_buffer_.Get<T>();
    const std::uint16_t list_blocks = kSorted * kPairBytes / 32;
    // 248 lists at a time, so that each part of the result starts a block, whatever `count` is.
    constexpr std::uint32_t kLists = kMaxRepeats / kBlockLanes * kBlockLanes;
    for (std::uint32_t done = 0; done < lists; done += kLists) {
      const auto repeats = static_cast<std::uint16_t>(Least(lists - done, kLists));
      std::uint64_t taken = 0;
      AscendC::GatherMask(to[done * count], pairs[done * 2 * kSorted], kPattern, true, 2 * count,
                          AscendC::GatherMaskParams{1, repeats, list_blocks, 0}, taken);
    }
  }

  AscendC::TBuf<AscendC::TPosition::VECCALC> pair_buffer_, best_buffer_;
  std::uint32_t half_ = 0;
};

}  // namespace weave::ascendc
