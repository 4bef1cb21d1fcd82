"""Kinds of adapters against PEFT: the same beginning, data and order, then 20 steps of AdamW.

compare(steps, work) is called by run.py. Bound: for each trained tensor, how far graft's end is from PEFT's over how far
PEFT has moved, |ours - theirs| <= 1e-4 |theirs - beginning|.
"""
import json
import subprocess

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file

import families

STEPS, ROWS, LENGTH = 20, 2, 18
PATTERNS = dict(rank_pattern={"layers.1.self_attn.q_proj": 5, "down_proj": 2}, alpha_pattern={"o_proj": 3.0})
ENDS = ["embed_tokens", "lm_head"]
# Of each new token, the ids whose rows' mean it begins as.
TOKENS = [[5, 7, 7, 9], [11], [3, 4, 6]]
# name: family, options of the adapter, of the optimizer
KINDS = {
    "LoRA": ("llama", {}, {}),
    "rsLoRA": ("qwen3", dict(rslora=True), {}),
    "LoRA, clipped": ("gemma2", {}, dict(max_grad_norm=0.05)),
    "LoRA+": ("llama", dict(b_lr_ratio=8.0), {}),
    "DoRA": ("llama", dict(dora=True), {}),
    "DoRA on joined weights": ("phi3", dict(dora=True), {}),
    "DoRA with norms after": ("olmo2", dict(dora=True), {}),
    "PiSSA": ("llama", dict(init="pissa"), {}),
    "PiSSA on NF4": ("llama", dict(init="pissa", nf4=True), {}),
    "LoftQ": ("qwen2", dict(init="loftq", nf4=True), {}),
    "LoftQ of 3 rounds, on joined weights": ("phi3", dict(init="loftq", loftq_iter=3, nf4=True, rslora=True), {}),
    "patterns": ("qwen3", PATTERNS, {}),
    "patterns, rsLoRA": ("llama", PATTERNS | dict(rslora=True), {}),
    "head and embeddings": ("llama", dict(saved=ENDS), {}),
    "head and embeddings, tied": ("qwen2", dict(saved=ENDS), {}),
    "head, embeddings and norms, capped": ("gemma2", dict(saved=ENDS + ["model.norm", "input_layernorm"]), {}),
    "DoRA and the head": ("mistral", dict(dora=True, saved=["lm_head"]), {}),
    "new tokens": ("llama", dict(new_tokens=TOKENS), {}),
    "new tokens, tied": ("qwen2", dict(new_tokens=TOKENS), {}),
    "new tokens, scaled and capped": ("gemma2", dict(new_tokens=TOKENS), {}),
    "new tokens and the whole head": ("mistral", dict(new_tokens=TOKENS, saved=["lm_head"]), {}),
}
ADAPTER = dict(r=3, alpha=5.0, rslora=False, dora=False, init="default", b_lr_ratio=1.0, targets=["all-linear"], saved=[],
               rank_pattern={}, alpha_pattern={}, new_tokens=[], nf4=False, loftq_iter=1)
OPTIMIZER = dict(steps=STEPS, learning_rate=2e-3, weight_decay=0.01, max_grad_norm=0.0)


def graft_name(name):
    """PEFT's name of a parameter as graft's."""
    return (name.removeprefix("base_model.model.").replace(".modules_to_save.default", "").replace(".default", "")
            .replace("lora_magnitude_vector.weight", "lora_magnitude_vector"))


class Kind:
    def __init__(self, name, steps, work):
        self.name, self.steps = name, steps
        self.family, adapter, optimizer = KINDS[name]
        self.settings = ADAPTER | OPTIMIZER | adapter | optimizer
        self.work = work / f"kind-{list(KINDS).index(name)}"
        (self.work / "base").mkdir(parents=True)
        self.config = families.make_model(self.family, 7, self.work / "base")
        generator = torch.Generator().manual_seed(11)
        vocab = families.VOCAB + len(self.settings["new_tokens"])
        self.ids = torch.randint(3, vocab, (STEPS * ROWS, LENGTH), generator=generator)
        if self.settings["new_tokens"]:  # more of them than chance gives
            self.ids[:, ::5] = torch.randint(families.VOCAB, vocab, self.ids[:, ::5].shape, generator=generator)
        self.labels = self.ids.clone()
        self.labels[:, :4] = -100

    def peft_model(self, ours):
        """With nf4 on graft's decoded weights and from its beginning: PEFT has none on a CPU."""
        s = self.settings
        beginning = "default" if s["nf4"] else s["init"]
        torch.manual_seed(3)
        config = LoraConfig(r=s["r"], lora_alpha=s["alpha"], use_rslora=s["rslora"], use_dora=s["dora"],
                            init_lora_weights=True if beginning == "default" else beginning,
                            target_modules="all-linear", modules_to_save=s["saved"] or None,
                            rank_pattern=s["rank_pattern"], alpha_pattern=s["alpha_pattern"],
                            ensure_weight_tying=bool(self.config.tie_word_embeddings and s["saved"]),
                            task_type="CAUSAL_LM")
        model = families.load(self.family, self.work / "base", self.config)
        if s["new_tokens"]:
            self.add_tokens(model, config)
        if not s["nf4"]:
            return get_peft_model(model, config)
        own = {n.removeprefix("base."): v for n, v in ours.items() if n.startswith("base.")}
        assert own and not model.load_state_dict(own, strict=False).unexpected_keys
        model = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(ours["begin." + graft_name(name)])
        return model

    def add_tokens(self, model, config):
        first, tokens = families.VOCAB, self.settings["new_tokens"]
        model.resize_token_embeddings(first + len(tokens), mean_resizing=False)
        tables = {"embed_tokens": model.get_input_embeddings().weight}
        if not self.config.tie_word_embeddings:
            tables["lm_head"] = model.get_output_embeddings().weight
        with torch.no_grad():
            for table in tables.values():
                for at, pieces in enumerate(tokens):
                    table[first + at] = table[pieces].mean(0)
        ids = list(range(first, first + len(tokens)))
        config.trainable_token_indices = {name: ids for name in tables if name not in self.settings["saved"]}

    def optimizer(self, model):
        s = self.settings
        if s["b_lr_ratio"] != 1:
            return create_loraplus_optimizer(model, torch.optim.AdamW, lr=s["learning_rate"],
                                             loraplus_lr_ratio=s["b_lr_ratio"], weight_decay=s["weight_decay"],
                                             loraplus_weight_decay=s["weight_decay"])
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [dict(params=[p for p in trained if p.ndim > 1], weight_decay=s["weight_decay"]),
                  dict(params=[p for p in trained if p.ndim == 1], weight_decay=0.0)]
        return torch.optim.AdamW(groups, lr=s["learning_rate"])

    def theirs(self, ours):
        model = self.peft_model(ours)
        named = {graft_name(n): p for n, p in model.named_parameters() if p.requires_grad}
        begin = {n: p.detach().clone() for n, p in named.items()}
        optimizer, losses = self.optimizer(model), []
        model.train()
        for step in range(STEPS):
            rows = slice(step * ROWS, (step + 1) * ROWS)
            loss = model(input_ids=self.ids[rows], labels=self.labels[rows], use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            if self.settings["max_grad_norm"]:
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.settings["max_grad_norm"])
            optimizer.step()
            losses.append(loss.item())
        return begin, {n: p.detach() for n, p in named.items()}, torch.tensor(losses)

    def ours(self, begin):
        path, out = self.work / "batches.safetensors", self.work / "out.safetensors"
        own = self.settings["init"] != "default"  # graft's own beginning
        given = {} if own else {"begin." + n: v.contiguous() for n, v in begin.items() if "token_adapter" not in n}
        save_file({"input_ids": self.ids, "labels": self.labels} | given, path)
        done = subprocess.run([str(self.steps), str(self.work / "base"), str(path), json.dumps(self.settings), str(out)],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return load_file(out)

    def signs(self, name, ours, begin):
        """Singular vectors have two signs: those that make graft's beginning PEFT's, for each row of A or column of B."""
        if self.settings["init"] != "pissa" or self.settings["nf4"]:
            return 1.0
        axis = 1 if name.endswith("lora_A.weight") else 0
        signs = torch.sign((ours["begin." + name] * begin[name]).sum(axis, keepdim=True))
        difference = (ours["begin." + name] * signs - begin[name]).norm() / begin[name].norm()
        assert difference <= 1e-5, f"{name}: begins {difference:.3g} away"
        return signs

    def check(self):
        ours = self.ours({}) if self.settings["nf4"] else None
        begin, end, losses = self.theirs(ours)
        ours = ours or self.ours(begin)
        trained = {n.removeprefix("end.") for n in ours if n.startswith("end.")}
        if self.config.tie_word_embeddings and self.settings["saved"]:
            end.pop("lm_head.weight", None)  # the same tensor
        assert trained == set(end), f"trained there or here only: {trained ^ set(end)}"
        for name in begin:
            if "token_adapter" in name:
                assert torch.allclose(ours["begin." + name], begin[name], rtol=0, atol=1e-7), name
        worst = 0.0
        for name, theirs in end.items():
            moved = (theirs - begin[name]).norm().item()
            distance = (ours["end." + name] * self.signs(name, ours, begin) - theirs).norm().item()
            assert moved > 0, name
            assert distance <= 1e-4 * moved, f"{self.name}: {name} is {distance / moved:.3g} of its way off"
            worst = max(worst, distance / moved)
        assert ((ours["losses"] - losses).abs() <= 1e-5 * losses).all()
        print(f"    {self.name} ({self.family}): {len(end)} tensors, worst {worst:.2g}; "
              f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


def compare(steps, work):
    torch.set_num_threads(1)
    for name in KINDS:
        Kind(name, steps, work).check()
