// The bytes of a tensor that lies in pieces: each is a box of it, somewhere else.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <perdure/file.hpp>
#include <string>
#include <vector>

namespace perdure::engine {

// One of them: its bytes are those of a C-contiguous tensor of its own.
struct TensorPiece {
  std::vector<std::int64_t> offsets;  // in the tensor
  std::vector<std::int64_t> sizes;
  std::shared_ptr<const Source> source;
  std::uint64_t offset = 0;  // in the source
  std::optional<std::uint32_t> crc32;
};

// The tensor, C-contiguous, as if it were in one place. A read takes no more memory than it
// returns. A checksum of a piece is of all of it, and a reader of the tensor cannot compare it: so
// each is compared here, before the first byte of the piece is given out.
class GatheredTensor final : public Source {
 public:
  // The pieces must be disjoint and cover the tensor.
  GatheredTensor(std::string name, std::size_t itemsize, const std::vector<std::int64_t>& shape,
                 std::vector<TensorPiece> pieces);

  std::uint64_t size() const override { return size_; }
  const std::string& name() const override { return name_; }
  void read(std::uint64_t offset, MutableBytes into) const override;
  bool is_cached() const override { return pieces_[0].piece.source->is_cached(); }
  Place place(std::uint64_t offset) const override;

 private:
  // No std::once_flag, for what is damaged throws: ThreadSanitizer's would wait for ever after
  // that.
  struct Compared {
    std::mutex mutex;
    bool good = false;
  };
  // In bytes, and with as few dimensions as tell where its bytes belong.
  struct Box {
    TensorPiece piece;
    std::vector<std::uint64_t> sizes;
    std::vector<std::uint64_t> strides;  // in the tensor
    std::uint64_t begin = 0;             // in the tensor, of its first byte
    std::uint64_t size = 0;
    std::unique_ptr<Compared> compared = std::make_unique<Compared>();

    // Where a byte of the box belongs in the tensor; grows with it.
    std::uint64_t target(std::uint64_t at) const;
    // The first byte of the box that belongs at `offset` or behind it.
    std::uint64_t first_from(std::uint64_t offset) const;
  };
  static Box make_box(TensorPiece piece, std::size_t itemsize,
                      const std::vector<std::int64_t>& shape);
  void compare(const Box& box) const;
  void read_box(const Box& box, std::uint64_t offset, MutableBytes into) const;

  std::string name_;
  std::vector<Box> pieces_;
  std::uint64_t size_ = 0;
};

}  // namespace perdure::engine
