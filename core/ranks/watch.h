#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/ranks/meeting.h"

namespace mmfree {

/// Another rank ended, does not answer, or failed: this one cannot go on. The message is empty: a rank's watch prints
/// what happened.
struct LostRank : Error {
  explicit LostRank(Exit status) : Error("", status) {}
};

/// Knows whether all ranks live. A thread of its own exchanges a word a second with rank 0, or as rank 0 with all
/// others, over the connections on which they met. A rank whose connection ends before it has said goodbye, or that is
/// silent for rank_timeout(), is lost. Then, and when a rank says that it failed, rank 0 prints one line; of the
/// others, those that lose rank 0 itself do so, if they are rank 1 or the first of their machine. Ten seconds later a
/// process that still runs is ended, whatever it does.
///
/// A rank that answers but does nothing else is lost too, where it has said how long it may stand: each tells with its
/// word how many exchanges it has begun. If all of those that have begun the fewest, to which the others come in vain,
/// stand for longer, rank 0 names the first.
///
/// If this process itself did not run for a while, because it or the machine was stopped, silence of others before then
/// does not count.
class Watch {
 public:
  /// Takes the meeting's connections.
  explicit Watch(Meeting meeting);
  /// Without `leave` the others take this rank for lost.
  ~Watch();
  Watch(const Watch&) = delete;

  const Meeting& meeting() const { return meeting_; }

  /// Throws LostRank if a rank is lost or has failed.
  void check() const;
  /// The status with which `rank` has said goodbye, or -1.
  int left(int rank) const { return left_[size_t(rank)]; }
  /// This rank cannot go on because of another: waits some seconds for what the watch knows of it, then says so itself.
  /// @throws LostRank
  [[noreturn]] void accuse(const std::string& message);
  /// This rank waits for one that has left. @throws LostRank with that one's status, or internal if it was 0
  [[noreturn]] void miss(int rank);
  /// This rank has failed: all end with `status`. Returns when rank 0 has printed the message, or what it had to say
  /// before; false if nobody hears: then the caller has to print it.
  bool fail(Exit status, const std::string& message);
  /// Says goodbye, and waits until all have: true, or a rank is lost. status and message: for those who still wait for
  /// this rank.
  bool leave(Exit status, const std::string& message);
  /// This rank begins an exchange.
  void count_exchange() { ++exchanges_; }
  /// From now on this rank is lost if it begins no exchange for so long while others wait for it. 0: it may stand.
  void may_stand(std::chrono::seconds time) { may_stand_ = uint32_t(time.count()); }
  /// Called once when a rank is lost, from another thread: ends what this process may wait for on its GPU.
  void set_cancel(std::function<void()> cancel);

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Peer;
  struct Frame;
  /// How a rank gets on, as rank 0 knows it.
  struct Pace {
    uint64_t exchanges = 0;
    uint32_t may_stand = 0;
    tcp::Deadline since{};
  };
  enum class Prints { elsewhere, here, here_unless_own_error };

  void run();
  void wait_and_read();
  void read(Peer&);
  void take(Peer&, const Frame&, const std::string& text);
  void keep_time();
  Frame word() const;
  void note_pace(int rank, const Frame& word);
  void judge_pace();
  void tell(Peer&, const Frame&, const std::string& text = "");
  void tell_all(const Frame&);
  void note_left(int rank, int status, const std::string& message);
  [[noreturn]] void end_by_verdict(Lock&, const std::string& message, Exit status);
  void judge(Exit status, const std::string& message, Prints prints);
  void lose(int rank, const std::string& how);
  void cancel_waits();
  bool wait_for_cancel(std::chrono::seconds most) const;
  void act_on_verdict();
  void print_verdict();
  void wake() const;

  Meeting meeting_;
  const std::chrono::seconds limit_;
  Fd wake_;
  std::vector<std::unique_ptr<Peer>> peers_;  ///< rank 0: one per other rank; others: rank 0 alone
  std::vector<std::atomic<int>> left_;
  std::atomic<bool> judged_ = false;  ///< there is a verdict: check throws, as soon as it is lost_
  std::atomic<bool> lost_ = false;    ///< and what waited on a GPU is cancelled
  std::atomic<int> status_ = 0;       ///< of the verdict
  std::atomic<bool> ending_ = false;
  std::atomic<uint64_t> exchanges_ = 0;
  std::atomic<uint32_t> may_stand_ = 0;
  tcp::Deadline ran_, next_word_;  ///< of the thread

  mutable std::mutex mutex_;  ///< guards what follows, and the peers' unsent bytes
  mutable std::condition_variable changed_;
  bool printed_ = false, told_ = false, all_left_ = false;
  Prints prints_ = Prints::elsewhere;
  std::string verdict_, left_message_;
  tcp::Deadline judged_at_;
  std::function<void()> cancel_;
  std::shared_ptr<std::atomic<bool>> cancelled_;  ///< the call of it has ended; null: it was not called
  std::vector<Pace> paces_;                       ///< rank 0: of all ranks
  std::thread thread_;
};

}  // namespace mmfree
