#!/usr/bin/env python3
"""Where a training step's time goes, kernel by kernel, from Nsight Compute's counters.

    python3 profile.py PROGRAM SIZE BATCH [key=value ...]     runs ncu over the second step of bench_step, prints a table

Columns: calls in one step, their time together, share of the step, time of a call, bytes of device memory moved per second,
and the shares of their peaks that the tensor cores, device memory and L2 reach. The step runs kernel by kernel, at whatever
clock the GPU has.
"""
import collections
import csv
import io
import math
import re
import subprocess
import sys

TIME, BYTES, PEAK = "gpu__time_duration.sum", "dram__bytes.sum", ".avg.pct_of_peak_sustained_elapsed"
# Counters of what is busy; the tensor cores' has another name on other chips.
SHARES = {"tensor": ["sm__pipe_tensor_cycles_active", "sm__inst_executed_pipe_tensor"],
          "DRAM": ["dram__throughput"], "L2": ["lts__t_sectors"]}
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "%": 1}


def short(name):
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|mmfree::cuda::|void ", "", name)
    name = re.sub(r"\(.*", "", name)
    name = re.sub(r"__nv_bfloat16", "bf16", name)
    return name if len(name) < 60 else name[:57] + "..."


def measure(command):
    """The rows that ncu prints for `command`, a dict of strings for each kernel, after one of their units."""
    known = subprocess.run(["ncu", "--query-metrics"], stdout=subprocess.PIPE, text=True, check=True).stdout
    shares = [next((n for n in names if re.search(rf"^{n}\b", known, re.M)), None) for names in SHARES.values()]
    metrics = [TIME, BYTES, *(name + PEAK for name in shares if name)]
    ncu = ["ncu", "--clock-control", "none", "--csv", "--page", "raw", "--metrics", ",".join(metrics),
           "--profile-from-start", "off", *command, "capture=0", "warmup=1", "steps=1"]
    return subprocess.run(ncu, stdout=subprocess.PIPE, text=True, check=True).stdout


def table(text):
    """Prints a line for each kernel in what ncu printed."""
    units, *rows = csv.DictReader(io.StringIO(text[text.index('"ID"'):]))
    shares = [next((n + PEAK for n in names if n + PEAK in units), None) for names in SHARES.values()]
    total = collections.defaultdict(lambda: [0, 0.0, 0.0] + [0.0] * len(shares))
    for row in rows:
        def value(metric):
            return float(row[metric].replace(",", "") or 0) * UNITS.get(units[metric], 1) if metric else math.nan

        entry, time = total[short(row["Kernel Name"])], value(TIME)
        for i, x in enumerate([1, time, value(BYTES), *(value(share) * time for share in shares)]):
            entry[i] += x
    step = sum(entry[1] for entry in total.values())
    print(f"{len(rows)} kernels, {step * 1e3:.2f} ms of kernel time")
    print(f"{'kernel':60} {'calls':>6} {'ms':>8} {'share':>6} {'us each':>8} {'GB/s':>6}" +
          "".join(f" {name:>6}" for name in SHARES))
    for name, (calls, t, b, *busy) in sorted(total.items(), key=lambda kv: -kv[1][1]):
        print(f"{name:60} {calls:6} {t * 1e3:8.2f} {100 * t / step:5.1f}% {t / calls * 1e6:8.1f} {b / t / 1e9:6.0f}" +
              "".join(f" {x / t:5.0f}%" for x in busy))


if __name__ == "__main__":
    table(measure(sys.argv[1:]))
