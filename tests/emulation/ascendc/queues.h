// TPipe, TQue and TBuf: who owns which part of the Unified Buffer, and the order that a queue gives.
#pragma once

#include <deque>
#include <exception>

#include "synchronisation.h"
#include "tensors.h"

namespace AscendC {

class TPipe;

// Waits for the flag that FreeTensor set, if it is still set.
inline void wait_until_free(emulated::Core& core, emulated::Buffer& buffer) {
  if (buffer.free_event < 0) return;
  core.ordering.wait_flag(buffer.user, buffer.filler, buffer.free_event);
  core.events.release(buffer.user, buffer.filler, buffer.free_event);
  buffer.free_event = -1;
}

// What every queue and buffer consists of: blocks of the Unified Buffer by their number in Core::buffers.
class BufferOwner {
 protected:
  friend class TPipe;

  void own(const char* api, std::vector<int> buffers) {
    if (!buffers_.empty()) emulated::refuse(api, "queue or buffer", "InitBuffer once", "InitBuffer again");
    buffers_ = std::move(buffers);
  }

  std::vector<int> buffers_;
};

// A queue from `source` to `target`: MTE2 fills, V computes, or MTE3 empties it.
template <TPosition source, TPosition target, int32_t depth>
class TQueBind : public BufferOwner {
  static_assert(depth >= 1, "TQue: the in-place interface (depth 0) is not emulated");
  static_assert((source == TPosition::GM && target == TPosition::VECIN) ||
                    (source == TPosition::VECOUT && target == TPosition::GM) ||
                    (source == TPosition::VECIN && target == TPosition::VECOUT),
                "TQue: only queues of a vector core are emulated: VECIN, VECOUT and TQueBind<VECIN, VECOUT>");

 public:
  template <typename T>
  LocalTensor<T> AllocTensor() {
    emulated::Core& core = emulated::core("AllocTensor");
    require_initialised("AllocTensor");
    for (size_t tried = 0; tried < buffers_.size(); ++tried) {
      const int number = buffers_[next_++ % buffers_.size()];
      emulated::Buffer& buffer = core.buffers[size_t(number)];
      if (buffer.state != emulated::BufferState::FREE) continue;
      wait_until_free(core, buffer);
      buffer.state = emulated::BufferState::ALLOCATED;
      ++buffer.lease;
      core.ub.forget(buffer.begin, buffer.end);
      return tensor<T>(number);
    }
    emulated::refuse("AllocTensor", "buffers of a queue", "a free one of " + std::to_string(buffers_.size()), "none");
  }

  template <typename T>
  bool EnQue(const LocalTensor<T>& tensor) {
    emulated::Core& core = emulated::core("EnQue");
    emulated::Buffer& buffer = find("EnQue", tensor);
    if (buffer.state == emulated::BufferState::QUEUED) {
      emulated::refuse("EnQue", "tensor", "one that is allocated", "one that is in the queue");
    }
    if (queued_.size() == size_t(depth)) {
      emulated::refuse("EnQue", "tensors in a queue", "at most its depth of " + std::to_string(depth), depth + 1);
    }
    const int event = core.events.allocate("EnQue", filler, user);
    core.ordering.set_flag(filler, user, event);
    core.counters.add("EnQue", 1);
    buffer.state = emulated::BufferState::QUEUED;
    queued_.push_back({tensor.place().buffer, event});
    return true;
  }

  template <typename T>
  LocalTensor<T> DeQue() {
    emulated::Core& core = emulated::core("DeQue");
    if (queued_.empty()) emulated::refuse("DeQue", "queue", "a tensor that EnQue put there", "an empty queue");
    const Entry entry = queued_.front();
    queued_.pop_front();
    core.ordering.wait_flag(filler, user, entry.event);
    core.events.release(filler, user, entry.event);
    core.counters.add("DeQue", 1);
    core.buffers[size_t(entry.buffer)].state = emulated::BufferState::TAKEN;
    return tensor<T>(entry.buffer);
  }

  template <typename T>
  void FreeTensor(LocalTensor<T>& tensor) {
    emulated::Core& core = emulated::core("FreeTensor");
    emulated::Buffer& buffer = find("FreeTensor", tensor);
    if (buffer.state == emulated::BufferState::QUEUED) {
      emulated::refuse("FreeTensor", "tensor", "one taken by DeQue", "one that is in the queue");
    }
    buffer.free_event = core.events.allocate("FreeTensor", user, filler);
    core.ordering.set_flag(user, filler, buffer.free_event);
    core.counters.add("FreeTensor", 1);
    buffer.state = emulated::BufferState::FREE;
  }

  bool HasTensorInQue() const { return !queued_.empty(); }
  bool VacantInQue() const { return queued_.size() < size_t(depth); }
  int32_t GetTensorCountInQue() const { return int32_t(queued_.size()); }

  bool HasIdleBuffer() const {
    const emulated::Core& core = emulated::core("HasIdleBuffer");
    return std::any_of(buffers_.begin(), buffers_.end(),
                       [&](int number) { return core.buffers[size_t(number)].state == emulated::BufferState::FREE; });
  }

 private:
  friend class TPipe;

  struct Entry {
    int buffer, event;
  };

  // The pipe that writes the tensors of the queue, and the one that reads them.
  static constexpr pipe_t filler = source == TPosition::VECOUT ? PIPE_V : PIPE_MTE2;
  static constexpr pipe_t user = target == TPosition::VECIN ? PIPE_V : PIPE_MTE3;
  static constexpr TPosition position = source == TPosition::GM ? TPosition::VECIN : source;

  void require_initialised(const char* api) const {
    if (buffers_.empty()) emulated::refuse(api, "queue", "InitBuffer before it", "a queue without buffers");
  }

  template <typename T>
  LocalTensor<T> tensor(int number) const {
    const emulated::Buffer& buffer = emulated::core("TQue").buffers[size_t(number)];
    return LocalTensor<T>({buffer.begin, buffer.begin, buffer.end, position, number, buffer.lease});
  }

  template <typename T>
  emulated::Buffer& find(const char* api, const LocalTensor<T>& tensor) const {
    const LocalPlace& place = tensor.place();
    if (std::find(buffers_.begin(), buffers_.end(), place.buffer) == buffers_.end()) {
      emulated::refuse(api, "tensor", "one that this queue allocated", "another's");
    }
    place.check(api, place.address, place.address);
    return emulated::core(api).buffers[size_t(place.buffer)];
  }

  size_t next_ = 0;
  std::deque<Entry> queued_;
};

template <TPosition position, int32_t depth>
class TQue;

template <int32_t depth>
class TQue<TPosition::VECIN, depth> : public TQueBind<TPosition::GM, TPosition::VECIN, depth> {};

template <int32_t depth>
class TQue<TPosition::VECOUT, depth> : public TQueBind<TPosition::VECOUT, TPosition::GM, depth> {};

template <TPosition position = TPosition::VECCALC>
class TBuf : public BufferOwner {
  static_assert(position == TPosition::VECIN || position == TPosition::VECOUT || position == TPosition::VECCALC,
                "TBuf: only the positions of a vector core are emulated: VECIN, VECOUT, VECCALC");

 public:
  template <typename T>
  LocalTensor<T> Get() {
    return part<T>("TBuf::Get", 0, buffer("TBuf::Get").end - buffer("TBuf::Get").begin);
  }

  template <typename T>
  LocalTensor<T> Get(uint32_t size) {
    return part<T>("TBuf::Get", 0, uint64_t(size) * sizeof(T));
  }

  template <typename T>
  LocalTensor<T> GetWithOffset(uint32_t size, uint32_t offset_bytes) {
    if (offset_bytes % emulated::BLOCK) {
      emulated::refuse("TBuf::GetWithOffset", "offset", "a multiple of 32 bytes", offset_bytes);
    }
    return part<T>("TBuf::GetWithOffset", offset_bytes, uint64_t(size) * sizeof(T));
  }

 private:
  friend class TPipe;

  const emulated::Buffer& buffer(const char* api) const {
    if (buffers_.empty()) emulated::refuse(api, "buffer", "InitBuffer before it", "a buffer without memory");
    return emulated::core(api).buffers[size_t(buffers_[0])];
  }

  template <typename T>
  LocalTensor<T> part(const char* api, uint32_t offset, uint64_t bytes) {
    const emulated::Buffer& whole = buffer(api);
    if (offset + bytes > whole.end - whole.begin) {
      emulated::refuse(api, "size", "at most " + std::to_string(whole.end - whole.begin) + " bytes", offset + bytes);
    }
    const uint32_t begin = whole.begin + offset;
    const uint32_t end = begin + uint32_t((bytes + emulated::BLOCK - 1) / emulated::BLOCK) * emulated::BLOCK;
    return LocalTensor<T>({begin, begin, end, position, buffers_[0], whole.lease});
  }
};

class TPipe {
 public:
  TPipe() { Init(); }
  TPipe(const TPipe&) = delete;
  TPipe& operator=(const TPipe&) = delete;
  ~TPipe() noexcept(false) {
    const bool refused = std::uncaught_exceptions() > 0;  // the launch ends already
    if (!refused && emulated::running && emulated::running->pipe == this) Destroy();
  }

  void Init() {
    emulated::Core& core = emulated::core("TPipe");
    if (core.pipe) emulated::refuse("TPipe", "pipes of a kernel", "one at a time", "a second");
    core.pipe = this;
  }

  // Waits until every freed buffer is free and every pipe is done.
  void Destroy() {
    emulated::Core& core = emulated::core("TPipe::Destroy");
    for (emulated::Buffer& buffer : core.buffers) wait_until_free(core, buffer);
    core.ordering.barrier_all();
    core.pipe = nullptr;
  }

  template <TPosition source, TPosition target, int32_t depth>
  bool InitBuffer(TQueBind<source, target, depth>& queue, uint32_t number, uint32_t bytes) {
    using Queue = TQueBind<source, target, depth>;
    if (number == 0 || number > 255) emulated::refuse("InitBuffer", "buffers of a queue", "1 to 255", number);
    std::vector<int> buffers;
    for (uint32_t i = 0; i < number; ++i) buffers.push_back(lay_out(bytes, true, Queue::filler, Queue::user));
    queue.own("InitBuffer", std::move(buffers));
    return true;
  }

  template <TPosition position>
  bool InitBuffer(TBuf<position>& buffer, uint32_t bytes) {
    buffer.own("InitBuffer", {lay_out(bytes, false, PIPE_S, PIPE_S)});
    return true;
  }

  TEventID FetchEventID(HardEvent event) {
    return TEventID(
        emulated::core("FetchEventID").events.fetch("FetchEventID", pipes_of(event).source, pipes_of(event).target));
  }

  template <HardEvent event>
  TEventID FetchEventID() {
    return FetchEventID(event);
  }

  template <HardEvent event>
  TEventID AllocEventID() {
    emulated::EventIds& events = emulated::core("AllocEventID").events;
    return TEventID(events.allocate("AllocEventID", pipes_of(event).source, pipes_of(event).target));
  }

  template <HardEvent event>
  void ReleaseEventID(TEventID id) {
    emulated::core("ReleaseEventID").events.release(pipes_of(event).source, pipes_of(event).target, id);
  }

 private:
  static constexpr size_t MAX_BUFFERS = 64;

  static int lay_out(uint32_t bytes, bool queued, pipe_t filler, pipe_t user) {
    emulated::Core& core = emulated::core("InitBuffer");
    const uint64_t size = (uint64_t(bytes) + emulated::BLOCK - 1) / emulated::BLOCK * emulated::BLOCK;
    if (core.laid_out + size > emulated::UB_BYTES) {
      emulated::refuse("InitBuffer", "Unified Buffer",
                       "at most " + std::to_string(emulated::UB_BYTES) + " bytes in all", core.laid_out + size);
    }
    if (core.buffers.size() == MAX_BUFFERS) emulated::refuse("InitBuffer", "buffers of a kernel", "at most 64", 65);
    core.buffers.push_back({core.laid_out, core.laid_out + uint32_t(size), queued, filler, user});
    core.laid_out += uint32_t(size);
    core.counters.ub_bytes = std::max(core.counters.ub_bytes, core.laid_out);
    return int(core.buffers.size() - 1);
  }
};

inline TPipe* GetTPipePtr() {
  emulated::Core& core = emulated::core("GetTPipePtr");
  if (!core.pipe) emulated::refuse("GetTPipePtr", "pipe", "a TPipe that lives", "none");
  return static_cast<TPipe*>(core.pipe);
}

}  // namespace AscendC
