// Background writing: every size, aligned and not, with and without O_DIRECT and io_uring.
#include "io/file_writer.hpp"

#include <algorithm>
#include <random>

#include "storage/faulty_system.hpp"
#include "storage/storage_access.hpp"
#include "storage/temporary_directory.hpp"

namespace perdure::test {
namespace {

struct FreeAligned {
  void operator()(std::byte* memory) const { std::free(memory); }
};

// What all sizes and alignments are taken from.
class FileWriterTest : public testing::Test {
 protected:
  static constexpr std::size_t kSize = std::size_t{20} << 20;
  FileWriterTest()
      : memory(static_cast<std::byte*>(std::aligned_alloc(io::kDirectAlignment, kSize))) {
    std::mt19937 random(3);
    for (std::size_t i = 0; i < kSize; ++i) memory.get()[i] = static_cast<std::byte>(random());
  }
  ConstBytes bytes(std::size_t begin, std::size_t size) const {
    return {memory.get() + begin, size};
  }
  void write_and_compare(io::System& system, ConstBytes content, std::size_t piece) {
    const auto path = directory / "a";
    const int fd = io::retry_interrupted(
        [&] { return system.openat(AT_FDCWD, path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600); });
    ASSERT_GE(fd, 0);
    io::File file(system, io::UniqueFd(system, fd), path.string());
    io::FileWriter writer(file, content.size());
    for (std::size_t at = 0; at < content.size(); at += piece) {
      writer.append(content.subspan(at, std::min(piece, content.size() - at)));
      if (at / piece % 3 == 2) writer.settle(at);
    }
    EXPECT_EQ(writer.written(), content.size());
    writer.finish();
    file.sync(0);
    EXPECT_TRUE(TemporaryDirectory::content(path) ==
                std::string_view(reinterpret_cast<const char*>(content.data()), content.size()))
        << content.size() << " bytes in pieces of " << piece;
  }

  TemporaryDirectory directory;
  std::unique_ptr<std::byte, FreeAligned> memory;
};

TEST_F(FileWriterTest, EverySize) {
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{1}, std::size_t{511}, std::size_t{4095}, std::size_t{4096},
        std::size_t{4097}, std::size_t{1} << 20, (std::size_t{1} << 20) + 1, kSize, kSize - 1,
        kSize - 4096}) {
    write_and_compare(io::real_system(), bytes(0, size), std::size_t{4} << 20);
    FaultySystem synchronous;
    write_and_compare(synchronous, bytes(0, size), std::size_t{4} << 20);
  }
}

TEST_F(FileWriterTest, PiecesAndMemoryThatAreNotAligned) {
  for (const std::size_t piece : {std::size_t{1000}, std::size_t{4096}, std::size_t{5000}})
    for (const std::size_t begin : {std::size_t{0}, std::size_t{1}, std::size_t{64}})
      write_and_compare(io::real_system(), bytes(begin, 300'000), piece);
}

TEST_F(FileWriterTest, ShortTransfersAndInterruptions) {
  FaultySystem system;
  system.interrupting = true;
  system.transfer_limit = 10'000;
  write_and_compare(system, bytes(0, 3'000'001), std::size_t{4} << 20);
}

TEST_F(FileWriterTest, ODirectThatIsRefusedLater) {
  for (const int error : {EINVAL, EOPNOTSUPP}) {
    for (int n = 1; n <= 4; ++n) {
      FaultySystem system;
      system.fail(Call::pwrite, n, error);
      write_and_compare(system, bytes(0, 3'000'001), std::size_t{1} << 20);
      EXPECT_TRUE(system.fired());
    }
  }
}

// What the kernel says of a transfer in the background, at every one of them, once.
TEST_F(FileWriterTest, EveryCompletionFailingOnce) {
  const ConstBytes content = bytes(0, 5'000'001);
  for (const int error : {EIO, ENOSPC, ECANCELED, EAGAIN, EINTR, EINVAL, EOPNOTSUPP, kShort}) {
    bool fired = true;
    for (int n = 1; fired; ++n) {
      SCOPED_TRACE(testing::Message() << "completion " << n << ", errno " << error);
      FaultySystem system;
      system.fail(Call::completion, n, error);
      const bool fatal = error == EIO || error == ENOSPC || error == ECANCELED;
      try {
        write_and_compare(system, content, std::size_t{1} << 20);
        EXPECT_FALSE(fatal && system.fired());
      } catch (const Error& failure) {
        EXPECT_TRUE(fatal) << failure.what();
        EXPECT_EQ(failure.errno_value(), error);
        EXPECT_NE(std::string(failure.what()).find((directory / "a").string()), std::string::npos);
      }
      fired = system.fired();
      EXPECT_EQ(system.open_descriptors(), 0U);
      if (HasFailure()) return;
    }
  }
}

TEST_F(FileWriterTest, ARingThatCannotBeOpened) {
  FaultySystem system;
  system.fail(Call::open_ring, 1, ENOMEM);
  write_and_compare(system, bytes(0, 3'000'001), std::size_t{1} << 20);
  EXPECT_TRUE(system.fired());
  EXPECT_GT(system.count(Call::pwrite), 0);
}

TEST_F(FileWriterTest, ShortTransfersAndInterruptionsInTheBackground) {
  FaultySystem system;
  system.interrupting = system.background = true;
  write_and_compare(system, bytes(0, 3'000'001), std::size_t{4} << 20);
}

TEST_F(FileWriterTest, MoreThanWasSaidIsRefused) {
  const auto path = directory / "a";
  io::System& system = io::real_system();
  const int fd = system.openat(AT_FDCWD, path.c_str(), O_RDWR | O_CREAT, 0600);
  io::File file(system, io::UniqueFd(system, fd), path.string());
  io::FileWriter writer(file, 10);
  EXPECT_ERROR(invalid, "10 bytes", writer.append(bytes(0, 11)));
  EXPECT_ERROR(invalid, "0 were written", writer.finish());
}

}  // namespace
}  // namespace perdure::test
