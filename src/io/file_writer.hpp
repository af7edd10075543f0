// Writes a file front to back, in the background, and past the page cache where that can be had.
//
// What is whole in aligned memory goes to the disk as it lies there, many transfers at a time; a
// last piece that is shorter than a sector is written padded, and the file cut to its size
// afterwards. Where the kernel or the file system refuses io_uring or O_DIRECT, and for pieces that
// are not aligned, it is plain writing.
#pragma once

#include <cstdint>
#include <vector>

#include "io/file.hpp"

namespace perdure::io {

// What memory, offset and length must be multiples of to go past the page cache. No file system
// in use wants more than a page.
inline constexpr std::uint64_t kDirectAlignment = 4096;

class FileWriter {
 public:
  // Reserves the space of all `size` bytes that will come; Error(full) where there is none. `file`
  // must outlive the writer.
  FileWriter(const File& file, std::uint64_t size);
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  ~FileWriter();  // waits for what is in flight

  // The next bytes, which must stay as they are until settle() has returned for their end.
  void append(ConstBytes bytes);
  // Waits until the first `end` bytes of the file need no memory of the caller's.
  void settle(std::uint64_t end);
  // Waits for all of them, and gives the file its exact size.
  void finish();
  std::uint64_t written() const noexcept { return written_; }  // bytes appended

 private:
  struct Transfer {
    std::uint64_t offset = 0;
    ConstBytes bytes;  // what is still to be written; empty: the slot is free
    int attempts = 0;
    bool direct = false;  // as it was started
  };

  bool can_go_direct(std::uint64_t offset, ConstBytes bytes) const;
  void append_piece(ConstBytes bytes);
  void append_last(ConstBytes bytes);
  void start(std::size_t slot);
  std::size_t free_slot();
  void complete_one();
  void stop_direct();

  const File& file_;
  std::uint64_t size_;
  std::uint64_t written_ = 0;
  bool direct_ = false;
  std::unique_ptr<Ring> ring_;
  std::vector<Transfer> transfers_;
  std::size_t in_flight_ = 0;
  struct FreeMemory {
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, FreeMemory> last_;  // one aligned sector, for the padded end
};

}  // namespace perdure::io
