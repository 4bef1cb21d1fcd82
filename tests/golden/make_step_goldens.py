#!/usr/bin/env python3
"""Makes tests/golden/tokenizer_steps/: small tokenizer.json of every kind that graft reads besides
SentencePiece-style BPE, and golden.jsonl with what Hugging Face `tokenizers` says of them.

usage: make_step_goldens.py          (see HOW_text.md for the versions)
"""
import json
import os

from make_tokenizer_goldens import TEXT, TEXTS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer_steps")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
          r"\s*[\r\n]|\s+(?!\S)|\s")
DEEPSEEK = ["\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
            r"\s*[\r\n]+|\s+(?!\S)|\s+"]
MORE = [
    "I'm you're WE'VE they'll he'd it's DON'T \u2019s 'S 'lL 'ſ", "1,234,567.89 \u0663\u0664 \u2167 \u00bd 3333333",
    "\u1100\u1161\u11a8 \uac01", "a\u0300\u0316\u0300\u0316 e\u0301 \u0315\u0300 \u0958\u0301", "\U0001d7d8\U00016d40\U0001e030",
    "\u0e20\u0e32\u0e29\u0e32 \u0939\u093f\u0928\u094d\u0926\u0940", "x\n\n\n\ny \n z\r\n\r\n", "中文 日本語かな カナ", "CamelCase HTTPServer iPhone's",
    "a <|im_start|> b<|end|>   c", "\u212b\u2126 \ufb01 \uff21\uff22", "\ufffd \x00 \x7f", "word wordy swordy word", "tabs\t\tand  \u3000spaces \u2028",
    "\U0001F468\u200d\U0001F469\u200d\U0001F467 \U0001F1E9\U0001F1EA", "\u0345\u0301a", "$100 #tag a/b\\c `x` ~ ^", " ", "''' 'the",
]


def byte_level(steps, normalizer=None, ignore_merges=False, processor=None):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if normalizer:
        t.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    t.train_from_iterator(TEXT + MORE, trainer)
    t.decoder = decoders.ByteLevel()
    if processor:
        t.post_processor = processor
    t.add_special_tokens([AddedToken("<|im_start|>", special=True, normalized=False)])
    t.add_tokens([AddedToken("<|end|>", rstrip=True, normalized=False), AddedToken("word", single_word=True),
                  AddedToken("e\u0301t")])
    return t


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def unigram(normalizer, pre_tokenizer, byte_fallback):
    words = sorted({w for line in TEXT for w in line.split()})
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    seen = {v for v, _ in vocab}
    pieces = ["\u2581" + w for w in words] + words + list("\u2581abcdefghijklmnopqrstuvwxyzTIR.,#:=\"0123456789") + ["日本", "日", "本"]
    for i, piece in enumerate(pieces):
        if piece not in seen:
            seen.add(piece)
            vocab.append((piece, -2.0 - len(vocab) / 100 + len(piece) / 3))
    if byte_fallback:
        vocab += [(f"<0x{b:02X}>", -20.0) for b in range(256)]
    t = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=byte_fallback))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizer
    t.decoder = decoders.Metaspace()
    t.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)])
    t.add_special_tokens([AddedToken("<unk>"), AddedToken("<s>"), AddedToken("</s>")])
    t.add_tokens([AddedToken("word", single_word=True), AddedToken("<left>", lstrip=True, normalized=False)])
    return t


def main():
    os.makedirs(HERE, exist_ok=True)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bos = processors.TemplateProcessing(single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", 400)])
    made = {
        "gpt2": byte_level([gpt2], processor=processors.ByteLevel(trim_offsets=False)),
        "gpt2_prefix": byte_level([pre_tokenizers.ByteLevel(add_prefix_space=True)], processor=processors.ByteLevel(trim_offsets=True)),
        "llama3": byte_level([split(LLAMA3), plain], ignore_merges=True,
                             processor=processors.Sequence([processors.ByteLevel(trim_offsets=False), bos])),
        "llama3_removed": byte_level([split(LLAMA3, "removed", True), plain]),
        "qwen2": byte_level([split(QWEN2), plain], normalizers.NFC()),
        "qwen35": byte_level([split(QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}")), plain], normalizers.NFC()),
        "smollm": byte_level([pre_tokenizers.Digits(individual_digits=True), gpt2]),
        "cl100k": byte_level([split(CL100K), plain]),
        "o200k": byte_level([split(O200K), plain]),
        "deepseek": byte_level([split(p) for p in DEEPSEEK] + [plain], normalizers.Sequence([])),
        "nfkc_trim": byte_level([gpt2], normalizers.NFKC(), processor=processors.ByteLevel(trim_offsets=True)),
        "nfd": byte_level([split(LLAMA3), plain], normalizers.Sequence([normalizers.NFD(), normalizers.Strip()])),
        "nfkd_gaps": byte_level([split(r"\p{L}+", "merged_with_previous"), split("[0-9]", "merged_with_next"),
                                 split(" ", "contiguous"), plain], normalizers.NFKD()),
        "unigram": unigram(None, pre_tokenizers.Metaspace(), False),
        "unigram_bytes": unigram(normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(False, True),
                                                       normalizers.Replace(Regex(" {2,}"), " ")]),
                                 pre_tokenizers.Metaspace(prepend_scheme="first"), True),
        "unigram_words": unigram(normalizers.Replace(Regex("[0-9]"), ""),
                                 pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]), True),
    }
    with open(os.path.join(HERE, "golden.jsonl"), "w") as out:
        for name, t in made.items():
            path = os.path.join(HERE, name + ".json")
            t.save(path, pretty=False)
            t = Tokenizer.from_file(path)
            for text in TEXTS + MORE:
                e = t.encode(text, add_special_tokens=False)
                at = [0]
                for ch in text:
                    at.append(at[-1] + len(ch.encode()))
                out.write(json.dumps({"tok": name, "text": text, "ids": e.ids, "ids_special": t.encode(text).ids,
                                      "offsets": [[at[a], at[b]] for a, b in e.offsets],
                                      "decoded": t.decode(e.ids, skip_special_tokens=False),
                                      "decoded_skip": t.decode(e.ids, skip_special_tokens=True)}) + "\n")


if __name__ == "__main__":
    main()
