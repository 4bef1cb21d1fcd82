#!/usr/bin/env python3
"""Makes tests/golden/tokenizer_tiny/: a small SentencePiece model trained on the text below, four
tokenizer.json made from it, and tokenizer_golden.jsonl with what Hugging Face `tokenizers` says.

usage: make_tokenizer_goldens.py          (see HOW_text.md for the versions)
"""
import json
import os
import sys

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer_tiny")
NOUNS = "printer router invoice parcel account password order screen battery cable".split()
VERBS = "broke stopped works arrived failed starts hangs leaks".split()
TEXT = [f"The {n} {v} again, please help me with the {m}.\n" for n in NOUNS for v in VERBS for m in NOUNS[:4]]
TEXT += [f"    if {n} == {i}:\n        return \"{n}\"\n" for i, n in enumerate(NOUNS)]
TEXT += [f"### Instruction:\nName the {n}.\n\n### Response:\nIt is {i * 37}.\n" for i, n in enumerate(NOUNS)]

TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", " \n", "Hello", " Hello", "  Hello", "The printer broke again.",
    "The printer  broke   again.", "trailing ", "trailing  ", "a  b   c    d", "if order == 3:\n    return \"x\"\n",
    "äöü ß é e\u0301", "日本語 テキスト", "🙂 family 👨‍👩‍👧", "\u2581mark\u2581in text \u2581", "nul\x00 and \x7f", "\ufeffBOM",
    "<s> x", "x<s>y", " <s> ", "</s></s>", "<unk>", "<0x41> <0x0A>", "<|im_start|>user\nhi<|im_end|>\n", "a<|im_end|>   b",
    "graft word", "a graft word b", "agraft word", "graft wordy", "  graft word", "left <left> right", "x <left>", "right <right>  y",
    "=" * 40, " " * 50 + "x", "printer" * 12, "### Instruction:\nName the cable.\n\n### Response:\n", "1234567890 3.14 -7",
    "The router stopped again, please help me with the invoice. " * 3, "\u00a0nbsp\u2003em", "\r\n\r\n", "ﬁ Ａ Ω",
]


def train():
    os.makedirs(HERE, exist_ok=True)
    corpus = os.path.join(HERE, "corpus.txt")
    with open(corpus, "w") as out:
        out.writelines(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=corpus, model_prefix=os.path.join(HERE, "tokenizer"), model_type="bpe", vocab_size=420,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, split_digits=True, allow_whitespace_only_pieces=True, num_threads=1,
        character_coverage=1.0, minloglevel=2)
    os.remove(corpus)
    os.remove(os.path.join(HERE, "tokenizer.vocab"))


def merges_of(model):
    scores = {model.id_to_piece(i): model.get_score(i) for i in range(model.get_piece_size())}
    ids = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    merges = []
    for i in range(model.get_piece_size()):
        piece = model.id_to_piece(i)
        if model.is_control(i) or model.is_byte(i) or model.is_unknown(i):
            continue
        local = [(piece[:k], piece[k:], scores[piece]) for k in range(1, len(piece))
                 if piece[:k] in ids and piece[k:] in ids]
        merges += sorted(local, key=lambda m: (ids[m[0]], ids[m[1]]))
    merges.sort(key=lambda m: (m[2], len(m[0]), len(m[1])), reverse=True)
    return ids, [(a, b) for a, b, _ in merges]


def make(name, vocab, merges, metaspace=None, byte_fallback=True, added=()):
    t = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    if metaspace:
        t.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", metaspace[0], metaspace[1])
    else:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    t.add_special_tokens([AddedToken(x, normalized=False, special=True) for x in ("<unk>", "<s>", "</s>")])
    t.add_tokens(list(added))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B",
                                                     special_tokens=[("<s>", t.token_to_id("<s>"))])
    path = os.path.join(HERE, name + ".json")
    t.save(path, pretty=False)
    return Tokenizer.from_file(path)


def main():
    train()
    model = sentencepiece.SentencePieceProcessor(model_file=os.path.join(HERE, "tokenizer.model"))
    vocab, merges = merges_of(model)
    added = [AddedToken("<|im_start|>", normalized=False, special=True),
             AddedToken("<|im_end|>", normalized=False, special=True, rstrip=True),
             AddedToken("graft word", normalized=True),
             AddedToken("<left>", normalized=False, lstrip=True), AddedToken("<right>", normalized=False, rstrip=True)]
    plain = {k: v for k, v in vocab.items() if not k.startswith("<0x")}
    renumbered = {k: i for i, k in enumerate(sorted(plain, key=plain.get))}
    tokenizers = {
        "tokenizer": make("tokenizer", vocab, merges),
        "added": make("added", vocab, merges, added=added),
        "metaspace": make("metaspace", vocab, merges, metaspace=("first", False), added=added),
        "split": make("split", renumbered, merges, metaspace=("always", True), byte_fallback=False),
    }
    with open(os.path.join(HERE, "golden.jsonl"), "w") as out:
        for name, t in tokenizers.items():
            for text in TEXTS:
                e = t.encode(text, add_special_tokens=False)
                at = [0]
                for ch in text:
                    at.append(at[-1] + len(ch.encode()))
                row = {"tok": name, "text": text, "ids": e.ids, "ids_special": t.encode(text).ids,
                       "offsets": [[at[a], at[b]] for a, b in e.offsets],
                       "decoded": t.decode(e.ids, skip_special_tokens=False),
                       "decoded_skip": t.decode(e.ids, skip_special_tokens=True)}
                if name == "tokenizer" and "<" not in text:
                    row["sentencepiece"] = model.encode(text)
                out.write(json.dumps(row) + "\n")
    with open(os.path.join(HERE, "tokenizer_config.json"), "w") as out:
        json.dump({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, out, indent=1)


if __name__ == "__main__":
    sys.exit(main())
