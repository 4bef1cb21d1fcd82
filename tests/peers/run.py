#!/usr/bin/env python3
"""Compares graft with the reference implementations. Usage: run.py path/to/graft [text of a case's name]

Trains a small adapter with graft, then asks the others: does PEFT load it without a missing key and
give graft's logits, does the merge equal it, does bitsandbytes decode what graft quantized, do
`tokenizers`, Jinja2 and h5py see the same ids, text and tokens. Needs the packages of
requirements.txt; with ../shared (or $GRAFT_SHARED) the same on a real model.
"""
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import traceback
import warnings

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import PeftModel, get_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
ROOT = pathlib.Path(__file__).resolve().parents[2]
GRAFT = pathlib.Path(sys.argv[1]).resolve()
SHARED = pathlib.Path(os.environ.get("GRAFT_SHARED", ROOT.parent / "shared"))
BASE = ROOT / "examples/quickstart/base"
SCRATCH = tempfile.TemporaryDirectory(prefix="graft-peers-")
WORK = pathlib.Path(SCRATCH.name)
CASES = []
sys.path.insert(0, str(pathlib.Path(__file__).parent))


def case(function):
    CASES.append(function)
    return function


def graft(*args, text=None):
    done = subprocess.run([str(GRAFT), *map(str, args)], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"graft {' '.join(map(str, args))}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def hf_logits(directory, ids, adapter=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
        names = set(load_file(adapter / "adapter_model.safetensors"))
        own = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        assert names == own, f"missing or unexpected keys: {names ^ own}"
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits


def graft_logits(ids, *options):
    save_file({"input_ids": ids}, WORK / "ids.safetensors")
    graft("logits", "--ids", WORK / "ids.safetensors", "--out", WORK / "logits.safetensors", *options)
    return load_file(WORK / "logits.safetensors")["logits"]


def largest(a, b):
    return (a - b).abs().max().item()


def check_close(name, a, b, bound):
    difference = largest(a, b)
    print(f"    {name}: largest difference {difference:.3g} (bound {bound:g})")
    assert difference <= bound, name


def train_adapter(name, base, data, method, *overrides):
    config = WORK / f"{name}.yaml"
    config.write_text(f"base_model: {base}\ndatasets: [{data}]\nadapter: {method}\ncompute: fp32\nlora_r: 8\n"
                      f"sequence_len: 128\nmicro_batch_size: 4\nlearning_rate: 0.005\nmax_steps: 12\n"
                      f"output_dir: {WORK / name}\n")
    graft("train", config, *overrides)
    return WORK / name / "adapter"


def decoded_nf4(base):
    """The base as QLoRA sees it: quantized to NF4 and decoded again, as a plain directory."""
    packed, decoded = WORK / f"nf4-{base.name}", WORK / f"decoded-{base.name}"
    if not decoded.exists():
        graft("quantize", base, "--out", packed)
        graft("quantize", packed, "--decode", "--out", decoded)
    return decoded


def check_adapter_everywhere(base, data, ids, *overrides):
    """PEFT on the fp32 base, PEFT on the decoded NF4 base, and the merge."""
    adapter = train_adapter(f"lora-{base.name}", base, data, "lora", *overrides)
    check_close("PEFT on the fp32 base", graft_logits(ids, "--model", base, "--adapter", adapter),
                hf_logits(base, ids, adapter), 1e-4)
    merged = WORK / f"merged-{base.name}"
    graft("adapter", "merge", "--model", base, "--adapter", adapter, "--out", merged)
    check_close("the merge", hf_logits(merged, ids), hf_logits(base, ids, adapter), 1e-4)
    qlora = train_adapter(f"qlora-{base.name}", base, data, "qlora", *overrides)
    decoded = decoded_nf4(base)
    check_close("PEFT on the decoded NF4 base",
                graft_logits(ids, "--model", base, "--load-in-4bit", "--adapter", qlora),
                hf_logits(decoded, ids, qlora), 1e-4)
    # The merge of a QLoRA adapter: onto the decoded weights it equals the training model, onto the
    # original ones it equals PEFT on those and is some way from the training model.
    onto_decoded, onto_original = WORK / f"merged-d-{base.name}", WORK / f"merged-o-{base.name}"
    graft("adapter", "merge", "--model", base, "--adapter", qlora, "--out", onto_decoded)
    check_close("the merge onto the decoded base", hf_logits(onto_decoded, ids),
                hf_logits(decoded, ids, qlora), 1e-4)
    said = graft("adapter", "merge", "--model", base, "--adapter", qlora, "--out", onto_original,
                 "--merge-base", "w16")
    assert "not equal to the 4-bit model" in said, said
    check_close("the merge onto the original base", hf_logits(onto_original, ids),
                hf_logits(base, ids, qlora), 1e-4)
    difference = largest(hf_logits(onto_original, ids), hf_logits(decoded, ids, qlora))
    print(f"    the latter against the 4-bit training model: {difference:.3g} (the base differs)")


def some_ids(vocab, rows=3, length=40):
    return torch.randint(3, vocab, (rows, length), generator=torch.Generator().manual_seed(5))


@case
def base_logits_equal_transformers():
    ids = some_ids(700)
    check_close("logits", graft_logits(ids, "--model", BASE), hf_logits(BASE, ids), 2e-5)


@case
def every_family_equals_transformers_and_peft():
    import families
    families.compare(graft, GRAFT.parent / "graft-gradients", WORK, 20261126, ROOT / "docs/models.md")


@case
def every_kind_of_adapter_takes_the_same_steps_as_in_peft():
    import adapters
    adapters.compare(GRAFT.parent / "graft-steps", WORK)


@case
def loftq_and_pissa_leave_as_little_as_in_peft_and_their_base_loads():
    import beginnings
    beginnings.compare(graft, WORK, BASE, ROOT / "examples/quickstart/eval.jsonl", decoded_nf4(BASE), some_ids(700),
                       graft_logits, hf_logits, check_close)


@case
def quickstart_adapter_loads_in_peft_and_merges():
    check_adapter_everywhere(BASE, ROOT / "examples/quickstart/eval.jsonl", some_ids(700))


@case
def every_kind_of_adapter_loads_in_peft_and_merges():
    ids, data = some_ids(700), ROOT / "examples/quickstart/eval.jsonl"
    for name, overrides in {
        "DoRA and the head": ["use_dora=true", "lora_modules_to_save=[lm_head]"],
        "PiSSA": ["init_lora_weights=pissa", "use_rslora=true", "lora_rank_pattern={o_proj: 3}"],
        "patterns": ["lora_target_modules=[q_proj, mlp.up_proj]", "lora_layers_to_transform=[1]",
                     "lora_alpha_pattern={q_proj: 5.5}", "lora_modules_to_save=[norm, embed_tokens]"],
    }.items():
        adapter = train_adapter(f"kind {name}", BASE, data, "lora", *overrides)
        theirs = hf_logits(BASE, ids, adapter)
        check_close(f"{name} in PEFT", graft_logits(ids, "--model", BASE, "--adapter", adapter), theirs, 1e-4)
        merged = WORK / f"merged {name}"
        graft("adapter", "merge", "--model", BASE, "--adapter", adapter, "--out", merged)
        check_close("the merge", hf_logits(merged, ids), theirs, 1e-4)


def untied_base():
    """The quickstart's base with a head of its own."""
    directory = WORK / "untied"
    if not directory.exists():
        directory.mkdir()
        for path in BASE.iterdir():
            if path.suffix == ".json" or path.suffix == ".model":
                (directory / path.name).write_bytes(path.read_bytes())
        config = json.loads((BASE / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
        tensors = load_file(BASE / "model.safetensors")
        noise = torch.randn(tensors["model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(2))
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 0.01 * noise
        save_file(tensors, directory / "model.safetensors")
    return directory


@case
def new_tokens_load_in_peft_and_merge():
    from peft import AutoPeftModelForCausalLM
    data = WORK / "tokens.jsonl"
    rows = [json.loads(line) for line in (ROOT / "examples/quickstart/eval.jsonl").open()]
    data.write_text("".join(json.dumps(row | {"output": "<tool>" + row["output"] + "<end>"}) + "\n" for row in rows))
    tokens = "new_tokens=[{content: <tool>, special: false}, {content: <end>, special: false}]"
    for base in (BASE, untied_base()):
        ids = torch.cat([some_ids(770), torch.tensor([[5, 768, 9, 769, 11] * 8])])
        name = f"tokens-{base.name}"
        adapter = train_adapter(name, base, data, "lora", tokens)
        ours = graft_logits(ids, "--model", base, "--adapter", adapter)
        # What a user of PEFT runs.
        tokenizer = transformers.AutoTokenizer.from_pretrained(adapter)
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model = PeftModel.from_pretrained(model, adapter).eval()
        own = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        # A tied head is a second name of the embedding's rows there.
        own -= {"base_model.model.lm_head.token_adapter.trainable_tokens_delta"} if base == BASE else set()
        names = set(load_file(adapter / "adapter_model.safetensors"))
        assert names == own, f"missing or unexpected keys: {names ^ own}"
        with torch.no_grad():
            theirs = model(input_ids=ids).logits
        check_close(f"{name} in PEFT", ours, theirs, 1e-4)
        # Saved by PEFT after a resize: the whole tables beside the rows.
        model.save_pretrained(WORK / f"{name}-peft", save_embedding_layers=True)
        check_close("as PEFT saves it", graft_logits(ids, "--model", base, "--adapter", WORK / f"{name}-peft"),
                    theirs, 1e-4)
        merged = WORK / f"{name}-merged"
        graft("adapter", "merge", "--model", base, "--adapter", adapter, "--out", merged)
        check_close("the merge", hf_logits(merged, ids), theirs, 1e-4)
        text = "<tool>return it<end>"
        pieces = Tokenizer.from_file(str(merged / "tokenizer.json")).encode(text, add_special_tokens=False).ids
        assert len(tokenizer) == 770 and tokenizer.convert_tokens_to_ids(["<tool>", "<end>"]) == [768, 769]
        line = graft("data", "encode", "--tokenizer", merged, text=json.dumps({"text": text}) + "\n")
        assert pieces == json.loads(line)["ids"] and 768 in pieces and 769 in pieces, pieces
        before = os.getcwd()
        os.chdir(base.parent)  # adapter_config.json names the base by its last part
        try:
            with torch.no_grad():
                auto = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)(input_ids=ids).logits
        finally:
            os.chdir(before)
        check_close("AutoPeftModelForCausalLM", auto, theirs, 1e-6)


@case
def new_tokens_on_a_checkpoint_that_bitsandbytes_wrote():
    """Trained by graft on 4-bit weights that transformers saved, then resized and loaded by PEFT on their decoded values."""
    base = WORK / "saved-in-4-bits"
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                             bnb_4bit_compute_dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, quantization_config=config)
    model.save_pretrained(base)
    for path in BASE.glob("*token*"):
        (base / path.name).write_bytes(path.read_bytes())
    assert any("quant_state" in name for name in load_file(base / "model.safetensors"))
    decoded = WORK / "saved-and-decoded"
    graft("quantize", base, "--decode", "--out", decoded)
    data = WORK / "tokens-4-bits.jsonl"
    rows = [json.loads(line) for line in (ROOT / "examples/quickstart/eval.jsonl").open()]
    data.write_text("".join(json.dumps(row | {"output": "<tool>" + row["output"] + "<end>"}) + "\n" for row in rows))
    adapter = train_adapter("tokens-4-bits", base, data, "qlora",
                            "new_tokens=[{content: <tool>, special: false}, {content: <end>, special: false}]")
    ids = torch.cat([some_ids(770), torch.tensor([[5, 768, 9, 769, 11] * 8])])
    ours = graft_logits(ids, "--model", base, "--adapter", adapter)
    model = transformers.AutoModelForCausalLM.from_pretrained(decoded, dtype=torch.float32)
    model.resize_token_embeddings(770, mean_resizing=False)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(model, adapter).eval()(input_ids=ids).logits
    check_close("PEFT on the decoded weights", ours, theirs, 1e-4)
    merged = WORK / "tokens-4-bits-merged"
    graft("adapter", "merge", "--model", base, "--adapter", adapter, "--out", merged)
    check_close("the merge", hf_logits(merged, ids), theirs, 1e-4)
    # And on the 4-bit model itself, which asks for products in float32. As in training: for inference bitsandbytes rounds
    # to bfloat16 on processors with instructions for it, whatever it is asked for.
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(770, mean_resizing=False)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(model, adapter).train()(input_ids=ids).logits
    check_close("PEFT on the 4-bit model", ours, theirs, 1e-4)


@case
def tokenizer_ids_equal_tokenizers():
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    slow = __import__("sentencepiece").SentencePieceProcessor(str(BASE / "tokenizer.model"))
    texts = [json.loads(line)["instruction"]
             for line in (ROOT / "examples/quickstart/eval.jsonl").open()]
    texts += ["", " ", "a  b", "naïve café ☕", "tab\tnew\nline", "</s> in text", "{\"a\": 1}\n{}"]
    out = graft("data", "encode", "--tokenizer", BASE,
                text="".join(json.dumps({"text": text}) + "\n" for text in texts))
    for text, line in zip(texts, out.splitlines(), strict=True):
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert json.loads(line)["ids"] == expected, text
        if "</s>" not in text and text:
            assert slow.encode(text) == expected, f"sentencepiece differs: {text!r}"
    print(f"    {len(texts)} texts, ids equal")


@case
def random_unicode_tokenizes_as_in_tokenizers_and_sentencepiece():
    import tokenizers_match
    tokenizers_match.run(GRAFT)


@case
def extended_tokenizers_equal_add_tokens():
    from tokenizers import AddedToken
    tokens = ["<|tool|>", "<|end of tool|>", "été"]
    texts = ["<|tool|>x", " a <|tool|> <|end of tool|>b", "l'été étés  été", "<|tool|", "<|tool|><|tool|>\n"]
    sources = [BASE, *(p.parent for p in sorted(SHARED.glob("data/tokenizers/*/tokenizer.json")))]
    for source in sources:
        for option, special in (((), True), (("--normal",), False)):
            out = WORK / "extended" / source.name
            answer = json.loads(graft("data", "extend", *tokens, "--model", source, "--out", out, "--json", *option))
            theirs, written = Tokenizer.from_file(str(source / "tokenizer.json")), Tokenizer.from_file(str(out / "tokenizer.json"))
            pieces = [theirs.encode(t, add_special_tokens=False).ids for t in tokens]
            assert [t["mean_of"] for t in answer["tokens"]] == pieces, source
            theirs.add_tokens([AddedToken(t, special=special, normalized=not special) for t in tokens])
            assert [t["id"] for t in answer["tokens"]] == [theirs.token_to_id(t) for t in tokens], source
            lines = graft("data", "encode", "--tokenizer", out, text="".join(json.dumps({"text": t}) + "\n" for t in texts))
            for text, line in zip(texts, lines.splitlines(), strict=True):
                expected = theirs.encode(text, add_special_tokens=False).ids
                assert written.encode(text, add_special_tokens=False).ids == expected, (source, text)
                assert json.loads(line)["ids"] == expected, (source, text)
    print(f"    {len(sources)} tokenizers, special and normal tokens: the files load there and give the same ids")


@case
def chat_template_equals_transformers():
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    count = 0
    for line in (ROOT / "examples/quickstart/eval.jsonl").open():
        row = json.loads(line)
        messages = [{"role": "user", "content": row["instruction"]},
                    {"role": "assistant", "content": row["output"]}]
        expected = tokenizer.apply_chat_template(messages, tokenize=False)
        got = json.loads(graft("data", "render", "--model", BASE,
                               text=json.dumps({"messages": messages}) + "\n"))
        assert got["text"] == expected, row
        count += 1
        if count == 10:
            break
    print(f"    {count} conversations, text equal")


@case
def fresh_conversations_render_as_in_transformers():
    directory = SHARED / "data/chat_templates"
    if not directory.is_dir():
        print("    skipped: ../shared is absent")
        return
    import templates
    files, renders, refusals, differences = templates.compare(graft, directory, 40, seed=20261124)
    for name, row, expected, got in differences[:3]:
        print(f"    {name}: {json.dumps(row)}\n      expected {expected}\n      got      {got}")
    print(f"    {files} templates: {renders} renders and {refusals} refusals, {len(differences)} differences")
    assert not differences


@case
def token_store_opens_in_h5py():
    store = WORK / "store.h5"
    graft("data", "tokenize", ROOT / "examples/quickstart/eval.jsonl", "--model", BASE, "--out", store)
    with h5py.File(store) as file:
        tokens, loss, offsets = file["tokens"][:], file["loss"][:], file["doc_offsets"][:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    rows = [json.loads(line) for line in (ROOT / "examples/quickstart/eval.jsonl").open()]
    assert len(offsets) == len(rows) + 1
    for index, row in enumerate(rows):
        begin, end = int(offsets[index]), int(offsets[index + 1])
        trained = tokens[begin:end][loss[begin:end] != 0]
        assert tokenizer.decode(trained) == row["output"] + "</s>", row
    pairs = WORK / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "the sky", "chosen": "is blue", "rejected": "is not"}) + "\n")
    graft("data", "tokenize", pairs, "--model", BASE, "--out", store)
    with h5py.File(store) as file:
        tokens, loss, segment = file["tokens"][:], file["loss"][:], file["segment"][:]
    for part, answer in ((1, "is blue"), (2, "is not")):
        assert tokenizer.decode(tokens[(segment == part) & (loss != 0)]) == answer + "</s>", part
    assert not loss[segment == 0].any()
    print(f"    {len(rows)} documents, exactly the answers are trained on; a pair's answers are told apart")


@case
def bitsandbytes_decodes_what_graft_quantized():
    import bitsandbytes.functional as bnb
    decoded = load_file(decoded_nf4(BASE) / "model.safetensors")
    quantized = WORK / f"nf4-{BASE.name}"
    tensors = load_file(quantized / "model.safetensors")
    count = 0
    for name in [n for n in tensors if n.endswith(".quant_state.bitsandbytes__nf4")]:
        weight = name.removesuffix(".quant_state.bitsandbytes__nf4")
        parts = {n.removeprefix(weight + "."): t for n, t in tensors.items()
                 if n.startswith(weight + ".")}
        state = bnb.QuantState.from_dict({f"{weight}.{k}": v for k, v in parts.items()},
                                         device=torch.device("cpu"))
        # Decoded by bitsandbytes' own state, in float64 from its formula: code * absmax.
        nested = state.state2
        code = nested.code[state.absmax.long()].double()
        scale = nested.absmax.double().repeat_interleave(nested.blocksize)[:code.numel()]
        absmax = (code * scale + state.offset.double()).float()
        packed = tensors[weight].flatten()
        codes = torch.stack([packed >> 4, packed & 15], 1).flatten().long()[:decoded[weight].numel()]
        values = state.code[codes] * absmax.repeat_interleave(state.blocksize)[:codes.numel()]
        difference = (values.view(decoded[weight].shape) - decoded[weight].float()).abs().max()
        assert difference <= 1e-6 * absmax.max(), (weight, difference)
        count += 1
    assert count == 28, count
    # transformers loads the checkpoint; bitsandbytes decodes each of its weights to graft's values.
    model = transformers.AutoModelForCausalLM.from_pretrained(quantized, dtype=torch.float32)
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            theirs = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            ours = decoded[name + ".weight"].float()
            assert largest(theirs, ours) <= 1e-6 * ours.abs().max(), name
            count -= 1
    assert count == 0, count
    ids = some_ids(700)
    with torch.no_grad():
        theirs = model(input_ids=ids).logits
    ours = graft_logits(ids, "--model", quantized)
    assert largest(ours, graft_logits(ids, "--model", BASE, "--load-in-4bit")) == 0
    # Its inference on CPUs rounds every decoded weight to bfloat16 (2^-9 relative), through 28
    # products in a row; graft computes in float32.
    distance = ((theirs - ours).norm() / ours.norm()).item()
    print(f"    28 weights equal; logits of its bfloat16 inference: relative distance {distance:.2g}")
    assert distance <= 28 * 2**-9


def write_gguf(directory, path):
    """A Hugging Face Llama directory as an F32 GGUF file. llama.cpp rotates neighbouring pairs, so
    the rows of q and k change places inside each head."""
    import gguf
    import sentencepiece
    config = json.loads((directory / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    pieces = sentencepiece.SentencePieceProcessor(str(directory / "tokenizer.model"))
    kinds = [6 if pieces.IsByte(i) else 3 if pieces.IsControl(i) else 2 if pieces.IsUnknown(i) else 1
             for i in range(pieces.GetPieceSize())]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.IdToPiece(i) for i in range(pieces.GetPieceSize())])
    writer.add_token_scores([pieces.GetScore(i) for i in range(pieces.GetPieceSize())])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
             "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
             "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    for name, tensor in load_file(directory / "model.safetensors").items():
        parts = name.removeprefix("model.").removesuffix(".weight")
        prefix = ""
        if parts.startswith("layers."):
            _, layer, parts = parts.split(".", 2)
            prefix = f"blk.{layer}."
        values = tensor.float().numpy()
        if parts in ("self_attn.q_proj", "self_attn.k_proj"):
            count = heads if parts.endswith("q_proj") else kv_heads
            values = (values.reshape(count, 2, values.shape[0] // count // 2, -1).swapaxes(1, 2)
                      .reshape(values.shape))
        writer.add_tensor(f"{prefix}{names[parts]}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@case
def cuda_kernels_move_whole_words_and_use_no_local_memory():
    library = GRAFT.parent.parent / "lib/libgraft_cuda.so"
    if not library.exists():
        print("    SKIPPED: the CUDA kernels were not compiled (no nvcc)")
        return
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import sass
    result = sass.check(library)
    assert result is not None, "Triton's cuobjdump is not there"
    count, lines = result
    assert not lines, "\n".join(lines)
    # The check can fail: a made-up kernel that spills and moves single words.
    made_up = collections.Counter({"LDG.32": 2, "STG.32": 1, "LDL.32": 1})
    wrong = sass.faults({"addition_kernel<float, true>": made_up})
    assert sum("addition_kernel" in line for line in wrong) == 3, wrong
    print(f"    {count} kernels of {', '.join(sass.ARCHITECTURES)}: wide accesses where claimed, no "
          "local memory")


@case
def llama_cpp_server_answers_like_graft():
    import xllamacpp
    merged = WORK / f"merged-{BASE.name}"
    write_gguf(merged, WORK / "merged.gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(WORK / "merged.gguf")
    params.n_ctx = 256
    params.n_parallel = 1
    params.cpuparams.n_threads = 2
    params.warmup = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    count = 0
    for line in (ROOT / "examples/quickstart/eval.jsonl").read_text().splitlines()[:20]:
        prompt = f"user:\n{json.loads(line)['instruction']}\nassistant:\n"
        theirs = server.handle_completions(
            {"prompt": prompt, "max_tokens": 32, "temperature": 0.0, "top_k": 1})
        ours = json.loads(graft("generate", "--model", merged, "--prompt", prompt,
                                "--max-new-tokens", 32, "--json"))
        assert theirs["choices"][0]["text"] == ours["text"], (theirs, ours)
        count += 1
    print(f"    {count} greedy answers of the merged model equal")


@case
def real_model_stories260k():
    model = SHARED / "data/models/stories260K"
    if not model.is_dir():
        assert os.environ.get("GRAFT_REQUIRE_SHARED") != "1", f"no {model}"
        print("    SKIPPED: no stories260K")
        return
    golden = load_file(model / "golden.safetensors")
    check_close("golden logits", graft_logits(golden["input_ids"].long(), "--model", model),
                golden["logits"], 2e-5)
    greedy = (model / "golden_greedy.txt").read_text()
    data = WORK / "stories.jsonl"
    rows = json.load((SHARED / "data/datasets/gsm_8k_train.json").open())[:300]
    data.write_text("".join(json.dumps({"text": row["instruction"][:300]}) + "\n" for row in rows))
    before = json.loads(graft("eval", "--model", model, "--load-in-4bit", "--data", data, "--json"))
    check_adapter_everywhere(model, data, golden["input_ids"].long()[:, :64], "sequence_len=512")
    after = json.loads(graft("eval", "--model", model, "--load-in-4bit", "--adapter",
                             WORK / "qlora-stories260K/adapter", "--data", data, "--json"))
    print(f"    QLoRA r=8 on 300 texts: loss {before['loss']:.4f} -> {after['loss']:.4f}")
    assert after["loss"] < before["loss"]
    assert greedy


def bnb_matrix(shape, block_size, quant_type, nested, seed):
    """One Linear4bit of bitsandbytes, as its state_dict stores it, and its input."""
    import bitsandbytes as bnb
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02
    layer = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16)
    layer.weight.data = values.bfloat16()
    packed = bnb.nn.Linear4bit(shape[1], shape[0], bias=False, compute_dtype=torch.bfloat16)
    packed.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False,
                                      blocksize=block_size, quant_type=quant_type,
                                      compress_statistics=nested)
    packed.to("cpu")  # quantizes
    if getattr(packed.weight, "quant_state", None) is None:
        packed.weight._quantize("cpu")
    return layer.weight.data, packed.state_dict()


# in_features that are no multiple of 64, tail blocks, one row, every block size.
FOUR_BIT_CASES = [((64, 128), 64), ((40, 80), 64), ((37, 53), 64), ((1, 100), 32), ((7, 33), 128),
                  ((96, 64), 256), ((30, 70), 512), ((64, 65), 1024), ((48, 144), 2048),
                  ((64, 129), 4096)]


@case
def four_bit_checkpoints_round_trip_with_bitsandbytes():
    import bitsandbytes.functional as bnb
    keys = values = 0
    for quant_type in ("nf4", "fp4"):
        for nested in (True, False):
            for index, (shape, block_size) in enumerate(FOUR_BIT_CASES):
                name = f"{quant_type}-{'dq' if nested else 'plain'}-{index}"
                dense, theirs = bnb_matrix(shape, block_size, quant_type, nested, index)
                stem = "model.layers.0.mlp.up_proj."
                plain, packed = WORK / f"plain-{name}", WORK / f"packed-{name}"
                plain.mkdir()
                (plain / "config.json").write_text("{}")
                save_file({stem + "weight": dense}, plain / "model.safetensors")
                options = ["--quant-type", quant_type, "--blocksize", block_size]
                graft("quantize", plain, "--out", packed, *options,
                      *([] if nested else ["--no-double-quant"]))
                ours = {k.removeprefix(stem): v
                        for k, v in load_file(packed / "model.safetensors").items()}
                assert ours.keys() == theirs.keys(), (name, ours.keys() ^ theirs.keys())
                # bitsandbytes' CPU backend searches 8-bit codes in a table of bins, and its mean
                # has another order: with double quantization absmax may differ by one code.
                exact = [k for k in theirs if not nested or "absmax" not in k and "state" not in k]
                for key in theirs:
                    assert ours[key].dtype == theirs[key].dtype, (name, key)
                    assert ours[key].shape == theirs[key].shape, (name, key)
                    keys += 1
                for key in exact:
                    assert torch.equal(ours[key], theirs[key]), (name, key)
                # The JSON, byte for byte: bitsandbytes reads graft's and writes it again.
                state_key = f"weight.quant_state.bitsandbytes__{quant_type}"
                parts = {k: v for k, v in ours.items() if k != "weight"}
                state = bnb.QuantState.from_dict(dict(parts), device=torch.device("cpu"))
                again = state.as_dict(packed=True)
                written = {f"weight.{k}": v for k, v in again.items()}
                for key, value in written.items():
                    assert torch.equal(value, ours[key]), (name, key, bytes(value.tolist()),
                                                           bytes(ours[key].tolist()))
                assert bytes(ours[state_key].tolist()).startswith(b'{"quant_type": "')
                # Decoded: bitsandbytes' own file by graft, against the definition.
                decoded_by_graft(stem, theirs, name, quant_type, shape)
                values += dense.numel()
    print(f"    {keys} keys of {4 * len(FOUR_BIT_CASES)} matrices, {values} weights decoded both ways")


def decoded_by_graft(stem, tensors, name, quant_type, shape):
    """graft decodes a file of bitsandbytes to code * absmax, rounded once, to the bit."""
    import bitsandbytes.functional as bnb
    directory, out = WORK / f"theirs-{name}", WORK / f"decoded-{name}"
    directory.mkdir()
    (directory / "config.json").write_text('{"quantization_config": {}}')
    save_file({stem + k: v.contiguous() for k, v in tensors.items()},
              directory / "model.safetensors")
    graft("quantize", directory, "--decode", "--out", out)
    got = load_file(out / "model.safetensors")[stem + "weight"]
    parts = {k: v for k, v in tensors.items() if k != "weight"}
    state = bnb.QuantState.from_dict(dict(parts), device=torch.device("cpu"))
    absmax = state.absmax
    if state.nested:
        inner = state.state2
        absmax = (inner.code[state.absmax.long()]
                  * inner.absmax.repeat_interleave(inner.blocksize)[:len(state.absmax)]
                  + state.offset)
    count = shape[0] * shape[1]
    packed = tensors["weight"].flatten()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten().long()[:count]
    expected = state.code[codes] * absmax.repeat_interleave(state.blocksize)[:count]
    assert torch.equal(got, expected.to(state.dtype).view(shape)), name
    # bitsandbytes' CPU decode is wrong for some in_features that are no multiple of its block.
    if shape[1] % state.blocksize == 0:
        theirs = bnb.dequantize_4bit(tensors["weight"], state)
        assert torch.equal(got, theirs.view(shape)), name


@case
def training_steps_lose_what_the_peers_lose():
    script = pathlib.Path(__file__).parent / "bench_step.py"
    done = subprocess.run(
        [sys.executable, script, GRAFT, "--size", "small", "--seq", "64", "--rounds", "1", "--discards", "0",
         "--arms", "graft-lora-fp32,graft-qlora-fp32,graft-qlora-bf16,peft-lora-fp32,peft-qlora-fp32,peft-qlora-bf16"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def main():
    failed = 0
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    for function in CASES:
        if wanted not in function.__name__:
            continue
        print(f"  {function.__name__.replace('_', ' ')}", flush=True)
        try:
            function()
        except Exception:  # noqa: BLE001 - every failure is reported and counted
            failed += 1
            traceback.print_exc()
    asked = sum(wanted in function.__name__ for function in CASES)
    print(f"{asked - failed} passed, {failed} failed")
    return 1 if failed else 0


sys.exit(main())
