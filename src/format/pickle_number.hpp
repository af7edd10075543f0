// None, bools, ints and floats as they stand in a pickle: one opcode each, whatever came before.
#pragma once

#include <cstdint>
#include <perdure/value.hpp>
#include <string>

namespace perdure::format {

inline bool is_number(const Value& value) {
  return value.kind() == Kind::none || value.kind() == Kind::boolean ||
         value.kind() == Kind::integer || value.kind() == Kind::real;
}

void put_number(std::string& pickle, const Value& number);
void put_integer(std::string& pickle, std::int64_t x);
void put_real(std::string& pickle, double x);

}  // namespace perdure::format
