#!/usr/bin/env python3
"""Checks timeline.py against two ranks of three made-up steps whose times are known:  python3 timeline_selftest.py [OUT.svg]"""
import os
import sys
import tempfile

import timeline

BASE, US = 1764200000000000000, 1000


def made(rank):
    t, lines = BASE, ["# comment"]

    def put(what, name, start, end, stream=7, size=0, source="-", to="-", blocks=0):
        lines.append(f"{what}\t{name}\t{start}\t{end}\t{stream}\t3\t1\t{size}\t{source}\t{to}\t{blocks}")

    for _ in range(3):
        t += 500 * US  # nothing runs between steps
        for layer in range(48):  # a kernel that starts 5 us early, at the end of the one before it
            for name, length in (("norm_quant:forward", 50), ("ternary_mma:ternary_mma_kernel", 300), ("mlgru_scan:scan_forward", 100)):
                put("kernel", name, t - (5 * US if layer else 0), t + length * US, blocks=132)
                t += length * US
        put("kernel", "embedding:add_parts", t, t + 200 * US, blocks=500)
        t += 200 * US  # here the tail begins: 4 parts of 1000 us, each sent beside the update of the one before
        put("kernel", "ncclDevKernel_SendRecv", t, t + 1000 * US, 19, blocks=16)
        t += 1000 * US
        for part in range(4):
            put("kernel", "adamw:update_block", t, t + 800 * US, 7, blocks=1000)
            put("copy", "device to device", t, t + 1000 * US, 20 + part, 100 * 10**6, rank, 1 - rank)
            put("kernel", "ternary:code_blocks", t + 100 * US, t + 700 * US, 30 + part, blocks=64)
            t += 1000 * US
        put("copy", "device to host", t, t + 10 * US, 7, 64, rank, "host")
        t += 10 * US
    return "\n".join(lines) + "\n"


def near(what, found, wanted):
    if abs(found - wanted) > 1e-6:
        sys.exit(f"selftest: {what} is {found}, expected {wanted}")


def main():
    with tempfile.TemporaryDirectory() as folder:
        picture = sys.argv[1] if len(sys.argv) > 1 else os.path.join(folder, "out.svg")
        files = [f"{folder}/made.{rank}" for rank in (0, 1)]
        for rank, path in enumerate(files):
            with open(path, "w") as file:
                file.write(made(rank))
        timeline.main(picture, files, 1)
        steps = timeline.steps_of(timeline.read(files[0]), files[0])
        wanted = {"step": 21.6 + 0.2 + 1 + 4 + 0.01, "compute": 21.6 + 0.2 + 3.2, "side": 2.4, "exchange": 5, "copies": 0.01,
                  "exchange beside compute": 3.2, "copies beside compute": 0, "idle": 0, "tail": 5.01}
        near("the number of whole steps", len(steps), 2)
        lanes = timeline.lanes_of(steps[-1])
        for what, value in timeline.summary(lanes).items():
            near(what, value, wanted[what])
        for kind, value in {"norms": 2.4, "products": 14.4, "scan": 4.8, "head": 0.2, "optimizer": 3.2, "exchange": 5, "other": 0}.items():
            near(kind, timeline.ms(timeline.union(a for a in timeline.all_of(lanes) if a.kind == kind)), value)
        rectangles = open(picture).read().count("<rect")
        if not 40 < rectangles < 2 * timeline.MOST + 20:
            sys.exit(f"selftest: {rectangles} rectangles")
    print("selftest: as expected")


main()
