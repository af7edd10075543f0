#include "values.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <perdure/npy.hpp>
#include <vector>

#include "node_text.hpp"
#include "text.hpp"

namespace perdure::cli {
namespace {

// As torch.set_printoptions() has it.
constexpr std::uint64_t kWhole = 1000;      // up to so many elements, all are shown
constexpr std::int64_t kEdge = 3;           // otherwise so many at both ends of each dimension
constexpr std::size_t kMostDimensions = 8;  // of a larger one that has more, only the first few

using Indices = std::vector<std::int64_t>;

// What numpy has and holds every value.
DType shown_as(DType dtype) {
  switch (dtype) {
    case DType::float16:
    case DType::bfloat16:
    case DType::float8_e4m3fn:
    case DType::float8_e4m3fnuz:
    case DType::float8_e5m2:
    case DType::float8_e5m2fnuz:
    case DType::float8_e8m0fnu:
      return DType::float32;
    case DType::complex32:
      return DType::complex64;
    case DType::bits16:
      return DType::uint16;
    case DType::float4_e2m1fn_x2:
    case DType::bits8:
    case DType::bits1x8:
    case DType::bits2x4:
    case DType::bits4x2:
      return DType::uint8;
    default:
      return dtype;
  }
}

template <class T>
T raw(const std::byte* from) {
  T out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

std::string real_text(double x, bool is_scientific) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x > 0 ? "inf" : "-inf";
  return is_scientific ? fmt::format("{:.4e}", x) : fmt::format("{:.4f}", x);
}

// One element; floats as numbers first, because how they are written depends on all of them.
struct Element {
  bool is_real = false;
  double re = 0, im = 0;
  std::string text;
};

Element element_of(DType dtype, const std::byte* x) {
  switch (dtype) {
    case DType::float64:
      return {true, raw<double>(x), 0, ""};
    case DType::float32:
      return {true, raw<float>(x), 0, ""};
    case DType::complex128:
      return {true, raw<double>(x), raw<double>(x + 8), ""};
    case DType::complex64:
      return {true, raw<float>(x), raw<float>(x + 4), ""};
    case DType::int64:
      return {false, 0, 0, fmt::format("{}", raw<std::int64_t>(x))};
    case DType::int32:
      return {false, 0, 0, fmt::format("{}", raw<std::int32_t>(x))};
    case DType::int16:
      return {false, 0, 0, fmt::format("{}", raw<std::int16_t>(x))};
    case DType::int8:
      return {false, 0, 0, fmt::format("{}", raw<std::int8_t>(x))};
    case DType::uint64:
      return {false, 0, 0, fmt::format("{}", raw<std::uint64_t>(x))};
    case DType::uint32:
      return {false, 0, 0, fmt::format("{}", raw<std::uint32_t>(x))};
    case DType::uint16:
      return {false, 0, 0, fmt::format("{}", raw<std::uint16_t>(x))};
    case DType::boolean:
      return {false, 0, 0, raw<std::uint8_t>(x) != 0 ? "True" : "False"};
    default:
      return {false, 0, 0, fmt::format("{}", raw<std::uint8_t>(x))};
  }
}

// The elements that are shown, caught out of the stream of a .npy file.
class Shown {
 public:
  Shown(const CheckpointFile& file, const std::string& name, const Tensor& tensor)
      : shape_(tensor.shape), dtype_(shown_as(tensor.dtype)), cuts_(tensor.numel() > kWhole) {
    if (tensor.numel() == 0) return;
    write_npy(file, name, [this](ConstBytes bytes) { take(bytes); }, {.dtype = dtype_});
    is_scientific_ = needs_exponent();
    for (auto& [place, element] : elements_) finish(element);
  }

  std::string text() const {
    if (shape_.empty()) return elements_.empty() ? "" : padded(elements_.begin()->second);
    Indices at;
    std::string out;
    add(out, at);
    return out;
  }

 private:
  bool skips(std::int64_t size, std::int64_t i) const {
    return cuts_ && size > 2 * kEdge && i >= kEdge && i < size - kEdge;
  }
  bool cuts_dimensions() const { return cuts_ && shape_.size() > kMostDimensions; }

  void take(ConstBytes bytes) {
    if (!header_taken_) return read_header(bytes);
    const std::size_t size = itemsize(dtype_);
    for (std::uint64_t i = 0; i < bytes.size() / size;) {
      const std::uint64_t skipped = shown_from(number_ + i);
      if (skipped > 0) {
        i += skipped;
        continue;
      }
      elements_.emplace(place_of(number_ + i), element_of(dtype_, bytes.data() + i * size));
      ++i;
    }
    number_ += bytes.size() / size;
  }

  // The first piece is the header. A transposed tensor comes column by column.
  void read_header(ConstBytes bytes) {
    const std::string_view header(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    fortran_ = header.find("'fortran_order': True") != std::string_view::npos;
    header_taken_ = true;
  }

  // Indices of the element that comes as number `n`, the last of them the quickest in the file.
  Indices place_of(std::uint64_t n) const {
    Indices at(shape_.size());
    for (std::size_t k = 0; k < shape_.size(); ++k) {
      const std::size_t d = fortran_ ? k : shape_.size() - 1 - k;
      at[d] = static_cast<std::int64_t>(n % static_cast<std::uint64_t>(shape_[d]));
      n /= static_cast<std::uint64_t>(shape_[d]);
    }
    return at;
  }

  // 0 where element `n` is shown, or how many to pass over.
  std::uint64_t shown_from(std::uint64_t n) const {
    if (!cuts_) return 0;
    if (cuts_dimensions()) return n < static_cast<std::uint64_t>(2 * kEdge) ? 0 : ~n;
    std::uint64_t inner = 1;
    std::uint64_t skip = 0;
    for (std::size_t k = 0; k < shape_.size(); ++k) {
      const std::size_t d = fortran_ ? k : shape_.size() - 1 - k;
      const auto size = static_cast<std::uint64_t>(shape_[d]);
      const std::uint64_t i = n / inner % size;
      if (skips(shape_[d], static_cast<std::int64_t>(i)))
        skip = (size - static_cast<std::uint64_t>(kEdge) - i) * inner - n % inner;
      inner *= size;
    }
    return skip;
  }

  bool needs_exponent() const {
    double largest = 0;
    double smallest = INFINITY;
    for (const auto& [place, element] : elements_)
      for (const double x : {std::abs(element.re), std::abs(element.im)})
        if (element.is_real && std::isfinite(x) && x > 0) {
          largest = std::max(largest, x);
          smallest = std::min(smallest, x);
        }
    return largest > 0 && (largest >= 1e8 || smallest < 1e-4 || largest / smallest > 1e5);
  }

  void finish(Element& element) {
    if (element.is_real) {
      element.text = real_text(element.re, is_scientific_);
      if (dtype_ == DType::complex64 || dtype_ == DType::complex128) {
        const std::string imag = real_text(element.im, is_scientific_);
        element.text += (imag.front() == '-' ? "" : "+") + imag + "j";
      }
    }
    width_ = std::max(width_, element.text.size());
  }

  std::string padded(const Element& element) const {
    return std::string(width_ - element.text.size(), ' ') + element.text;
  }

  void add(std::string& out, Indices& at) const {
    const std::size_t depth = at.size();
    const bool is_row = depth + 1 == shape_.size();
    const std::string between =
        is_row ? ", "
               : "," + std::string(shape_.size() - 1 - depth, '\n') + std::string(depth + 1, ' ');
    out += '[';
    for (std::int64_t i = 0; i < shape_[depth]; ++i) {
      if (skips(shape_[depth], i)) {
        out += between + "...";
        i = shape_[depth] - kEdge - 1;
        continue;
      }
      const bool wraps = is_row && !cuts_ && i % per_line() == 0;
      if (i > 0) out += wraps ? ",\n" + std::string(depth + 1, ' ') : between;
      at.push_back(i);
      if (is_row)
        out += padded(elements_.at(at));
      else
        add(out, at);
      at.pop_back();
    }
    out += ']';
  }

  std::int64_t per_line() const {
    return std::max<std::int64_t>(1, 76 / static_cast<std::int64_t>(width_ + 2));
  }

 public:
  // Of many dimensions, only the first few elements.
  std::string first_few() const {
    std::string out = "[";
    for (const auto& [place, element] : elements_)
      out += (out.size() > 1 ? ", " : "") + element.text;
    return out + ", ...] (in the order of the file)";
  }
  bool is_cut_short() const { return cuts_dimensions(); }

 private:
  std::vector<std::int64_t> shape_;
  DType dtype_;
  bool cuts_, header_taken_ = false, fortran_ = false, is_scientific_ = false;
  std::uint64_t number_ = 0;
  std::size_t width_ = 1;
  std::map<Indices, Element> elements_;
};

// A file of a few bytes may hold a view of 2^60 elements.
bool repeats_much(const Tensor& tensor) {
  constexpr std::uint64_t kFew = std::uint64_t{1} << 26;
  return tensor.numel() > kFew && tensor.numel() / 64 > tensor.storage->size;
}

}  // namespace

std::string values_text(const CheckpointFile& file, const std::string& name, const Tensor& tensor) {
  std::string out = fmt::format("{}  {} {}\n", escape(shorten(name, 200)), dtype_name(tensor.dtype),
                                shape_text(tensor.shape));
  if (repeats_much(tensor))
    return out + "(a view that repeats its elements so often is not shown)\n";
  const Shown shown(file, name, tensor);
  if (tensor.numel() == 0) return out + "[]\n";
  return out + (shown.is_cut_short() ? shown.first_few() : shown.text()) + '\n';
}

}  // namespace perdure::cli
