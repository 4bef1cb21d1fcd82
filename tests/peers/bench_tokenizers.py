#!/usr/bin/env python3
"""Speed of graft's tokenizers against their peers. Usage: bench_tokenizers.py path/to/graft-tokenizer-arm path/to/graft

One thread each, rows in memory, deduplicated, a fresh cache every round. The arms alternate; a fixed
piece of work before each round tells a busy machine, whose rounds are repeated. Medians of five.
Needs ../shared (or $GRAFT_SHARED).
"""
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
import sentencepiece  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("GRAFT_SHARED", ROOT.parent / "shared"))
ARM, GRAFT = (pathlib.Path(p).resolve() for p in sys.argv[1:3])
ROUNDS, SLOW = 5, 1.25  # rounds kept; a probe this much slower than the fastest discards its round


def rows():
    seen = {}
    for name in ("alpaca_5000", "gsm_8k_train", "gpteacher_roleplay"):
        for row in json.load(open(SHARED / f"data/datasets/{name}.json")):
            seen["\n".join(v for v in row.values() if isinstance(v, str) and v)] = None
    return list(seen)


def probe():
    start = time.process_time(), time.perf_counter()
    sum(i * i for i in range(400000))
    return time.perf_counter() - start[1]


def graft_arm(path, lines, what):
    out = subprocess.run([str(ARM), "--tokenizer", str(path), "--rows", lines, "--what", what],
                         check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def their_arm(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(arms):
    """{name: seconds} of five undisturbed rounds, arms in turn."""
    times = {name: [] for name in arms}
    fastest, discarded = min(probe() for _ in range(5)), 0
    while len(next(iter(times.values()))) < ROUNDS:
        taken = {}
        before = probe()
        for name, arm in arms.items():
            taken[name] = arm()
        if max(before, probe()) > fastest * SLOW and discarded < 20:
            discarded += 1
            continue
        for name, seconds in taken.items():
            times[name].append(seconds)
    return {name: statistics.median(t) for name, t in times.items()}, discarded


def main():
    texts = rows()
    size = sum(len(t.encode()) for t in texts) / 1e6
    print(f"{len(texts)} distinct rows, {size:.2f} MB; one thread; medians of {ROUNDS}")
    with tempfile.TemporaryDirectory() as work:
        lines = os.path.join(work, "rows.jsonl")
        with open(lines, "w", encoding="utf-8") as out:
            for text in texts:
                out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        print(f"{'tokenizer':10} {'what':14} {'graft MB/s':>11} {'peer MB/s':>10} {'ratio':>6} {'discarded':>9}")
        for name in ("llama3", "qwen2", "gpt2"):
            path = SHARED / f"data/tokenizers/{name}/tokenizer.json"

            def fresh(method):
                def arm():
                    tokenizer = Tokenizer.from_file(str(path))  # a fresh cache
                    return their_arm(lambda: getattr(tokenizer, method)(texts, add_special_tokens=False))
                return arm
            for what, method in (("ids", "encode_batch_fast"), ("offsets", "encode_batch")):
                took, discarded = measure({"graft": lambda: graft_arm(path, lines, what)["seconds"], "peer": fresh(method)})
                print(f"{name:10} {what:14} {size / took['graft']:11.1f} {size / took['peer']:10.2f} "
                      f"{took['peer'] / took['graft']:6.1f} {discarded:9}", flush=True)
        path = SHARED / "data/tokenizers/llama2/tokenizer.model"
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        took, discarded = measure({"graft": lambda: graft_arm(path, lines, "ids")["seconds"],
                                   "peer": lambda: their_arm(lambda: model.encode(texts, num_threads=1))})
        print(f"{'llama2':10} {'ids (spm)':14} {size / took['graft']:11.1f} {size / took['peer']:10.2f} "
              f"{took['peer'] / took['graft']:6.1f} {discarded:9}")
        path = SHARED / "data/tokenizers/llama3/tokenizer.json"
        took, discarded = measure({"graft": lambda: graft_arm(path, lines, "load")["seconds"],
                                   "peer": lambda: their_arm(lambda: Tokenizer.from_file(str(path)))})
        print(f"llama3 load: graft {took['graft'] * 1e3:.1f} ms, tokenizers {took['peer'] * 1e3:.1f} ms, "
              f"{took['peer'] / took['graft']:.1f} times ({discarded} discarded)")

        def cli(tokenizer):
            return their_arm(lambda: subprocess.run([str(GRAFT), "data", "encode", "--tokenizer", str(tokenizer)],
                                                    stdin=open(lines, "rb"), stdout=subprocess.DEVNULL, check=True))
        took, discarded = measure({"graft": lambda: cli(path)})
        bytes_in = os.path.getsize(lines) / 1e6
        print(f"graft data encode, JSONL to JSONL with offsets, llama3, load included: "
              f"{bytes_in / took['graft']:.1f} MB/s ({discarded} discarded)")
        memory = graft_arm(path, lines, "ids")["peak_mib"]
        print(f"memory at its highest, llama3: graft {memory:.0f} MiB; this process with all peers "
              f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
