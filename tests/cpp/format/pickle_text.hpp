// Pickles put together by hand, in the words of a data.pkl: what torch.save would write, and what
// it never would.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "format/coding.hpp"

namespace perdure::test::text {

inline std::string integer(std::int64_t x) {
  std::string out = "\x8a\x08";
  format::put<std::uint64_t>(out, static_cast<std::uint64_t>(x));
  return out;
}
inline std::string string(std::string_view x) {
  std::string out = "X";
  format::put<std::uint32_t>(out, static_cast<std::uint32_t>(x.size()));
  return out.append(x);
}
inline std::string tuple(std::initializer_list<std::string> items) {
  std::string out = "(";
  for (const std::string& item : items) out += item;
  return out + "t";
}
inline std::string integers(std::initializer_list<std::int64_t> numbers) {
  std::string out = "(";
  for (const std::int64_t x : numbers) out += integer(x);
  return out + "t";
}
inline std::string global(std::string_view module, std::string_view name) {
  return "c" + std::string(module) + "\n" + std::string(name) + "\n";
}
inline std::string call(std::string_view module, std::string_view name,
                        std::initializer_list<std::string> arguments) {
  return global(module, name) + tuple(arguments) + "R";
}
inline std::string storage(std::string_view type, std::string_view key, std::int64_t count,
                           std::string_view device = "cpu", std::string_view module = "torch") {
  return tuple({string("storage"), global(module, type), string(key), string(device),
                integer(count)}) +
         "Q";
}
inline const std::string kTrue = "\x88", kFalse = "\x89", kNone = "N";
inline const std::string kHooks = call("collections", "OrderedDict", {});

inline std::string tensor(const std::string& of, std::int64_t offset,
                          std::initializer_list<std::int64_t> shape,
                          std::initializer_list<std::int64_t> strides) {
  return call("torch._utils", "_rebuild_tensor_v2",
              {of, integer(offset), integers(shape), integers(strides), kFalse, kHooks});
}
inline std::string dict(std::initializer_list<std::string> items) {
  std::string out = "}(";
  for (const std::string& item : items) out += item;
  return out + "u";
}
inline std::string list(std::initializer_list<std::string> items) {
  std::string out = "](";
  for (const std::string& item : items) out += item;
  return out + "e";
}
// Protocol 2 around it.
inline std::string pickle(std::string_view body) { return "\x80\x02" + std::string(body) + "."; }

}  // namespace perdure::test::text
