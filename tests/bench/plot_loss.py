#!/usr/bin/env python3
"""Loss curves of runs as one picture:  python3 plot_loss.py OUT.svg RUN ...

RUN is a run folder or a JSON file with "tokens", "steps" and "curve": [[step, loss], ...]. Runs whose names are equal up
to "-lr" share a color and a line of the legend, with the mean loss of the last tenth of their tokens. The start, where losses
fall from that of the untrained model, is cut off.
"""
import json
import math
import os
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 56, 16, 16, 44
COLORS = ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a"]


def curve(folder):
    if folder.endswith(".json"):
        run = json.load(open(folder))
        return [(step * run["tokens"] / run["steps"] / 1e6, loss) for step, loss in run["curve"]]
    points = []
    with open(os.path.join(folder, "metrics.jsonl")) as lines:
        for line in lines:
            row = json.loads(line)
            if "train/loss" in row:
                points.append((row["train/tokens"] / 1e6, row["train/loss"]))
    return points


def main():
    out, folders = sys.argv[1], sys.argv[2:]
    curves = {os.path.basename(f.rstrip("/")): curve(f) for f in folders}
    most_x = max(x for c in curves.values() for x, _ in c)
    low = math.floor(2 * min(y for c in curves.values() for _, y in c)) / 2
    high = low + 4

    def at(x, y):
        return (LEFT + x / most_x * (WIDTH - LEFT - RIGHT), TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM))

    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
           f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    y = low
    while y <= high:
        (x0, py), (x1, _) = at(0, y), at(most_x, y)
        svg.append(f'<line x1="{x0:.0f}" y1="{py:.1f}" x2="{x1:.0f}" y2="{py:.1f}" stroke="#d0d7de"/>'
                   f'<text x="{x0 - 8:.0f}" y="{py + 4:.1f}" text-anchor="end">{y:g}</text>')
        y += 1
    step = next(s * 10**e for e in range(-3, 9) for s in (1, 2, 5) if most_x <= 6 * s * 10**e)
    for i in range(int(most_x / step) + 1):
        px, py = at(i * step, low)
        svg.append(f'<text x="{px:.0f}" y="{py + 18:.0f}" text-anchor="middle">{i * step:g}</text>')
    svg.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">million tokens</text>'
               f'<text x="14" y="{HEIGHT / 2:.0f}" transform="rotate(-90 14 {HEIGHT / 2:.0f})" '
               'text-anchor="middle">training loss, nats per token</text>')
    groups = {}
    for name, points in curves.items():
        groups.setdefault(name.split("-lr")[0], []).append(points)
    for i, (name, group) in enumerate(groups.items()):
        color = COLORS[i % len(COLORS)]
        for points in group:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in points if p[1] <= high))
            svg.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.2" opacity="0.8"/>')
        ends = [y for points in group for x, y in points if x > 0.9 * points[-1][0]]
        last = sum(ends) / len(ends)
        svg.append(f'<text x="{WIDTH - RIGHT - 8}" y="{TOP + 18 + 16 * i}" text-anchor="end" fill="{color}">'
                   f'{name}  {last:.3f}</text>')
    with open(out, "w") as file:
        file.write("\n".join(svg) + "\n</svg>\n")


main()
