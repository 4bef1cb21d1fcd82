#!/usr/bin/env python3
"""Writes rmsnorm_bf16.json: RMSNorm in bfloat16 by transformers' own modules.

    python3 make_rmsnorm_bf16.py > rmsnorm_bf16.json    (torch 2.11.0, transformers 5.23.0)

Values are bfloat16 bits. Inputs are small multiples of 1/16, so that the sum of squares of a row is
exact in float32 whatever its order; what differs between the families is where they round.
"""
import json

import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

FAMILIES = {"llama": LlamaRMSNorm, "gemma2": Gemma2RMSNorm, "olmo2": Olmo2RMSNorm}


def bits(tensor):
    return [value & 0xFFFF for value in tensor.contiguous().view(torch.int16).flatten().tolist()]


cases = []
for family, module in FAMILIES.items():
    for dim in (8, 48, 64, 160):
        generator = torch.Generator().manual_seed(dim)
        x = (torch.randint(-120, 121, (3, dim), generator=generator) / 16).bfloat16()
        weight = (torch.randn(dim, generator=generator) * 0.3 + (0.0 if family == "gemma2" else 1.0)).bfloat16()
        norm = module(dim, eps=1e-6).bfloat16()
        with torch.no_grad():
            norm.weight.copy_(weight)
            out = norm(x)
        assert out.dtype == torch.bfloat16
        cases.append({"family": family, "x": bits(x), "weight": bits(weight), "out": bits(out)})
print(json.dumps({"cases": cases}, separators=(",", ":")))
