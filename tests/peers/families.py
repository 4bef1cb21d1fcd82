"""Every decoder family against transformers and PEFT: logits, losses and gradients of random models, of other sizes and
seeds than the committed ones; adapters in both directions; merges.

compare(graft, gradients, work) is called by run.py. Bounds: logits 2e-5 absolute (merges 1e-4), loss 1e-6 of itself,
gradients |a - b| <= 1e-5 |b| for each tensor.
"""
import hashlib
import json
import subprocess

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

VOCAB = 53
ROWS, LENGTH = 2, 18
BASE = dict(vocab_size=VOCAB, hidden_size=40, intermediate_size=52, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            tie_word_embeddings=False)


def rope(theta=10000.0, **more):
    return dict(rope_parameters=dict(rope_type="default", rope_theta=theta) | more)


# name: class stem, options. head_dim None: the family has none in its config.
MODELS = {
    "llama": ("Llama", dict(head_dim=12, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5)
              | rope(5e5, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                     original_max_position_embeddings=16)),
    "mistral": ("Mistral", dict(head_dim=16, sliding_window=5) | rope(1e6)),
    "qwen2": ("Qwen2", dict(use_sliding_window=True, sliding_window=6, max_window_layers=2, tie_word_embeddings=True)
              | rope(1e6, rope_type="yarn", factor=4.0, original_max_position_embeddings=32)),
    "qwen3": ("Qwen3", dict(head_dim=24, num_key_value_heads=4, tie_word_embeddings=True) | rope(1e6)),
    "gemma": ("Gemma", dict(head_dim=16, num_key_value_heads=1, tie_word_embeddings=True) | rope()),
    "gemma2": ("Gemma2", dict(head_dim=16, query_pre_attn_scalar=20, sliding_window=7, tie_word_embeddings=True,
                              final_logit_softcapping=1.3, attn_logit_softcapping=0.9) | rope()),
    "gemma3": ("Gemma3Text", dict(head_dim=16, query_pre_attn_scalar=20, sliding_window=6, tie_word_embeddings=True,
                                  layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                                  rope_parameters=dict(
                                      full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                                      sliding_attention=dict(rope_type="default", rope_theta=1e4)))),
    "phi3": ("Phi3", dict(hidden_size=48, sliding_window=11, original_max_position_embeddings=16)
             | rope(rope_type="longrope", partial_rotary_factor=0.5, short_factor=[1.0, 1.1, 1.2],
                    long_factor=[1.5, 2.0, 3.5])),
    "olmo2": ("Olmo2", dict(attention_bias=True) | rope(5e5)),
    "granite": ("Granite", dict(embedding_multiplier=5.0, residual_multiplier=0.3, attention_multiplier=0.15,
                                logits_scaling=3.0, attention_bias=True, tie_word_embeddings=True) | rope()),
    "smollm3": ("SmolLM3", dict(no_rope_layers=[1, 0, 1], use_sliding_window=True, sliding_window=6,
                                layer_types=["full_attention", "sliding_attention", "full_attention"],
                                tie_word_embeddings=True) | rope(2e6)),
    "mixtral": ("Mixtral", dict(head_dim=12, num_local_experts=24, num_experts_per_tok=2, intermediate_size=28,
                                sliding_window=9) | rope(1e6)),
    "qwen3_moe": ("Qwen3Moe", dict(head_dim=12, num_experts=24, num_experts_per_tok=3, moe_intermediate_size=28,
                                   norm_topk_prob=True) | rope(1e6)),
    "qwen3_moe_mixed": ("Qwen3Moe", dict(head_dim=12, num_experts=24, num_experts_per_tok=3, num_hidden_layers=2,
                                         moe_intermediate_size=28, norm_topk_prob=False, mlp_only_layers=[1])
                        | rope(1e6)),
}
# PEFT 0.21 drops the dense layers' pairs when it converts the names of a model that has both kinds of layers.
NOT_LOADED_BY_PEFT = {"qwen3_moe_mixed"}


def random_parameter(name, shape, seed, model):
    digest = hashlib.sha256(f"peers:{seed}:{name}".encode()).digest()
    values = torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))
    if len(shape) == 1:
        gemma = "Gemma" in type(model).__name__
        return values * 0.15 + (1.0 if "norm" in name and not gemma else 0.0)
    return values * (0.3 if "embed_tokens" in name else 1.1 / shape[-1] ** 0.5)


def make_model(name, seed, directory):
    family, options = MODELS[name]
    config = getattr(transformers, family + "Config")(**(BASE | options))
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = model_class(name)(config).float().eval()
    for key, parameter in model.named_parameters():
        parameter.data.copy_(random_parameter(key, parameter.shape, seed, model))
    model.tie_weights()
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    return config


def model_class(name):
    family = MODELS[name][0]
    return getattr(transformers, "Gemma3ForCausalLM" if family == "Gemma3Text" else family + "ForCausalLM")


def load(name, directory, config):
    return model_class(name).from_pretrained(directory, config=config, dtype=torch.float32,
                                             attn_implementation="eager").eval()


def make_batch(seed, path):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (ROWS, LENGTH), generator=generator)
    labels = ids.clone()
    labels[0, :5] = -100
    labels[1, 9:12] = -100
    save_file({"input_ids": ids, "labels": labels}, path)
    return ids, labels


class Family:
    def __init__(self, name, seed, graft, gradients, work):
        self.name, self.seed, self.graft, self.gradients = name, seed, graft, gradients
        self.work = work / f"family-{name}-{seed}"
        self.base = self.work / "base"
        self.base.mkdir(parents=True)
        self.config = make_model(name, seed, self.base)
        self.ids, self.labels = make_batch(seed, self.work / "batch.safetensors")
        self.tensors = self.zero_experts = 0
        self.worst = 0.0

    def ours(self, model, *options):
        out = self.work / "ours.safetensors"
        done = subprocess.run([str(self.gradients), str(model), str(self.work / "batch.safetensors"), str(out),
                               *map(str, options)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return load_file(out)

    def theirs(self, model):
        out = model(input_ids=self.ids, labels=self.labels, use_cache=False)
        out.loss.backward()
        return out

    def check_forward(self, ours, theirs, bound=2e-5):
        difference = (ours["logits"] - theirs.logits).abs().max().item()
        assert difference <= bound, f"{self.name}: logits differ by {difference:.3g}"
        loss = abs(ours["loss"].item() - theirs.loss.item()) / theirs.loss.item()
        assert loss <= 1e-6, f"{self.name}: the loss differs by {loss:.3g} of itself"

    def check_gradient(self, name, ours, theirs):
        size = theirs.norm().item()
        distance = (ours - theirs).norm().item()
        if size == 0:
            assert distance == 0, f"{self.name}: {name} must be exactly zero"
            self.zero_experts += 1
        else:
            assert distance <= 1e-5 * size, f"{self.name}: {name} differs by {distance / size:.3g}"
            self.worst = max(self.worst, distance / size)
        self.tensors += 1

    # Names of one expert's linears in a checkpoint: gate, up, down.
    def expert_names(self, layer, expert):
        if self.name == "mixtral":
            stem = f"model.layers.{layer}.block_sparse_moe.experts.{expert}."
            return [stem + part for part in ("w1", "w3", "w2")]
        return [f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj" for part in ("gate", "up", "down")]

    def stored(self, name):
        return name.replace(".mlp.gate.", ".block_sparse_moe.gate.") if self.name == "mixtral" else name

    def check_base(self):
        """Every tensor of the model, trained."""
        model = load(self.name, self.base, self.config)
        theirs = self.theirs(model)
        ours = self.ours(self.base)
        self.check_forward(ours, theirs)
        for name, parameter in model.named_parameters():
            if ".experts." not in name:
                self.check_gradient(name, ours["grad." + self.stored(name)], parameter.grad)
                continue
            layer = int(name.split(".")[2])
            for expert, grad in enumerate(parameter.grad):
                gate, up, down = (ours[f"grad.{n}.weight"] for n in self.expert_names(layer, expert))
                got = down if name.endswith("down_proj") else torch.cat([gate, up])
                self.check_gradient(f"{name}[{expert}]", got, grad)

    def check_adapter_gradients(self, peft_model, ours):
        """Both ways of PEFT's to hold experts: one A for gate and up, or (a graft adapter, converted) one each."""
        for name, parameter in peft_model.named_parameters():
            if "lora_" not in name:
                continue
            short = name.removeprefix("base_model.model.").replace(".default", "")
            if ".experts." not in short:
                self.check_gradient(short, ours["grad." + self.stored(short)], parameter.grad)
                continue
            layer = int(short.split(".")[2])
            experts = self.config.num_local_experts if self.name == "mixtral" else self.config.num_experts
            is_a = ".lora_A." in short
            up = ".base_layer." in short
            grads = (parameter.grad.reshape(experts, -1, parameter.shape[1]) if is_a else
                     parameter.grad.reshape(parameter.shape[0], -1, experts).permute(2, 0, 1))
            half = "lora_A" if is_a else "lora_B"
            for expert in range(experts):
                parts = [ours[f"grad.{n}.{half}.weight"] for n in self.expert_names(layer, expert)]
                grad, where = grads[expert], f"{short}[{expert}]"
                if not up:
                    self.check_gradient(where, parts[2], grad)
                elif is_a and grad.shape[0] == parts[0].shape[0]:
                    self.check_gradient(where, parts[0] + parts[1], grad)
                elif is_a:
                    self.check_gradient(where, torch.cat(parts[:2]), grad)
                elif grad.shape[1] == parts[0].shape[1]:
                    self.check_gradient(where, torch.cat(parts[:2]), grad)
                else:
                    inner, rank = grad.shape[0] // 2, grad.shape[1] // 2
                    self.check_gradient(where + " gate", parts[0], grad[:inner, :rank])
                    self.check_gradient(where + " up", parts[1], grad[inner:, rank:])

    def check_merge(self, adapter, logits):
        merged = self.work / f"merged-{adapter.name}"
        self.graft("adapter", "merge", "--model", self.base, "--adapter", adapter, "--out", merged)
        with torch.no_grad():
            got = load(self.name, merged, self.config)(input_ids=self.ids, use_cache=False).logits
        difference = (got - logits).abs().max().item()
        assert difference <= 1e-4, f"{self.name}: the merge differs by {difference:.3g}"

    def check_peft_adapter(self):
        """An adapter that PEFT made, on every linear: graft's gradients and merge."""
        torch.manual_seed(self.seed)  # of lora_A
        model = get_peft_model(load(self.name, self.base, self.config),
                               LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
                parameter.data.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(self.work / "peft")
        theirs = self.theirs(model.eval())
        ours = self.ours(self.base, "--adapter", self.work / "peft")
        self.check_forward(ours, theirs)
        self.check_adapter_gradients(model, ours)
        self.check_merge(self.work / "peft", theirs.logits.detach())

    def check_graft_adapter(self):
        """An adapter that graft made: PEFT loads all of it and agrees."""
        ours = self.ours(self.base, "--new-adapter", self.work / "graft")
        model = PeftModel.from_pretrained(load(self.name, self.base, self.config), self.work / "graft",
                                          is_trainable=True)
        theirs = self.theirs(model.eval())
        self.check_forward(ours, theirs)
        self.check_adapter_gradients(model, ours)
        self.check_merge(self.work / "graft", theirs.logits.detach())

    def check_short_config(self):
        """A config.json without what the class has as its default."""
        defaults = type(self.config)().to_dict()
        full = json.loads((self.base / "config.json").read_text())
        needed = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                  "vocab_size")
        short = {key: value for key, value in full.items()
                 if key in needed or key not in defaults or defaults[key] != value}
        short.pop("_sliding_window_pattern", None)
        directory = self.work / "short"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(short))
        (directory / "model.safetensors").symlink_to(self.base / "model.safetensors")
        with torch.no_grad():
            config = type(self.config).from_dict(short)
            config._attn_implementation = "eager"
            theirs = load(self.name, self.base, config)(input_ids=self.ids, use_cache=False).logits
        difference = (self.ours(directory)["logits"] - theirs).abs().max().item()
        assert difference <= 2e-5, f"{self.name}: without defaults the logits differ by {difference:.3g}"
        return len(full) - len(short)


class Multimodal(Family):
    """A Gemma 3 whose language model is one part of the checkpoint."""

    def __init__(self, seed, graft, gradients, work):
        self.name, self.seed, self.graft, self.gradients = "gemma3", seed, graft, gradients
        self.work = work / f"family-multimodal-{seed}"
        self.base = self.work / "base"
        self.base.mkdir(parents=True)
        text = BASE | MODELS["gemma3"][1]
        vision = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                      patch_size=14)
        self.config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        self.config._attn_implementation = "eager"
        model = transformers.Gemma3ForConditionalGeneration(self.config).float().eval()
        for key, parameter in model.named_parameters():
            parameter.data.copy_(random_parameter(key, parameter.shape, seed, model))
        model.tie_weights()
        model.save_pretrained(self.base)
        self.ids, self.labels = make_batch(seed, self.work / "batch.safetensors")
        self.tensors = self.zero_experts = 0
        self.worst = 0.0

    def check(self):
        def load_whole(directory):
            return transformers.Gemma3ForConditionalGeneration.from_pretrained(
                directory, dtype=torch.float32, attn_implementation="eager").eval()

        ours = self.ours(self.base, "--new-adapter", self.work / "graft")
        model = PeftModel.from_pretrained(load_whole(self.base), self.work / "graft", is_trainable=True)
        theirs = self.theirs(model.eval())
        self.check_forward(ours, theirs)
        for name, parameter in model.named_parameters():
            if "lora_" in name and "vision" not in name:
                short = name.removeprefix("base_model.model.").replace(".default", "")
                self.check_gradient(short, ours["grad." + short.replace("language_model.", "")], parameter.grad)
        merged = self.work / "merged"
        self.graft("adapter", "merge", "--model", self.base, "--adapter", self.work / "graft", "--out", merged)
        with torch.no_grad():
            got = load_whole(merged)(input_ids=self.ids).logits
        difference = (got - theirs.logits).abs().max().item()
        assert difference <= 1e-4, f"multimodal: the merge differs by {difference:.3g}"


def check_default_targets(models_page):
    """docs/models.md, which a test of make test holds against the family table, against PEFT's own table."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as defaults
    table = models_page.read_text().split("| `model_type` |")[1].split("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    for row in rows:
        ours = [] if row[4].strip() == "none" else row[4].strip().split(", ")
        assert ours == defaults.get(row[1].strip(" `"), []), row
    assert rows, models_page
    return len(rows)


def compare(graft, gradients, work, seed, models_page):
    """Runs every family; prints a line for each."""
    print(f"    default targets of {check_default_targets(models_page)} families are PEFT's")
    torch.set_num_threads(1)  # the models are too small for two
    one = Multimodal(seed, graft, gradients, work)
    one.check()
    print(f"    gemma3 inside a multimodal checkpoint: {one.tensors} gradients, worst {one.worst:.2g}")
    for name in MODELS:
        one = Family(name, seed, graft, gradients, work)
        one.check_base()
        one.check_peft_adapter()
        if name not in NOT_LOADED_BY_PEFT:
            one.check_graft_adapter()
        left_out = one.check_short_config()
        if "experts" in "".join(MODELS[name][1]):
            assert one.zero_experts > 0, f"{name}: every expert was chosen; none shows zero gradients"
        print(f"    {name}: {one.tensors} gradients, worst {one.worst:.2g}, exactly zero {one.zero_experts}; "
              f"{left_out} keys left out")
