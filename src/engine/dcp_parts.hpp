// What torch.save wrote into the files of a directory of torch.distributed.checkpoint (DCP), piece
// by piece.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/file_pool.hpp"
#include "engine/gathered_tensor.hpp"
#include "engine/strided_source.hpp"
#include "format/contents.hpp"
#include "format/dcp_metadata.hpp"
#include "format/ranks_json.hpp"

namespace perdure::engine {

// For several threads at once.
class DcpParts {
 public:
  // `metadata`: the file in it that says what there is. Errors: those of read_dcp_metadata.
  explicit DcpParts(const std::filesystem::path& directory,
                    const std::string& metadata = ".metadata");

  const std::string& name() const { return name_; }
  const format::DcpMetadata& metadata() const { return metadata_; }
  // What perdure says of a checkpoint that several ranks have saved, with the bytes of all files;
  // nothing of any other.
  const std::optional<format::RanksRecord>& record() const { return record_; }

  struct Part {
    std::shared_ptr<const Source> source;
    format::Contents contents;
  };
  // Of an item that is no tensor.
  Part value(const format::DcpItem& item, bool allow_opaque);
  // The same from a copy in memory: what was checked of it is what is used, whatever becomes of the
  // file.
  Part held_value(const format::DcpItem& item);
  // Error(corrupt) where it is not the tensor that .metadata has there.
  TensorPiece piece(const format::DcpItem& item, const format::DcpChunk& chunk);
  // Compares what torch.save wrote around the values, which no reader of them looks at. Returns how
  // many bytes. Error(corrupt).
  std::uint64_t check_rest(const format::DcpItem& item, const format::DcpPlace& place);

 private:
  std::shared_ptr<const Source> file(std::size_t number);
  template <class F>
  auto in_item(const format::DcpItem& item, const format::DcpPlace& place, F&& read);
  Part read(const format::DcpItem& item, const format::DcpPlace& place, bool allow_opaque,
            bool held = false);

  std::string name_;
  std::shared_ptr<FilePool> pool_;
  std::optional<format::RanksRecord> record_;
  format::DcpMetadata metadata_;
  std::mutex mutex_;  // of what follows
  std::vector<std::shared_ptr<const Source>> files_;
  std::shared_ptr<LastLoaded> last_loaded_ = std::make_shared<LastLoaded>();
};

}  // namespace perdure::engine
