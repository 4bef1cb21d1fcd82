#!/usr/bin/env python3
"""Writes adapters/: a tiny Llama, a PEFT adapter of it, PEFT's merge and bitsandbytes' 4-bit tensors.

    python3 make_adapters.py adapters      (versions: adapters_HOW.md)

base/     config.json and model.safetensors (bfloat16) as transformers writes them
adapter/  adapter_config.json and adapter_model.safetensors as PEFT writes them: rank 4, alpha 6,
          rank 2 for down_proj, alpha 5 for o_proj
merged/   model.safetensors: merge_and_unload() of the adapter on the base widened to float32
nf4/      config.json and model.safetensors: Linear4bit's own state dict for every linear but the head
decoded/  model.safetensors: table[code] * absmax of nf4/ in float32, absmax decoded likewise
"""
import json
import os
import sys

import bitsandbytes.functional as F
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM


def tiny_llama():
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        tie_word_embeddings=False))


def write_adapter(base, out):
    model = get_peft_model(base.float(), LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "o_proj", "down_proj"],
        rank_pattern={"down_proj": 2}, alpha_pattern={r"layers\.1\.self_attn\.o_proj": 5},
        task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    model.save_pretrained(f"{out}/adapter")
    os.remove(f"{out}/adapter/README.md")
    merged = model.merge_and_unload().state_dict()
    os.makedirs(f"{out}/merged", exist_ok=True)
    save_file({k: v.contiguous() for k, v in merged.items()}, f"{out}/merged/model.safetensors",
              metadata={"format": "pt"})


def write_nf4(out):
    model = LlamaForCausalLM.from_pretrained(f"{out}/base", dtype=torch.bfloat16)
    code = F.get_4bit_type("nf4", device="cpu").data
    packed, decoded = {}, {}
    for name, value in model.state_dict().items():
        if value.dim() != 2 or "embed" in name or "lm_head" in name:
            packed[name] = value.contiguous()
            continue
        # From float32: given bfloat16, the CPU backend rounds absmax and its mean to bfloat16.
        codes, state = F.quantize_4bit(value.float().contiguous(), blocksize=64, quant_type="nf4",
                                       compress_statistics=True)
        state.dtype = torch.bfloat16
        packed[name] = codes
        for key, tensor in state.as_dict(packed=True).items():
            packed[f"{name}.{key}"] = tensor
        absmax = state.state2.code[state.absmax.long()] * \
            torch.repeat_interleave(state.state2.absmax, 256)[:len(state.absmax)] + state.offset
        index = torch.stack([codes.ravel() >> 4, codes.ravel() & 15], dim=1).ravel()
        scales = torch.repeat_interleave(absmax, 64)
        count = value.numel()
        decoded[name] = (code[index.long()[:count]] * scales[:count]).reshape(value.shape)
    for directory in ("nf4", "decoded"):
        os.makedirs(f"{out}/{directory}", exist_ok=True)
    save_file(packed, f"{out}/nf4/model.safetensors", metadata={"format": "pt"})
    save_file(decoded, f"{out}/decoded/model.safetensors", metadata={"format": "pt"})
    config = json.load(open(f"{out}/base/config.json"))
    config["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16).to_dict()
    with open(f"{out}/nf4/config.json", "w") as file:
        json.dump(config, file, indent=2, sort_keys=True)
        file.write("\n")


def main():
    out = sys.argv[1]
    base = tiny_llama().to(torch.bfloat16)
    base.save_pretrained(f"{out}/base")
    write_adapter(base, out)
    write_nf4(out)


if __name__ == "__main__":
    main()
