#!/usr/bin/env python3
"""Training steps of graft beside transformers + PEFT + bitsandbytes. Usage: bench_step.py path/to/graft [options]

Every arm trains a LoRA of rank 16 on all linears of one random Llama, AdamW at 1e-4, on the same
random tokens, all supervised. Arms alternate, each run in a process of its own; a matrix product
timed before each run tells a busy machine, whose rounds are repeated. The first round takes
--agree-steps steps and compares the losses of graft and its peers: exit 1 where they differ by more
than 1 % at the first or the last, for then the speeds do not count. bfloat16 arms run where the
processor has instructions for it: elsewhere a step of theirs takes minutes.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# hidden, layers, heads, key heads, intermediate, vocabulary
SIZES = {"small": (128, 3, 4, 2, 352, 1000), "134m": (768, 12, 12, 4, 2048, 32000)}
# An arm is who, what is trained, and what the frozen products take.
METHODS = {"lora": [], "qlora": ["--load-in-4bit", "--no-quantized-cache"]}
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
ARMS = [f"{who}-{method}-{dtype}" for dtype in DTYPES for who in ("graft", "peft") for method in METHODS]
AGREE = 0.01  # of a loss
RANK, RATE = 16, 1e-4


def anonymous_bytes():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def process_age():
    fields = open("/proc/self/stat").read().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return float(open("/proc/uptime").read().split()[0]) - started


def has_bf16_instructions():
    flags = open("/proc/cpuinfo").read()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def peer_main(directory, ids_path, arm, count):
    """One run of the peer: a JSON line with what `graft bench step --json` gives."""
    before = anonymous_bytes()
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch.manual_seed(0)
    _, method, short = arm.split("-")
    dtype = getattr(torch, DTYPES[short])
    options = {"dtype": dtype}
    if method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(directory, **options)
    if method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=RATE, weight_decay=0.0)
    steps = load_file(ids_path)["input_ids"][:count]
    begins, ends, peak, seconds, losses = process_age(), 0.0, 0, [], []
    for index, ids in enumerate(steps):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if index > 0:
            seconds.append(time.perf_counter() - start)
        else:
            ends = process_age()
        peak = max(peak, anonymous_bytes() - before)
    print(json.dumps({"tokens_per_s": steps[0].numel() / statistics.median(seconds), "peak_rss_bytes": peak,
                      "first_step_begins_s": begins, "first_step_s": ends, "losses": losses}))


def make_base(size, directory):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, kv_heads, inner, vocab = SIZES[size]
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=inner, vocab_size=vocab, max_position_embeddings=2048, rope_theta=10000.0,
        tie_word_embeddings=False)).to(torch.bfloat16).save_pretrained(directory)
    return vocab


def probe():
    """GFLOP/s of a matrix product, the best of three."""
    import torch

    a = torch.ones(768, 768)
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(a, a)
        rates.append(2 * 768**3 / (time.perf_counter() - start) / 1e9)
    return max(rates)


def run_arm(options, name, directory, ids_path, steps):
    who, method, dtype = name.split("-")
    if who == "peft":
        command = [sys.executable, __file__, "--peer", name, directory, ids_path, steps]
    else:
        command = [options.graft, "bench", "step", "--model", directory, "--ids", ids_path, "--json",
                   "--batch", options.batch, "--seq", options.seq, "--steps", steps,
                   "--lora-r", RANK, "--compute", dtype, *METHODS[method]]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def say(text):
    print(text, file=sys.stderr, flush=True)


def measure(options, arms, directory, ids_path):
    """Runs of each arm, of rounds in which the probe was never slow; their losses; a remark on the rounds."""
    kept, losses = {name: [] for name in arms}, {}
    best, discarded, busy = probe(), 0, 0
    while len(kept[arms[0]]) < options.rounds:
        steps = options.steps if losses else options.agree_steps
        rates, results = [], {}
        for name in arms:
            rates.append(probe())
            results[name] = run_arm(options, name, directory, ids_path, steps)
        rates.append(probe())
        best = max(best, *rates)
        losses = losses or {name: results[name]["losses"] for name in arms}
        quiet = min(rates) >= 0.85 * best
        say(f"probe {min(rates):.0f} to {max(rates):.0f} GFLOP/s, best {best:.0f}"
            f"{'' if quiet else ', busy'}; tokens/s: "
            + ", ".join(f"{name} {results[name]['tokens_per_s']:.0f}" for name in arms))
        if not quiet and discarded < options.discards:
            discarded += 1
            continue
        busy += not quiet
        for name in arms:
            kept[name].append(results[name])
    return kept, losses, f"{discarded} busy ones repeated, {busy} busy ones kept; probe {best:.0f} GFLOP/s"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graft")
    parser.add_argument("--size", choices=SIZES, default="134m")
    parser.add_argument("--arms", help="of " + ", ".join(ARMS))
    parser.add_argument("--rounds", type=int, default=5, help="rounds kept")
    parser.add_argument("--discards", type=int, default=5, help="rounds on a busy machine that are repeated")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--agree-steps", type=int, default=20, help="of the first round")
    options = parser.parse_args()
    options.graft = pathlib.Path(options.graft).resolve()
    runs_here = [name for name in ARMS if name.endswith("fp32") or has_bf16_instructions()]
    arms = options.arms.split(",") if options.arms else runs_here
    if unknown := set(arms) - set(ARMS):
        parser.error("no such arm: " + ", ".join(sorted(unknown)))
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="graft-bench-step-") as scratch:
        directory, ids_path = f"{scratch}/base", f"{scratch}/ids.safetensors"
        vocab = make_base(options.size, directory)
        generator = torch.Generator().manual_seed(1)
        shape = (max(options.steps, options.agree_steps), options.batch, options.seq)
        save_file({"input_ids": torch.randint(0, vocab, shape, generator=generator)}, ids_path)
        kept, losses, remark = measure(options, arms, directory, ids_path)

    print(f"{options.size}, {options.batch} x {options.seq} tokens, rank {RANK}; "
          f"medians of {options.rounds} rounds, {remark}")
    print(f"{'arm':<18}{'tokens/s':>10}{'memory MB':>11}{'first step s':>16}{'loss, first':>13}{'last':>10}")
    middle = {}
    for name in arms:
        def median(key):
            return statistics.median(run[key] for run in kept[name])
        middle[name] = {key: median(key) for key in ("tokens_per_s", "peak_rss_bytes", "first_step_s")}
        starts = f"{median('first_step_begins_s'):.2f}-{middle[name]['first_step_s']:.2f}"
        print(f"{name:<18}{middle[name]['tokens_per_s']:>10.0f}{middle[name]['peak_rss_bytes'] / 1e6:>11.0f}"
              f"{starts:>16}{losses[name][0]:>13.5f}{losses[name][-1]:>10.5f}")
    failed = False
    for own in (name for name in arms if name.startswith("graft")):
        peer = own.replace("graft", "peft")
        if peer not in arms:
            continue
        ratio = {key: middle[own][key] / middle[peer][key] for key in middle[own]}
        worst = max(abs(losses[own][at] - losses[peer][at]) / losses[peer][at] for at in (0, -1))
        failed = failed or worst > AGREE
        print(f"{own} / {peer}: {ratio['tokens_per_s']:.2f} x the speed, {ratio['peak_rss_bytes']:.2f} x the "
              f"memory, first step done after {ratio['first_step_s']:.2f} x the time; "
              f"losses differ by {100 * worst:.3f} %{': MORE THAN 1 %' if worst > AGREE else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--peer":
        peer_main(sys.argv[3], sys.argv[4], sys.argv[2], int(sys.argv[5]))
    else:
        sys.exit(main())
