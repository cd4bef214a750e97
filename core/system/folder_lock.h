#pragma once
#include <chrono>
#include <memory>
#include <string>

namespace mmfree {

/// Keeps a folder for one holder, in this process or another, as long as it lives.
///
/// It uses flock. Where the file system refuses that, the holder has a lease in the folder: a file whose name says the
/// host and the process, and whose time a thread renews. A lease keeps others out until a minute has passed without
/// renewal, by the clock of the file system, or its process, if that ran on this machine, has ended.
class FolderLock {
 public:
  static constexpr std::chrono::seconds kRenewal{10}, kExpiry{60};

  /// Holds nothing.
  FolderLock();
  /// Holds nothing if the folder does not exist or may not be opened. `renewal`: time between renewals of a lease.
  /// @throws CreateError if another holds the folder; IoError if the lease cannot be made or renewed
  explicit FolderLock(const std::string& path, std::chrono::milliseconds renewal = kRenewal);
  /// Removes the lease.
  ~FolderLock();
  FolderLock(FolderLock&&) noexcept;
  FolderLock& operator=(FolderLock&&) noexcept;

  bool is_held() const { return state_ != nullptr; }
  /// Whether `path` names another folder than the one that is held. False if nothing is held or `path` is not there.
  bool is_other(const std::string& path) const;
  /// @throws CreateError if another holder came because the lease was not renewed in time
  void check() const;
  /// For people: that the file system has no locks, and what takes their place; empty if it has.
  std::string warning() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mmfree
