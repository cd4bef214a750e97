#!/usr/bin/env python3
"""A training step on one GPU or several, as tables and a picture:

    CUDA_INJECTION64_PATH=LIB/libmmfree_timeline.so MMFREE_TIMELINE=FILE bench_step ...     writes FILE.RANK on each rank
    python3 timeline.py OUT.svg [--step N] FILE.0 FILE.1 ...                                 the N-th step from the end (1)

A step ends with the copy of its outcome to the host, and begins with the first activity after the one before; bench_step waits between them.
Compute: kernels one after the other; side: those beside them. Exchange: NCCL's kernels, which also wait for other ranks, and copies between
GPUs; other copies are those on the GPU, to the host and from it. The tail begins where the last kernel of the backward pass ends. Times are
those of intervals in which something ran.
"""
import argparse
import bisect
import collections
import math
import re
import statistics
import sys

# A kind of work, its colour, and the names that belong to it: the first that fits.
KINDS = {
    "exchange": ("#d1242f", r".*nccl|small_copies:|device to device"),
    "copies": ("#57606a", r"on the device|host to device|device to host|other copy"),
    "optimizer": ("#9a6700", r"(adamw|tree_sum|code_bits|code_counts):|ternary:(sum_abs_blocks|scale_jobs|code_blocks)$"),
    "norms": ("#1a7f37", r"(norm_quant|norm_quant_backward|gate_norm):"),
    "scan": ("#8250df", r"(mlgru_scan|lower_bounds|attention|attention_few|rope):|.*(sdpa|flash|cudnn)"),
    "head": ("#0598bc", r"(head_loss|embedding):|.*RadixSort"),
    "products": ("#1f6feb", r"(ternary|ternary_mma|ternary_int8|block_mma|code_blocks):|.*(nvjet|gemm|splitK|device_kernel|Kernel2)"),
    "other": ("#afb8c1", r""),
}
BACKWARD = {"products", "norms", "scan", "head"}
LANES = ["compute", "side", "exchange", "copies"]
Activity = collections.namedtuple("Activity", "kind name start end stream bytes source to blocks")
WIDTH, LEFT, RIGHT, LANE, BAR, MOST = 1200, 130, 20, 20, 14, 300  # the last: rectangles of a panel


def read(path):
    """The activities of a file by their start."""
    found = []
    with open(path) as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip("\n").split("\t")
            if line.startswith("#"):
                continue
            if len(fields) != 11:
                sys.exit(f"{path}:{number}: {len(fields)} fields, expected 11; was the program killed while it wrote?")
            what, name, start, end, stream, _, _, size, source, to, blocks = fields
            kind = "other" if what == "fill" else next(k for k, (_, names) in KINDS.items() if re.match(names, name))
            found.append(Activity(kind, name, int(start), int(end), stream, int(size), source, to, int(blocks)))
    return sorted(found, key=lambda a: (a.start, a.end))


def steps_of(activities, path):
    """Lists of activities, one for each whole step."""
    ends = sorted(a.end for a in activities if a.to == "host")
    if len(ends) < 2:
        sys.exit(f"{path}: {len(ends)} copies to the host; two are needed, around a step")
    steps = [[] for _ in ends[1:]]
    index = 0
    for a in activities:
        while index < len(ends) and a.start >= ends[index]:
            index += 1
        if 0 < index < len(ends):
            steps[index - 1].append(a)
    return [s for s in steps if s]


def union(activities):
    """Disjoint intervals (start, end) that cover all."""
    out = []
    for start, end in sorted((a.start, a.end) for a in activities):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def common(a, b):
    """The intervals in both lists of disjoint ones."""
    out, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start < end:
            out.append((start, end))
        i, j = (i + 1, j) if a[i][1] < b[j][1] else (i, j + 1)
    return out


def ms(intervals):
    return sum(end - start for start, end in intervals) / 1e6


def lanes_of(step):
    """Lists of activities by lane. The nodes of a recorded step run on streams that the driver chose: a kernel is on the
    side if longer ones of other streams run beside most of it, unless its stream is the busiest. A compute kernel that
    starts before the one before it in its stream ends only waits: it begins at that end."""
    lanes, kernels = {lane: [] for lane in LANES}, []
    for a in step:
        (lanes[a.kind] if a.kind in LANES else kernels).append(a)
    busy = collections.Counter()
    for a in kernels:
        busy[a.stream] += a.end - a.start
    busiest, longest = max(busy, key=busy.get, default=None), max((a.end - a.start for a in kernels), default=0)
    starts, last = [a.start for a in kernels], kernels[0] if kernels else None
    for a in kernels:
        near = kernels[bisect.bisect(starts, a.start - longest):bisect.bisect(starts, a.end)]
        shared = sum(min(a.end, b.end) - max(a.start, b.start) for b in near
                     if b.stream != a.stream and b.end > a.start and b.end - b.start > a.end - a.start)
        if a.end < last.end if a.stream == busiest == last.stream else a.stream != busiest and 2 * shared > a.end - a.start:
            lanes["side"].append(a)
            continue
        begin = max(a.start, last.end) if a.stream == last.stream and a is not last else a.start
        lanes["compute"].append(a._replace(start=begin))
        last = a
    return lanes


def all_of(lanes):
    return sorted((a for lane in lanes.values() for a in lane), key=lambda a: a.start)


def tail_begin(lanes):
    """The end of the last kernel of the backward pass."""
    return max((a.end for a in all_of(lanes) if a.kind in BACKWARD), default=all_of(lanes)[0].start)


def summary(lanes):
    """What the first table says of a rank, by the name of its column."""
    covered, everything = {lane: union(activities) for lane, activities in lanes.items()}, union(all_of(lanes))
    computing = union(lanes["compute"] + lanes["side"])
    begin, end = everything[0][0], everything[-1][1]
    return {"step": (end - begin) / 1e6, **{lane: ms(covered[lane]) for lane in LANES},
            "exchange beside compute": ms(common(covered["exchange"], computing)),
            "copies beside compute": ms(common(covered["copies"], computing)),
            "idle": (end - begin) / 1e6 - ms(everything), "tail": (end - tail_begin(lanes)) / 1e6}


def row(cells):
    print("| " + " | ".join(cell if isinstance(cell, str) else f"{cell:.2f}" for cell in cells) + " |")


def print_tables(ranks):
    """`ranks`: name -> lanes."""
    sums = {name: summary(lanes) for name, lanes in ranks.items()}
    row(["rank, ms", *next(iter(sums.values()))])
    row(["---"] * (len(next(iter(sums.values()))) + 1))
    for name, values in sums.items():
        row([name, *values.values()])
    print()
    row(["rank, ms", *KINDS])
    row(["---"] * (len(KINDS) + 1))
    for name, lanes in ranks.items():
        row([name, *(ms(union(a for a in all_of(lanes) if a.kind == kind)) for kind in KINDS)])
    for name, lanes in ranks.items():
        begin = tail_begin(lanes)
        print(f"\nRank {name}: the tail, and what was exchanged and copied before; from and to: first start, last end, ms from the tail's begin\n")
        row(["name", "calls", "ms", "from", "to", "blocks", "MB", "GB/s"])
        row(["---"] * 8)
        groups = collections.defaultdict(list)
        for a in all_of(lanes):
            if a.end > begin or a.kind in LANES:
                way = f", {a.source} to {a.to}" if a.source != a.to else ""
                groups[a.name + way + (", before" if a.end <= begin else "")].append(a)
        for text, group in groups.items():
            time, size, blocks = ms(union(group)), sum(a.bytes for a in group), sorted({a.blocks for a in group})
            row([text, str(len(group)), time, (group[0].start - begin) / 1e6, (max(a.end for a in group) - begin) / 1e6,
                 "-".join(str(n) for n in (blocks[:1] + blocks[1:][-1:])) if blocks[0] else "",
                 *((size / 1e6, f"{size / time / 1e6:.0f}") if size and time else ("", ""))])


def merged(activities, least):
    """Rectangles (start, end, kind). With a `least` neighbours closer than that or 20 us, of one kind or shorter than that,
    are one, of the kind that has most of the time."""
    out = []
    for a in activities:
        if out and least is not None and a.start - out[-1][1] < max(20000, least) and (
                out[-1][2].most_common(1)[0][0] == a.kind or min(a.end - a.start, out[-1][1] - out[-1][0]) < least):
            out[-1][1] = max(out[-1][1], a.end)
            out[-1][2][a.kind] += a.end - a.start
        else:
            out.append([a.start, a.end, collections.Counter({a.kind: a.end - a.start})])
    return [(start, end, times.most_common(1)[0][0]) for start, end, times in out]


def panel(title, ranks, y, begin, end, zero):
    """SVG of all ranks' lanes from `begin` to `end`, where `zero` is 0 ms, and the y below."""
    lanes = {(rank, lane): [a for a in activities if a.end > begin and a.start < end]
             for rank, lanes in ranks.items() for lane, activities in lanes.items() if activities}
    scale, least = (WIDTH - LEFT - RIGHT) / (end - begin), None
    while sum(len(merged(activities, least)) for activities in lanes.values()) > MOST:
        least = 0 if least is None else 1.3 * least + 1000
    lines, bars, last = [f'<text x="{LEFT}" y="{y + 12}">{title}</text>'], [], None
    top = y = y + 20
    for (rank, lane), activities in lanes.items():
        y, last = y + (8 if last not in (None, rank) else 0), rank
        bars.append(f'<text x="{LEFT - 8}" y="{y + BAR - 3}" text-anchor="end">rank {rank} {lane}</text>')
        for start, stop, kind in merged(activities, least):
            x, width = (max(start, begin) - begin) * scale, (min(stop, end) - max(start, begin)) * scale
            width = max(width - (0.5 if least is None and width > 3 else 0), 0.5)  # single ones can be told apart
            bars.append(f'<rect x="{LEFT + x:.2f}" y="{y}" width="{width:.2f}" height="{BAR}" fill="{KINDS[kind][0]}"/>')
        y += LANE
    step = next(s * 10**e for e in range(-3, 9) for s in (1, 2, 5) if (end - begin) / 1e6 <= 12 * s * 10**e)
    for i in range(math.ceil((begin - zero) / 1e6 / step), int((end - zero) / 1e6 / step) + 1):
        x = LEFT + (i * step * 1e6 + zero - begin) * scale
        lines.append(f'<line x1="{x:.1f}" y1="{top - 3}" x2="{x:.1f}" y2="{y}" stroke="#d0d7de"/>'
                     f'<text x="{x:.1f}" y="{y + 14}" text-anchor="middle">{i * step:g}</text>')
    lines.append(f'<text x="{LEFT - 30}" y="{y + 14}" text-anchor="end">ms</text>')
    return lines + bars, y + 36


def picture(ranks):
    activities = [a for lanes in ranks.values() for a in all_of(lanes)]
    begin, end = min(a.start for a in activities), max(a.end for a in activities)
    tail = min(tail_begin(lanes) for lanes in ranks.values())
    svg, x = [], LEFT
    for kind, (color, _) in KINDS.items():
        svg.append(f'<rect x="{x}" y="12" width="12" height="12" fill="{color}"/><text x="{x + 17}" y="22">{kind}</text>')
        x += 40 + 7 * len(kind)
    whole, y = panel("the whole step", ranks, 36, begin, end, begin)
    zoom, y = panel("from the end of the backward pass", ranks, y, max(begin, tail - (end - tail) // 20), end, tail)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - 10}" font-family="sans-serif" font-size="12">'
            f'<rect width="{WIDTH}" height="{y - 10}" fill="white"/>\n' + "\n".join(svg + whole + zoom) + "\n</svg>\n")


def main(out, files, number):
    ranks = {}
    for path in files:
        steps = steps_of(read(path), path)
        if not 1 <= number <= len(steps):
            sys.exit(f"{path}: {len(steps)} whole steps; there is no step {number} from the end")
        name = path.rsplit(".", 1)[-1]
        times = [(max(a.end for a in s) - s[0].start) / 1e6 for s in steps]
        print(f"rank {name}: {len(steps)} whole steps, the median {statistics.median(times):.2f} ms, this one {times[-number]:.2f} ms")
        ranks[name] = steps[-number]
    print()
    ranks = {name: lanes_of(step) for name, step in ranks.items()}
    print_tables(ranks)
    with open(out, "w") as file:
        file.write(picture(ranks))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--step", type=int, default=1)
    given = parser.parse_args()
    main(given.out, given.files, given.step)
