#!/usr/bin/env python3
"""Trains small SentencePiece models of every kind that graft reads and asks sentencepiece about texts ->
tokenizer_spm/*.model, golden.jsonl: {"model", "text", "ids"}.

usage: make_sentencepiece_goldens.py          (see HOW_text.md for the versions)
"""
import json
import os

import sentencepiece
from make_tokenizer_goldens import TEXT, TEXTS

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer_spm")
# A character map of its own: one to one, one to two, two to one, to nothing, white space.
RULES = [("\ufb01", "fi"), ("e\u0301", "\u00e9"), ("\u212b", "\u00c5"), ("\u3000", " "), ("\t", " "), ("\n", " "),
         ("\u200b", ""), ("\u00df", "ss"), ("ab", "b")]
MORE = [" \u3000 a  b \u3000", "\ufb01sh ne\u0301 \u212b", "ab aab abb", "\u200b", " ", "a\u200b\u200b b", "\u2581x \u2581", "ends in space "]
# name: model type, byte fallback, extra spaces removed, dummy prefix, the map
KINDS = {"unigram": ("unigram", False, True, True, False), "unigram_map": ("unigram", True, True, True, True),
         "unigram_plain": ("unigram", False, False, False, False), "bpe_map": ("bpe", True, True, True, True),
         "bpe_spaces": ("bpe", False, True, False, False)}


def main():
    os.makedirs(HERE, exist_ok=True)
    rules = os.path.join(HERE, "rules.tsv")
    with open(rules, "w") as out:
        for old, new in RULES:
            out.write(" ".join(f"{ord(c):X}" for c in old) + "\t" + " ".join(f"{ord(c):X}" for c in new) + "\n")
    with open(os.path.join(HERE, "golden.jsonl"), "w") as out:
        for name, (kind, fallback, spaces, prefix, mapped) in KINDS.items():
            rule = {"normalization_rule_tsv": rules} if mapped else {"normalization_rule_name": "identity"}
            path = os.path.join(HERE, name)
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(TEXT * 20), model_prefix=path, vocab_size=380, hard_vocab_limit=False, model_type=kind,
                byte_fallback=fallback, remove_extra_whitespaces=spaces, add_dummy_prefix=prefix, num_threads=1,
                minloglevel=2, **rule)
            os.remove(path + ".vocab")
            model = sentencepiece.SentencePieceProcessor(model_file=path + ".model")
            for text in TEXTS + MORE:
                if any(special in text for special in ("<s>", "</s>", "<unk>")):
                    continue  # tokens for graft and Hugging Face, text for sentencepiece
                out.write(json.dumps({"model": name, "text": text, "ids": model.encode(text)}) + "\n")
    os.remove(rules)


main()
