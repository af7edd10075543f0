#include "format/dcp_writer.hpp"

#include <cstdint>
#include <map>
#include <vector>

#include "format/coding.hpp"
#include "format/pickle_number.hpp"
#include "format/pickle_opcodes.hpp"

namespace perdure::format {
namespace {

constexpr std::string_view kClasses = "torch.distributed.checkpoint.metadata";
constexpr std::string_view kFiles = "torch.distributed.checkpoint.filesystem";

class MetadataWriter {
 public:
  explicit MetadataWriter(const DcpMetadata& metadata) : metadata_(metadata) {}

  std::string write() {
    put(Op::protocol);
    out_ += '\2';
    object(kClasses, "Metadata", [&] {
      member("state_dict_metadata", [&] { dict([&] { items(); }); });
      member("planner_data", [&] { dict([&] { paths(); }); });
      member("storage_data", [&] { dict([&] { places(); }); });
      member("storage_meta", [&] { put(Op::none); });
      member("version", [&] { text("1.0.0"); });
    });
    put(Op::stop);
    return std::move(out_);
  }

 private:
  void put(Op op) { out_ += static_cast<char>(op); }
  // What has been written before is referred to: a checkpoint of many ranks says the same things of
  // each of a million pieces.
  template <class Key, class F>
  void once(std::map<Key, std::uint32_t>& known, const Key& key, F&& write) {
    const auto [at, fresh] = known.try_emplace(key, next_memo_);
    if (!fresh) {
      put(Op::long_bin_get);
      format::put(out_, at->second);
      return;
    }
    ++next_memo_;
    const std::uint32_t memo = at->second;
    write();
    put(Op::long_bin_put);
    format::put(out_, memo);
  }
  void text(std::string_view text) {
    once(texts_, std::string(text), [&] {
      put(Op::bin_unicode);
      format::put(out_, static_cast<std::uint32_t>(text.size()));
      out_ += text;
    });
  }
  void global(std::string_view module, std::string_view name) {
    once(globals_, std::string(module) + "\n" + std::string(name) + "\n", [&] {
      put(Op::global);
      out_.append(module).append("\n").append(name).append("\n");
    });
  }
  template <class F>
  void tuple(F&& content) {
    put(Op::mark);
    content();
    put(Op::tuple);
  }
  template <class F>
  void call(std::string_view module, std::string_view name, F&& arguments) {
    global(module, name);
    tuple(arguments);
    put(Op::reduce);
  }
  template <class F>
  void dict(F&& members) {
    put(Op::empty_dict);
    put(Op::mark);
    members();
    put(Op::set_items);
  }
  template <class F>
  void member(std::string_view name, F&& value) {
    text(name);
    value();
  }
  void empty_object(std::string_view module, std::string_view name) {
    global(module, name);
    put(Op::empty_tuple);
    put(Op::new_obj);
  }
  template <class F>
  void object(std::string_view module, std::string_view name, F&& members) {
    empty_object(module, name);
    dict(members);
    put(Op::build);
  }
  void size(const std::vector<std::int64_t>& sizes) {
    once(sizes_, sizes, [&] {
      call("torch", "Size", [&] {
        tuple([&] {
          for (const std::int64_t x : sizes) put_integer(out_, x);
        });
      });
    });
  }

  void properties(DType dtype) {
    empty_object(kClasses, "TensorProperties");
    tuple([&] {
      global("torch", dtype_name(dtype));
      call("torch.serialization", "_get_layout", [&] { text("torch.strided"); });
      put(Op::new_false);
      call(kClasses, "_MEM_FORMAT_ENCODING", [&] { put_integer(out_, 0); });
      put(Op::new_false);
    });
    put(Op::build);
  }
  void tensor(const DcpItem& item) {
    object(kClasses, "TensorStorageMetadata", [&] {
      member("properties", [&] { properties(item.dtype); });
      member("size", [&] { size(item.shape); });
      member("chunks", [&] {
        put(Op::empty_list);
        for (const DcpChunk& chunk : item.chunks) {
          object(kClasses, "ChunkStorageMetadata", [&] {
            member("offsets", [&] { size(chunk.offsets); });
            member("sizes", [&] { size(chunk.sizes); });
          });
          put(Op::append);
        }
      });
    });
  }
  void items() {
    for (const DcpItem& item : metadata_.items) {
      text(item.name);
      if (item.is_tensor)
        tensor(item);
      else
        empty_object(kClasses, "BytesStorageMetadata");
    }
  }
  void paths() {
    for (const DcpItem& item : metadata_.items) {
      text(item.name);
      tuple([&] {
        for (const Value& key : item.path) {
          if (key.kind() == Kind::integer && !key.as_big_int())
            put_integer(out_, key.as_int());
          else
            text(key.as_string());
        }
      });
    }
  }
  void places() {
    for (const DcpItem& item : metadata_.items)
      for (std::size_t i = 0; i < item.chunks.size(); ++i) place(item, i);
  }
  void place(const DcpItem& item, std::size_t number) {
    const DcpChunk& chunk = item.chunks[number];
    object(kClasses, "MetadataIndex", [&] {
      member("fqn", [&] { text(item.name); });
      member("offset", [&] { item.is_tensor ? size(chunk.offsets) : put(Op::none); });
      member("index", [&] {
        item.is_tensor ? put_integer(out_, static_cast<std::int64_t>(number)) : put(Op::none);
      });
    });
    object(kFiles, "_StorageInfo", [&] {
      member("relative_path", [&] { text(metadata_.files[chunk.place.file]); });
      member("offset", [&] { put_integer(out_, static_cast<std::int64_t>(chunk.place.offset)); });
      member("length", [&] { put_integer(out_, static_cast<std::int64_t>(chunk.place.length)); });
    });
  }

  const DcpMetadata& metadata_;
  std::map<std::string, std::uint32_t> texts_;
  std::map<std::string, std::uint32_t> globals_;
  std::map<std::vector<std::int64_t>, std::uint32_t> sizes_;
  std::uint32_t next_memo_ = 0;
  std::string out_;
};

}  // namespace

std::string write_dcp_metadata(const DcpMetadata& metadata) {
  return MetadataWriter(metadata).write();
}

}  // namespace perdure::format
