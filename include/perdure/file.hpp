// One file: save it so that it is durable, load it so that it is verified, look into it, check it.
//
// The file is PyTorch's own zip format (docs/format.md): torch.load opens what save writes, and
// load opens what PyTorch writes (docs/formats.md), without ever executing anything that is in it.
// The functions may be called from any thread; two saves to one path are each whole, the later
// rename wins.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <perdure/value.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace perdure {

using Metrics = std::map<std::string, double>;

// What .perdure/checkpoint.json says of a checkpoint. Files of torch.save have none.
struct CheckpointInfo {
  int format_version = 1;
  std::int64_t step = 0;
  std::uint64_t generation = 0;  // 0: a one-file save, not part of a run directory
  std::uint64_t parent = 0;      // the one restored or saved before it in the same program; 0: none
  Metrics metrics;               // NaN and infinities are kept
  double created =
      0;  // seconds since 1970, UTC, of the writer's clock: for people, never for order
  std::string reason = "regular";                // regular, preemption, final
  std::string writer;                            // "perdure 0.1.0"
  std::map<std::string, std::string> libraries;  // "torch" -> "2.13.0"
  // Per optimizer (by its key path joined with "."): class name and the parameter names of each
  // group.
  struct Optimizer {
    std::string class_name;                             // "AdamW"
    std::vector<std::vector<std::string>> param_names;  // empty where they are not known
  };
  std::map<std::string, Optimizer> optimizers;
  // Of a file that was converted from safetensors: what that said beside its tensors.
  std::map<std::string, std::string> metadata = {};
  std::size_t ranks = 1;  // how many processes have saved it; see CheckpointFile::ranks
};

// Saves `state` (usually a Dict) at `path`: temporary file in the same folder, written, fsynced,
// renamed, folder fsynced. When it returns, the file survives a power cut; when it throws, what was
// at `path` before is untouched. An existing file's permission bits are kept. Errors: invalid (a
// value that torch.load could not take: names the place and what to write instead), full (no space;
// found out before anything is written where the file system allows), io.
void save(const std::filesystem::path& path, const Value& state);

struct LoadOptions {
  // "": where each tensor was saved from; "cpu", "cuda:1", ...: there; "meta": no data is read at
  // all. The core only marks the storages; placing them on a device is done by torch.hpp.
  std::string map_location = {};
  // Only these parts: each is a path of keys, {"model"} or {"model", "fc.weight"}. Nothing else is
  // read.
  std::vector<KeyPath> keys = {};
  // The tensors look into the file itself (a private mapping): nothing is read before it is
  // touched, and what is never touched never. Writing to them does not change the file. Nothing is
  // verified either, unless `verify` says so: then every checksum is compared first, which reads
  // all of it. The file must stay as it is while a tensor lives: to replace it by renaming is fine
  // (save does), but where it is cut, touching what is gone ends the program (SIGBUS).
  bool mmap = false;
  bool verify = false;  // without mmap all is verified in any case
};

// Loads any file that perdure or PyTorch wrote, whichever format it is (docs/formats.md). Every
// byte has its checksum compared, where the format has one (but see LoadOptions::mmap). Errors:
// corrupt (names file, offset and tensor), unsupported (holds what plain data cannot: names it and
// its place; or a newer format), not_found, invalid (keys that are not there), io.
Value load(const std::filesystem::path& path, const LoadOptions& options = {});

// Where a byte of a source lies: a file, and the offset in it.
struct Place {
  std::string name;
  std::uint64_t offset = 0;
};

// What a reader needs of a file. read fills all of `into` or throws Error. Must be safe to call
// from several threads.
class Source {
 public:
  virtual ~Source() = default;
  virtual std::uint64_t size() const = 0;
  virtual void read(std::uint64_t offset, MutableBytes into) const = 0;
  virtual const std::string& name() const = 0;  // for messages: the path

  // Like read, for reading much. The bytes are in `into`, or where the result says: in `scratch`,
  // which is aligned to pages and at least two pages larger than `into` (they came past the page
  // cache), or in memory of the source's own.
  virtual ConstBytes read_bulk(std::uint64_t offset, MutableBytes into,
                               MutableBytes /*scratch*/) const {
    read(offset, into);
    return into;
  }
  // Whether most of it is in memory, so that reading is no more than copying.
  virtual bool is_cached() const { return false; }
  // All of it in memory, for the process alone: what is written there does not reach the source.
  // Null where it cannot be mapped.
  virtual std::shared_ptr<std::byte> map() const { return nullptr; }
  // For messages: where the byte at `offset` is, of a source that is put together of others.
  virtual Place place(std::uint64_t offset) const { return {name(), offset}; }
  // A hint: these bytes are read soon, and those around them are not.
  virtual void will_read(std::uint64_t /*offset*/, std::uint64_t /*size*/) const {}
};
enum class Links { follow, refuse };
// Links::refuse: Error(io), ELOOP, where the path ends in a symbolic link, which may lead anywhere.
std::shared_ptr<Source> open_source(const std::filesystem::path& path, Links links = Links::follow);

// Whether `path` is a directory that is one checkpoint: of torch.distributed.checkpoint (DCP), or
// safetensors files with an index. A run directory, which holds many, is none.
bool is_checkpoint_directory(const std::filesystem::path& path);

// An open checkpoint: its structure is read and checked, its tensors' bytes are not read yet.
// Reading may be done by several threads at once.
class CheckpointFile {
 public:
  // What is in the file says what it is, not its name. Of more than one file: an index of
  // safetensors, and what is_checkpoint_directory.
  // `allow_opaque`: what plain data cannot hold becomes Kind::opaque (to show it) instead of
  // Error(unsupported).
  static CheckpointFile open(const std::filesystem::path& path, bool allow_opaque = false);
  static CheckpointFile open(std::shared_ptr<const Source> source, bool allow_opaque = false);
  CheckpointFile(CheckpointFile&&) noexcept;
  CheckpointFile& operator=(CheckpointFile&&) noexcept;
  ~CheckpointFile();

  const std::string& name() const;
  std::uint64_t size() const;  // bytes of the whole file
  // What it is, in words: "perdure (PyTorch zip)", "PyTorch zip", "PyTorch legacy", "TorchScript".
  const std::string& format() const;
  const Value& value() const;  // tensors whose storages have data == nullptr until read
  const std::optional<CheckpointInfo>& info() const;
  // What a safetensors file says beside its tensors (`__metadata__`), and what was converted from
  // one still says; else empty.
  const std::map<std::string, std::string>& metadata() const;
  bool has_checksums() const;  // false: the format has none, or torch.save was told to write none
  bool has_block_checksums() const;  // true: written by perdure

  // The storages, by record number: storages()[i]->record == i.
  const std::vector<std::shared_ptr<TensorStorage>>& storages() const;
  // Where the reads below take memory to read through, page-aligned and of so many bytes; called by
  // several threads at once. Where it gives null, and by default, they allocate.
  using Scratch = std::function<std::shared_ptr<std::byte>(std::uint64_t bytes)>;
  void read_through(Scratch scratch);
  // Other processes of this machine read the same file at the same time: what is read goes through
  // the page cache, so that it comes from the disk once, and not once for each of them.
  void share_cache();
  // Reads one storage into memory of the caller's, of exactly its size, checksums compared before
  // it returns.
  void read(std::size_t storage, MutableBytes into) const;
  // Reads the storages that `value` (a part of value(), or all of it) refers to and that have no
  // data yet. `allocate` sets data (and owner) for size bytes; the default allocates memory that
  // the storage owns. Storages on the device "meta" are left alone. When it throws, some storages
  // may have data, unverified.
  using Allocate = std::function<void(TensorStorage&)>;
  void read_all(const Value& value, const Allocate& allocate = {}) const;

  // As read_all, but nothing is read: the storages get a copier that reads the file when their
  // bytes are asked for, and `data` is an address that only it knows. So a save streams them,
  // however large they are. A checksum is compared when the last byte that it is of has passed, and
  // where it is wrong, the copier throws. They may outlive the file, and must not be read by
  // several threads at once. With storages of no checksum nothing is compared.
  void stream_all(const Value& value) const;

  // As read_all, but the storages get their places in a private mapping of the file, which they
  // keep alive; see LoadOptions::mmap. Error(invalid) where the source is no file.
  void map_all(const Value& value, bool verify = false) const;
  // Reads these storages, by number, over what is in the memory that they have: nothing of a block
  // is written there before its checksum was found right. When it throws, some blocks are
  // overwritten. Only where reads_in_place().
  void read_in_place(const std::vector<std::size_t>& storages) const;
  bool reads_in_place() const;  // it has checksums for blocks of no more than a few MiB

  // Reads these storages, by number, and keeps nothing: each byte of them goes once through `sink`,
  // in runs of at most a few MiB that begin at multiples of 4 MiB in the storage, called by up to
  // four threads at once, about in the order of the file. Checksums are compared before a run is
  // handed on where the file has them for blocks, and at the end where it has one for all of a
  // storage: only when this returns was all of it right. A few MiB of memory for each thread,
  // whatever the size of the file. What `sink` throws ends the reading and is thrown.
  using Sink = std::function<void(std::size_t storage, std::uint64_t at, ConstBytes bytes)>;
  void stream(const std::vector<std::size_t>& storages, const Sink& sink) const;
  // The same of two files side by side: pairs of a storage here and one of `other`, the size of one
  // a whole multiple of the other's. `sink` gets the bytes of both at the same part of them; `at`
  // counts in the smaller one.
  using PairSink = std::function<void(std::size_t pair, std::uint64_t at, ConstBytes bytes,
                                      ConstBytes of_other)>;
  void stream_pairs(const CheckpointFile& other,
                    const std::vector<std::pair<std::size_t, std::size_t>>& pairs,
                    const PairSink& sink) const;
  // The part of `whole`, a tensor of value(), that begins at `offsets` and has `sizes` elements, as
  // a C-contiguous tensor with a storage of its own that is not read yet; read_all, read_in_place
  // and read take it like any other.
  Tensor part(const Tensor& whole, const std::vector<std::int64_t>& offsets,
              const std::vector<std::int64_t>& sizes) const;
  // How many processes have saved it. With more than one, value() is what process 0 has saved, and
  // has under "ranks" what the others have of their own.
  std::size_t ranks() const;
  // value() becomes what process `rank` has saved; of one that was not there, what process 0 has,
  // without its random numbers (docs/distributed.md, "Another number of ranks"). What perdure has
  // not written stays as it is.
  void view_as(std::size_t rank);
  // The CRC-32 that all of a storage was written with; nothing where the file has no checksums.
  std::optional<std::uint32_t> checksum(std::size_t storage) const;

  // A part of the file that has a name and a place of its own: an entry of a zip, without the top
  // folder in its name; the bytes of a storage or tensor in other formats.
  struct Record {
    std::string name;
    std::uint64_t offset = 0;  // of its bytes in the file
    std::uint64_t size = 0;
    std::uint32_t crc32 = 0;  // means something only where has_checksums()
  };
  const std::vector<Record>& records() const;

 private:
  struct Parts;
  explicit CheckpointFile(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// Finds one tensor of a file that perdure wrote by its index alone, without reading its structure:
// a few ms where there are 100,000. `name` is the tensor's keys joined with dots. Its storage has
// size, device and number, but no data. Null where the file is another one or damaged, and where
// the index does not tell of just one tensor under that name; CheckpointFile then says more.
// Error(io).
std::optional<Tensor> find_tensor(const Source& source, std::string_view name);

// One damaged or unverifiable place.
struct Finding {
  std::string record;        // its name, or "" for the file as a whole
  std::string tensor;        // key path of a tensor in it, or ""
  std::uint64_t offset = 0;  // in the file: start of the damaged block
  std::string what;          // a sentence
};

struct VerifyReport {
  enum class State { good, unchecked, damaged };
  std::string path;
  State state = State::good;  // unchecked: structure is sound, but the file carries no checksums
  std::uint64_t bytes = 0;    // read and compared
  std::uint64_t tensors = 0;
  std::vector<Finding> findings;
};

// Reads everything and compares every checksum; never throws for damage, lists all of it.
// Error(io), Error(not_found) where the file cannot be read at all. `progress` gets the number of
// bytes whenever some were read, from up to four threads at once; what it throws ends the reading.
using OnRead = std::function<void(std::uint64_t bytes)>;
VerifyReport verify(const std::filesystem::path& path, const OnRead& progress = {});
VerifyReport verify(std::shared_ptr<const Source> source, const OnRead& progress = {});

// For file objects and tests: writes the file's bytes, front to back, to `sink`.
void write_to(const std::function<void(ConstBytes)>& sink, const Value& state,
              const CheckpointInfo& info);

// The part of `state` that the key paths name, in the same nesting. Error(invalid) where one is not
// there.
Value select(const Value& state, const std::vector<KeyPath>& keys);

}  // namespace perdure
