#!/usr/bin/env python3
"""Speed of text to tokens beside its peers.

Usage: bench_tokenizers.py path/to/graft-tokenizer-arm path/to/graft [text of a row] [--quick]

One thread each, rows in memory, deduplicated, a fresh cache every round. The arms of a row take turns;
before and after each a fixed piece of work is timed, and a round beside a slow one, or in which an arm
got less than 95 % of a processor, is thrown away.
Figures are medians of five rounds; where the machine was not quiet for so long (15 rounds, or a minute a
row) they are marked "busy" and taken from processor time over all rounds, which other work slows down less.
Prints each row's target; exit code 1 when a quiet row misses it. Takes 5 minutes, on a busy machine up to 10.
--quick: two rounds over a twentieth of the rows, to see that it runs; its figures mean little, for the
caches of words stay cold. Needs ../shared (or $GRAFT_SHARED).
"""
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
import sentencepiece  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from transformers.utils.chat_template_utils import render_jinja_template  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("GRAFT_SHARED", ROOT.parent / "shared"))
TOKENIZERS, TEMPLATES = SHARED / "data/tokenizers", SHARED / "data/chat_templates"
ARM, GRAFT = (pathlib.Path(p).resolve() for p in sys.argv[1:3])
QUICK = "--quick" in sys.argv
ONLY = next((a for a in sys.argv[3:] if a != "--quick"), "")
# Rounds kept; a probe this much slower than the fastest discards its round; rounds tried at most, and
# no further one begins after this many seconds.
ROUNDS, SLOW, TRIES, SECONDS = (2, 1.2, 2, 20) if QUICK else (5, 1.2, 15, 60)
DATASETS = ("alpaca_5000", "gsm_8k_train", "gpteacher_roleplay")


def records():
    rows = [row for name in DATASETS for row in json.load(open(SHARED / f"data/datasets/{name}.json"))]
    return rows[::20] if QUICK else rows


def probe():
    start = time.perf_counter()
    sum(i * i for i in range(200000))
    return time.perf_counter() - start


def graft_arm(model, rows, what):
    out = subprocess.run([str(ARM), "--model", str(model), "--rows", str(rows), "--what", what],
                         check=True, capture_output=True, text=True).stdout
    answer = json.loads(out)
    return answer["seconds"], answer["cpu_seconds"], answer


def timed(work):
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu, None


def timed_program(arguments, stdin):
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(a) for a in arguments], stdin=open(stdin, "rb"), stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - wall, cpu, None


FASTEST = min(probe() for _ in range(20))


def measure(arms):
    """{name: (seconds, last answer)}, and whether the machine was quiet."""
    quiet, busy, answers = {n: [] for n in arms}, {n: [] for n in arms}, {}
    begin = time.perf_counter()
    for _ in range(TRIES):
        if busy["graft"] and time.perf_counter() - begin > SECONDS:
            break
        taken, slowest = {}, 0
        for name, arm in arms.items():
            before = probe()
            taken[name] = arm()
            slowest = max(slowest, before, probe())
            answers[name] = taken[name][2]
        had_processor = all(cpu >= 0.95 * wall for wall, cpu, _ in taken.values())
        for name, (wall, cpu, _) in taken.items():
            busy[name].append(cpu)
            if slowest <= FASTEST * SLOW and had_processor:
                quiet[name].append(wall)
        if len(next(iter(quiet.values()))) == ROUNDS:
            return {n: (statistics.median(t), answers[n]) for n, t in quiet.items()}, True
    return {n: (statistics.median(t), answers[n]) for n, t in busy.items()}, False


MISSED = []


def report(name, unit, work, target, arms, least_rate=None):
    """A row: graft's rate, the peer's, their ratio. `work` of the unit is done by each arm."""
    if ONLY not in name:
        return None
    took, quiet = measure(arms)
    rate = work / took["graft"][0]
    peer = work / took["peer"][0] if "peer" in took else None
    ratio = rate / peer if peer else None
    wanted = f"x {target}" if target else f"{least_rate:,} {unit}" if least_rate else ""
    holds = (not target or ratio >= target) and (not least_rate or rate >= least_rate)
    if quiet and not holds:
        MISSED.append(name)
    print(f"{name:40} {rate:12,.1f} {f'{peer:12,.1f}' if peer else ' ' * 12} {unit:16} {f'{ratio:6.1f}' if ratio else ' ' * 6} "
          f"{wanted:>24} {'met' if holds else 'MISSED'}{'' if quiet else ' (busy)'}", flush=True)
    return took


def encode_rows(texts, lines):
    size = sum(len(t.encode()) for t in texts) / 1e6
    print(f"{len(texts)} distinct rows, {size:.2f} MB; one thread; medians of {ROUNDS}")
    print(f"{'row':40} {'graft':>12} {'peer':>12} {'unit':16} {'ratio':>6} {'target':>24}")
    for name in ("llama3", "qwen2", "gpt2"):
        path = TOKENIZERS / f"{name}/tokenizer.json"

        def fresh(method):
            def arm():
                tokenizer = Tokenizer.from_file(str(path))  # a fresh cache
                return timed(lambda: getattr(tokenizer, method)(texts, add_special_tokens=False))
            return arm
        for what, method, target in (("ids", "encode_batch_fast", 15), ("offsets", "encode_batch", 10)):
            report(f"{name} {what} / {method}", "MB/s", size, target,
                   {"graft": lambda: graft_arm(path, lines, what), "peer": fresh(method)})
    path = TOKENIZERS / "llama2/tokenizer.model"
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    report("llama2 ids / sentencepiece", "MB/s", size, 5,
           {"graft": lambda: graft_arm(path, lines, "ids"), "peer": lambda: timed(lambda: model.encode(texts, num_threads=1))})
    path = TOKENIZERS / "llama3/tokenizer.json"
    took = report("llama3 load", "loads/s", 1, None, {"graft": lambda: graft_arm(path, lines, "load"),
                                                      "peer": lambda: timed(lambda: Tokenizer.from_file(str(path)))}, round(1 / 0.06, 2))
    if took:
        print("    = " + " against ".join(f"{took[name][0] * 1000:.0f} ms" for name in ("graft", "peer")), flush=True)
    report("llama3 graft data encode, load included", "MB/s", os.path.getsize(lines) / 1e6, None,
           {"graft": lambda: timed_program([GRAFT, "data", "encode", "--tokenizer", path], lines)}, 30)


def render_rows(work):
    conversations = [[{"role": "user", "content": f"How do I reset the printer in room {i}?"},
                      {"role": "assistant", "content": "Hold the power key for five seconds."}] for i in range(1000 if QUICK else 20000)]
    lines = work / "conversations.jsonl"
    lines.write_text("".join(json.dumps({"messages": m}) + "\n" for m in conversations))
    few = conversations[:1000]
    for name in ("trl/llama3", "Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct", "google-gemma-2-2b-it"):
        path = TEMPLATES / f"{name}.jinja"
        source = path.read_text()

        def peer():
            wall, cpu, answer = timed(lambda: render_jinja_template(few, chat_template=source, bos_token="<s>", eos_token="</s>"))
            scale = len(conversations) / len(few)
            return wall * scale, cpu * scale, answer
        report(f"render {path.stem}", "conversations/s", len(conversations), None,
               {"graft": lambda: graft_arm(path, lines, "render"), "peer": peer}, 100000)


def tokenize_rows(work):
    model = work / "model"
    model.mkdir()
    shutil.copy(TOKENIZERS / "llama3/tokenizer.json", model)
    shutil.copy(TEMPLATES / "trl/llama3.jinja", model / "chat_template.jinja")
    (model / "tokenizer_config.json").write_text('{"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}')
    lines = work / "records.jsonl"
    lines.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records()))
    tokens = graft_arm(model, lines, "tokenize")[2]["count"]
    report("llama3 tokenize, mask and write", "tokens/s", tokens, None,
           {"graft": lambda: graft_arm(model, lines, "tokenize")}, 3000000)


def print_memory(texts, lines):
    """Each encodes all rows in a process of its own."""
    def peer(load):
        script = ("import json, resource, sys\n"
                  "texts = [json.loads(line)['text'] for line in open(sys.argv[2])]\n" + load +
                  "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n")
        return lambda path: float(subprocess.run([sys.executable, "-c", script, str(path), str(lines)], check=True,
                                                 capture_output=True, text=True).stdout)
    fast = peer("from tokenizers import Tokenizer\n"
                "ids = [e.ids for e in Tokenizer.from_file(sys.argv[1]).encode_batch_fast(texts, add_special_tokens=False)]\n")
    pieces = peer("import sentencepiece\n"
                  "ids = sentencepiece.SentencePieceProcessor(model_file=sys.argv[1]).encode(texts, num_threads=1)\n")
    for name, measured in (("llama3/tokenizer.json", fast), ("llama2/tokenizer.model", pieces)):
        path = TOKENIZERS / name
        own = graft_arm(path, lines, "ids")[2]["peak_mib"]
        print(f"memory at its highest, {len(texts)} rows, {name}: graft {own:.0f} MiB, peer {measured(path):.0f} MiB", flush=True)


def main():
    texts = list({"\n".join(v for v in row.values() if isinstance(v, str) and v): None for row in records()})
    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(scratch)
        lines = work / "rows.jsonl"
        lines.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
        encode_rows(texts, lines)
        render_rows(work)
        tokenize_rows(work)
        print_memory(texts, lines)
    if MISSED:
        print("missed: " + ", ".join(MISSED))
    return 1 if MISSED else 0


if __name__ == "__main__":
    sys.exit(main())
