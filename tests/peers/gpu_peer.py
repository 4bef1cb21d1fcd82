#!/usr/bin/env python3
"""Training steps of transformers + PEFT + bitsandbytes on a GPU: the peer of graft's measurements there.

Usage: gpu_peer.py [options]

One Llama of random weights, made on the device; LoRA of rank 16 on all linears, AdamW on the adapters, clipping and
loss included; packed random tokens, every one supervised, attention over the whole row by sdpa. As in PEFT's guides and
transformers' Trainer with bf16=True: adapters in float32, products under autocast, the fused AdamW; for QLoRA NF4 with
double quantization, its linears quantized one by one, so that the model is never in memory in full, and
prepare_model_for_kbit_training. Prints one JSON line. Exit code 3 where memory runs out, which the line then says.
"""
import argparse
import contextlib
import json
import os
import statistics
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
STARTED = time.perf_counter()
import torch  # noqa: E402
import peft  # noqa: E402
import transformers  # noqa: E402

# hidden, layers, heads, key heads, intermediate, vocabulary
SHAPES = {"tiny": (128, 3, 4, 2, 352, 1000),
          "llama3-8b": (4096, 32, 32, 8, 14336, 128256),
          "llama3-70b": (8192, 80, 64, 8, 28672, 128256)}
RANK, RATE = 16, 1e-4
SPREAD = 0.02  # of the random weights
WARM_UP = 2
NO_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")  # of a device, the processor, cuBLAS
NO_MEMORY_EXIT = 3
REENTRANT = {"use_reentrant": False}


def config_of(options):
    hidden, layers, heads, kv_heads, inner, vocab = SHAPES[options.shape]
    return transformers.LlamaConfig(
        hidden_size=hidden, num_hidden_layers=options.layers or layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=inner, vocab_size=vocab, rms_norm_eps=1e-5,
        rope_parameters=dict(rope_type="default", rope_theta=500000.0), max_position_embeddings=max(8192, options.seq),
        tie_word_embeddings=False, use_cache=False)


def plain_base(config, device):
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa")


def quantized(linear, device):
    from bitsandbytes.nn import Linear4bit, Params4bit

    kind = dict(compress_statistics=True, quant_type="nf4")
    made = Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, device="meta",
                      **kind)
    weight = torch.empty(linear.weight.shape, dtype=torch.bfloat16, device=device).normal_(0, SPREAD)
    made.weight = Params4bit(weight, requires_grad=False, module=made, **kind).to(device)
    return made


def quantized_base(config, device):
    """What from_pretrained(load_in_4bit) gives: all linears but the head in NF4."""
    model = plain_base(config, "meta")
    for parent in list(model.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, quantized(child, device))
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # computes its buffers
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if value.is_meta:  # a norm, the embeddings or the head
                value = torch.empty(value.shape, dtype=value.dtype, device=device)
                value = value.fill_(1) if value.dim() == 1 else value.normal_(0, SPREAD)
                setattr(module, name, torch.nn.Parameter(value))
    left = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]
    assert not left, left
    model.is_loaded_in_4bit = True
    return model


def make_model(options):
    config = config_of(options)
    if options.mode == "qlora":
        model = peft.prepare_model_for_kbit_training(
            quantized_base(config, options.device), use_gradient_checkpointing=options.checkpointing,
            gradient_checkpointing_kwargs=REENTRANT)
    else:
        model = plain_base(config, options.device)
        if options.checkpointing:
            model.gradient_checkpointing_enable(REENTRANT)
    return peft.get_peft_model(model, peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")).train()


def measure(options, found):
    """Fills found as far as it comes."""
    on_gpu = options.device.startswith("cuda")

    def wait():
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def gib(bytes_of):
        return round(bytes_of() / 2**30, 3) if on_gpu else None

    torch.manual_seed(0)
    if on_gpu:
        found["device"] = torch.cuda.get_device_name()
    begin = wait()
    model = make_model(options)
    found |= {"build_s": round(wait() - begin, 1), "base_gib": gib(torch.cuda.memory_allocated),
              "trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=on_gpu)
    steps = torch.randint(0, model.config.vocab_size, (WARM_UP + options.steps, options.batch, options.seq),
                          generator=torch.Generator().manual_seed(1)).to(options.device)
    autocast = (torch.autocast(options.device.partition(":")[0], torch.bfloat16) if options.autocast
                else contextlib.nullcontext())
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    try:
        for index, ids in enumerate(steps):
            begin = wait()
            with autocast:
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            end = wait()
            found.setdefault("loss_first", loss.item())
            found["loss_last"] = loss.item()
            if index >= WARM_UP:
                seconds.append(end - begin)
    finally:  # the peak says what was reached, also where that was too much
        found |= {"peak_gib": gib(torch.cuda.max_memory_allocated),
                  "peak_reserved_gib": gib(torch.cuda.max_memory_reserved)}
    step = statistics.median(seconds)
    found |= {"tokens_per_s": round(steps[0].numel() / step, 1), "step_s": round(step, 4),
              "steps_s": [round(s, 4) for s in seconds]}


def versions(mode):
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    if mode == "qlora":
        import bitsandbytes
        found["bitsandbytes"] = bitsandbytes.__version__
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--mode", choices=("lora-bf16", "qlora"), default="lora-bf16")
    parser.add_argument("--batch", type=int, default=2, help="rows of a step")
    parser.add_argument("--seq", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=5, help=f"timed, after {WARM_UP} to warm up")
    parser.add_argument("--checkpointing", action="store_true", help="recompute each layer in the backward pass")
    parser.add_argument("--autocast", action=argparse.BooleanOptionalAction, default=True,
                        help="without it what PEFT holds in float32 is computed in float32")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if min(options.batch, options.steps, options.layers or 1) < 1 or options.seq < 2:
        parser.error("--batch, --steps and --layers begin at 1, --seq at 2")
    found = vars(options) | {"attention": "sdpa", "versions": versions(options.mode),
                             "import_s": round(time.perf_counter() - STARTED, 1)}
    code = 0
    try:
        measure(options, found)
    except RuntimeError as error:
        if not any(text in str(error).lower() for text in NO_MEMORY):
            raise
        found["error"] = "out of memory: " + str(error).splitlines()[0]
        code = NO_MEMORY_EXIT
    print(json.dumps(found), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
