// Tensors that do not lie in memory as they are counted: transposed ones, every second element.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <perdure/file.hpp>

namespace perdure::engine {

// The elements of `tensor`, in C order, out of the bytes of its storage. `out` has room for them.
void copy_elements(const Tensor& tensor, ConstBytes storage, MutableBytes out);

// The elements of one tensor, whole, or of each of its pieces. To give out a part of a transposed
// tensor, all of it is needed; so it is kept until another tensor is asked for, and one at a time
// is in memory.
class LastLoaded {
 public:
  using Bytes = std::shared_ptr<const std::vector<std::byte>>;
  Bytes get(const void* tensor, const void* piece,
            const std::function<std::vector<std::byte>()>& load);
  // To be called when the piece ends: the next one may get its address.
  void forget(const void* piece) noexcept;

 private:
  std::mutex mutex_;
  const void* tensor_ = nullptr;
  std::map<const void*, Bytes> pieces_;
};

// A tensor of another source as if it were C-contiguous. Its checksum is compared.
class StridedSource final : public Source {
 public:
  // `record`: of the tensor's storage, in `source`. `whole`: anything that is the same for all
  // pieces of one tensor.
  StridedSource(std::shared_ptr<const Source> source, const CheckpointFile::Record& record,
                bool has_checksum, Tensor tensor, std::shared_ptr<LastLoaded> last,
                const void* whole);

  StridedSource(const StridedSource&) = delete;
  StridedSource& operator=(const StridedSource&) = delete;
  ~StridedSource() override { last_->forget(this); }

  std::uint64_t size() const override { return size_; }
  const std::string& name() const override { return source_->name(); }
  void read(std::uint64_t offset, MutableBytes into) const override;
  bool is_cached() const override { return source_->is_cached(); }
  Place place(std::uint64_t) const override { return source_->place(record_.offset); }

 private:
  std::vector<std::byte> load() const;

  std::shared_ptr<const Source> source_;
  CheckpointFile::Record record_;
  bool has_checksum_;
  Tensor tensor_;
  std::shared_ptr<LastLoaded> last_;
  const void* whole_;
  std::uint64_t size_;
};

}  // namespace perdure::engine
