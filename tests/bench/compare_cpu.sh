#!/usr/bin/env bash
# Whole training steps of mmfree and of a PyTorch baseline, in turn on the same cores, with speed and memory side by side.
#   bash tests/bench/compare_cpu.sh BASELINE.py [MODEL:BATCH:SEQ ...]
# BASELINE.py takes --size, --batch, --seq, --steps, --warmup, --device and --eager, tries f32 and bf16 products, and prints
# "RESULT {json}" of the faster with tokens_per_s. Default runs: 8M:8:256 50M:4:512. ROUNDS (2) is how often all take their
# turn, STEPS (5) of how many steps a figure is the median, PYTHON (python3) what runs the baseline. Memory is the largest
# resident size of each process.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
bin=$root/bin
[ -x "$bin/bench_step" ] || bin=$root/build
baseline=${1:?give the baseline, a Python program that prints RESULT}
shift
[ $# -gt 0 ] || set -- 8M:8:256 50M:4:512
lscpu | grep -E '^(Model name|Model|CPU\(s\)):' | sed 's/  */ /g'
python3 - "$bin/bench_step" "$baseline" "$@" <<'PY'
import json, os, statistics, subprocess, sys

bench, baseline, *runs = sys.argv[1:]
rounds, steps = int(os.environ.get("ROUNDS", 2)), os.environ.get("STEPS", "5")
python = os.environ.get("PYTHON", "python3")


def result(command):
    """The figures that `command` prints, and its largest resident size in GB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines = [line for line in process.stdout if line.startswith("RESULT ")]
    _, status, usage = os.wait4(process.pid, 0)
    if status or not lines:
        sys.exit(f"compare_cpu: no RESULT from: {' '.join(command)}")
    print(" ".join(command[:2]), lines[-1].strip(), flush=True)
    return json.loads(lines[-1][7:])["tokens_per_s"], usage.ru_maxrss * 1024 / 1e9


table = []
for run in runs:
    size, batch, seq = run.split(":")
    theirs = [python, baseline, "--size", size, "--batch", batch, "--seq", seq, "--device", "cpu", "--steps", steps]
    ours = [bench, size, batch, f"seq={seq}", "device=cpu", "compute=auto", "recompute=none", f"steps={steps}", "warmup=2"]
    ways = {"PyTorch, compiled": theirs, "PyTorch, eager": theirs + ["--eager"], "mmfree, compute": ours}
    ways["mmfree, int8"] = ours + ["backward=int8"]
    found = {name: [] for name in ways}
    for _ in range(rounds):
        for name, command in ways.items():
            found[name].append(result(command))
    speed = {name: [tokens for tokens, _ in figures] for name, figures in found.items()}
    memory = {name: max(size for _, size in figures) for name, figures in found.items()}
    best = max((name for name in ways if name.startswith("PyTorch")), key=lambda name: statistics.median(speed[name]))
    for name in ways:
        tokens = statistics.median(speed[name])
        table.append(
            f"| {size}, {batch} × {seq} | {name} | {tokens:.0f} ({min(speed[name])}–{max(speed[name])}) "
            f"| {tokens / statistics.median(speed[best]):.2f} | {memory[name]:.2f} | {memory[name] / memory[best]:.2f} |"
        )
print("| model, batch | program | tokens/s, median (range) | against PyTorch's best | GB | against it |")
print("| --- | --- | --- | --- | --- | --- |")
print("\n".join(table))
PY
