// The pickle reader: what each opcode means, and what no pickle may do to us.
#include "format/pickle_reader.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>

#include "expect_error.hpp"
#include "format/coding.hpp"
#include "format/pickle_samples.hpp"
#include "format/torch_file.hpp"

namespace perdure::test {
namespace {

using namespace format;
using namespace std::string_literals;

// A parsed pickle as text, so that a test reads as the value that is expected.
class Shown {
 public:
  explicit Shown(const Pickle& pickle) : pickle_(pickle) {}
  std::string operator()(NodeId id) const {
    const Node& node = pickle_[id];
    switch (node.kind) {
      case NodeKind::none:
        return "None";
      case NodeKind::boolean:
        return node.integer != 0 ? "True" : "False";
      case NodeKind::integer:
        return fmt::format("{}", node.integer);
      case NodeKind::big_integer:
        return "int:" + hex(node.text);
      case NodeKind::real:
        return fmt::format("{}", node.real);
      case NodeKind::string:
        return fmt::format("'{}'", node.text);
      case NodeKind::bytes:
        return fmt::format("b'{}'", node.text);
      case NodeKind::bytearray:
        return fmt::format("bytearray'{}'", node.text);
      case NodeKind::list:
        return "[" + items(node.items) + "]";
      case NodeKind::tuple:
        return "(" + items(node.items) + ")";
      case NodeKind::set:
        return "set{" + items(node.items) + "}";
      case NodeKind::frozenset:
        return "frozenset{" + items(node.items) + "}";
      case NodeKind::dict:
        return (node.function == kNoNode ? "{" : "OrderedDict{") + pairs(node.items) + "}" +
               state(node);
      case NodeKind::global:
        return fmt::format("{}.{}", node.text, node.name);
      case NodeKind::call:
        return (node.created_by_new ? "new " : "") + (*this)(node.function) +
               (*this)(node.items[0]) + (node.added.empty() ? "" : " added " + items(node.added)) +
               state(node);
      case NodeKind::persistent:
        return "storage" + (*this)(node.items[0]);
    }
    return "?";
  }

 private:
  static std::string hex(std::string_view bytes) {
    std::string out;
    for (const char c : bytes) out += fmt::format("{:02x}", static_cast<unsigned char>(c));
    return out;
  }
  std::string state(const Node& node) const {
    return node.state == kNoNode ? "" : " state " + (*this)(node.state);
  }
  std::string items(const std::vector<NodeId>& ids) const {
    std::string out;
    for (const NodeId id : ids) out += (out.empty() ? "" : ", ") + (*this)(id);
    return out;
  }
  std::string pairs(const std::vector<NodeId>& ids) const {
    std::string out;
    for (std::size_t i = 0; i < ids.size(); i += 2)
      out += (out.empty() ? "" : ", ") + (*this)(ids[i]) + ": " + (*this)(ids[i + 1]);
    return out;
  }
  const Pickle& pickle_;
};

std::string shown(std::string_view bytes) {
  const Pickle pickle = read_pickle(bytes);
  return Shown(pickle)(pickle.root);
}

// Protocol 2 around the opcodes of `body`.
std::string pickle(std::string_view body) { return "\x80\x02" + std::string(body) + "."; }

template <std::unsigned_integral T>
std::string number(T x) {
  std::string out;
  put<T>(out, x);
  return out;
}

TEST(PickleReader, ReadsWhatPythonWrites) {
  for (const PickleSample& sample : kPickleSamples) {
    SCOPED_TRACE(fmt::format("protocol {}, {}", sample.protocol, sample.name));
    EXPECT_EQ(shown(from_hex(sample.hex)), sample.shown);
  }
}

TEST(PickleReader, KnowsEveryOpcodeOfProtocols2To5) {
  const std::pair<std::string, const char*> cases[] = {
      {"N", "None"},
      {"\x88", "True"},
      {"\x89", "False"},
      {"J\xff\xff\xff\xff", "-1"},
      {"J\0\0\0\x80"s, "-2147483648"},
      {"K\xff", "255"},
      {"M\xff\xff", "65535"},
      {"\x8a\0"s, "0"},
      {"\x8a\1\xff", "-1"},
      {"\x8a\2\0\x80"s, "-32768"},
      {"\x8a\x09\0\0\0\0\0\0\0\x80\0"s, "int:000000000000008000"},
      {"\x8b\1\0\0\0\x7f"s, "127"},
      {"G\x3f\xe0\0\0\0\0\0\0"s, "0.5"},
      {"X\3\0\0\0abc"s, "'abc'"},
      {"\x8c\3abc", "'abc'"},
      {"\x8d\3\0\0\0\0\0\0\0abc"s, "'abc'"},
      {"U\3abc", "'abc'"},
      {"T\3\0\0\0abc"s, "'abc'"},
      {"C\3abc", "b'abc'"},
      {"B\3\0\0\0abc"s, "b'abc'"},
      {"\x8e\3\0\0\0\0\0\0\0abc"s, "b'abc'"},
      {"\x96\3\0\0\0\0\0\0\0abc"s, "bytearray'abc'"},
      {"]", "[]"},
      {"]Na", "[None]"},
      {"](NNe", "[None, None]"},
      {"](e", "[]"},
      {")", "()"},
      {"(t", "()"},
      {"(NNNNt", "(None, None, None, None)"},
      {"N\x85", "(None)"},
      {"N\x88\x86", "(None, True)"},
      {"N\x88\x89\x87", "(None, True, False)"},
      {"}", "{}"},
      {"}K\1Ns", "{1: None}"},
      {"}(K\1NK\2Nu", "{1: None, 2: None}"},
      {"\x8f", "set{}"},
      {"\x8f(K\1K\2\x90", "set{1, 2}"},
      {"(K\1\x91", "frozenset{1}"},
      {"cos\nsystem\n", "os.system"},
      {"\x8c\2os\x8c\6system\x93", "os.system"},
      {"cos\nsystem\nX\2\0\0\0id\x85R"s, "os.system('id')"},
      {"ca\nB\n)\x81", "new a.B()"},
      {"ca\nB\n)}\x8c\1kK\1s\x92", "new a.B() added {'k': 1}"},
      {"ca\nB\n)\x81}\x8c\1kK\1sb", "new a.B() state {'k': 1}"},
      {"ca\nB\n)\x81(K\1K\2e", "new a.B() added 1, 2"},
      {"ca\nB\n)R(K\1K\2u", "a.B() added 1, 2"},
      {"ccollections\nOrderedDict\n)RK\1Ns", "OrderedDict{1: None}"},
      {"ccollections\nOrderedDict\n)RK\1Ns}\x8c\1kK\1sb", "OrderedDict{1: None} state {'k': 1}"},
      {"K\5Q", "storage5"},
      {"K\5q\0h\0\x86"s, "(5, 5)"},
      {"K\5r\0\0\0\0j\0\0\0\0\x86"s, "(5, 5)"},
      {"K\5\x94K\6\x94h\0\x87"s, "(5, 6, 5)"},
  };
  for (const auto& [body, expected] : cases) {
    SCOPED_TRACE(testing::PrintToString(body));
    EXPECT_EQ(shown(pickle(body)), expected);
  }
}

TEST(PickleReader, MemoizeCountsEntriesAsPythonDoes) {
  // One entry is set, at 2; so MEMOIZE puts at 1, the number of entries, and not after the highest.
  EXPECT_EQ(shown(pickle("(K\5q\2K\6\x94h\1t")), "(5, 6, 6)");
}

TEST(PickleReader, SharedValuesStayOneNode) {
  const std::string bytes = pickle("]q\0Nah\0\x86"s);
  const Pickle parsed = read_pickle(bytes);
  const Node& pair = parsed[parsed.root];
  EXPECT_EQ(pair.items[0], pair.items[1]);
}

TEST(PickleReader, NothingIsEverCalled) {
  // pickle.loads would run a shell here. These are nodes that say so.
  EXPECT_EQ(shown(pickle("cposix\nsystem\n\x8c\x16touch /tmp/perdure-was\x85R"s)),
            "posix.system('touch /tmp/perdure-was')");
}

struct Bad {
  const char* what;
  std::string body;
  const char* message;
};

TEST(PickleReader, RefusesWhatContradictsItself) {
  const Bad cases[] = {
      {"SETITEM on a list", "]K\1Ns", "not a dict"},
      {"SETITEM on a tuple", ")K\1Ns", "not a dict"},
      {"SETITEMS on a list", "](K\1Nu", "not a dict"},
      {"SETITEM on an int", "K\0K\1Ns"s, "not a dict"},
      {"SETITEM on a set", "\x8fK\1Ns", "not a dict"},
      {"SETITEM on a global", "ca\nb\nK\1Ns", "not a dict"},
      {"SETITEM on a storage", "K\1QK\1Ns", "not a dict"},
      {"SETITEMS with a key alone", "}(K\1u", "without a value"},
      {"APPEND on a dict", "}K\1a", "not a list"},
      {"APPEND on an OrderedDict", "ccollections\nOrderedDict\n)RK\1a", "not a list"},
      {"APPENDS on an OrderedDict of pairs", "ccollections\nOrderedDict\n]\x85R(K\1K\2e",
       "not a list"},
      {"APPEND on a tuple", ")K\1a", "not a list"},
      {"APPEND on None", "NK\1a", "not a list"},
      {"APPENDS on a str", "\x8c\1x(K\1e", "not a list"},
      {"ADDITEMS on a list", "](K\1\x90", "not a set"},
      {"BUILD on a list", "]}b", "cannot have one"},
      {"BUILD on a plain dict", "}}b", "cannot have one"},
      {"BUILD twice", "ca\nB\n)\x81}b}b", "set twice"},
      {"no mark for TUPLE", "NNt", "mark that is not there"},
      {"no mark for APPENDS", "]Ne", "mark that is not there"},
      {"no mark for SETITEMS", "}K\1Nu", "mark that is not there"},
      {"no mark for FROZENSET", "N\x91", "mark that is not there"},
      {"a mark that is left", "N(", "other than one value"},
      {"APPEND over a mark", "](a", "more than there is on the stack"},
      {"TUPLE2 over a mark", "N(N\x86", "more than there is on the stack"},
      {"APPENDS on nothing", "(e", "more than there is on the stack"},
      {"REDUCE on nothing", "R", "more than there is on the stack"},
      {"PUT on nothing", "q\0"s, "more than there is on the stack"},
      {"STACK_GLOBAL on ints", "K\1K\1\x93", "name is no string"},
      {"REDUCE with a list", "ca\nb\n]R", "no tuple"},
      {"NEWOBJ with a dict", "ca\nb\n}\x81", "no tuple"},
      {"GET of what was never put", "h\0"s, "never put"},
      {"GET beyond", "Nq\0h\1\x86"s, "never put"},
      {"GET of a gap", "NNNNNq\4h\2t"s, "never put"},
      {"LONG_GET far beyond", "j\xff\xff\xff\xff", "never put"},
      {"PUT far beyond", "Nr\xff\xff\xff\xff", "no pickler would give"},
      {"PUT beyond the opcodes", "Nq\x30", "no pickler would give"},
      {"nothing", "", "other than one value"},
      {"two values", "NN", "other than one value"},
      {"PROTO again", "\x80\2N", "second protocol"},
  };
  for (const auto& [what, body, message] : cases) {
    SCOPED_TRACE(what);
    EXPECT_ERROR(corrupt, message, read_pickle(pickle(body)));
    EXPECT_ERROR(corrupt, "pickle offset", read_pickle(pickle(body)));
  }
  EXPECT_ERROR(corrupt, "bytes after the end", read_pickle(pickle("N") + "N."));
  EXPECT_ERROR(corrupt, "bytes after the end", read_pickle(pickle("N") + "\n"));
  EXPECT_ERROR(corrupt, "does not begin as a pickle", read_pickle(""));
  EXPECT_ERROR(corrupt, "does not begin as a pickle", read_pickle("N."));
  EXPECT_ERROR(corrupt, "ends in the middle", read_pickle("\x80"));
}

TEST(PickleReader, LengthsBeyondTheEndAreRefusedAtOnce) {
  for (const std::string& body :
       {"X\xff\xff\xff\xff"s, "\x8c\xff"s, "\x8d\xff\xff\xff\xff\xff\xff\xff\xff"s, "U\xff"s,
        "T\xff\xff\xff\x7f"s, "C\xff"s, "B\xff\xff\xff\xff"s,
        "\x8e\xff\xff\xff\xff\xff\xff\xff\xff"s, "\x8e\0\0\0\0\0\0\0\x80"s,
        "\x96\xf0\xff\xff\xff\xff\xff\xff\xff"s,
        "\x8d"s + number<std::uint64_t>(0 - std::uint64_t{11}), "\x8a\xff"s,
        "\x8b\xff\xff\xff\xff"s}) {
    SCOPED_TRACE(testing::PrintToString(body));
    EXPECT_ERROR(corrupt, "ends in the middle", read_pickle(pickle(body)));
  }
  EXPECT_ERROR(corrupt, "middle of a name", read_pickle(pickle("cos system")));
  EXPECT_ERROR(corrupt, "middle of a name", read_pickle(pickle("cos\nsystem")));
}

TEST(PickleReader, OpcodesThatNoPyTorchFileNeedsAreUnsupported) {
  int unknown = 0;
  for (int op = 0; op < 256; ++op) {
    // Operands of every kind follow, so that a known opcode fails in another way or not at all.
    const std::string bytes = pickle(std::string(1, static_cast<char>(op)));
    try {
      read_pickle(bytes);
    } catch (const Error& error) {
      unknown += std::string(error.what()).find("which no PyTorch file needs") != std::string::npos;
    }
  }
  EXPECT_EQ(unknown, 256 - 48);
  for (const char* body : {"I1\n", "L1\n", "F0.5\n", "S'a'\n", "Va\n", "p0\n", "(lp0\n", "P1\n",
                           "\x82\1", "(ia\nb\n", "N0", "N2", "(1", "\x97"})
    EXPECT_ERROR(unsupported, "no PyTorch file needs", read_pickle(pickle(body)));
  EXPECT_ERROR(unsupported, "protocol 1", read_pickle("\x80\1N."));
  EXPECT_ERROR(unsupported, "protocol 6", read_pickle("\x80\6N."));
}

std::string framed(std::uint64_t size, std::string_view body) {
  return "\x80\4\x95" + number(size) + std::string(body);
}

TEST(PickleReader, FramesMustCoverOpcodesExactly) {
  EXPECT_EQ(shown(framed(2, "N.")), "None");
  EXPECT_EQ(shown(framed(1, "N\x95" + number<std::uint64_t>(3) + "N\x86.")), "(None, None)");
  EXPECT_EQ(shown(framed(1, "(\x8c\1x\x95" + number<std::uint64_t>(2) + "t.")),
            "('x')");  // opcodes between frames
  EXPECT_EQ(shown(framed(0, "N.")), "None");
  EXPECT_ERROR(corrupt, "over the end of its frame", read_pickle(framed(2, "\x8c\3abc.")));
  EXPECT_ERROR(corrupt, "over the end of its frame", read_pickle(framed(1, "K\1.")));
  EXPECT_ERROR(corrupt, "over the end of its frame", read_pickle(framed(4, "cos\nsystem\n.")));
  EXPECT_ERROR(corrupt, "longer than the pickle", read_pickle(framed(3, "N.")));
  EXPECT_ERROR(corrupt, "longer than the pickle", read_pickle(framed(~std::uint64_t{0}, "N.")));
  EXPECT_ERROR(corrupt, "inside of a frame",
               read_pickle(framed(11, "N\x95" + number<std::uint64_t>(1) + ".")));
  EXPECT_ERROR(corrupt, "stops before its frame ends", read_pickle(framed(3, "N.N")));
  EXPECT_ERROR(corrupt, "over the end of its frame",
               read_pickle(framed(2, "N\x95" + number<std::uint64_t>(1) + ".")));
}

TEST(PickleReader, CutPicklesAreRefusedAtEveryByte) {
  for (const PickleSample& sample : kPickleSamples) {
    const std::string bytes = from_hex(sample.hex);
    for (std::size_t size = 0; size < bytes.size(); ++size)
      EXPECT_ERROR(corrupt, "", read_pickle(std::string_view(bytes).substr(0, size)));
  }
}

TEST(PickleReader, ADamagedByteGivesAValueOrAnError) {
  for (const PickleSample& sample : kPickleSamples) {
    const std::string good = from_hex(sample.hex);
    for (std::size_t i = 0; i < good.size(); ++i) {
      for (const int change : {0x01, 0x80, 0xFF}) {
        std::string bad = good;
        bad[i] = static_cast<char>(bad[i] ^ change);
        try {
          shown(bad);
        } catch (const Error& error) {
          EXPECT_TRUE(error.code() == ErrorCode::corrupt || error.code() == ErrorCode::unsupported);
        }
      }
    }
  }
}

TEST(PickleReader, ValuesThatContainThemselvesAreUnsupported) {
  EXPECT_ERROR(unsupported, "contains itself", read_pickle(pickle("]q\0h\0a"s)));
  EXPECT_ERROR(unsupported, "contains itself", read_pickle(pickle("}q\0K\1h\0s"s)));
  EXPECT_ERROR(unsupported, "contains itself",
               read_pickle(pickle("]q\0h\0\x85"
                                  "a"s)));
  EXPECT_ERROR(unsupported, "contains itself",
               read_pickle(pickle("ca\nB\n)\x81q\0}\x8c\1sh\0sb"s)));
  EXPECT_ERROR(unsupported, "contains itself",
               read_pickle(pickle("ccollections\nOrderedDict\n)Rq\0}\x8c\1sh\0sb"s)));
  EXPECT_ERROR(unsupported, "contains itself", read_pickle(pickle("\x8fq\0(h\0\x90"s)));
}

TEST(PickleReader, AValueThatChangesAfterItWasUsedIsRefused) {
  // set([1]) in Python; a reader that looks at the end would see set([1, 2]).
  EXPECT_ERROR(unsupported, "after it was used",
               read_pickle(pickle("(c__builtin__\nset\n]q\0K\1a\x85Rh\0K\2at"s)));
}

std::string nested(int levels, std::string_view open, std::string_view close) {
  std::string body;
  for (int i = 0; i < levels; ++i) body += open;
  body += "N";
  for (int i = 0; i < levels; ++i) body += close;
  return pickle(body);
}

TEST(PickleReader, DepthIsLimited) {
  EXPECT_NO_THROW(read_pickle(nested(500, "]", "a")));
  EXPECT_ERROR(unsupported, "500 deep", read_pickle(nested(600, "]", "a")));
  EXPECT_ERROR(unsupported, "500 deep", read_pickle(nested(1'000'000, "]", "a")));
  EXPECT_ERROR(unsupported, "500 deep", read_pickle(nested(100'000, "}K\1", "s")));
  EXPECT_ERROR(unsupported, "500 deep", read_pickle(nested(1'000'000, "", "\x85")));
  EXPECT_ERROR(unsupported, "500 deep", read_pickle(nested(100'000, "ca\nb\n", "\x85R")));
  EXPECT_ERROR(unsupported, "500 deep", read_pickle(nested(1'000'000, "", "Q")));
  // Deep by reference: each tuple holds the one before it, all reached from one flat tuple.
  std::string chain = "(N\x94";
  for (int i = 0; i < 2000; ++i) chain += "j" + number(static_cast<std::uint32_t>(i)) + "\x85\x94";
  EXPECT_ERROR(unsupported, "500 deep", read_pickle(pickle(chain + "t")));
}

TEST(PickleReader, BillionLaughsAreUnsupported) {
  std::string body = "]q\0"s;
  for (int level = 1; level < 40; ++level)
    body += fmt::format("]q{0}(h{1}h{1}e", static_cast<char>(level), static_cast<char>(level - 1));
  EXPECT_ERROR(unsupported, "shared so often", read_pickle(pickle("(" + body + "t")));
}

TEST(PickleReader, ManyMarksOrMemosAreNoProblem) {
  std::string body;
  for (int i = 0; i < 300'000; ++i) body += "N\x94";
  EXPECT_EQ(read_pickle(pickle("(" + body + "t")).nodes.size(), 4u);
  EXPECT_ERROR(corrupt, "other than one value", read_pickle(pickle(std::string(1'000'000, '('))));
}

}  // namespace
}  // namespace perdure::test
