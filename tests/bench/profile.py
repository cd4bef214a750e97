#!/usr/bin/env python3
"""Where a training step's time goes, kernel by kernel, from Nsight Compute's counters.

    python3 profile.py PROGRAM SIZE BATCH [key=value ...]     runs ncu over the second step of bench_step, prints a table

Columns: calls in one step, their time together, share of the step, bytes of device memory moved per second, and the share
of time that the tensor cores are busy. The step runs kernel by kernel, at whatever clock the GPU has.
"""
import collections
import csv
import io
import math
import re
import subprocess
import sys

METRICS = ["gpu__time_duration.sum", "dram__bytes.sum"]
TENSOR = ".avg.pct_of_peak_sustained_elapsed"  # its counter's name differs between chips
TENSOR_COUNTERS = ["sm__pipe_tensor_cycles_active", "sm__inst_executed_pipe_tensor"]
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "%": 1}


def short(name):
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|mmfree::cuda::|void ", "", name)
    name = re.sub(r"\(.*", "", name)
    name = re.sub(r"__nv_bfloat16", "bf16", name)
    return name if len(name) < 60 else name[:57] + "..."


def main():
    program, *arguments = sys.argv[1:]
    known = subprocess.run(["ncu", "--query-metrics"], stdout=subprocess.PIPE, text=True, check=True).stdout
    tensor = next((name for name in TENSOR_COUNTERS if re.search(rf"^{name}\b", known, re.M)), None)
    metrics = METRICS + ([tensor + TENSOR] if tensor else [])
    command = ["ncu", "--clock-control", "none", "--csv", "--page", "raw", "--metrics", ",".join(metrics),
               "--profile-from-start", "off", program, *arguments, "capture=0", "warmup=1", "steps=1"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = out[out.index('"ID"'):]
    rows = list(csv.DictReader(io.StringIO(lines)))
    units, rows = rows[0], rows[1:]
    total = collections.defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for row in rows:
        values = [float(row[m].replace(",", "") or 0) * UNITS.get(units[m], 1) for m in metrics]
        t, b, busy = values if tensor else [*values, math.nan]
        entry = total[short(row["Kernel Name"])]
        entry[0] += 1
        entry[1] += t
        entry[2] += b
        entry[3] += busy * t
    step = sum(e[1] for e in total.values())
    print(f"{len(rows)} kernels, {step * 1e3:.2f} ms of kernel time")
    print(f"{'kernel':60} {'calls':>6} {'ms':>8} {'share':>6} {'us each':>8} {'GB/s':>6} {'tensor':>6}")
    for name, (calls, t, b, busy) in sorted(total.items(), key=lambda kv: -kv[1][1]):
        print(f"{name:60} {calls:6} {t * 1e3:8.2f} {100 * t / step:5.1f}% {t / calls * 1e6:8.1f} {b / t / 1e9:6.0f} "
              f"{busy / t:5.0f}%")


main()
