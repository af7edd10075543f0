// The opcodes of Python's pickle protocols 2 to 5 that perdure writes or reads (Lib/pickletools.py
// has them all).
#pragma once

#include <cstdint>

namespace perdure::format {

enum class Op : std::uint8_t {
  protocol = 0x80,
  frame = 0x95,
  stop = '.',
  mark = '(',
  none = 'N',
  new_true = 0x88,
  new_false = 0x89,
  bin_int = 'J',
  bin_int1 = 'K',
  bin_int2 = 'M',
  long1 = 0x8A,
  long4 = 0x8B,
  bin_float = 'G',
  bin_unicode = 'X',
  short_bin_unicode = 0x8C,
  bin_unicode8 = 0x8D,
  short_bin_string = 'U',
  bin_string = 'T',
  short_bin_bytes = 'C',
  bin_bytes = 'B',
  bin_bytes8 = 0x8E,
  byte_array8 = 0x96,
  empty_list = ']',
  append = 'a',
  appends = 'e',
  empty_tuple = ')',
  tuple = 't',
  tuple1 = 0x85,
  tuple2 = 0x86,
  tuple3 = 0x87,
  empty_dict = '}',
  set_item = 's',
  set_items = 'u',
  empty_set = 0x8F,
  add_items = 0x90,
  frozen_set = 0x91,
  global = 'c',
  stack_global = 0x93,
  reduce = 'R',
  new_obj = 0x81,
  new_obj_ex = 0x92,
  build = 'b',
  bin_pers_id = 'Q',
  bin_put = 'q',
  long_bin_put = 'r',
  memoize = 0x94,
  bin_get = 'h',
  long_bin_get = 'j',
};

}  // namespace perdure::format
