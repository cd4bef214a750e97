"""Reads gcov's JSON reports, one a line, and prints how many branches of each named source file were taken.

Branches that only an exception takes are left out: any call may throw, and gcov counts each.
"""

import json
import sys


def main(files):
    taken = {name + ".cpp": {} for name in files}  # file -> line -> how often each branch was taken
    for report in map(json.loads, sys.stdin):
        for source in report["files"]:
            named = [name for name in taken if ("/" + source["file"]).endswith("/" + name)]
            if not named:
                continue
            lines = taken[named[0]]
            for line in source["lines"]:
                counts = [branch["count"] for branch in line["branches"] if not branch["throw"]]
                # A template or an inlined function gives a line several times: any of them counts.
                lines.setdefault((line["line_number"], line.get("function_name")), []).append(counts)
    for name, lines in taken.items():
        merged = {}
        for (number, _), instances in lines.items():
            for counts in instances:
                best = merged.setdefault(number, [0] * len(counts))
                best.extend([0] * (len(counts) - len(best)))
                for i, count in enumerate(counts):
                    best[i] = max(best[i], count)
        branches = sum(len(counts) for counts in merged.values())
        covered = sum(count > 0 for counts in merged.values() for count in counts)
        open_lines = [f"{number}({sum(c == 0 for c in counts)})" for number, counts in sorted(merged.items()) if 0 in counts]
        print(f"{name:28} {covered:5} of {branches:5} branches, {100 * covered / max(branches, 1):5.1f} %")
        if open_lines:
            print("    never taken, line(branches): " + " ".join(open_lines))


if __name__ == "__main__":
    main(sys.argv[1:])
