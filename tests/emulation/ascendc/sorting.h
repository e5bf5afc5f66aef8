// Sort32 and MrgSort over (value, index) pairs of 8 bytes: the value low, the index in the upper 4.
#pragma once

#include "arithmetic.h"

namespace AscendC {

struct MrgSort4Info {
  MrgSort4Info() = default;
  MrgSort4Info(const uint16_t lengths[4], const bool suspension, const uint16_t lists, const uint16_t repeats)
      : ifExhaustedSuspension(suspension), validBit(lists), repeatTimes(uint8_t(repeats)) {
    if (repeats > 255) emulated::refuse("MrgSort4Info", "repeatTimes", "0 to 255", repeats);
    std::copy_n(lengths, 4, elementLengths);
  }

  uint16_t elementLengths[4] = {0};
  bool ifExhaustedSuspension = false;
  uint16_t validBit = 0;
  uint8_t repeatTimes = 1;
};

template <typename T>
struct MrgSortSrcList {
  MrgSortSrcList() = default;
  MrgSortSrcList(const LocalTensor<T>& first, const LocalTensor<T>& second, const LocalTensor<T>& third,
                 const LocalTensor<T>& fourth)
      : src1(first), src2(second), src3(third), src4(fourth) {}

  LocalTensor<T> src1, src2, src3, src4;
};

namespace vector {

constexpr uint32_t PAIR = 8;     // bytes
constexpr uint32_t SORTED = 32;  // elements that Sort32 sorts in a repeat

template <typename T>
struct Pair {
  T value;
  uint32_t index;
};

inline void touch_pairs(const char* api, emulated::Core& core, emulated::Stamp stamp, const LocalPlace& place,
                        uint64_t begin, size_t pairs, emulated::Kind kind) {
  const uint64_t end = begin + pairs * PAIR;
  place.check(api, int64_t(begin), int64_t(end));
  core.ub.touch_range(api, core.ordering, stamp, uint32_t(begin), uint32_t(end), kind);
}

template <typename T>
Pair<T> pair_at(emulated::Core& core, uint64_t address) {
  Pair<T> pair;
  std::memcpy(&pair.value, core.ub.at(uint32_t(address)), sizeof(T));
  std::memcpy(&pair.index, core.ub.at(uint32_t(address + PAIR / 2)), sizeof pair.index);
  return pair;
}

template <typename T>
void put_pairs(const char* api, emulated::Core& core, emulated::Stamp stamp, const LocalPlace& place, uint64_t begin,
               const std::vector<Pair<T>>& pairs) {
  touch_pairs(api, core, stamp, place, begin, pairs.size(), emulated::Kind::WRITE);
  for (size_t i = 0; i < pairs.size(); ++i) {
    uint8_t* to = core.ub.at(uint32_t(begin + i * PAIR));
    std::memset(to, 0xA5, PAIR / 2);  // what stands between a half and its index is not specified
    std::memcpy(to, &pairs[i].value, sizeof(T));
    std::memcpy(to + PAIR / 2, &pairs[i].index, sizeof pairs[i].index);
  }
}

// One sorted list of MrgSort in one repeat.
template <typename T>
std::vector<Pair<T>> read_list(emulated::Core& core, emulated::Stamp stamp, const LocalPlace& place, uint64_t begin,
                               uint32_t length) {
  constexpr const char* api = "MrgSort";
  touch_pairs(api, core, stamp, place, begin, length, emulated::Kind::READ);
  std::vector<Pair<T>> list;
  for (uint32_t i = 0; i < length; ++i) {
    list.push_back(pair_at<T>(core, begin + uint64_t(i) * PAIR));
    if (i && emulated::above(api, list[i].value, list[i - 1].value)) {
      emulated::refuse(api, "list", "values in descending order", "a higher one at place " + std::to_string(i));
    }
  }
  return list;
}

template <typename T>
struct MergeList {
  LocalPlace place;
  uint32_t length;
};

// The lists that validBit names, checked against the documented limits.
template <typename T>
std::vector<MergeList<T>> merge_lists(const MrgSortSrcList<T>& src, const MrgSort4Info& params) {
  constexpr const char* api = "MrgSort";
  if (params.validBit != 3 && params.validBit != 7 && params.validBit != 15) {
    emulated::refuse(api, "validBit", "3, 7 or 15", params.validBit);
  }
  if (params.ifExhaustedSuspension) emulated::refuse(api, "ifExhaustedSuspension", "false: it is not emulated", "true");
  const LocalTensor<T>* tensors[] = {&src.src1, &src.src2, &src.src3, &src.src4};
  std::vector<MergeList<T>> lists;
  for (int i = 0; i < 4 && params.validBit >> i & 1; ++i) {
    emulated::require_at_most<uint32_t>(api, "elementLengths", 4095, params.elementLengths[i]);
    const LocalPlace& place = tensors[i]->place();
    place.check(api, place.address, place.address);
    place.check_alignment(api, "source", PAIR);
    lists.push_back({place, params.elementLengths[i]});
  }
  if (params.repeatTimes <= 1) return lists;
  for (size_t i = 0; i < lists.size(); ++i) {
    const bool contiguous = i == 0 || lists[i].place.address == lists[i - 1].place.address + lists[i - 1].length * PAIR;
    if (lists.size() != 4 || lists[i].length != lists[0].length || !contiguous) {
      emulated::refuse(api, "lists of a merge that repeats", "four of one length, one behind the other", "others");
    }
  }
  return lists;
}

}  // namespace vector

// Sorts each 32 elements in descending order; of equal ones the earlier comes first.
template <typename T>
void Sort32(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<uint32_t>& src1,
            RepeatTimes repeatTime) {
  static_assert(emulated::is_floating<T>, "Sort32: this type is not supported on A2/A3, only half and float");
  constexpr const char* api = "Sort32";
  constexpr uint32_t VALUES = vector::SORTED * sizeof(T), INDICES = vector::SORTED * 4, OUT = vector::SORTED * 8;
  const uint32_t repeats = repeatTime.checked(api);
  const LocalPlace places[] = {dst.place(), src0.place(), src1.place()};
  for (const LocalPlace& place : places) place.check(api, place.address, place.address);
  places[0].check_alignment(api, "destination", OUT);
  places[1].check_alignment(api, "values", VALUES);
  places[2].check_alignment(api, "indices", INDICES);
  vector::check_apart(api, places[0].address, uint64_t(repeats) * OUT, places[1].address, uint64_t(repeats) * VALUES);
  vector::check_apart(api, places[0].address, uint64_t(repeats) * OUT, places[2].address, uint64_t(repeats) * INDICES);
  const emulated::Stamp stamp = emulated::issue(api, emulated::V, repeats);
  emulated::Core& core = emulated::core(api);
  for (uint64_t repeat = 0; repeat < repeats; ++repeat) {
    const uint64_t values = places[1].address + repeat * VALUES, indices = places[2].address + repeat * INDICES;
    places[1].check(api, int64_t(values), int64_t(values + VALUES));
    places[2].check(api, int64_t(indices), int64_t(indices + INDICES));
    core.ub.touch_range(api, core.ordering, stamp, uint32_t(values), uint32_t(values) + VALUES, emulated::Kind::READ);
    core.ub.touch_range(api, core.ordering, stamp, uint32_t(indices), uint32_t(indices) + INDICES,
                        emulated::Kind::READ);
    std::vector<vector::Pair<T>> pairs(vector::SORTED);
    for (uint32_t i = 0; i < vector::SORTED; ++i) {
      std::memcpy(&pairs[i].value, core.ub.at(uint32_t(values)) + i * sizeof(T), sizeof(T));
      std::memcpy(&pairs[i].index, core.ub.at(uint32_t(indices)) + i * 4, 4);
    }
    std::stable_sort(pairs.begin(), pairs.end(), [](const vector::Pair<T>& a, const vector::Pair<T>& b) {
      return emulated::above(api, a.value, b.value);
    });
    vector::put_pairs(api, core, stamp, places[0], places[0].address + repeat * OUT, pairs);
  }
}

// Merges up to four lists in descending order; of equal values the one of the earlier list comes first.
template <typename T>
void MrgSort(const LocalTensor<T>& dst, const MrgSortSrcList<T>& src, const MrgSort4Info& params) {
  static_assert(emulated::is_floating<T>, "MrgSort: this type is not supported on A2/A3, only half and float");
  constexpr const char* api = "MrgSort";
  const std::vector<vector::MergeList<T>> lists = vector::merge_lists(src, params);
  const LocalPlace to = dst.place();
  to.check(api, to.address, to.address);
  to.check_alignment(api, "destination", emulated::BLOCK);
  uint64_t total = 0;
  for (const auto& list : lists) total += list.length;
  for (const auto& list : lists) {
    vector::check_apart(api, to.address, params.repeatTimes * total * vector::PAIR, list.place.address,
                        uint64_t(list.length) * vector::PAIR);
  }
  const emulated::Stamp stamp = emulated::issue(api, emulated::V, params.repeatTimes);
  emulated::Core& core = emulated::core(api);
  core.counters.merged_pairs += params.repeatTimes * total;
  for (uint64_t repeat = 0; repeat < params.repeatTimes; ++repeat) {
    std::vector<vector::Pair<T>> merged;
    for (const auto& list : lists) {
      const uint64_t begin = list.place.address + repeat * total * vector::PAIR;
      const auto more = vector::read_list<T>(core, stamp, list.place, begin, list.length);
      const size_t before = merged.size();
      merged.insert(merged.end(), more.begin(), more.end());
      std::inplace_merge(
          merged.begin(), merged.begin() + int64_t(before), merged.end(),
          [](const vector::Pair<T>& a, const vector::Pair<T>& b) { return emulated::above(api, a.value, b.value); });
    }
    vector::put_pairs(api, core, stamp, to, to.address + repeat * total * vector::PAIR, merged);
  }
}

}  // namespace AscendC
