#include "engine/patient_source.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdint>

namespace perdure::engine {
namespace {

constexpr std::uint64_t kPage = 4096;

// False where the disk cannot.
template <class F>
bool reads(F&& read) {
  try {
    read();
    return true;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::io || error.errno_value() != EIO) throw;
    return false;
  }
}

}  // namespace

void PatientSource::read(std::uint64_t offset, MutableBytes into) const {
  if (reads([&] { source_->read(offset, into); })) return;
  while (!into.empty()) {
    const MutableBytes page =
        into.first(std::min<std::size_t>(into.size(), kPage - offset % kPage));
    if (!reads([&] { source_->read(offset, page); })) {
      std::ranges::fill(page, std::byte{});
      unreadable_ += page.size();
    }
    offset += page.size();
    into = into.subspan(page.size());
  }
}

ConstBytes PatientSource::read_bulk(std::uint64_t offset, MutableBytes into,
                                    MutableBytes scratch) const {
  ConstBytes bytes;
  if (reads([&] { bytes = source_->read_bulk(offset, into, scratch); })) return bytes;
  read(offset, into);
  return into;
}

}  // namespace perdure::engine
