#!/usr/bin/env python3
"""Kills ranks of tiny CPU runs, and changes their number at resumes, until it has done so often enough; each run must
end with the bits of one that a single rank made undisturbed.

  python3 tests/ranks/kills.py [KILLS] [CHANGES]     100 of each; needs build/mmfree

Ranks are started over TCP, and by mpirun where it is installed; every `train.shard` comes in turn. Prints a line per
finished run and a summary; status 1 if anything was not as it should be.
"""
import glob
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
PROGRAM = os.path.join(ROOT, "build/mmfree")
STEPS, LEAVES = 400, 4
LOST, STOPPED = 69, 75
SHARDS = ["none", "optimizer", "gradients"]
LAUNCHERS = ["tcp"] + (["mpi"] if shutil.which("mpirun") and glob.glob(ROOT + "/build/libmmfree_mpi.so") else [])
work = tempfile.mkdtemp(prefix="mmfree-kills-")
chance = random.Random(16)
wrong = []


def say(text):
    print(f"{time.monotonic() - begin:6.0f} s  {text}", flush=True)


def results_of(run):
    """What must not depend on what happened: digests of steps, losses of evaluations, the last weights."""
    text = open(f"{run}/metrics.jsonl").read()
    found = re.findall(r'"train/digest": "[^"]*"|"val/loss": [^,}]*', text)
    return found + re.findall(r'"checkpoint/weights": "[^"]*"', text)[-1:]


def lines_of(run):
    try:
        return open(f"{run}/metrics.jsonl").read().count("\n")
    except FileNotFoundError:
        return 0


class Ranks:
    """The processes of one start."""

    def __init__(self, run, count, launcher, shard):
        self.run, self.count, self.launcher = run, count, launcher
        words = [PROGRAM, "train", f"{work}/run.yaml", f"train.run_dir={run}", f"train.shard={shard}", "--resume", "-q"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = dict(os.environ, OMP_WAIT_POLICY="passive", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                   OMPI_MCA_rmaps_base_oversubscribe="1")
        self.log = open(f"{work}/log", "w+")
        start = lambda command, more: subprocess.Popen(command, env={**env, **more}, stdout=self.log, stderr=self.log)
        if launcher == "mpi":
            self.started = [start(["mpirun", "-n", str(count)] + words, {})]
        else:
            self.started = [start(words, {"RANK": str(r), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                                          "MASTER_PORT": str(port)} if count > 1 else {}) for r in range(count)]

    def processes(self):
        """The process numbers of the ranks."""
        if self.launcher == "tcp":
            return [p.pid for p in self.started]
        children = subprocess.run(["pgrep", "-P", str(self.started[0].pid)], capture_output=True, text=True).stdout
        return [int(p) for p in children.split()]

    def wait_for_lines(self, lines):
        while lines_of(self.run) < lines and all(p.poll() is None for p in self.started):
            time.sleep(0.005)

    def signal_one(self, number):
        """Sends a signal to a rank at random, if it still runs. Returns which process."""
        running = self.processes()
        if not running:
            return None
        victim = chance.choice(running)
        try:
            os.kill(victim, number)
        except ProcessLookupError:
            return None
        return victim

    def statuses(self, but=None):
        """Waits for the ends of all; those of the processes other than `but`."""
        ends = [(p.pid, p.wait(timeout=150)) for p in self.started]
        return [status for pid, status in ends if pid != but]

    def said(self):
        self.log.seek(0)
        return [line for line in self.log if line.startswith("mmfree: ")]


def disturb(run, count, launcher, shard, number, expected):
    """One start that a signal ends. Returns seconds until all had ended, or None if the run was finished before."""
    ranks = Ranks(run, count, launcher, shard)
    ranks.wait_for_lines(lines_of(run) + chance.randint(1, 12))
    time.sleep(chance.random() * 0.2)
    victim = ranks.signal_one(number)
    sent = time.monotonic()
    ends = ranks.statuses(victim if number == signal.SIGKILL else None)
    took = time.monotonic() - sent
    if all(end == 0 for end in ends):
        return None
    # Mpirun says 137, or what the rank said that ended first.
    fine = {expected, 0} | ({137, 128 + signal.SIGKILL} if launcher == "mpi" and number == signal.SIGKILL else set())
    if not set(ends) <= fine:
        wrong.append(f"{run}: {count} ranks by {launcher}: statuses {ends}: {ranks.said()}")
    if launcher == "tcp" and number == signal.SIGKILL and len(ranks.said()) != 1 and 0 not in ends:
        wrong.append(f"{run}: {count} ranks by {launcher}: said {ranks.said()}")
    return took


def check_equal(run, reference):
    if results_of(run) != reference:
        wrong.append(f"{run} differs from the undisturbed run")
        return "DIFFERS"
    return "equal"


def disturb_often(name, times, counts, number, expected):
    """As many disturbed starts as asked for, over as many runs as that takes."""
    done, finished, slowest = 0, 0, 0.0
    while done < times:
        run = f"{work}/{name}-{finished}"
        in_this = 0
        while done < times:
            took = disturb(run, chance.choice(counts), chance.choice(LAUNCHERS), chance.choice(SHARDS), number, expected)
            if took is None:
                break
            done, in_this, slowest = done + 1, in_this + 1, max(slowest, took)
        if Ranks(run, chance.choice(counts), "tcp", "optimizer").statuses().count(0) < 1:
            wrong.append(f"{run}: the last start failed")
        say(f"{name}: run {finished + 1}: {in_this} times, then {check_equal(run, reference)} ({done} of {times})")
        shutil.rmtree(run)
        finished += 1
    say(f"{name}: {done} in {finished} runs; all ranks had ended at most {slowest:.1f} s later")


begin = time.monotonic()
kills, changes = (int(sys.argv[i]) if len(sys.argv) > i else 100 for i in (1, 2))
subprocess.run(["bash", "-c", f"source tests/ranks/tiny_run.sh; tiny_run {work} {LEAVES} {STEPS}"], cwd=ROOT, check=True)
text = open(f"{work}/run.yaml").read()
open(f"{work}/run.yaml", "w").write(text.replace("log_every: 10", "log_every: 2").replace("save_every: 100", "save_every: 5"))
subprocess.run([PROGRAM, "train", f"{work}/run.yaml", f"train.run_dir={work}/one", "-q"], check=True, stdout=subprocess.DEVNULL)
reference = results_of(f"{work}/one")
say(f"the undisturbed run: one rank, {len(reference)} results; launchers {', '.join(LAUNCHERS)}")
disturb_often("kills", kills, [2, 4], signal.SIGKILL, LOST)
disturb_often("changes of the number of ranks", changes, [1, 2, 4], signal.SIGTERM, STOPPED)
for line in wrong:
    say(line)
shutil.rmtree(work)
sys.exit(1 if wrong else 0)
