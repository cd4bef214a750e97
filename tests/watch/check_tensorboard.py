"""Compares what TensorBoard (pip install tensorboard setuptools) reads of a run with its metrics.jsonl:

    python3 tests/watch/check_tensorboard.py RUN [--live CONFIG.yaml PROGRAM]

With --live, RUN is trained by PROGRAM meanwhile, killed and resumed while one TensorBoard stays open. CONFIG.yaml must
write to RUN and have short steps and checkpoints. Both of TensorBoard's readers are asked.
"""
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request


def expected(run):
    """key -> [[step, value], ...], the first value of a step."""
    points = {}
    with open(os.path.join(run, "metrics.jsonl")) as lines:
        for line in lines:
            if not line.endswith("\n"):
                continue
            row = json.loads(line)
            for key, value in row.items():
                if key in ("step", "time") or not isinstance(value, (int, float)):  # digests and alarms are texts
                    continue
                of_key = points.setdefault(key, [])
                if not of_key or of_key[-1][0] < row["step"]:
                    of_key.append([row["step"], value])
    return points


class TensorBoard:
    """The program, serving a folder."""

    def __init__(self, folder, load_fast):
        with socket.socket() as any_port:
            any_port.bind(("127.0.0.1", 0))
            self.port = any_port.getsockname()[1]
        program = os.path.join(os.path.dirname(sys.executable), "tensorboard")
        options = ["--logdir", folder, "--port", str(self.port), "--load_fast", load_fast, "--reload_interval", "1"]
        self.process = subprocess.Popen(
            [program, *options, "--samples_per_plugin", "scalars=1000000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def get(self, path, **arguments):
        query = urllib.parse.urlencode(arguments)
        url = f"http://127.0.0.1:{self.port}/data/plugin/scalars/{path}?{query}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)

    def points(self):
        """key -> [[step, value], ...] as the page would show them."""
        tags = self.get("tags")
        return {t: [p[1:] for p in self.get("scalars", run=r, tag=t)] for r in tags for t in tags[r]}

    def close(self):
        self.process.terminate()
        self.process.wait()


def differences(got, want):
    for key in sorted(got.keys() | want.keys()):
        a, b = got.get(key, []), want.get(key, [])
        if [p[0] for p in a] != [p[0] for p in b]:
            yield f"{key}: steps {[p[0] for p in a][:8]}... ({len(a)}), expected {[p[0] for p in b][:8]}... ({len(b)})"
        elif any(abs(p[1] - q[1]) > 1e-6 * abs(q[1]) for p, q in zip(a, b)):
            yield f"{key}: values differ"


def settled(board, run, seconds=30):
    """What still differs once TensorBoard has had time to read."""
    problems = ["no answer"]
    end = time.time() + seconds
    while problems and time.time() < end:
        time.sleep(1)
        try:
            problems = list(differences(board.points(), expected(run)))
        except (OSError, ValueError) as error:
            problems = [str(error)]
    return problems


def train_killed(run, config, program):
    """Trains, is killed twice after some steps, resumes, and stops by SIGTERM."""
    for stop in ("kill", "kill", "terminate"):
        process = subprocess.Popen([program, "train", config, "-q", "--resume"], stderr=subprocess.DEVNULL)
        time.sleep(4)
        getattr(process, stop)()
        process.wait()
        yield f"after {stop}"


def main(run, live):
    failed = False
    for load_fast in ("true", "false"):
        if live:
            subprocess.run(["rm", "-rf", run], check=True)
            os.makedirs(os.path.join(run, "tb"))
        board = TensorBoard(run, load_fast)
        try:
            for moment in train_killed(run, *live) if live else ["as it is"]:
                problems = settled(board, run)
                failed |= bool(problems)
                count = sum(map(len, expected(run).values()))
                print(f"--load_fast {load_fast}, {moment}: {count} points, {'; '.join(problems) or 'equal'}", flush=True)
        finally:
            board.close()
    return 1 if failed else 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(arguments[0], arguments[2:4] if "--live" in arguments else None))
