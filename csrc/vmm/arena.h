// Physical memory for the host driver: one memory file, cut into pages of 2 MiB. A page is an offset in the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <set>

namespace weave::vmm {

// Safe from any thread, but for the calls about one page.
class Arena {
 public:
  explicit Arena(std::size_t page_bytes) : page_bytes_(page_bytes) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Opens the file and the window through which pages are committed. Returns 0 or an errno.
  int open();

  // Commits the free page with the lowest offset, zeroed; `*huge` tells whether one large page backs it.
  // Neighbouring offsets at neighbouring addresses become one kernel mapping, and those are limited in number
  // (vm.max_map_count), hence the lowest first. Returns 0 or an errno.
  int commit(std::size_t* index, bool* huge);

  // Gives the page's memory back to the system. Returns 0 or an errno.
  int discard(std::size_t index);

  // Maps a committed page at `address`, page tables filled. Returns 0 or an errno.
  int map(void* address, std::size_t index) const;

 private:
  bool populate(bool* huge) const;

  const std::size_t page_bytes_;
  int fd_ = -1;
  char* window_ = nullptr;
  std::mutex mutex_;  // of the window and the free pages; mapping needs neither
  std::size_t pages_in_file_ = 0;
  std::set<std::size_t> free_;
};

}  // namespace weave::vmm
