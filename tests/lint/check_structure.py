"""Checks the rules of the source tree that the compiler does not.

    python3 tests/lint/check_structure.py ROOT     one line per violation; status 1 if there is any
    python3 tests/lint/check_structure.py          checks this checker against planted violations
"""

import os
import re
import subprocess
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

# Which rooms a room's files may include. Tests may include all.
ROOMS = {
    "core": {"core"},
    "autograd": {"core", "autograd"},
    "layers": {"core", "autograd", "layers"},
    "optim": {"core", "autograd", "optim"},
    "data": {"core", "data"},
    "train": {"core", "autograd", "layers", "optim", "data", "train"},
}
TOP_LEVEL = {*ROOMS, "configs", "tests", "CMakeLists.txt", "CMakePresets.json"}
TOP_LEVEL |= {"README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md"}

# A third-party header, and the only files that may include it.
OWNERS = {
    "hdf5*": ["data/h5/*"],
    "sentencepiece*": ["data/text/tokenizer*"],
    "yaml-cpp/*": ["train/config/tree*"],
    "dnnl*": ["core/cpu/matmul.cpp", "tests/bench/*"],
    "CLI/*": ["train/main.cpp", "train/commands/*"],
    "zstd*": ["data/text/decoder.cpp", "tests/*"],
    "zlib.h": ["data/text/decoder.cpp", "data/h5/deflate.cpp", "tests/*"],
    "xxhash*": ["core/system/hash.cpp"],
    "nlohmann/*": ["train/*", "tests/*"],
    "gtest/*": ["tests/*"],
    "mpi.h": ["core/ranks/mpi_module.cpp"],
    "nccl.h": ["core/cuda/nccl.cpp"],
    "nvtx3/*": ["core/cuda/gpu.cpp", "tests/cuda/test_nvtx.cpp"],
    "cupti.h": ["tests/bench/timeline.cpp"],
    "cxxabi.h": ["tests/bench/timeline.cpp"],  # names of kernels
    "glob.h": ["tests/data/test_paths.cpp"],  # the oracle for our own patterns
    **dict.fromkeys(["cuda*", "cub/*", "cublas*", "cudnn*"], ["core/cuda/*", "tests/cuda/*", "tests/bench/*"]),
}
# The backends' own headers serve nobody else: ops reach a backend by MMFREE_DISPATCH, everyone else by core/gpu.h.
BACKENDS = ["core/cpu", "core/cuda"]
# Headers of the system and the compiler that are not the C++ library's (those have neither a dot nor a slash).
SYSTEM = ["sys/*", "dirent.h", "fcntl.h", "fnmatch.h", "poll.h", "pthread.h", "pty.h", "termios.h", "unistd.h"]
SYSTEM += ["arpa/*", "ifaddrs.h", "net/*", "netdb.h", "netinet/*", "sched.h"]
SYSTEM += ["dlfcn.h", "omp.h", "immintrin.h", "arm_neon.h", "cpuid.h"]

# What writes to a standard stream, and the only product files that may: all other text reaches a terminal escaped, and
# no stuck reader holds the program.
PRINTS = re.compile(
    r"\b(v?f?printf|f?puts|f?putc|putchar|fwrite|perror)\s*\(|\bstd::(cout|cerr|clog)\b|\bwrite\((1|2|STD\w+_FILENO)\b"
)
PRINTERS = ["core/system/console.cpp", "core/system/signals.cpp", "tests/*"]

# Headers in core/ops that need not have each part that an operation has.
NO_SOURCE = {"check", "ternary_check"}
NO_KERNEL = {"check", "ternary_check", "linear"}  # linear chooses between ternary and matmul
NO_TEST = {"check", "ternary_check"}

MAX_LINES = 500
MAX_LINES_OF_TESTS = 700
MAX_BYTES = 2 << 20
CPP = {".h", ".cpp", ".inc", ".cu", ".cuh"}
SOURCE = CPP | {".py", ".sh", ".md", ".yaml", ".json", ".cmake", ".supp", ".html", ".css", ".js"}  # prose (.txt) is data
UNTRACKED = ["build*", "runs", ".*"]  # folders at the top level that hold no sources
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')


def suffix(path):
    return PurePosixPath(path).suffix


def matches(name, patterns):
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def includes(text):
    """Yields (line number, "<" or the quote, name) of each include."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := INCLUDE.match(line):
            yield number, *found.groups()


def check_include(path, kind, name):
    """What is wrong with `path` including `name`, or None."""
    room = path.split("/")[0]
    if kind == '"':
        to = name.split("/")[0]
        allowed = ROOMS.get(room, {*ROOMS, "tests"})
        if to not in {*ROOMS, "tests"}:
            return f'"{name}" is not relative to the root; write "ROOM/file.h"'
        for backend in BACKENDS:
            if name.startswith(backend + "/") and not path.startswith((backend + "/", "tests/")):
                return f'"{name}" is private to {backend}'
        return None if to in allowed else f'{room} may not include "{name}"; it may include {", ".join(sorted(allowed))}'
    for pattern, owners in OWNERS.items():
        if fnmatchcase(name, pattern):
            return None if matches(path, owners) else f"<{name}> belongs to {', '.join(owners)}"
    if ("/" in name or "." in name) and not matches(name, SYSTEM):
        return f"<{name}> has no owner; name its only users in OWNERS of tests/lint/check_structure.py"
    return None


def check_operations(files):
    """Every operation has a source, a kernel on the CPU (one in core/cuda is its own affair) and a test."""
    tested = set()
    for path, content in files.items():
        if fnmatchcase(path, "tests/ops/test_*.cpp"):
            tested |= {name for _, _, name in includes(content.decode())}
    for header in sorted(files):
        if not fnmatchcase(header, "core/ops/*.h"):
            continue
        op = PurePosixPath(header).stem
        if op not in NO_SOURCE and f"core/ops/{op}.cpp" not in files:
            yield f"{header}: core/ops/{op}.cpp is missing"
        if op not in NO_KERNEL and f"core/cpu/{op}.cpp" not in files:
            yield f"{header}: its kernel core/cpu/{op}.cpp is missing"
        if op not in NO_TEST and header not in tested:
            yield f"{header}: no tests/ops/test_*.cpp includes it; write tests/ops/test_{op}.cpp"


def check_kernels(path, text):
    """Every kernel waits for the one before it, and is launched accordingly (core/cuda/launch.cuh)."""
    for number, line in enumerate(text.splitlines(), 1):
        if "<<<" in line:
            yield f"{path}:{number}: <<<; launch by launch_kernel of core/cuda/launch.cuh"
    kernels, waits = (text.count(word) for word in ("__global__", "begin_kernel();"))
    if kernels != waits:
        yield f"{path}: has {kernels} kernels and {waits} calls of begin_kernel; each kernel needs one"


def violations(files):
    """Lines that say what breaks a rule. `files`: path with slashes -> content in bytes."""
    for path, content in sorted(files.items()):
        top = path.split("/")[0]
        if top not in TOP_LEVEL and not top.startswith("."):
            yield f"{path}: {top} may not stand at the top level; put it into one of {', '.join(sorted(ROOMS))}, tests"
        if len(content) > MAX_BYTES:
            yield f"{path}: has {len(content)} bytes, at most {MAX_BYTES} are allowed; make it when it is needed"
        if suffix(path) not in SOURCE and PurePosixPath(path).name != "CMakeLists.txt":
            continue
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            yield f"{path}: not UTF-8 at byte {error.start}"
            continue
        lines = text.splitlines()
        most = MAX_LINES_OF_TESTS if top == "tests" else MAX_LINES
        if len(lines) > most:
            yield f"{path}: has {len(lines)} lines, at most {most} are allowed; split it"
        for number, line in enumerate(lines, 1):
            if found := UNFINISHED.search(line):
                yield f"{path}:{number}: {found[0]}; finish it, or leave it out"
        if suffix(path) in CPP:
            for number, kind, name in includes(text):
                if problem := check_include(path, kind, name):
                    yield f"{path}:{number}: {problem}"
            if path.startswith("core/cuda/"):
                yield from check_kernels(path, text)
            for number, line in enumerate(lines, 1):
                if (found := PRINTS.search(line.partition("//")[0])) and not matches(path, PRINTERS):
                    yield f"{path}:{number}: {found[0]}; write by core/system/console.h"
    yield from check_operations(files)


def walk(root):
    """All files but those in UNTRACKED, which may be large and are not entered."""
    for folder, folders, files in os.walk(root):
        if folder == root:
            folders[:] = [f for f in folders if not matches(f, UNTRACKED)]
        yield from (Path(folder, f).relative_to(root).as_posix() for f in files)


def read_tree(root, git="git"):
    """The files that git tracks; those of `walk` where there is no git or `root` is not in a repository."""
    try:
        listed = subprocess.run([git, "-C", root, "ls-files", "-z"], capture_output=True, check=False).stdout
    except FileNotFoundError:
        listed = b""
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name] or walk(root)
    return {name: (Path(root) / name).read_bytes() for name in names if (Path(root) / name).is_file()}


CLEAN = {
    "CMakeLists.txt": "project(x)\n",
    "data/books/novel.txt": "CHAPTER X" "XX\n" + "\n" * MAX_LINES_OF_TESTS,
    "core/long.cpp": "\n" * MAX_LINES,
    "tests/core/long.cpp": "\n" * MAX_LINES_OF_TESTS,
    ".clang-format": "",
    "core/ops/add.h": "#pragma once\n#include <vector>\n",
    "core/ops/add.cpp": '#include "core/ops/add.h"\n#include <sys/stat.h>\n',
    "core/cpu/add.cpp": '#include "core/ops/add.h"\n',
    "core/ops/check.h": "",
    "core/system/console.cpp": "  ::write(1, x, 1);\n",
    "core/system/hash.cpp": "  std::snprintf(x, 1, y);  // std::printf( would show it\n  ::write(fd, x, 1);\n",
    "tests/core/x.cpp": '  std::printf("x");\n',
    "core/cuda/add.cu": '#include <cuda_bf16.h>\n#include <cub/cub.cuh>\n#include "core/cuda/common.cuh"\n',
    "core/cuda/kernel.cu": "__global__ void k() {\n  begin_kernel();\n}\n",
    "core/cuda/common.cuh": "#include <cublasLt.h>\n",
    "data/h5/file.h": "#include <hdf5.h>\n",
    "train/run.cpp": '#include "data/h5/file.h"\n#include "layers/lm.h"\n  char name[] = "run-XXXXXX";\n',
    "tests/cuda/test_add.cpp": '#include <cuda_runtime.h>\n#include "core/cuda/common.cuh"\n#include "core/ops/add.h"\n',
    "tests/ops/test_add.cpp": '#include <gtest/gtest.h>\n#include "core/ops/add.h"\n#include "tests/support/compare.h"\n',
}
# What is planted into CLEAN (None: removed), and a part of the one line that must come of it.
PLANTED = [
    ({"core/x.cpp": '#include "autograd/tape.h"\n'}, "core/x.cpp:1: core may not include"),
    ({"layers/x.h": '#include "optim/adamw.h"\n'}, "layers/x.h:1: layers may not include"),
    ({"data/x.h": '\n#include "train/config/config.h"\n'}, "data/x.h:2: data may not include"),
    ({"train/x.h": '#include "tests/support/compare.h"\n'}, "train/x.h:1: train may not include"),
    ({"train/x.h": '#include "config.h"\n'}, 'train/x.h:1: "config.h" is not relative'),
    ({"train/x.cpp": "#include <hdf5.h>\n"}, "train/x.cpp:1: <hdf5.h> belongs to data/h5/*"),
    ({"data/x.cpp": "#  include <xxhash.h>\n"}, "data/x.cpp:1: <xxhash.h> belongs to core/system/hash.cpp"),
    ({"train/x.cpp": "#include <CLI/CLI.hpp>\n"}, "train/x.cpp:1: <CLI/CLI.hpp> belongs to"),
    ({"core/x.cpp": "#include <cuda_runtime.h>\n"}, "core/x.cpp:1: <cuda_runtime.h> belongs to core/cuda/*"),
    ({"core/ops/x.cpp": "#include <cub/cub.cuh>\n"}, "core/ops/x.cpp:1: <cub/cub.cuh> belongs to core/cuda/*"),
    ({"tests/ops/x.cpp": "#include <cublasLt.h>\n"}, "tests/ops/x.cpp:1: <cublasLt.h> belongs to core/cuda/*"),
    ({"core/x.cpp": '#include "core/cuda/common.cuh"\n'}, 'core/x.cpp:1: "core/cuda/common.cuh" is private to core/cuda'),
    ({"core/cuda/x.cpp": '#include "core/cpu/vec.h"\n'}, 'core/cuda/x.cpp:1: "core/cpu/vec.h" is private to core/cpu'),
    ({"data/x.cpp": "#include <boost/any.hpp>\n"}, "data/x.cpp:1: <boost/any.hpp> has no owner"),
    ({"tools/x.py": ""}, "tools/x.py: tools may not stand"),
    ({"notes.txt": ""}, "notes.txt: notes.txt may not stand"),
    ({"core/x.cpp": "\n" * (MAX_LINES + 1)}, "core/x.cpp: has 501 lines"),
    ({"tests/x.cpp": "\n" * (MAX_LINES_OF_TESTS + 1)}, "tests/x.cpp: has 701 lines"),
    ({"tests/x.bin": "x" * (MAX_BYTES + 1)}, "tests/x.bin: has 2097153 bytes"),
    ({"core/x.cpp": "int x;  // TO" "DO: y\n"}, "core/x.cpp:1: TO" "DO; finish"),
    ({"core/x.cpp": "\udcff"}, "core/x.cpp: not UTF-8 at byte 0"),
    ({"core/x.cpp": '  std::printf("x");\n'}, "core/x.cpp:1: printf("),
    ({"data/x.cpp": "\n  std::cerr << x;\n"}, "data/x.cpp:2: std::cerr"),
    ({"train/x.cpp": "  fputs(x, stderr);\n"}, "train/x.cpp:1: fputs("),
    ({"train/x.cpp": "  ::write(STDERR_FILENO, x, 1);\n"}, "train/x.cpp:1: write(STDERR_FILENO"),
    ({"core/cuda/x.cu": "__global__ void k() {}\n"}, "core/cuda/x.cu: has 1 kernels and 0 calls"),
    ({"core/cuda/x.cu": "  k<<<1, 1>>>();\n"}, "core/cuda/x.cu:1: <<<"),
    ({"core/ops/add.cpp": None}, "core/ops/add.h: core/ops/add.cpp is missing"),
    ({"core/cpu/add.cpp": None}, "core/ops/add.h: its kernel core/cpu/add.cpp is missing"),
    ({"tests/ops/test_add.cpp": None}, "core/ops/add.h: no tests/ops/test_*.cpp includes it"),
]


def check_self():
    """Mistakes of this checker: what it finds in a clean tree, and what it overlooks in others."""

    def found_in(changes):
        files = {path: text for path, text in {**CLEAN, **changes}.items() if text is not None}
        return list(violations({path: text.encode(errors="surrogateescape") for path, text in files.items()}))

    yield from (f"a clean tree is refused: {line}" for line in found_in({}))
    for changes, expected in PLANTED:
        found = found_in(changes)
        if len(found) != 1 or not found[0].startswith(expected):
            yield f"planted {[*changes]}: expected one line '{expected}...', found {found}"
    yield from check_reading()


def check_reading():
    """Without git and outside a repository the sources are found, and nothing that a build or a run leaves."""
    sources = {"README.md", ".clang-format", "core/x.h", "tests/build/x.h"}
    for git in ["git", "git-that-is-not-installed"]:
        with tempfile.TemporaryDirectory() as root:
            for name in sources | {"build-cuda/x.cpp", "runs/1/config.yaml", ".cache/x.h"}:
                Path(root, name).parent.mkdir(parents=True, exist_ok=True)
                Path(root, name).touch()
            if (found := read_tree(root, git).keys()) != sources:
                yield f"read with {git}: expected {sorted(sources)}, found {sorted(found)}"


def check_tree(root):
    files = read_tree(root)
    return list(violations(files)) if files else [f"{root}: holds no files; name the root of the sources"]


def main(arguments):
    try:
        problems = check_tree(arguments[0]) if arguments else list(check_self())
    except OSError as error:
        problems = [str(error)]
    print("\n".join(problems) if problems else "no violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
