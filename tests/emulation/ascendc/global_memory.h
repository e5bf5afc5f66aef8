// Global memory: the regions a launch was given, and who touched them, within a core and across cores.
#pragma once

#include <algorithm>
#include <map>
#include <vector>

#include "ordering.h"
#include "unified_buffer.h"

namespace emulated {

struct Span {
  uintptr_t end;
  Stamp stamp;
  const char* api;
};

// Disjoint half-open address ranges.
class Spans {
 public:
  template <typename Visit>
  void overlapping(uintptr_t begin, uintptr_t end, Visit visit) const {
    for (auto at = first_overlap(begin); at != spans_.end() && at->first < end; ++at) {
      if (at->second.end > begin) visit(std::max(begin, at->first), at->second);
    }
  }

  void carve(uintptr_t begin, uintptr_t end) {
    for (auto at = first_overlap(begin); at != spans_.end() && at->first < end;) {
      const auto [from, span] = *at;
      if (span.end <= begin) {
        ++at;
        continue;
      }
      at = spans_.erase(at);
      if (from < begin) spans_.emplace(from, Span{begin, span.stamp, span.api});
      if (span.end > end) spans_.emplace(end, span);
    }
  }

  void put(uintptr_t begin, const Span& span) {
    carve(begin, span.end);
    spans_.emplace(begin, span);
  }

  void clear() { spans_.clear(); }

  const std::map<uintptr_t, Span>& all() const { return spans_; }

 private:
  std::map<uintptr_t, Span>::const_iterator first_overlap(uintptr_t begin) const {
    auto at = spans_.upper_bound(begin);
    return at == spans_.begin() ? at : std::prev(at);
  }

  std::map<uintptr_t, Span> spans_;
};

class GlobalMemory {
 public:
  // `bytes` at `address` belong to the launch; `initialised` says whether they may be read before they are written,
  // `writable` whether the kernel may write them.
  void add(uintptr_t address, uint64_t bytes, bool initialised, bool writable) {
    std::vector<bool> written(initialised ? 0 : bytes);
    regions_.push_back({address, address + bytes, initialised, writable, std::move(written)});
  }

  void access(const char* api, const Ordering& ordering, Stamp stamp, uintptr_t begin, uint64_t bytes, Kind kind) {
    const uintptr_t end = begin + bytes;
    check_region(api, begin, end, kind);
    writes_.overlapping(begin, end, [&](uintptr_t at, const Span& span) {
      if (!ordering.ordered(span.stamp, stamp)) refuse_race(api, stamp, kind, at, span, Kind::WRITE);
    });
    if (kind == Kind::READ) {
      reads_[stamp.pipe].put(begin, {end, stamp, api});
      return;
    }
    for (Spans& reads : reads_) {
      reads.overlapping(begin, end, [&](uintptr_t at, const Span& span) {
        if (!ordering.ordered(span.stamp, stamp)) refuse_race(api, stamp, kind, at, span, Kind::READ);
      });
      reads.carve(begin, end);
    }
    writes_.put(begin, {end, stamp, api});
  }

  void finish_core(int core) {
    collect(writes_, core, all_writes_);
    for (Spans& reads : reads_) collect(reads, core, all_reads_);
  }

  // Cores run at the same time: bytes that one writes may not be touched by another.
  void check_cores() {
    std::sort(all_writes_.begin(), all_writes_.end());
    for (size_t i = 1; i < all_writes_.size(); ++i) {
      if (all_writes_[i].begin < all_writes_[i - 1].end) refuse_cores(all_writes_[i], all_writes_[i - 1]);
    }
    for (const Touched& read : all_reads_) {
      auto write = std::upper_bound(all_writes_.begin(), all_writes_.end(), Touched{read.begin, 0, 0});
      if (write != all_writes_.begin()) --write;
      for (; write != all_writes_.end() && write->begin < read.end; ++write) {
        if (write->end > read.begin && write->core != read.core) refuse_cores(read, *write);
      }
    }
  }

 private:
  struct Region {
    uintptr_t begin, end;
    bool initialised, writable;
    std::vector<bool> written;
  };

  struct Touched {
    uintptr_t begin, end;
    int core;
    bool operator<(const Touched& other) const { return begin < other.begin; }
  };

  void check_region(const char* api, uintptr_t begin, uintptr_t end, Kind kind) {
    for (Region& region : regions_) {
      if (begin < region.begin || begin >= region.end) continue;
      const uintptr_t size = region.end - region.begin, from = begin - region.begin, to = end - region.begin;
      if (end > region.end)
        refuse(api, "out of bounds in global memory", "bytes " + range<uintptr_t>(0, size), "bytes " + range(from, to));
      if (kind == Kind::WRITE && !region.writable)
        refuse(api, "write to an input", "a read", "bytes " + range(from, to));
      if (region.initialised) return;
      if (kind == Kind::WRITE) {
        std::fill(region.written.begin() + from, region.written.begin() + to, true);
      } else if (std::find(region.written.begin() + from, region.written.begin() + to, false) !=
                 region.written.begin() + to) {
        refuse(api, "read of uninitialised global memory", "bytes that something wrote", "bytes " + range(from, to));
      }
      return;
    }
    refuse(api, "out of bounds in global memory", "an address in a tensor of the launch",
           "an access of " + std::to_string(end - begin) + " bytes in none of them");
  }

  std::string place(uintptr_t address) const {
    for (size_t i = 0; i < regions_.size(); ++i) {
      if (address < regions_[i].begin || address >= regions_[i].end) continue;
      return "byte " + std::to_string(address - regions_[i].begin) + " of tensor " + std::to_string(i);
    }
    return "no tensor";
  }

  [[noreturn]] void refuse_race(const char* api, Stamp stamp, Kind kind, uintptr_t at, const Span& before,
                                Kind before_kind) const {
    std::ostringstream got;
    got << api << " on pipe " << PIPE_NAMES[stamp.pipe] << ' ' << VERBS[int(kind)] << ' ' << place(at) << ", which "
        << before.api << " on pipe " << PIPE_NAMES[before.stamp.pipe] << ' ' << VERBS[int(before_kind)];
    refuse(api, "race in global memory", "a queue, a flag or a barrier between them", got.str());
  }

  [[noreturn]] void refuse_cores(const Touched& one, const Touched& other) const {
    std::ostringstream got;
    got << "cores " << one.core << " and " << other.core << " at " << place(std::max(one.begin, other.begin));
    refuse("global memory", "race between cores", "what one core writes touched by no other", got.str());
  }

  static void collect(Spans& spans, int core, std::vector<Touched>& into) {
    bool grows = false;
    for (const auto& [begin, span] : spans.all()) {
      if (grows && into.back().end == begin) {
        into.back().end = span.end;
      } else {
        into.push_back({begin, span.end, core});
      }
      grows = true;
    }
    spans.clear();
  }

  std::vector<Region> regions_;
  Spans writes_;
  Spans reads_[PIPES];
  std::vector<Touched> all_writes_, all_reads_;
};

}  // namespace emulated
