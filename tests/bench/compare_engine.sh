#!/usr/bin/env bash
# Decoding and prefill of mmfree against ik_llama.cpp (IQ2_BN, repacked at run time) and llama.cpp (TQ2_0), in turn on the same
# cores. Theirs is a Llama of equal size with random weights, packed head included; each program has an int8 embedding table.
#   git clone --depth 1 https://github.com/ikawrakow/ik_llama.cpp; git clone --depth 1 https://github.com/ggml-org/llama.cpp
#   bash tests/bench/compare_engine.sh ik_llama.cpp llama.cpp [370m 1.3b]
# Either folder may be "-": that program is left out. ROUNDS (5) is how often all take their turn, THREADS ("1 2") the numbers
# of threads, which get the first cores (CORES, "0-N"); WORK (build-compare) holds builds and models; PYTHON (python3) wants
# numpy, pyyaml, requests and tqdm. Prints a table of medians and ranges in tokens per second, and the ratio to the best of the others.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
mmfree=${MMFREE:-$root/build/mmfree}
work=${WORK:-$root/build-compare}
python=${PYTHON:-python3}
ik=${1:?give the source folder of ik_llama.cpp, or -}
llama=${2:?give the source folder of llama.cpp, or -}
shift 2
[ $# -gt 0 ] || set -- 370m 1.3b
mkdir -p "$work"

# Only three small programs of each are needed, and no server, tests or network; nor kernels for keys and values of
# other types than f16. What is built already is used as it is.
build() {  # NAME SOURCE
  [ "$2" = - ] && return
  [ -x "$work/$1/bin/llama-bench" ] && [ -x "$work/$1/bin/llama-batched-bench" ] && [ -x "$work/$1/bin/llama-quantize" ] && return
  echo "building $1 ($(git -C "$2" rev-parse --short HEAD 2>/dev/null || echo 'no commit known'))" >&2
  cmake -S "$2" -B "$work/$1" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DGGML_IQK_FA_ALL_QUANTS=OFF >"$work/$1.log"
  cmake --build "$work/$1" -j "${JOBS:-$(nproc)}" --target llama-bench llama-batched-bench llama-quantize >>"$work/$1.log"
}
build ik "$ik"
build llama "$llama"

for size in "$@"; do
  [ -e "$work/$size.mmfree" ] || "$mmfree" bench "$root/configs/$size.yaml" --threads 1 --repeat 1 --tokens 1 --prompt 1 \
    --save "$work/$size.mmfree" >/dev/null
  for name in ik llama; do
    source=$([ $name = ik ] && echo "$ik" || echo "$llama")
    type=$([ $name = ik ] && echo IQ2_BN || echo TQ2_0)
    [ "$source" = - ] || [ -e "$work/$size.$name.gguf" ] && continue
    PYTHONPATH=$source/gguf-py "$python" "$root/tests/bench/random_llama.py" "$size" "$work/f16.gguf"
    "$work/$name/bin/llama-quantize" --token-embedding-type q8_0 --output-tensor-type "${type,,}" "$work/f16.gguf" \
      "$work/$size.$name.gguf" "$type" >"$work/quantize.log" 2>&1
    rm "$work/f16.gguf"
  done
done
lscpu | grep -E '^(Model name|CPU\(s\)):' | sed 's/  */ /g'
"$python" - "$mmfree" "$work" "$ik" "$llama" "$@" <<'PY'
import json, os, statistics, subprocess, sys

mmfree, work, ik, llama, *sizes = sys.argv[1:]
rounds, tokens, prompt = int(os.environ.get("ROUNDS", 5)), 64, 512
threads_tried = [int(t) for t in os.environ.get("THREADS", "1 2").split()]


def run(threads, command):
    """The standard output of a command on the first `threads` cores."""
    cores = os.environ.get("CORES", f"0-{threads - 1}")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(["taskset", "-c", cores, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"compare_engine: {' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


def ours(size, threads):
    figures = json.loads(run(threads, [mmfree, "bench", f"{work}/{size}.mmfree", "--threads", str(threads), "--repeat", "1",
                                       "--prompt", str(prompt), "--tokens", str(tokens), "--json"]))["runs"][0]
    decode = {d["batch"]: d["tokens_per_second"] for d in figures["decode"]}
    return {"decode, 1": decode[1], "decode, 8": decode[8], "prefill": figures["prefill"]["tokens_per_second"],
            "GB/s": figures["read_bytes_per_second"] / 1e9}


def theirs(name, size, threads):
    common = ["-m", f"{work}/{size}.{name}.gguf", "-t", str(threads)]
    repack = ["-rtr", "1"] if name == "ik" else []
    bench = [f"{work}/{name}/bin/llama-bench", *common, *repack, "-p", str(prompt), "-n", str(tokens), "-r", "1", "-o", "json"]
    found = {}
    for row in json.loads(run(threads, bench)):
        found["prefill" if row["n_prompt"] else "decode, 1"] = row["avg_ts"]
    batched = [f"{work}/{name}/bin/llama-batched-bench", *common, *repack[:1], "-c", "2048", "-npp", "16", "-ntg", str(tokens),
               "-npl", "8"]
    for line in run(threads, batched).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 10 and cells[2] == "8":
            found["decode, 8"] = float(cells[7])
    return found


programs = {"mmfree": ours}
if ik != "-":
    programs["ik_llama.cpp"] = lambda size, threads: theirs("ik", size, threads)
if llama != "-":
    programs["llama.cpp"] = lambda size, threads: theirs("llama", size, threads)
print("| model | threads | what | " + " | ".join(programs) + " | mmfree against the best |")
print("| --- " * (len(programs) + 4) + "|")
for size in sizes:
    for threads in threads_tried:
        found = {name: [] for name in programs}
        for _ in range(rounds):
            for name, measure in programs.items():
                found[name].append(measure(size, threads))
                print(size, threads, name, found[name][-1], file=sys.stderr, flush=True)
        for what in ("decode, 1", "decode, 8", "prefill"):
            values = {name: [f[what] for f in all if what in f] for name, all in found.items()}
            medians = {name: statistics.median(v) for name, v in values.items() if v}
            cells = [f"{medians[n]:.1f} ({min(v):.1f}–{max(v):.1f})" if v else "–" for n, v in values.items()]
            others = [m for name, m in medians.items() if name != "mmfree"]
            ratio = f"{medians['mmfree'] / max(others):.2f}" if others else "–"
            print(f"| {size} | {threads} | {what} | " + " | ".join(cells) + f" | {ratio} |", flush=True)
        rate = [f["GB/s"] for f in found["mmfree"]]
        print(f"| {size} | {threads} | memory read, GB/s | {statistics.median(rate):.1f} ({min(rate):.1f}–{max(rate):.1f}) | "
              + "| " * len(programs), flush=True)
PY
