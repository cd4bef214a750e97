"""Which outcomes of which conditions no run took: coverage.py REPORT READERS FILE...

REPORT is what `llvm-cov export` writes, READERS the Markdown page whose table gives a reason for each outcome that
nothing takes, as rows | file | function | condition | outcome | reason |. Of each FILE it prints how many outcomes were
taken, and each that was not. Ends with 1 if one of those has no reason.

A condition of a source file counts once, however many templates or programs it was compiled into: an outcome is taken
if any of them took it.
"""

import json
import re
import subprocess
import sys

EXPANSION = 1  # kinds of regions in the report
CHECK = re.compile(r"MMFREE_CHECK\(\s*\w+\s*,")


def closing(text, at):
    """The place of the bracket that closes the one at `at`, or the end of the text."""
    depth = 0
    for token in re.finditer(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])'|[()\[\]{}]", text[at:]):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return at + token.start()
    return len(text)


def split(text, separator):
    """`text` cut at each `separator` that is in no brackets and no quotes."""
    parts, at, begin = [], 0, 0
    while at < len(text):
        if text[at] in "([{":
            at = closing(text, at)
        elif text[at] == '"' or text[at] == "'":
            at += len(re.match(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])'|.", text[at:])[0]) - 1
        elif text.startswith(separator, at):
            parts.append(text[begin:at])
            begin = at = at + len(separator)
            continue
        at += 1
    return parts + [text[begin:]]


def operands(text):
    """The conditions in an expression of && and ||, in the order in which clang lists them: those of both sides, then
    the sides themselves."""
    text = text.strip()
    for operator in ("||", "&&"):
        parts = split(text, operator)
        if len(parts) > 1:
            sides = [operator.join(parts[:-1]), parts[-1]]
            return sum((operands(side) for side in sides if is_compound(side)), []) + [
                plain(side) for side in sides if not is_compound(side)]
    if text.startswith("(") and closing(text, 0) == len(text) - 1:
        return operands(text[1:-1])
    if text.startswith("!(") and closing(text, 1) == len(text) - 1:
        return operands(text[2:-1])
    return [plain(text)]


def is_compound(text):
    return len(operands(text)) > 1


def plain(text):
    return " ".join(text.split())


class Source:
    def __init__(self, path):
        self.text = open(path, encoding="utf-8").read()
        self.starts = [0]
        for line in self.text.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def at(self, line, column):
        return self.starts[line - 1] + column - 1

    def between(self, region):
        return plain(self.text[self.at(*region[:2]):self.at(*region[2:4])])

    def check(self, line, column):
        """The condition of the MMFREE_CHECK that begins here, or None."""
        begin = self.at(line, column)
        found = CHECK.match(self.text, begin)
        if not found:
            return None
        whole = self.text[found.end():closing(self.text, self.text.index("(", begin))]
        return split(whole, ",")[0]


def function_name(demangled):
    """`walk` of `mmfree::h5::Reader::Impl::walk(...)`; of a lambda the function that it stands in."""
    name = demangled.replace("(anonymous namespace)::", "").replace("mmfree::", "").split("[abi")[0]
    name = re.sub(r"^[\w:<>&* ]+ (?=[\w:~]+(<|\())", "", name)
    name = re.split(r"[(<]", name)[0].removeprefix("h5::")
    return name.rsplit(" ", 1)[-1]


def outcomes(report, sources):
    """(file, line, column, condition, function) -> [true taken, false taken]"""
    functions = report["data"][0]["functions"]
    names = subprocess.run(["c++filt"], input="\n".join(f["name"].split(":")[-1] for f in functions),
                           capture_output=True, text=True, check=True).stdout.splitlines()
    found = {}
    for function, name in zip(functions, names):
        files = function["filenames"]
        within = {r[6]: r for r in function["regions"] if r[7] == EXPANSION}
        of_check = {}  # expansion -> the operands of its condition that are still to be matched
        for branch in function["branches"]:
            line, column, file = branch[0], branch[1], branch[6]
            taken, root = [branch[4] > 0, branch[5] > 0], file
            while root in within:
                line, column, root = within[root][0], within[root][1], within[root][5]
            source = next((s for s in sources if files[root].endswith("/" + s)), None)
            if not source:
                continue
            text = sources[source].between(branch) if root == file else None
            condition = None if root == file else sources[source].check(line, column)
            if condition is not None:
                parts = operands(condition)
                if len(parts) == 1 and branch[3] - branch[1] > 1 and file not in of_check:
                    of_check[file] = []
                    text, taken = parts[0], taken[::-1]  # the macro asks for the opposite
                else:
                    rest = of_check.setdefault(file, parts)
                    text = rest.pop(0) if rest else "in the message of " + parts[0]
            key = (source, line, column, text or sources[source].between(within[file]), function_name(name))
            both = found.setdefault(key, [False, False])
            both[0] |= taken[0]
            both[1] |= taken[1]
    return found


def reasons(path):
    """(file, function, condition, outcome) of each row of the table."""
    rows = set()
    for line in open(path, encoding="utf-8"):
        cells = [cell.strip().strip("`").strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if len(cells) == 5 and cells[3] in ("true", "false"):
            rows.add((cells[0], cells[1], cells[2].replace("\\|", "|"), cells[3]))
    return rows


def main(report, readers, names):
    sources = {name: Source(name) for name in names}
    found = outcomes(json.load(open(report, encoding="utf-8")), sources)
    known, used = reasons(readers), set()
    without = all_taken = 0
    for name in names:
        mine = sorted((key, taken) for key, taken in found.items() if key[0] == name)
        taken = sum(sum(both) for _, both in mine)
        all_taken += taken
        print(f"{name:26} {taken:4} of {2 * len(mine):4} outcomes, {100 * taken / max(2 * len(mine), 1):5.1f} %")
        for (_, line, column, text, function), both in mine:
            for outcome, was in zip(("true", "false"), both):
                row = (name, function, text, outcome)
                if was:
                    continue
                used.add(row)
                without += row not in known
                print(f"    {'' if row in known else 'NO REASON '}{name}:{line}:{column}: {function}: never {outcome}: {text}")
    for row in sorted(known - used):
        print("has a reason but is taken: " + " | ".join(row))
    count = 2 * len(found)
    print(f"{all_taken} of {count} outcomes taken, {100 * all_taken / max(count, 1):.1f} %; "
          f"{count - all_taken} never, {without} of these without a reason in {readers}")
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
