"""LoftQ and PiSSA on a 4-bit base: how much of each weight is left, beside PEFT's own code, and the base that the run writes.

compare(graft, work, base, data, ids, logits) is called by run.py. What is left is |W - Q - scale B A|^2 over all linears,
over that of NF4 alone.
"""
import inspect
import json

import peft.utils.loftq_utils as loftq_utils
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

KINDS = {"loftq, loftq_iter 1": ("loftq", 1), "loftq, loftq_iter 5": ("loftq", 5), "pissa": ("pissa", 1)}
RANKS = [8, 32]


def peft_loftq():
    """PEFT's loftq_init on the CPU and with nested scales, as graft and most QLoRA have them; it is written for CUDA."""
    source = inspect.getsource(loftq_utils.loftq_init)
    for old, new in {'else "cuda"': 'else "cpu"', "compress_statistics=False": "compress_statistics=True"}.items():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    scope = dict(vars(loftq_utils))
    exec(compile(source, "loftq_init", "exec"), scope)
    return scope["loftq_init"]


def linears(tensors):
    return [name for name in tensors if name.endswith("proj.weight")]


def left(weights, base, pairs):
    return sum((weights[n].double() - base[n].double() - pairs(n)).square().sum().item() for n in linears(weights))


def begin(graft, work, base, data, init, rounds, rank):
    """A run that learns nothing: its adapter and base are the beginning. alpha = r: PEFT's LoftQ leaves the scale out."""
    out = work / f"begin-{init}-{rounds}-{rank}"
    config = work / f"{out.name}.yaml"
    config.write_text(f"base_model: {base}\ndatasets: [{data}]\nadapter: qlora\ncompute: fp32\nlora_r: {rank}\n"
                      f"lora_alpha: {rank}\ninit_lora_weights: {init}\nloftq_iter: {rounds}\nsequence_len: 128\n"
                      f"learning_rate: 0\nmax_steps: 1\noutput_dir: {out}\n")
    graft("train", config)
    return out


def compare(graft, work, base, data, decoded_nf4, ids, graft_logits, hf_logits, check_close):
    weights, loftq = load_file(base / "model.safetensors"), peft_loftq()
    nf4 = load_file(decoded_nf4 / "model.safetensors")
    alone = left(weights, nf4, lambda name: 0)
    for kind, (init, rounds) in KINDS.items():
        for rank in RANKS:
            out = begin(graft, work, base, data, init, rounds, rank)
            adapter = load_file(out / "adapter/adapter_model.safetensors")
            plain = decoded_nf4
            if (out / "base").exists():
                plain = out / "decoded"
                graft("quantize", out / "base", "--decode", "--out", plain)
            assert (out / "base").exists() == (init == "pissa" or rounds > 1)

            def ours(name):
                a, b = (adapter[f"base_model.model.{name.replace('.weight', f'.lora_{x}.weight')}"].double() for x in "AB")
                return b @ a

            share = left(weights, load_file(plain / "model.safetensors"), ours) / alone
            text = f"    {kind}, rank {rank}: {share:.3f} of NF4's error is left"
            if init == "loftq" and rank == RANKS[0]:  # a minute for each rank
                theirs = 0.0
                for name in linears(weights):
                    q, a, b = loftq(weights[name].float(), num_bits=4, reduced_rank=rank, num_iter=rounds)
                    theirs += (weights[name].double() - q.double() - b.double() @ a.double()).square().sum().item()
                text += f", by PEFT's loftq_init {theirs / alone:.3f}"
                assert abs(share - theirs / alone) <= 0.01 * share, text
            print(text)
            assert share < 1
            if (out / "base").exists() and rank == RANKS[0]:
                ours = graft_logits(ids, "--model", out / "base", "--adapter", out / "adapter")
                check_close(f"{kind} in PEFT on the base that was written", ours,
                            hf_logits(plain, ids, out / "adapter"), 1e-4)
                on_packed(out, ids, ours)


def on_packed(out, ids, ours):
    """As a user of PEFT loads it: bitsandbytes rounds decoded weights to bfloat16 on CPUs, through 28 products in a row."""
    import transformers
    name = json.loads((out / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    model = transformers.AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(model, out / "adapter").eval()(input_ids=ids).logits
    distance = ((theirs - ours).norm() / ours.norm()).item()
    assert distance <= 28 * 2**-9, distance
    with safe_open(out / "adapter/adapter_model.safetensors", "pt") as file:
        assert len(file.metadata()["base_nf4_xxh3"]) == 16
