#include "engine/rank_talk.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <stop_token>
#include <thread>
#include <utility>

namespace perdure {

std::vector<std::shared_ptr<LocalRanks>> LocalRanks::make(std::size_t count) {
  const auto store = std::make_shared<Store>();
  std::vector<std::shared_ptr<LocalRanks>> ranks;
  for (std::size_t i = 0; i < count; ++i)
    ranks.push_back(std::shared_ptr<LocalRanks>(new LocalRanks(store, i, count)));
  return ranks;
}

void LocalRanks::set(const std::string& key, const std::string& message) {
  const std::lock_guard guard(store_->mutex);
  store_->messages[key] = message;
}

bool LocalRanks::has(const std::string& key) {
  const std::lock_guard guard(store_->mutex);
  return store_->messages.contains(key);
}

std::string LocalRanks::get(const std::string& key) {
  const std::lock_guard guard(store_->mutex);
  return store_->messages.at(key);
}

void LocalRanks::remove(const std::string& key) {
  const std::lock_guard guard(store_->mutex);
  store_->messages.erase(key);
}

}  // namespace perdure

namespace perdure::engine {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// Between looks for a message: soon at first, for most are there in no time.
constexpr microseconds kFirstLook{200};
constexpr microseconds kLastLook{20'000};
// So many signs of life in the time in which one must come.
constexpr double kSigns = 8;

std::string life_of(std::size_t rank) { return fmt::format("life/{}", rank); }

std::string text_of(const std::exception& error) { return error.what(); }

}  // namespace

std::string message_of(const std::exception_ptr& error) {
  if (!error) return "";
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return fmt::format("{} {} {}", static_cast<int>(e.code()), e.errno_value(), e.what());
  } catch (const std::exception& e) {
    return fmt::format("{} 0 {}", static_cast<int>(ErrorCode::io), text_of(e));
  } catch (...) {
    return fmt::format("{} 0 an exception of unknown type", static_cast<int>(ErrorCode::io));
  }
}

std::exception_ptr error_in(const std::string& message, std::size_t from) {
  if (message.empty()) return nullptr;
  int code = 0, number = 0;
  const char* at = message.data();
  const char* const end = at + message.size();
  at = std::from_chars(at, end, code).ptr;
  if (at != end) at = std::from_chars(at + 1, end, number).ptr;
  const std::string text(at == end ? at : at + 1, end);
  return std::make_exception_ptr(
      Error(static_cast<ErrorCode>(code), fmt::format("rank {}: {}", from, text), number));
}

RankTalk::RankTalk(std::shared_ptr<Ranks> ranks, Seconds timeout)
    : ranks_(std::move(ranks)), timeout_(timeout), prefix_(ranks_->next_use()) {
  show_life();
}

void RankTalk::tell(const std::string& key, const std::string& message) {
  // A store may take an empty message for none.
  ranks_->set(prefix_ + key, "=" + message);
}

bool RankTalk::has(const std::string& key) { return ranks_->has(prefix_ + key); }

void RankTalk::forget(const std::string& key) { ranks_->remove(prefix_ + key); }

void RankTalk::show_life() {
  std::uint64_t life = 0;
  {
    const std::lock_guard guard(mutex_);
    if (life_ > 0 && Clock::now() - shown_ < timeout_ / kSigns) return;
    shown_ = Clock::now();
    life = ++life_;
  }
  tell(life_of(rank()), std::to_string(life));
}

std::jthread RankTalk::living() {
  return std::jthread([this](const std::stop_token& stop) {
    std::mutex mutex;
    std::condition_variable_any never;
    std::unique_lock lock(mutex);
    while (!never.wait_for(lock, stop, timeout_ / (2 * kSigns), [] { return false; }) &&
           !stop.stop_requested()) {
      try {
        show_life();
      } catch (...) {
        return;  // whoever needs the store next says what is wrong with it
      }
    }
  });
}

std::string RankTalk::hear(const std::string& key, std::size_t from) {
  Clock::time_point alive = Clock::now(), looked = alive;
  std::string life;
  for (microseconds pause = kFirstLook; !has(key); pause = std::min(pause * 2, kLastLook)) {
    if (leads()) show_life();
    const auto now = Clock::now();
    if (now - looked > timeout_ / kSigns && has(life_of(from))) {
      looked = now;
      if (std::string seen = ranks_->get(prefix_ + life_of(from)); seen != life) {
        life = std::move(seen);
        alive = now;
      }
    }
    if (now - alive > timeout_ * (1 + 2 / kSigns))
      throw Error(
          ErrorCode::io,
          fmt::format("rank {} of {} has shown no sign of life for {:.3g} s (rank_timeout): "
                      "it has died, or has not come to the same call",
                      from, size(), timeout_.count()));
    std::this_thread::sleep_for(pause);
  }
  return ranks_->get(prefix_ + key).substr(1);
}

void RankTalk::forget_later(const std::string& key) {
  const std::lock_guard guard(mutex_);
  over_.push_back(key);
}

void RankTalk::all_have_told() {
  std::vector<std::string> over;
  {
    const std::lock_guard guard(mutex_);
    over = std::exchange(over_, {});
  }
  for (const std::string& key : over) forget(key);
}

std::string RankTalk::led(const std::string& key, const std::function<std::string()>& lead) {
  if (!leads()) {
    const std::string message = hear(key, 0);
    if (message.starts_with('+')) return message.substr(1);
    std::rethrow_exception(error_in(message, 0));
  }
  std::string result;
  try {
    result = lead();
  } catch (...) {
    tell(key, message_of(std::current_exception()));
    throw;
  }
  tell(key, "+" + result);
  return result;
}

void RankTalk::agree(const std::string& key, const std::exception_ptr& mine) {
  const auto is_worse = [](const std::exception_ptr& error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const Error& e) {
      return e.code() != ErrorCode::corrupt;
    } catch (...) {
      return true;
    }
    return false;
  };
  const auto own_key = [&](std::size_t rank) { return fmt::format("{}/{}", key, rank); };
  const std::string end = key + "/end";
  std::exception_ptr all = mine;
  if (!leads()) {
    tell(own_key(rank()), message_of(mine));
    all = error_in(hear(end, 0), 0);
  } else {
    bool all_told = true;
    for (std::size_t from = 1; from < size(); ++from) {
      std::exception_ptr theirs;
      try {
        theirs = error_in(hear(own_key(from), from), from);
        forget(own_key(from));
      } catch (...) {
        theirs = std::current_exception();
        all_told = false;
      }
      if (!all || (is_worse(theirs) && !is_worse(all))) all = theirs;
    }
    if (all_told) all_have_told();
    tell(end, message_of(all));
    forget_later(end);
  }
  if (!all) return;
  if (mine && is_worse(mine) == is_worse(all)) std::rethrow_exception(mine);
  std::rethrow_exception(all);
}

}  // namespace perdure::engine
