#!/usr/bin/env python3
"""Makes the tokenizer of the quickstart's base model.

usage: make_tokenizer.py base_text.jsonl OUT_DIR

Needs sentencepiece, tokenizers (and only for this; graft itself runs without Python). Trains a
SentencePiece BPE model of 768 pieces with byte fallback on the first 20,000 texts and writes
tokenizer.model, the same vocabulary as tokenizer.json, and tokenizer_config.json with the chat
template.
"""
import json
import os
import sys
import tempfile

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'user:\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'assistant:\\n' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant take part') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)


def train(texts_path, prefix):
    with open(texts_path, encoding="utf-8") as source, open(prefix + ".txt", "w") as out:
        for index, line in enumerate(source):
            if index == 20000:
                break
            out.write(json.loads(line)["text"] + "\n")
    spm.SentencePieceTrainer.train(
        input=prefix + ".txt", model_prefix=prefix, vocab_size=768, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, character_coverage=1.0,
        num_threads=1)


def convert(model_path):
    """tokenizer.json of a SentencePiece BPE model, in the form that Llama's has."""
    model = model_pb2.ModelProto.FromString(open(model_path, "rb").read())
    vocab = {piece.piece: index for index, piece in enumerate(model.pieces)}
    # SentencePiece merges the pair whose result has the best score, which is its place in the list.
    merges = []
    for piece in model.pieces:
        text = piece.piece
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocab and right in vocab and piece.type == 1:
                merges.append((vocab[text], vocab[left], vocab[right], left, right))
    merges.sort()
    tokenizer = Tokenizer(BPE(vocab, [(m[3], m[4]) for m in merges], unk_token="<unk>",
                              fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in ("<unk>", "<s>", "</s>")])
    return tokenizer


def main():
    texts, out = sys.argv[1], sys.argv[2]
    os.makedirs(out, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        prefix = os.path.join(folder, "tokenizer")
        train(texts, prefix)
        content = open(prefix + ".model", "rb").read()
        # The trainer's own paths and settings are of no use to readers and name this machine.
        model = model_pb2.ModelProto.FromString(content)
        model.trainer_spec.ClearField("input")
        model.trainer_spec.ClearField("model_prefix")
        with open(os.path.join(out, "tokenizer.model"), "wb") as file:
            file.write(model.SerializeToString())
    tokenizer = convert(os.path.join(out, "tokenizer.model"))
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    config = {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": True,
        "clean_up_tokenization_spaces": False, "model_max_length": 256, "chat_template": TEMPLATE,
    }
    with open(os.path.join(out, "tokenizer_config.json"), "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")


main()
