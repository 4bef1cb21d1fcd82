#!/usr/bin/env python3
"""Small random decoders of several families and transformers' numbers for them.

Writes tests/golden/families/<name>/{config.json,model.safetensors,golden.safetensors}; tests/train/golden.h
says what is in the last. Every parameter comes from its own generator, keyed by its name, so that two runs
give the same bytes. Together the models use every field of the family table (train/model/families.h).

usage: make_families.py      needs: torch, transformers 5, safetensors (tests/peers/requirements.txt)
"""
import hashlib
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
OUT = pathlib.Path(__file__).parent / "families"
VOCAB, LENGTH, ROWS = 29, 14, 2
BASE = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=12, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
            pad_token_id=0, tie_word_embeddings=False)
rope = lambda theta=10000.0, **more: dict(rope_parameters=dict(rope_type="default", rope_theta=theta) | more)

MODELS = {
    "qwen2": ("Qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1,
                            max_position_embeddings=10) | rope(1e6, rope_type="dynamic", factor=2.0), ["head_dim"]),
    "gemma2": ("Gemma2", dict(query_pre_attn_scalar=12, sliding_window=5, tie_word_embeddings=True,
                              final_logit_softcapping=1.5, attn_logit_softcapping=0.7) | rope(), []),
    "gemma3": ("Gemma3Text", dict(query_pre_attn_scalar=12, sliding_window=5, num_hidden_layers=3, tie_word_embeddings=True,
                                  layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                                  rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                                                       sliding_attention=dict(rope_type="default", rope_theta=1e4))), []),
    "phi3": ("Phi3", dict(sliding_window=6, original_max_position_embeddings=16,
                          **rope(rope_type="longrope", short_factor=[1.0, 1.1, 1.3], long_factor=[1.5, 2.5, 4.0],
                                 partial_rotary_factor=0.75)), ["head_dim"]),
    "olmo2": ("Olmo2", rope(500000.0), ["head_dim"]),
    "granite": ("Granite", dict(embedding_multiplier=6.0, residual_multiplier=0.4, attention_multiplier=0.2,
                                logits_scaling=3.0, attention_bias=True, mlp_bias=True)
                           | rope(100.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                  original_max_position_embeddings=64), ["head_dim"]),
    "smollm3": ("SmolLM3", dict(no_rope_layers=[0, 1], use_sliding_window=True, sliding_window=5,
                                layer_types=["sliding_attention", "full_attention"]) | rope(2e6), ["head_dim"]),
    "qwen3_moe": ("Qwen3Moe", dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=12, norm_topk_prob=False,
                                   mlp_only_layers=[1]) | rope(1e6), []),
    "mixtral": ("Mixtral", dict(num_local_experts=5, num_experts_per_tok=2, intermediate_size=12, sliding_window=6,
                                max_position_embeddings=32768)
                           | rope(100.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=8192), []),
}


def fill(model):
    gemma = "Gemma" in type(model).__name__
    for name, parameter in model.named_parameters():
        seed = int.from_bytes(hashlib.sha256(("families:" + name).encode()).digest()[:7], "little")
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        if parameter.dim() == 1:
            values = values * 0.15 + (1.0 if "norm" in name and not gemma else 0.0)
        else:
            values = values * (0.3 if "embed_tokens" in name else 1.5 / parameter.shape[-1] ** 0.5)
        parameter.data.copy_(values)


def build(name):
    family, options, without = MODELS[name]
    settings = {key: value for key, value in (BASE | options).items() if key not in without}
    config = getattr(transformers, family + "Config")(**settings)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    cls = getattr(transformers, "Gemma3ForCausalLM" if family == "Gemma3Text" else family + "ForCausalLM")
    model = cls(config).float().eval()
    fill(model)
    model.tie_weights()
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(3, VOCAB, (ROWS, LENGTH), generator=generator)
    labels = ids.clone()
    labels[:, :3] = -100
    labels[1, 8:10] = -100
    out = model(input_ids=ids, labels=labels, output_hidden_states=True, use_cache=False)
    out.loss.backward()
    golden = {"input_ids": ids, "labels": labels, "logits": out.logits, "loss": out.loss.reshape(1)}
    golden |= {f"hidden.{i}": h for i, h in enumerate(out.hidden_states)}
    golden |= {f"grad.{n}": p.grad for n, p in model.named_parameters()
               if p.dim() == 1 or "layers.0." in n or "layers." not in n}
    with torch.no_grad():
        if config.rope_parameters.get("rope_type") in ("longrope", "dynamic", "yarn", "llama3"):
            long = torch.randint(3, VOCAB, (1, 24), generator=generator)
            golden |= {"long.input_ids": long, "long.logits": model(input_ids=long, use_cache=False).logits}
        text = ids[:1, :8]
        for _ in range(10):
            text = torch.cat([text, model(input_ids=text, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
        golden["greedy"] = text[0, 8:]
    directory = OUT / name
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    save_file({k: v.detach().contiguous().clone() for k, v in golden.items()}, directory / "golden.safetensors",
              metadata={"made_by": f"tests/golden/make_families.py, transformers {transformers.__version__}"})
    print(name, "loss", round(out.loss.item(), 4), "logits", round(out.logits.std().item(), 3))


if __name__ == "__main__":
    for one in MODELS:
        build(one)
