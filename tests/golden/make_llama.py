#!/usr/bin/env python3
"""Makes tests/golden/llama_tiny: a Llama whose weights come from a formula, and what Hugging Face
computes with it in float64: logits, loss and the gradient of every tensor.

usage: make_llama.py tests/golden/llama_tiny     (torch 2.11.0, transformers 5.23.0, safetensors 0.8.0)
"""
import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 24,
    "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 29, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 500.0, "hidden_act": "silu", "attention_bias": False,
    "mlp_bias": False, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    "torch_dtype": "float32",
}


def formula(index, shape, norm):
    """The index-th tensor: 0.3 sin(0.37 i^2 + i + index), or near 1 for a norm; float32.

    The square spreads the phases: sines of even steps make matrices of rank 2, whose gradients are
    small differences of large terms, so that float32 itself would miss them by 5e-5.
    """
    count = 1
    for size in shape:
        count *= size
    i = torch.arange(count, dtype=torch.float64)
    values = 0.3 * torch.sin(0.37 * i * i + i + index)
    return ((1 + 0.3 * values) if norm else values).float().view(shape)


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    config = transformers.LlamaConfig(**CONFIG)
    model = transformers.LlamaForCausalLM(config)
    tensors = {}
    for index, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        tensors[name] = formula(index, tensor.shape, "norm" in name)
    model.load_state_dict(tensors)
    model = model.double()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    # Two texts of different length, trained on from the sixth and the third token on.
    texts = [[(7 * i + 3) % 29 for i in range(19)], [(5 * i + 11) % 29 for i in range(8)]]
    begins = [5, 2]
    golden, loss = {}, torch.zeros((), dtype=torch.float64)
    count = sum(len(text) - begin for text, begin in zip(texts, begins))
    for number, (text, begin) in enumerate(zip(texts, begins)):
        ids = torch.tensor([text])
        logits = model(input_ids=ids).logits[0]
        golden[f"ids.{number}"] = ids[0]
        golden[f"begin.{number}"] = torch.tensor(begin)
        golden[f"logits.{number}"] = logits.detach()
        loss = loss + torch.nn.functional.cross_entropy(
            logits[begin - 1:-1], ids[0, begin:], reduction="sum") / count
    loss.backward()
    golden["loss"] = loss.detach()
    for name, parameter in model.named_parameters():
        golden["grad." + name] = parameter.grad
    save_file({name: tensor.contiguous() for name, tensor in golden.items()},
              out / "golden.safetensors")


main()
