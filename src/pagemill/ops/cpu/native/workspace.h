// Memory that kernels use during a call and keep for the next: it grows, and is never zeroed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace pagemill {

class Workspace {
 public:
  enum Place {
    kActivations,
    kHidden,
    kHeads,
    kGated,
    kProjected,
    kQueries,
    kFloats,
    kPartials,
    kDrawing,
    kPlaces
  };

  // `bytes` bytes, aligned to 64, that stay valid until the place is asked for more.
  template <typename T>
  T* get(Place place, int64_t count) {
    size_t bytes = size_t(count) * sizeof(T) + kAlignment;
    Buffer& buffer = buffers_[place];
    if (buffer.size < bytes) {
      buffer.memory.reset(new char[bytes]);
      buffer.size = bytes;
    }
    uintptr_t start = reinterpret_cast<uintptr_t>(buffer.memory.get());
    return reinterpret_cast<T*>((start + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  static constexpr size_t kAlignment = 64;
  struct Buffer {
    std::unique_ptr<char[]> memory;
    size_t size = 0;
  };
  Buffer buffers_[kPlaces];
};

}  // namespace pagemill
