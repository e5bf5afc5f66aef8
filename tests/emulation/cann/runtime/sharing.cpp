// Physical memory shared between processes: export, whitelist, import.
//
// A shareable handle is a process id and the number of a file there, the card: it says which file the memory is and
// who may import it. The importer opens both through /proc.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>

#include "call.h"
#include "physical_memory.h"

namespace cann {
namespace {

constexpr uint64_t kCardMark = 0x63616e6e63617264;
constexpr size_t kMostProcesses = 256;

struct Card {
  uint64_t mark = kCardMark;
  uint64_t bytes = 0;
  int32_t file = -1;
  int32_t device = -1;
  bool any_process = false;
  uint32_t processes = 0;
  std::array<int32_t, kMostProcesses> process{};
};

struct Shareable {
  explicit Shareable(uint64_t value) : process(static_cast<int32_t>(value >> 32)), card(static_cast<int32_t>(value)) {}
  Shareable(int32_t process, int32_t card) : process(process), card(card) {}
  uint64_t value() const { return static_cast<uint64_t>(process) << 32 | static_cast<uint32_t>(card); }

  int32_t process;
  int32_t card;
};

// What this process has exported. An export ends with its handle; mappings elsewhere keep the memory.
class Exports {
 public:
  uint64_t add(aclrtDrvMemHandle handle, bool any_process) {
    const auto memory = physical_handles().get(handle);
    require(!memory->imported, kRuleBroken, "imported memory cannot be exported again");
    std::lock_guard lock(mutex_);
    drop_ended();
    for (const auto& [file, exported] : exports_)
      require(exported.lock() != memory, kRuleBroken, "the handle is exported already");
    const int file = memfd_create("emulated-cann-card", MFD_CLOEXEC);
    require(file >= 0, kOutOfMemory, "this machine gives no file in memory");
    exports_[file] = memory;
    write(file,
          Card{.bytes = memory->bytes, .file = memory->file, .device = memory->device.id, .any_process = any_process});
    return Shareable(getpid(), file).value();
  }

  void allow(Shareable shareable, const int32_t* processes, size_t count) {
    std::lock_guard lock(mutex_);
    drop_ended();
    require(shareable.process == getpid() && exports_.contains(shareable.card), kRuleBroken,
            "not a shareable handle of this process");
    Card card;
    require(pread(shareable.card, &card, sizeof card, 0) == sizeof card, kRuleBroken, "the card cannot be read");
    require(card.processes + count <= kMostProcesses, kRuleBroken, "more than ", kMostProcesses, " processes");
    std::copy_n(processes, count, card.process.begin() + card.processes);
    card.processes += static_cast<uint32_t>(count);
    write(shareable.card, card);
  }

 private:
  static void write(int file, const Card& card) {
    require(pwrite(file, &card, sizeof card, 0) == sizeof card, kOutOfMemory, "the card cannot be written");
  }

  void drop_ended() {
    std::erase_if(exports_, [](const auto& entry) {
      const bool ended = entry.second.expired();
      if (ended) close(entry.first);
      return ended;
    });
  }

  std::mutex mutex_;
  std::map<int, std::weak_ptr<PhysicalMemory>> exports_;
};

Exports& exports() {
  static auto* const all = new Exports;
  return *all;
}

int open_file_of(int32_t process, int32_t file) {
  const std::string path = text("/proc/", process, "/fd/", file);
  const int opened = open(path.c_str(), O_RDWR | O_CLOEXEC);
  require(opened >= 0, kRuleBroken, "process ", process, " shares nothing under this handle");
  return opened;
}

Card read_card(Shareable shareable) {
  const int file = open_file_of(shareable.process, shareable.card);
  Card card;
  const ssize_t got = pread(file, &card, sizeof card, 0);
  close(file);
  require(got == sizeof card && card.mark == kCardMark, kRuleBroken, "not a shareable handle");
  return card;
}

bool allows(const Card& card, int32_t process) {
  const auto end = card.process.begin() + card.processes;
  return card.any_process || std::find(card.process.begin(), end, process) != end;
}

std::shared_ptr<PhysicalMemory> import_memory(Shareable shareable, Device& device) {
  require(shareable.process != getpid(), kRuleBroken, "a shareable handle is for other processes, this one made it");
  const Card card = read_card(shareable);
  require(allows(card, getpid()), kRuleBroken, "process ", getpid(), " is not on the whitelist");
  require(device.reaches(card.device), kRuleBroken, "device ", device.id, " has no peer access to device ",
          card.device);
  return PhysicalMemory::adopt(device, card.bytes, open_file_of(shareable.process, card.file));
}

}  // namespace
}  // namespace cann

using cann::answer;
using cann::kBadArgument;
using cann::require;

EMULATED aclError aclrtMemExportToShareableHandle(aclrtDrvMemHandle handle, aclrtMemHandleType type, uint64_t flags,
                                                  uint64_t* shareable) {
  return answer([=] {
    require(handle && shareable, kBadArgument, "handle or shareableHandle is null");
    require(type == ACL_MEM_HANDLE_TYPE_NONE, kBadArgument, "handleType must be NONE");
    require(flags <= ACL_RT_VMM_EXPORT_FLAG_DISABLE_PID_VALIDATION, kBadArgument, "flags must be 0 or 1, is ", flags);
    *shareable = cann::exports().add(handle, flags == ACL_RT_VMM_EXPORT_FLAG_DISABLE_PID_VALIDATION);
  });
}

EMULATED aclError aclrtMemSetPidToShareableHandle(uint64_t shareable, int32_t* processes, size_t count) {
  return answer([=] {
    require(processes && count, kBadArgument, "pid is null or pidNum is 0");
    cann::exports().allow(cann::Shareable(shareable), processes, count);
  });
}

EMULATED aclError aclrtMemImportFromShareableHandle(uint64_t shareable, int32_t id, aclrtDrvMemHandle* handle) {
  return answer([=] {
    require(handle, kBadArgument, "handle is null");
    *handle = cann::physical_handles().add(cann::import_memory(cann::Shareable(shareable), cann::device(id)));
  });
}
