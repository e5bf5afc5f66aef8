// Copies between global memory and the Unified Buffer: DataCopy and DataCopyPad.
#pragma once

#include "synchronisation.h"
#include "tensors.h"

namespace AscendC {

// Strides run from the end of a block to the start of the next: bytes in global memory, 32-byte blocks in the buffer.
struct DataCopyExtParams {
  DataCopyExtParams() = default;
  DataCopyExtParams(const uint16_t count, const uint32_t bytes, const uint32_t source_stride,
                    const uint32_t target_stride, const uint32_t reserved)
      : blockCount(count), blockLen(bytes), srcStride(source_stride), dstStride(target_stride), rsv(reserved) {}

  uint16_t blockCount = 1;
  uint32_t blockLen = 0;
  uint32_t srcStride = 0;
  uint32_t dstStride = 0;
  uint32_t rsv = 0;
};

template <typename T>
struct DataCopyPadExtParams {
  DataCopyPadExtParams() = default;
  DataCopyPadExtParams(const bool pad, const uint8_t left, const uint8_t right, T value)
      : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}

  bool isPad = false;
  uint8_t leftPadding = 0;
  uint8_t rightPadding = 0;
  T paddingValue{};
};

// All in 32-byte blocks.
struct DataCopyParams {
  DataCopyParams() = default;
  DataCopyParams(const uint16_t count, const uint16_t blocks, const uint16_t source_stride,
                 const uint16_t target_stride)
      : blockCount(count), blockLen(blocks), srcStride(source_stride), dstStride(target_stride) {}

  uint16_t blockCount = 1;
  uint16_t blockLen = 0;
  uint16_t srcStride = 0;
  uint16_t dstStride = 0;
};

namespace copying {

// One copy as bytes: `count` runs of `bytes`; steps from start to start.
struct Runs {
  uint32_t count;
  uint32_t bytes;
  uint64_t gm_step;
  uint64_t ub_step;
};

inline uint32_t round_up(uint32_t bytes) { return (bytes + emulated::BLOCK - 1) / emulated::BLOCK * emulated::BLOCK; }

template <typename T>
constexpr bool is_copied = emulated::one_of<T, int8_t, uint8_t, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t,
                                            float, int64_t, uint64_t, double>;

inline void check_position(const char* api, TPosition position) {
  if (position == TPosition::VECCALC) {
    emulated::refuse(api, "position of the local tensor", "VECIN or VECOUT", "VECCALC");
  }
}

template <typename T>
void check_ext_params(const char* api, const DataCopyExtParams& params) {
  emulated::require_at_most<uint32_t>(api, "blockCount", 4095, params.blockCount);
  emulated::require_at_most<uint32_t>(api, "blockLen", 2097151, params.blockLen);
  if (params.blockLen % sizeof(T)) {
    emulated::refuse(api, "blockLen", "a multiple of the element's size", params.blockLen);
  }
}

// Notes the copy and lets `move` do it run by run: move(run, memory, buffer).
template <typename T, typename Move>
void run(const char* api, const GlobalTensor<T>& global, const LocalTensor<T>& local, const Runs& runs,
         uint32_t ub_bytes, bool to_gm, Move move) {
  const emulated::Stamp stamp = emulated::issue(api, to_gm ? emulated::MTE3 : emulated::MTE2, runs.count);
  emulated::Core& core = emulated::core(api);
  core.counters.bursts += runs.count;
  (to_gm ? core.counters.bytes_to_gm : core.counters.bytes_from_gm) += uint64_t(runs.count) * runs.bytes;
  const emulated::Kind gm_kind = to_gm ? emulated::Kind::WRITE : emulated::Kind::READ;
  const emulated::Kind ub_kind = to_gm ? emulated::Kind::READ : emulated::Kind::WRITE;
  for (uint32_t i = 0; i < runs.count; ++i) {
    const uint64_t begin = local.place().address + i * runs.ub_step;
    local.place().check(api, int64_t(begin), int64_t(begin + round_up(ub_bytes)));
    uint8_t* memory = global.access(api, stamp, i * runs.gm_step, runs.bytes, gm_kind);
    // Out of the buffer, what follows the run in its last block is read as well, but dropped: it may hold anything.
    const uint32_t noted = to_gm ? ub_bytes : round_up(ub_bytes);
    core.ub.touch_range(api, core.ordering, stamp, uint32_t(begin), uint32_t(begin) + noted, ub_kind);
    move(memory, uint32_t(begin));
  }
}

}  // namespace copying

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& params,
                 const DataCopyPadExtParams<T>& pad) {
  static_assert(copying::is_copied<T>, "DataCopyPad: this type is not supported");
  constexpr const char* api = "DataCopyPad";
  copying::check_ext_params<T>(api, params);
  const uint32_t left = pad.leftPadding * uint32_t(sizeof(T)), right = pad.rightPadding * uint32_t(sizeof(T));
  emulated::require_at_most<uint32_t>(api, "leftPadding in bytes", emulated::BLOCK, left);
  emulated::require_at_most<uint32_t>(api, "rightPadding in bytes", emulated::BLOCK, right);
  if constexpr (sizeof(T) == 8) {
    if (pad.paddingValue != T{}) emulated::refuse(api, "paddingValue of 8 bytes", "0", "another");
  }
  if (params.blockCount == 0 || params.blockLen == 0) return;
  dst.place().check_alignment(api, "local tensor", emulated::BLOCK);
  copying::check_position(api, dst.place().position);
  const uint32_t used = left + params.blockLen + right, whole = copying::round_up(used);
  const copying::Runs runs{params.blockCount, params.blockLen, uint64_t(params.blockLen) + params.srcStride,
                           whole + uint64_t(params.dstStride) * emulated::BLOCK};
  emulated::UnifiedBuffer& ub = emulated::core(api).ub;
  copying::run(api, src, dst, runs, used, false, [&](const uint8_t* memory, uint32_t at) {
    T fill = pad.paddingValue;
    if (!left && !right) std::memcpy(&fill, memory, sizeof fill);  // documented: the run's own first element
    const bool unspecified = (left || right) && !pad.isPad;
    for (uint32_t byte = 0; byte < whole; byte += sizeof(T)) std::memcpy(ub.at(at + byte), &fill, sizeof fill);
    std::memcpy(ub.at(at + left), memory, params.blockLen);
    if (unspecified) {
      ub.forget(at, at + left);
      ub.forget(at + left + params.blockLen, at + whole);
    }
  });
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& params) {
  static_assert(copying::is_copied<T>, "DataCopyPad: this type is not supported");
  constexpr const char* api = "DataCopyPad";
  copying::check_ext_params<T>(api, params);
  if (params.blockCount == 0 || params.blockLen == 0) return;
  src.place().check_alignment(api, "local tensor", emulated::BLOCK);
  copying::check_position(api, src.place().position);
  const copying::Runs runs{params.blockCount, params.blockLen, uint64_t(params.blockLen) + params.dstStride,
                           copying::round_up(params.blockLen) + uint64_t(params.srcStride) * emulated::BLOCK};
  emulated::UnifiedBuffer& ub = emulated::core(api).ub;
  copying::run(api, dst, src, runs, params.blockLen, true,
               [&](uint8_t* memory, uint32_t at) { std::memcpy(memory, ub.at(at), params.blockLen); });
}

namespace copying {

// DataCopy in either direction: whole 32-byte blocks, global memory aligned to the element.
template <typename T>
void copy_blocks(const GlobalTensor<T>& global, const LocalTensor<T>& local, const DataCopyParams& params, bool to_gm) {
  static_assert(is_copied<T>, "DataCopy: this type is not supported");
  constexpr const char* api = "DataCopy";
  emulated::require_at_most<uint32_t>(api, "blockCount", 4095, params.blockCount);
  if (params.blockCount == 0 || params.blockLen == 0) return;
  local.place().check_alignment(api, "local tensor", emulated::BLOCK);
  check_position(api, local.place().position);
  if (reinterpret_cast<uintptr_t>(global.GetPhyAddr()) % sizeof(T)) {
    emulated::refuse(api, "global tensor", "an address aligned to its element", "another");
  }
  const uint32_t bytes = params.blockLen * emulated::BLOCK;
  const uint32_t gm_gap = (to_gm ? params.dstStride : params.srcStride) * emulated::BLOCK;
  const uint32_t ub_gap = (to_gm ? params.srcStride : params.dstStride) * emulated::BLOCK;
  emulated::UnifiedBuffer& ub = emulated::core(api).ub;
  run(api, global, local, {params.blockCount, bytes, uint64_t(bytes) + gm_gap, uint64_t(bytes) + ub_gap}, bytes, to_gm,
      [&](uint8_t* memory, uint32_t at) {
        to_gm ? std::memcpy(memory, ub.at(at), bytes) : std::memcpy(ub.at(at), memory, bytes);
      });
}

template <typename T>
DataCopyParams whole_blocks(uint32_t count) {
  const uint64_t bytes = uint64_t(count) * sizeof(T);
  if (bytes % emulated::BLOCK) emulated::refuse("DataCopy", "bytes", "a multiple of 32", bytes);
  emulated::require_at_most<uint64_t>("DataCopy", "blocks", 65535, bytes / emulated::BLOCK);
  return {1, uint16_t(bytes / emulated::BLOCK), 0, 0};
}

}  // namespace copying

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& params) {
  copying::copy_blocks(src, dst, params, false);
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& params) {
  copying::copy_blocks(dst, src, params, true);
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const uint32_t count) {
  copying::copy_blocks(src, dst, copying::whole_blocks<T>(count), false);
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count) {
  copying::copy_blocks(dst, src, copying::whole_blocks<T>(count), true);
}

}  // namespace AscendC
