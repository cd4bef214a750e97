#!/usr/bin/env bash
# Whole training steps of mmfree and of a PyTorch baseline, in turn on the same cores, with speed and memory side by side;
# then where mmfree's steps spend their time, op by op, and their floor: the products at the best rates measured there, the
# other ops at the rate of a copy.
#   bash tests/bench/compare_cpu.sh BASELINE.py [MODEL:BATCH:SEQ[:key=value,...] ...]
# BASELINE.py takes --size, --batch, --seq, --steps, --warmup, --device and --eager, tries f32 and bf16 products, and prints
# "RESULT {json}" of the faster with tokens_per_s. Default runs: 8M:8:256 50M:4:512; the keys are bench_step's. ROUNDS (2) is how often all take their
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


def profile(name, command):
    """The table of ops that `command` prints, and the step beside its floor."""
    lines = subprocess.run(command + ["profile=1"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    step = json.loads(lines[-1][7:])
    print(f"\n{name}: a step of {step['ms']:.0f} ms, floor {step['floor_ms']:.0f} ms ({step['floor_ms'] / step['ms']:.2f})")
    print("\n".join(lines[:-1]))


table, profiles = [], []
for run in runs:
    size, batch, seq, keys = (run + ":").split(":")[:4]
    theirs = [python, baseline, "--size", size, "--batch", batch, "--seq", seq, "--device", "cpu", "--steps", steps]
    ours = [bench, size, batch, f"seq={seq}", "device=cpu", "compute=auto", "recompute=auto"]
    ours += [f"steps={steps}", "warmup=2", *filter(None, keys.split(","))]
    ways = {"PyTorch, compiled": theirs, "PyTorch, eager": theirs + ["--eager"], "mmfree, compute": ours}
    ways["mmfree, int8"] = ours + ["backward=int8"]
    mine = [name for name in ways if name.startswith("mmfree")]
    profiles += [(f"{size}, {batch} × {seq}, {name}", ways[name]) for name in mine]
    for name in mine if int(batch) % 2 == 0 else []:
        ways[f"{name}, two micro-batches"] = ways[name] + [f"micro={int(batch) // 2}"]
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
for name, command in profiles:
    profile(name, command)
PY
