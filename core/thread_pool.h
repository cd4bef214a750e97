#pragma once
#include <cstdint>

/// The threads behind parallel_for. A program has one set of them, started when first needed. Idle threads look for
/// work for kSpinMicroseconds and then sleep: the next op of a step finds them awake, and other programs get the cores
/// soon. A loop ends when its last item is done, so it never waits for a thread that the system has not let run yet.
namespace mmfree::threads {

inline constexpr int kSpinMicroseconds = 50;

/// How many threads a parallel_for of this thread uses: OpenMP's setting for it (OMP_NUM_THREADS, omp_set_num_threads).
/// Inside of one: index() + 1.
int limit();
/// Which of them this thread is while it works for a parallel_for, 0 .. limit() - 1; elsewhere 0.
int index();

/// Calls call(body, item) once for each item in [0, items), on up to `threads` threads (0: limit()), this one among
/// them; each takes its items in ascending order. Inside of another such loop, and while another thread runs one, on
/// this thread alone. `call` must not throw.
void run(int64_t items, void (*call)(const void* body, int64_t item), const void* body, int threads = 0);

}  // namespace mmfree::threads
