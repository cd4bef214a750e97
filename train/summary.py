"""Prints what a quickstart run achieved, in a form a newcomer can read: python3 train/summary.py RUN_FOLDER"""
import json
import os
import re
import sys


def size(path):
    return f"{os.path.getsize(path) / 1e6:.2f} MB"


def main(run):
    rows = [json.loads(line) for line in open(os.path.join(run, "metrics.jsonl"))]
    valid = [r for r in rows if "val/loss" in r]
    steps = [r for r in rows if "train/tokens_per_sec" in r]
    evaluation = json.load(open(os.path.join(run, "eval.json")))
    speed = re.search(r"^speed\s+(.*)$", open(os.path.join(run, "train.txt")).read(), re.M).group(1)
    checkpoint = sorted(os.listdir(os.path.join(run, "checkpoints")))[-1]
    first, last = valid[0]["val/loss"], valid[-1]["val/loss"]
    print(f"""
  validation loss    {first:.3f} at the start, {last:.3f} after {valid[-1]['step']} steps (nats per token)
  perplexity         {valid[0]['val/ppl']:.0f} at the start, {evaluation['ppl']:.1f} at the end
  bits per byte      {evaluation['bpb']:.3f}
  trained on         {steps[-1]['train/tokens']:,} tokens at {speed}
  checkpoint         {size(os.path.join(run, 'checkpoints', checkpoint))}  fp32 weights and optimizer state
  ternary export     {size(os.path.join(run, 'model.mmfree'))}  2-bit weights, f32 embedding
                     {size(os.path.join(run, 'model-int8.mmfree'))}  2-bit weights, int8 embedding

  What to look at and to type next:
    {run}/report.html in a browser: curves, configuration, machine
    build/mmfree generate {run}/model.mmfree --prompt "Mr. Rochester" --temperature 0.7 --seed 5
    build/mmfree eval {run} data/books/burnett_secret_garden_1911.txt
    build/mmfree info {run}/model.mmfree
    build/mmfree train --help
""")


if __name__ == "__main__":
    main(sys.argv[1])
