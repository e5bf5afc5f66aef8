#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "address_space.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace weave::vmm {
namespace {

constexpr std::size_t kSmallPage = 4096;

}  // namespace

Arena::~Arena() {
  if (window_ != nullptr) munmap(window_, page_bytes_);
  if (fd_ >= 0) close(fd_);
}

int Arena::open() {
  fd_ = memfd_create("npu-weave-pages", MFD_CLOEXEC);
  if (fd_ < 0) return errno;
  void* window = nullptr;
  if (const int error = reserve_aligned(page_bytes_, page_bytes_, &window)) return error;
  window_ = static_cast<char*>(window);
  return 0;
}

int Arena::commit(std::size_t* index, bool* huge) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool grow = free_.empty();
  const std::size_t next = grow ? pages_in_file_ : *free_.begin();
  const auto offset = static_cast<off_t>(next * page_bytes_);
  if (grow) {
    if (ftruncate(fd_, offset + static_cast<off_t>(page_bytes_)) != 0) return errno;
    pages_in_file_ = next + 1;
    free_.insert(next);
  }
  *huge = false;
  int error = 0;
  if (mmap(window_, page_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd_, offset) == MAP_FAILED) {
    error = errno;
  } else {
    if (!populate(huge) && fallocate(fd_, FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(page_bytes_)) != 0) {
      error = errno;
    }
    // The window is closed, so that memory is counted once, where it is mapped for use.
    make_hole(window_, page_bytes_);
  }
  if (error != 0) {
    fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(page_bytes_));
    return error;
  }
  free_.erase(next);
  *index = next;
  return 0;
}

// A large page makes mapping some 30 times cheaper and spares the address translation of the matrix multiplications.
// MADV_HUGEPAGE gets one where the system hands them out for shared memory on request; MADV_COLLAPSE, on a page whose
// first bytes are present, also where it does not. Either is best effort: MADV_POPULATE_WRITE settles the outcome.
bool Arena::populate(bool* huge) const {
  madvise(window_, page_bytes_, MADV_HUGEPAGE);
  *huge = madvise(window_, kSmallPage, MADV_POPULATE_WRITE) == 0 && madvise(window_, page_bytes_, MADV_COLLAPSE) == 0;
  return madvise(window_, page_bytes_, MADV_POPULATE_WRITE) == 0;
}

int Arena::discard(std::size_t index) {
  const auto offset = static_cast<off_t>(index * page_bytes_);
  if (fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(page_bytes_)) != 0) {
    return errno;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.insert(index);
  return 0;
}

int Arena::map(void* address, std::size_t index) const {
  const auto offset = static_cast<off_t>(index * page_bytes_);
  if (mmap(address, page_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd_, offset) == MAP_FAILED) {
    const int error = errno;
    make_hole(address, page_bytes_);
    return error;
  }
  if (madvise(address, page_bytes_, MADV_POPULATE_WRITE) == 0) return 0;
  const int error = errno;
  if (error == EINVAL) {  // a kernel before 5.14: the page is committed, so touching it cannot fail
    for (std::size_t at = 0; at < page_bytes_; at += kSmallPage) {
      static_cast<void>(static_cast<volatile char*>(address)[at]);
    }
    return 0;
  }
  make_hole(address, page_bytes_);
  return error;
}

}  // namespace weave::vmm
