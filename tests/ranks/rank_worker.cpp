// One rank of the runs that tests/ranks starts: rank_worker SCENARIO [ARGUMENT...].
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/gpu.h"
#include "core/ops/elementwise.h"
#include "core/ranks/gpu_peers.h"
#include "core/ranks/group.h"
#include "core/system/console.h"
#include "core/system/report.h"

namespace mmfree {
namespace {

using Arguments = std::vector<std::string>;

/// The byte that rank `from` sends to rank `to` at place `i` in round `round`.
unsigned char byte_of(int from, int to, size_t i, size_t round) {
  return static_cast<unsigned char>((size_t(from) * 31 + size_t(to) * 17 + i * 7 + i / 251 + round * 101) % 253);
}

std::vector<unsigned char> bytes_of(int from, int to, size_t n, size_t round) {
  std::vector<unsigned char> bytes(n);
  for (size_t i = 0; i < n; ++i) bytes[i] = byte_of(from, to, i, round);
  return bytes;
}

void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what + " is wrong");
}

void check_host(Group& group, size_t bytes, size_t round) {
  const int rank = group.rank(), size = group.size();
  const auto n = size_t(size);
  const std::vector<unsigned char> mine = bytes_of(rank, 0, bytes, round);
  std::vector<unsigned char> all(n * bytes, 255);
  group.all_gather(mine.data(), bytes, all.data());
  for (int r = 0; r < size; ++r)
    expect(std::equal(all.begin() + ptrdiff_t(size_t(r) * bytes), all.begin() + ptrdiff_t(size_t(r + 1) * bytes),
                      bytes_of(r, 0, bytes, round).begin()),
           concat("all_gather of ", bytes));
  std::vector<unsigned char> from, to(n * bytes, 255), wanted;
  for (int r = 0; r < size; ++r) {
    const auto out = bytes_of(rank, r, bytes, round), in = bytes_of(r, rank, bytes, round);
    from.insert(from.end(), out.begin(), out.end());
    wanted.insert(wanted.end(), in.begin(), in.end());
  }
  group.all_to_all(from.data(), to.data(), bytes);
  expect(to == wanted, concat("all_to_all of ", bytes));
  const int root = int(round) % size;
  std::vector<unsigned char> text = rank == root ? bytes_of(root, 5, bytes, round) : std::vector<unsigned char>(bytes);
  group.broadcast(text.data(), bytes, root);
  expect(text == bytes_of(root, 5, bytes, round), concat("broadcast of ", bytes, " from ", root));
}

Bounds uneven_bounds(int size, int64_t each) {
  Bounds bounds = {0};
  for (int r = 0; r < size; ++r) bounds.push_back(bounds.back() + each * ((r * 2) % 3));
  return bounds;
}

/// Tensors hold numbers up to 2^24, which f32 holds exactly.
float number_of(int from, int to, int64_t i) { return float((from * 4099 + to * 521 + i * 3) % (1 << 24)); }

Tensor on(Device device, const std::vector<float>& values) {
  return Tensor::from({int64_t(values.size())}, values.data()).to(device);
}

std::vector<float> values_of(const Tensor& t) {
  const Tensor host = t.to(Device::cpu);
  return {host.data<float>(), host.data<float>() + host.size()};
}

void check_tensors(Group& group, Device device, const Ranges& pieces) {
  const int rank = group.rank(), size = group.size();
  const auto elements = size_t(pieces.back().end);
  std::vector<float> from(elements, -2), wanted, all_wanted(elements, -1), own(elements, -1);
  for (int r = 0; r < size; ++r) {
    const Range& piece = pieces[size_t(r)];
    for (int64_t i = 0; i < piece.size(); ++i) {
      const auto at = size_t(piece.begin + i);
      from[at] = number_of(rank, r, i);
      all_wanted[at] = number_of(r, 9, i);
      if (r == rank) own[at] = number_of(r, 9, i);
    }
    for (int64_t i = 0; i < pieces[size_t(rank)].size() && r != rank; ++i) wanted.push_back(number_of(r, rank, i));
  }
  Tensor received = on(device, std::vector<float>(wanted.size(), -1)), all = on(device, own);
  group.all_to_all(on(device, from), pieces, received);
  expect(values_of(received) == wanted, "all_to_all of tensors");
  group.all_gather(all, pieces);
  expect(values_of(all) == all_wanted, "all_gather of a tensor");
}

/// Pieces of one size or of others, side by side or with gaps.
void check_tensors(Group& group, Device device, int64_t each) {
  const int size = group.size();
  check_tensors(group, device, ranges_of(even_bounds(each * size, size)));
  check_tensors(group, device, ranges_of(even_bounds(each * size + size / 2, size)));
  Ranges apart = ranges_of(uneven_bounds(size, each));
  check_tensors(group, device, apart);
  for (size_t r = 0; r < apart.size(); ++r)
    apart[r] = {apart[r].begin + 5 * int64_t(r + 1), apart[r].end + 5 * int64_t(r + 1)};
  check_tensors(group, device, apart);
}

/// What every rank sends to rank 0 while the others exchange.
void send_beside(Group& group, size_t bytes, size_t round) {
  std::vector<unsigned char> got(bytes);
  for (int r = 1; r < group.size(); ++r) {
    if (group.rank() == r) group.send(0, bytes_of(r, 77, bytes, round).data(), bytes);
    if (group.rank() != 0) continue;
    group.receive(r, got.data(), bytes);
    expect(got == bytes_of(r, 77, bytes, round), concat("what rank ", r, " sent beside"));
  }
}

void introduce(Group& group, const Arguments&) {
  console::out.print(concat("rank ", group.rank(), " of ", group.size(), ", ", group.local_rank(), " of ",
                            group.local_size(), " here, threads ", group.threads(), "; ", group.describe(), "\n"));
}

void exchange(Group& group, const Arguments&) {
  std::string failed;
  std::thread beside([&] {
    try {
      for (size_t round = 0; round < 20; ++round) send_beside(group, round * round * 1003, round);
    } catch (const std::exception& e) {
      failed = e.what();
    }
  });
  size_t round = 0;
  for (const size_t bytes : {1, 0, 7, 4096, 1 << 20, 3, 300007, 2}) check_host(group, bytes, round++);
  for (int again = 0; again < 50; ++again) check_host(group, 16, round++);
  for (const int64_t each : {1, 1000, 70001}) check_tensors(group, Device::cpu, each);
  const std::string mine(size_t(group.rank()) * 1000, char('a' + group.rank()));
  const std::vector<std::string> texts = group.gather_texts(mine);
  for (int r = 0; r < group.size(); ++r) expect(texts[size_t(r)].size() == size_t(r) * 1000, "gather_texts");
  expect(texts[size_t(group.rank())] == mine, "gather_texts");
  group.require("");
  group.require_same("nothing", "same");
  beside.join();
  if (!failed.empty()) throw std::runtime_error(failed);
  introduce(group, {});
}

void repeat_barrier(Group& group) {
  for (;;) {
    group.barrier();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

/// exchange_for SECONDS
void exchange_for(Group& group, const Arguments& a) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::stoi(a.at(0)));
  for (char more = 1; more;) {
    more = std::chrono::steady_clock::now() < end;
    group.broadcast(&more, 1, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

/// end RANK HOW [busy]: that rank ends, by a signal or by exit; the others exchange, or are busy with something else.
void end(Group& group, const Arguments& a) {
  group.barrier();
  if (group.rank() == std::stoi(a.at(0))) {
    if (a.at(1) == "exit") std::_Exit(0);
    if (a.at(1) == "return") return;
    ::raise(std::stoi(a.at(1)));
  }
  if (a.size() > 2) std::this_thread::sleep_for(std::chrono::hours(1));
  repeat_barrier(group);
}

/// stand RANK|all SECONDS [freely]: there the work takes so long, and it may only with `freely`; the others wait.
void stand(Group& group, const Arguments& a) {
  const bool here = a.at(0) == "all" || group.rank() == std::stoi(a.at(0));
  group.barrier();
  for (int round = 0; round < 2; ++round) {
    const Group::InTime in_time(group, here && a.size() > 2 ? 0 : 1e-3);
    if (here && round > 0) std::this_thread::sleep_for(std::chrono::seconds(std::stoi(a.at(1))));
    group.barrier();
  }
}

/// fail RANK|all: an error there.
void fail(Group& group, const Arguments& a) {
  group.barrier();
  if (a.at(0) == "all" || group.rank() == std::stoi(a.at(0)))
    throw DataError(concat("corpus.h5: is damaged (seen by ", group.rank(), ")"));
  repeat_barrier(group);
}

/// stop RANK|all: asked to stop there.
void stop(Group& group, const Arguments& a) {
  group.barrier();
  if (a.at(0) == "all" || group.rank() == std::stoi(a.at(0))) throw Error("stopped by SIGTERM", Exit::stopped);
  repeat_barrier(group);
}

void differ(Group& group, const Arguments&) {
  const std::string value = group.rank() + 1 == group.size() ? "16" : "8";
  group.require_same("configurations", "train.batch_size: " + value);
}

/// problem RANK|all
void problem(Group& group, const Arguments& a) {
  const bool here = a.at(0) == "all" || group.rank() == std::stoi(a.at(0));
  group.require(here ? "NCCL: libnccl.so.2 was not found" : "");
}

/// The ranks send pieces of different sizes.
void mismatch(Group& group, const Arguments&) {
  std::vector<char> all(size_t(group.size()) * 100);
  group.all_gather(all.data(), group.rank() == 0 ? 64 : 60, all.data());
  repeat_barrier(group);
}

/// Rank 0 comes to its end later than all others, who wait.
void late(Group& group, const Arguments&) {
  if (group.rank() == 0) std::this_thread::sleep_for(std::chrono::seconds(4));
}

/// Seconds for COUNT exchanges of BYTES.
void time(Group& group, const Arguments& a) {
  const size_t bytes = std::stoul(a.at(0)), count = std::stoul(a.at(1));
  std::vector<char> from(bytes * size_t(group.size())), to = from;
  group.barrier();
  const auto begin = std::chrono::steady_clock::now();
  for (size_t i = 0; i < count; ++i) group.all_to_all(from.data(), to.data(), bytes);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  if (group.rank() == 0)
    console::out.print(concat(group.describe(), ": all_to_all of ", bytes,
                              " bytes a piece: ", took.count() / double(count) * 1e6, " us\n"));
}

void use_gpu(Group& group) {
  gpu::use(group.gpu_index());
  group.use_gpu();
}

/// Pieces between GPUs, recorded and not. Recorded ones go on a side stream, too.
void gpu_exchange(Group& group, const Arguments&) {
  use_gpu(group);
  for (const int64_t each : {1, 1000, 1 << 20}) check_tensors(group, Device::cuda, each);
  const int64_t n = 1 << 20, size = group.size();
  Ranges pieces[2];
  for (int64_t r = 0; r < size; ++r)
    for (int64_t part : {0, 1}) pieces[part].push_back({(2 * r + part) * n, (2 * r + part + 1) * n});
  const Bounds bounds = even_bounds(n * size, int(size));
  Tensor from({2 * n * size}, DType::f32, Device::cuda), all({n * size}, DType::f32, Device::cuda);
  Tensor to[2] = {Tensor({n * (size - 1)}, DType::f32, Device::cuda),
                  Tensor({n * (size - 1)}, DType::f32, Device::cuda)};
  gpu::SideStream side;
  gpu::Graph graph([&] {
    add(from, from, from);
    for (int part : {0, 1}) side.run([&] { group.all_to_all(from, pieces[part], to[part]); });
    for (int part : {0, 1}) {
      side.join();
      add(to[part], to[part], to[part]);
    }
    Tensor mine = all.slice(n * group.rank(), n * (group.rank() + 1));
    mine.copy_from(from.slice(0, n));
    group.all_gather(all, bounds);
  });
  for (int replay = 0; replay < 3; ++replay) {
    std::vector<float> mine, wanted[2], gathered;
    for (int r = 0; r < int(size); ++r) {
      for (int64_t i = 0; i < 2 * n; ++i) mine.push_back(number_of(group.rank() + replay, r, i));
      for (int64_t i = 0; i < 2 * n && r != group.rank(); ++i)
        wanted[i / n].push_back(4 * number_of(r + replay, group.rank(), i));
      for (int64_t i = 0; i < n; ++i) gathered.push_back(2 * number_of(r + replay, 0, i));
    }
    from.copy_from(on(Device::cuda, mine));
    graph.launch();
    for (int part : {0, 1}) expect(values_of(to[part]) == wanted[part], "a recorded exchange");
    expect(values_of(all) == gathered, "a recorded gather");
  }
  group.check();
  introduce(group, {});
}

/// Each reads what the others have written, as soon as they tell, recorded and replayed. Nothing is asked of GPUs that
/// may not read each other.
void gpu_peers(Group& group, const Arguments&) {
  use_gpu(group);
  const int64_t n = 1 << 20, others = group.size() - 1;
  const Tensor before = group.zeros({1000}, DType::f32, Device::cuda);  // it begins inside an allocation
  const Tensor shared = group.zeros({2 * n}, DType::f32, Device::cuda);
  gpu::Peers* peers = group.open_peers(2);
  if (!peers) return introduce(group, {});
  Tensor mine = shared, read({2 * n * others}, DType::f32, Device::cuda),
         signs({group.size()}, DType::f32, Device::cuda);
  signs.fill_zero();
  gpu::SideStream tells, reads;
  gpu::Graph graph([&] {
    for (const int half : {1, 0}) {
      Tensor part = mine.slice(half * n, (half + 1) * n);
      add(part, part, part);
      tells.run([&] { peers->tell(half); });
      reads.run([&] {
        peers->await(half);
        int64_t place = half;
        for (int r = 0; r < group.size(); ++r) {
          if (r == group.rank()) continue;
          Tensor to = read.slice(place * n, (place + 1) * n);
          peers->read(r, part.raw(), to.raw_mut(), size_t(to.bytes()));
          place += 2;
        }
      });
    }
    tells.join_all();
    reads.join_all();
    group.all_gather(signs, even_bounds(group.size(), group.size()));
    peers->take_back();
    group.all_gather(signs, even_bounds(group.size(), group.size()));
  });
  for (int replay = 0; replay < 5; ++replay) {
    std::vector<float> numbers, wanted;
    for (int64_t i = 0; i < 2 * n; ++i) numbers.push_back(number_of(group.rank(), replay, i));
    for (int r = 0; r < group.size(); ++r)
      for (int64_t i = 0; i < 2 * n && r != group.rank(); ++i) wanted.push_back(2 * number_of(r, replay, i));
    mine.copy_from(on(Device::cuda, numbers));
    group.barrier();
    if (replay % group.size() == group.rank()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    graph.launch();
    expect(values_of(read) == wanted, "what was read of others");
  }
  introduce(group, {});
}

/// Gathers by peers, recorded and replayed, of pieces unlike in size: one so large that others pass it on, an empty
/// one, small ones that begin at any byte. A rank writes over its piece as soon as it may, and each is late once.
void gpu_gather(Group& group, const Arguments&) {
  use_gpu(group);
  const int64_t n = 300'000, size = group.size(), mine = group.rank();
  Ranges pieces, odd;
  for (int64_t r = 0; r < size; ++r) {
    const int64_t at = r == 0 ? 0 : pieces.back().end + 64, byte = r == 0 ? 1 : odd.back().end;
    pieces.push_back({at, at + (r == 1 ? 5 * n * size + 1 : n + r)});
    odd.push_back({byte, byte + 1001 * r});
  }
  Tensor all = group.zeros({pieces.back().end}, DType::f32, Device::cuda);
  Tensor bytes = group.zeros({odd.back().end}, DType::u8, Device::cuda);
  if (!group.open_peers(1)) return introduce(group, {});
  Tensor own = all.slice(pieces[size_t(mine)].begin, pieces[size_t(mine)].end);
  Tensor own_bytes = bytes.slice(odd[size_t(mine)].begin, odd[size_t(mine)].end);
  Tensor from({own.size()}, DType::f32, Device::cuda), from_bytes({own_bytes.size()}, DType::u8, Device::cuda);
  Tensor seen = Tensor::zeros(all.shape(), DType::f32, Device::cuda);
  gpu::Graph graph([&] {
    own_bytes.copy_from(from_bytes);
    for (int i = 0; i < 2; ++i) {  // the second one's numbers are the first one's twice
      add(from, from, from);
      own.copy_from(from);
      group.all_gather({{all, pieces}, {bytes, odd}});
      if (i == 0) fill(own, -1);
    }
    seen.copy_from(all);
    fill(own, -2);
  });
  for (int replay = 0; replay < 8; ++replay) {
    std::vector<float> numbers, wanted(size_t(all.size()), 0.0f);
    std::vector<uint8_t> wanted_bytes(size_t(bytes.size()), 0);
    for (int r = 0; r < int(size); ++r) {
      const Range &piece = pieces[size_t(r)], &small = odd[size_t(r)];
      for (int64_t i = 0; i < piece.size(); ++i) wanted[size_t(piece.begin + i)] = 4 * number_of(r, replay, i);
      for (int64_t i = 0; i < piece.size() && r == mine; ++i) numbers.push_back(number_of(r, replay, i));
      for (int64_t i = 0; i < small.size(); ++i)
        wanted_bytes[size_t(small.begin + i)] = uint8_t(int64_t(number_of(r, replay, i)) % 251);
    }
    from.copy_from(on(Device::cuda, numbers));
    const uint8_t* bytes_of_mine = wanted_bytes.data() + odd[size_t(mine)].begin;
    from_bytes.copy_from(Tensor::from({own_bytes.size()}, bytes_of_mine));
    if (replay % group.size() == mine) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    graph.launch();
    expect(values_of(seen) == wanted, "what was gathered of others");
    const Tensor got = bytes.to(Device::cpu);
    expect(std::equal(wanted_bytes.begin(), wanted_bytes.end(), got.data<uint8_t>()), "the bytes gathered");
  }
  introduce(group, {});
}

/// All ranks take the same GPU.
void gpu_shared(Group& group, const Arguments&) {
  gpu::use(0);
  group.use_gpu();
}

/// That rank is killed while recorded work of the others' GPUs waits for it: in an exchange by NCCL, in a `gather` by
/// peers, or, with `mark`, until it tells one. A process that ends by itself says so.
void gpu_end(Group& group, const Arguments& a) {
  use_gpu(group);
  const std::string wait = a.size() > 1 ? a[1] : "exchange";
  Tensor all = group.zeros({1 << 20}, DType::f32, Device::cuda);
  gpu::Peers* peers = wait == "exchange" ? nullptr : group.open_peers(1);
  if (group.rank() == std::stoi(a.at(0))) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    ::raise(SIGKILL);
  }
  const struct Unwound {
    ~Unwound() { console::out.print("unwound\n"); }
  } unwound;
  gpu::Graph graph([&] {
    if (wait == "mark") peers->await(0);
    group.all_gather(all, even_bounds(all.size(), group.size()));
  });
  graph.launch();
  gpu::Readback back(4);
  back.start(all.raw(), 4);
  back.wait([&] { group.check(); });
}

/// Time of COUNT exchanges of BYTES a piece, recorded.
void gpu_time(Group& group, const Arguments& a) {
  use_gpu(group);
  const int64_t n = std::stol(a.at(0)) / 4, count = std::stol(a.at(1));
  const Bounds bounds = even_bounds(n * group.size(), group.size());
  Tensor from = group.zeros({n * group.size()}, DType::f32, Device::cuda);
  Tensor to({n * (group.size() - 1)}, DType::f32, Device::cuda);
  const auto measure = [&](const char* what, const std::function<void()>& call) {
    gpu::Graph graph([&] {
      for (int64_t i = 0; i < count; ++i) call();
    });
    std::chrono::duration<double> took{};
    for (int round = 0; round < 3; ++round) {
      gpu::synchronize();
      group.barrier();
      const auto begin = std::chrono::steady_clock::now();
      graph.launch();
      gpu::synchronize();
      took = std::chrono::steady_clock::now() - begin;
    }
    const double each = took.count() / double(count), sent = double(n * 4 * (group.size() - 1));
    if (group.rank() == 0)
      console::out.format("%d GPUs, %s of %s bytes a piece: %.1f us, %.1f GB/s sent by each\n", group.size(), what,
                          a.at(0).c_str(), each * 1e6, sent / each * 1e-9);
  };
  measure("all_to_all", [&] { group.all_to_all(from, ranges_of(bounds), to); });
  measure("all_gather", [&] { group.all_gather(from, bounds); });
  Bounds uneven = bounds;
  uneven[1] -= uneven[1] / 2;
  measure("all_gather of uneven pieces", [&] { group.all_gather(from, uneven); });
  if (group.open_peers(1)) measure("all_gather by copy engines", [&] { group.all_gather(from, uneven); });
}

int work(int argc, char** argv) {
  const std::map<std::string, std::function<void(Group&, const Arguments&)>> scenarios = {
      {"exchange", exchange},
      {"introduce", introduce},
      {"stand", stand},
      {"exchange_for", exchange_for},
      {"end", end},
      {"fail", fail},
      {"stop", stop},
      {"differ", differ},
      {"problem", problem},
      {"mismatch", mismatch},
      {"late", late},
      {"time", time},
      {"gpu_exchange", gpu_exchange},
      {"gpu_peers", gpu_peers},
      {"gpu_gather", gpu_gather},
      {"gpu_shared", gpu_shared},
      {"gpu_end", gpu_end},
      {"gpu_time", gpu_time}};
  return run_reporting([&] {
    const auto scenario = scenarios.find(argc > 1 ? argv[1] : "");
    MMFREE_CHECK(UsageError, scenario != scenarios.end(), "usage: rank_worker SCENARIO [ARGUMENT...]");
    const std::unique_ptr<Group> group = Group::join(detect_launch());
    group->run([&] { scenario->second(*group, Arguments(argv + 2, argv + argc)); });
  });
}

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) { return mmfree::work(argc, argv); }
