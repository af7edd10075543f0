// The ranks of c10d, the library below torch.distributed, for programs in C++:
//
//   auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
//   perdure::CheckpointManager checkpoints("runs/gpt", {.ranks = perdure::ranks(store, rank,
//   size)});
//
// Not part of perdure/torch.hpp: not every LibTorch is built with c10d. The headers of the PyTorch
// wheel have its stores and process groups, but not what ProcessGroupGloo.hpp needs (Gloo's own
// headers): such a group has to come from elsewhere. A store is all that perdure needs.
#pragma once

#include <cstdint>
#include <memory>
#include <perdure/error.hpp>
#include <perdure/ranks.hpp>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <type_traits>
#include <vector>

namespace perdure {
namespace detail {

class StoreRanks final : public Ranks {
 public:
  StoreRanks(c10::intrusive_ptr<c10d::Store> store, std::size_t rank, std::size_t size)
      : store_(std::move(store)), rank_(rank), size_(size) {}

  std::size_t rank() const override { return rank_; }
  std::size_t size() const override { return size_; }

  void set(const std::string& key, const std::string& message) override {
    call([&] { store_->set(key, std::vector<std::uint8_t>(message.begin(), message.end())); });
  }
  bool has(const std::string& key) override {
    return call([&] { return store_->check({key}); });
  }
  std::string get(const std::string& key) override {
    const auto bytes = call([&] { return store_->get(key); });
    return {bytes.begin(), bytes.end()};
  }
  void remove(const std::string& key) override {
    call([&] { store_->deleteKey(key); });
  }

 private:
  template <class F>
  static std::invoke_result_t<F> call(F&& f) {
    try {
      return f();
    } catch (const std::exception& error) {
      throw Error(ErrorCode::io,
                  std::string("the store of the ranks does not answer: ") + error.what());
    }
  }

  c10::intrusive_ptr<c10d::Store> store_;
  std::size_t rank_;
  std::size_t size_;
};

}  // namespace detail

// The processes that meet at `store`. For one manager at a time on each of them, and made in the
// same order. Nothing of a store that the caller uses, too, is kept waiting: perdure takes a
// connection of its own.
inline std::shared_ptr<Ranks> ranks(const c10::intrusive_ptr<c10d::Store>& store, std::size_t rank,
                                    std::size_t size) {
  return std::make_shared<detail::StoreRanks>(store->clone(), rank, size);
}

// Those of a process group, over the store that it was made with.
inline std::shared_ptr<Ranks> ranks(const c10d::ProcessGroup& group) {
  return ranks(group.getStore(), static_cast<std::size_t>(group.getRank()),
               static_cast<std::size_t>(group.getSize()));
}

}  // namespace perdure
