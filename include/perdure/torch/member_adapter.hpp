// How perdure's own classes for LibTorch take part in a TrainingState. Part of perdure/torch.hpp:
// include that.
#pragma once

#include <concepts>
#include <perdure/state.hpp>
#include <perdure/torch/rng.hpp>

namespace perdure {

namespace detail {

// What has the functions of an Adapter as members.
template <class T>
concept SavesItself = requires(T& x, const T& y, const Value& value, Problems& problems) {
  { y.state_dict() } -> std::same_as<Value>;
  x.load_state_dict(value);
  y.check(value, problems);
};

template <class T>
struct MemberAdapter {
  static constexpr Role role = Role::other;
  static Value state_dict(const T& x) { return x.state_dict(); }
  static void load_state_dict(T& x, const Value& value) { x.load_state_dict(value); }
  static void check(const T& x, const Value& value, Problems& problems) {
    x.check(value, problems);
  }
  static void attach(TrainingState& state) { attach_torch(state); }
};

}  // namespace detail

template <detail::SavesItself T>
Value state_dict(const T& x) {
  return x.state_dict();
}
template <detail::SavesItself T>
void load_state_dict(T& x, const Value& value) {
  x.load_state_dict(value);
}

}  // namespace perdure
