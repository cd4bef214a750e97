#!/usr/bin/env python3
"""The ratios of speed.json as a picture:  python3 plot_speed.py OUT.svg [speed.json]

A row has a name, the machine, and speed and memory as multiples of the baseline's, which is the line at 1. What was measured, and how, is in
README.md beside this file.
"""
import json
import os
import sys

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 720, 210, 40, 62, 46, 15
COLORS = {"speed": "#1f6feb", "memory": "#9a6700"}
MOST = 2.25


def main():
    out = sys.argv[1]
    source = sys.argv[2] if len(sys.argv) > 2 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "speed.json")
    with open(source) as file:
        data = json.load(file)
    height = TOP + ROW * len(data["rows"]) + 34

    def at(value):
        return LEFT + value / MOST * (WIDTH - LEFT - RIGHT)

    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">'
           f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
           f'<text x="16" y="24" font-size="14" font-weight="bold">{data["title"]}</text>'
           f'<text x="{LEFT}" y="46" fill="{COLORS["speed"]}">speed: more is better</text>'
           f'<text x="{LEFT + 150}" y="46" fill="{COLORS["memory"]}">memory: less is better</text>']
    bottom = TOP + ROW * len(data["rows"])
    for value in (0, 0.5, 1, 1.5, 2):
        strong = value == 1
        svg.append(f'<line x1="{at(value):.0f}" y1="{TOP - 6}" x2="{at(value):.0f}" y2="{bottom}" stroke="{"#57606a" if strong else "#d0d7de"}"/>'
                   f'<text x="{at(value):.0f}" y="{bottom + 16}" text-anchor="middle">{"PyTorch = 1" if strong else f"{value:g}"}</text>')
    for i, row in enumerate(data["rows"]):
        y = TOP + ROW * i
        svg.append(f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{row["name"]}</text>'
                   f'<text x="{LEFT - 10}" y="{y + 31}" text-anchor="end" fill="#57606a">{row["where"]}</text>')
        for j, kind in enumerate(("speed", "memory")):
            top, end = y + 2 + 18 * j, at(row[kind])
            svg.append(f'<rect x="{LEFT}" y="{top}" width="{end - LEFT:.1f}" height="{BAR}" fill="{COLORS[kind]}"/>'
                       f'<text x="{end + 5:.1f}" y="{top + 12}" fill="{COLORS[kind]}">{row[kind]:.2f}</text>')
    with open(out, "w") as file:
        file.write("\n".join(svg) + "\n</svg>\n")


main()
