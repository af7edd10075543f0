// Where checkpoints live: a flat set of names, each with bytes, replaced only as a whole.
//
// Implementations: LocalStorage (a directory), MemoryStorage (tests and users' tests); object
// stores later. All of them pass tests/cpp/storage/storage_suite.hpp. Errors are perdure::Error
// with the full name in the text.
#pragma once

#include <cstdint>
#include <memory>
#include <perdure/file.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace perdure::storage {

// A file being written under a temporary name. Destroying it before commit() removes every trace.
class Replacement {
 public:
  virtual ~Replacement() = default;
  // The next bytes. They may be written behind the caller's back, so they must stay as they are
  // until settle() has returned for their end, or commit(), or the destructor. Memory and length in
  // whole pages (all but the last) go to a disk without a copy.
  virtual void append(ConstBytes bytes) = 0;
  // Waits until the first `end` bytes need no memory of the caller's.
  virtual void settle(std::uint64_t end) = 0;
  // Makes the content durable, then gives it its name, durably. When it returns, a crash cannot
  // undo it; when it throws, the old content of the name (or its absence) is still what readers
  // see, or the new content whole where only the last directory sync failed. Called once.
  virtual void commit() = 0;
};

enum class IfExists { replace, fail };

class Storage {
 public:
  struct Entry {
    std::string name;
    std::uint64_t size = 0;     // bytes; 0 of a directory
    bool is_directory = false;  // a checkpoint of several ranks, say
  };

  virtual ~Storage() = default;
  // The full name, for messages: "runs/gpt/step-..."; of "", the storage itself.
  virtual std::string describe(std::string_view name) const = 0;
  // The visible regular files and directories, in any order.
  virtual std::vector<Entry> list() const = 0;
  // Error(not_found) where it is absent.
  virtual std::shared_ptr<const Source> open(std::string_view name) const = 0;
  // Exactly `size` bytes will be appended: reserved now, so that a full disk is known before
  // anything is written (Error(full)). IfExists::fail: commit throws Error(invalid) where the name
  // is taken by then.
  virtual std::unique_ptr<Replacement> create(std::string_view name, std::uint64_t size,
                                              IfExists if_exists) = 0;
  // Adds a line to the end of a file, which is made where it is not there. What a crash leaves of
  // it is not promised; a line that was torn stays one of its own.
  virtual void append_line(std::string_view name, std::string_view line) = 0;
  // Durable when it returns. Never over another: Error(invalid).
  virtual void rename(std::string_view from, std::string_view to) = 0;
  // Hidden atomically and durably first, then freed. Names that are not there are passed over.
  virtual void remove(const std::vector<std::string>& names) = 0;
  // Exclusive ownership until unlock() or destruction. Error(locked) where another has it.
  virtual void lock() = 0;
  virtual void unlock() noexcept = 0;
  // unlock(), and all else that is held is let go. Nothing but close() is called afterwards.
  virtual void close() noexcept { unlock(); }
  // Removes what crashed writers and removers left, only while locked. Returns the names that it
  // was to have or had: numbers in them are used up. What cannot be removed is left there.
  virtual std::vector<std::string> collect_debris() = 0;
};

}  // namespace perdure::storage
