#include "store_ranks.hpp"

#include "object_owner.hpp"

namespace nb = nanobind;

namespace perdure::python {
namespace {

// Nothing of it waits: RankTalk looks for a message until it is there, so that other threads can
// use the store meanwhile.
class StoreRanks final : public Ranks {
 public:
  StoreRanks(nb::object store, std::size_t rank, std::size_t size)
      : store_(owned_by(std::move(store))), rank_(rank), size_(size) {}

  std::size_t rank() const override { return rank_; }
  std::size_t size() const override { return size_; }

  void set(const std::string& key, const std::string& message) override {
    call([&](nb::handle store) {
      store.attr("set")(text(key), nb::bytes(message.data(), message.size()));
    });
  }
  bool has(const std::string& key) override {
    bool found = false;
    call([&](nb::handle store) {
      nb::list keys;
      keys.append(text(key));
      found = nb::cast<bool>(store.attr("check")(keys));
    });
    return found;
  }
  std::string get(const std::string& key) override {
    std::string message;
    call([&](nb::handle store) {
      const auto bytes = nb::cast<nb::bytes>(store.attr("get")(text(key)));
      message.assign(bytes.c_str(), bytes.size());
    });
    return message;
  }
  void remove(const std::string& key) override {
    call([&](nb::handle store) { store.attr("delete_key")(text(key)); });
  }

 private:
  static nb::str text(const std::string& key) { return nb::str(key.data(), key.size()); }

  template <class F>
  void call(F&& f) {
    const nb::gil_scoped_acquire gil;
    try {
      f(nb::handle(owner_object(store_)));
    } catch (const nb::python_error& error) {
      throw Error(ErrorCode::io,
                  std::string("the store of torch.distributed does not answer: ") + error.what());
    }
  }

  std::shared_ptr<const void> store_;
  std::size_t rank_;
  std::size_t size_;
};

}  // namespace

std::shared_ptr<Ranks> ranks_from(nb::object store, std::size_t rank, std::size_t size) {
  return std::make_shared<StoreRanks>(std::move(store), rank, size);
}

}  // namespace perdure::python
