#!/usr/bin/env python3
"""Random Unicode through graft, `tokenizers` and sentencepiece. Usage: tokenizers_match.py path/to/graft [count]

For every tokenizer of tests/golden, of ../shared and of variants(): `count` random strings (100,000
by default); ids and offsets must be equal to those of `tokenizers`. The tokenizers of WALKED see
every character of the assigned planes beside letters, digits, spaces and added tokens that look at
their neighbours, WALKED_WHOLE every code point. sentencepiece gives the ids of every
tokenizer.model. run.py calls it.
"""
import json
import multiprocessing
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one process a processor
from tokenizers import Tokenizer  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("GRAFT_SHARED", ROOT.parent / "shared"))
WORDS = ("the quick Brown 12 3456 it's WE'VE don't hello world <s> </s> <|im_start|> <|im_end|> <|endoftext|> <|end|> word wordy "
         "for(i=0;i<10;++i) // x http://a.b/c?d=e Straße naïve e\u0301t\u00e9 中文 日本語 한국어 ภาษา हिन्दी العربية \u1100\u1161\u11a8 "
         "\U0001F468\u200d\U0001F469 \u2581 \u0120 <0x41> <left> <right> \ufb01 \u212b").split(" ")
SPACES = [" ", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "        ", ""]
POINTS = [p for p in range(1, 0x110000) if not 0xD800 <= p < 0xE000]
COMMON = [p for p in POINTS if p < 0x3000] + list(range(0xFB00, 0xFB07)) + list(range(0xAC00, 0xAC40))


def random_strings(count, seed):
    rng = random.Random(seed)
    strings = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(9)):
            kind = rng.random()
            if kind < 0.45:
                parts.append(rng.choice(WORDS))
            elif kind < 0.65:
                parts += [chr(rng.choice(COMMON)) for _ in range(rng.randrange(1, 5))]
            elif kind < 0.75:
                parts += [chr(rng.choice(POINTS)) for _ in range(rng.randrange(1, 4))]
            elif kind < 0.85:
                parts += [chr(rng.randrange(0x300, 0x370)) for _ in range(rng.randrange(1, 4))]
            else:
                parts.append("".join(chr(rng.randrange(33, 127)) for _ in range(rng.randrange(1, 6))))
            parts.append(rng.choice(SPACES))
        strings.append("".join(parts))
    return strings


# One for each way to tell characters apart, and the context (? = the character) that shows it: the
# three splitters, digits, PCRE2 with each class, each normal form, the flags of added tokens.
WALKED = {"tokenizer_steps/gpt2.json": "a?1? ?word?", "tokenizer_steps/llama3.json": "'?a?1? ?!",
          "tokenizer_steps/qwen2.json": "a?1? ?!", "tokenizer_steps/smollm.json": "1?", "tokenizer_steps/o200k.json": "A?a?1? ?!",
          "tokenizer_steps/deepseek.json": "a?1? ?!", "tokenizer_steps/nfkc_trim.json": "a? ?", "tokenizer_steps/nfd.json": "a? ?\n",
          "tokenizer_steps/unigram_words.json": "a? ", "tokenizer_tiny/added.json": "?<left>a<right>?"}
# Characters that are not assigned as well: only the table of classes knows them.
WALKED_WHOLE = "tokenizer_steps/llama3.json"
ASSIGNED = [p for p in POINTS if p < 0x20000 or 0xE0000 <= p < 0xE0200] + list(range(0x20000, 0x33000, 61))


def in_context(points, context, chunk=32):
    return ["".join(context.replace("?", chr(p)) for p in points[i:i + chunk]) for i in range(0, len(points), chunk)]


def variants(directory):
    """Tokenizers of families that no file here is of, made of those that are."""
    tiny, steps = ROOT / "tests/golden/tokenizer_tiny", ROOT / "tests/golden/tokenizer_steps"

    def write(name, source, change):
        tokenizer = json.loads(source.read_text())
        change(tokenizer)
        path = pathlib.Path(directory) / name / "tokenizer.json"
        path.parent.mkdir()
        path.write_text(json.dumps(tokenizer))
        return path

    def gemma(t):
        t["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        t["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
        t["decoder"] = {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}

    def tekken(t):
        t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = (
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

    def xlmr(t):
        t["normalizer"] = {"type": "Sequence", "normalizers": [
            {"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]}
        t["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}]}

    return [write("gemma", tiny / "added.json", gemma), write("tekken", steps / "llama3.json", tekken),
            write("xlm-r", steps / "unigram.json", xlmr),
            write("no-fallback", steps / "unigram_bytes.json", lambda t: t["model"].update(byte_fallback=False))]


def graft_encode(graft, tokenizer, strings):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as lines:
        for text in strings:
            lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        lines.flush()
        out = subprocess.run([str(graft), "data", "encode", "--tokenizer", str(tokenizer)], stdin=open(lines.name, "rb"),
                             stdout=subprocess.PIPE, check=True).stdout
    return out.decode().splitlines()


def byte_offsets(text, offsets):
    if text.isascii():
        return offsets
    at = [0]
    for c in text:
        at.append(at[-1] + len(c.encode()))
    return [(at[a], at[b]) for a, b in offsets]


def line_of(text, encoding, with_offsets):
    """The line that `graft data encode` writes, or its beginning."""
    line = '{"ids":[' + ",".join(map(str, encoding.ids)) + "],"
    if with_offsets:
        line += '"offsets":[' + ",".join([f"[{a},{b}]" for a, b in byte_offsets(text, encoding.offsets)]) + "]}"
    return line


def compare(graft, path, strings, with_offsets=True, ours_from=None):
    """How many strings differ; shows the first three. `ours_from`: another file of the same tokenizer."""
    theirs = Tokenizer.from_file(str(path))
    theirs.no_truncation()
    theirs.no_padding()
    encode = theirs.encode_batch if with_offsets else theirs.encode_batch_fast
    wrong = 0
    for begin in range(0, len(strings), 20000):
        part = strings[begin:begin + 20000]
        ours = graft_encode(graft, ours_from or path, part)
        for text, mine, encoding in zip(part, ours, encode(part, add_special_tokens=False), strict=True):
            expected = line_of(text, encoding, with_offsets)
            if not mine.startswith(expected):
                wrong += 1
                if wrong <= 3:
                    print(f"      {text!r}\n        graft {mine}\n        peer  {expected}")
    return wrong


def name_of(path):
    return f"{path.parent.name}/{path.name}"


def check(graft, path, strings, ours_from=None):
    start, count, name = time.time(), len(strings), name_of(path)
    wrong = compare(graft, path, strings, ours_from=ours_from)
    if name in WALKED:
        walk = in_context(ASSIGNED, WALKED[name])
        wrong, count = wrong + compare(graft, path, walk), count + len(walk)
    if name == WALKED_WHOLE:
        walk = in_context(POINTS, "a?")
        wrong, count = wrong + compare(graft, path, walk, with_offsets=False), count + len(walk)
    read = f" as {ours_from.name}" if ours_from else ""
    print(f"    {name}{read}: {count} strings, {wrong} differ ({time.time() - start:.1f} s)", flush=True)
    return wrong


def check_sentencepiece(graft, path, strings):
    import sentencepiece
    start = time.time()
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    # Control pieces in text are tokens for graft and Hugging Face, never for sentencepiece.
    strings = [s for s in strings if "<s>" not in s and "</s>" not in s and "<unk>" not in s]
    wrong = 0
    for text, line, theirs in zip(strings, graft_encode(graft, path, strings), model.encode(strings), strict=True):
        if json.loads(line)["ids"] != theirs:
            wrong += 1
            if wrong <= 3:
                print(f"      {text!r}\n        graft {line}\n        peer  {theirs}")
    print(f"    {name_of(path)} against sentencepiece: {len(strings)} strings, {wrong} differ "
          f"({time.time() - start:.1f} s)", flush=True)
    return wrong


def trained_models(directory):
    """SentencePiece models of the kinds that no file here is of."""
    import sentencepiece
    lines = (ROOT / "examples/quickstart/raw.jsonl").read_text(errors="replace").splitlines()
    kinds = {"unigram-nmt": ("unigram", "nmt_nfkc", True), "unigram-identity": ("unigram", "identity", False),
             "bpe-nfkc": ("bpe", "nfkc", False), "bpe-bytes-nmt": ("bpe", "nmt_nfkc_cf", True)}
    for name, (kind, rule, fallback) in kinds.items():
        (pathlib.Path(directory) / name).mkdir()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=f"{directory}/{name}/tokenizer", vocab_size=600, hard_vocab_limit=False, model_type=kind,
            normalization_rule_name=rule, byte_fallback=fallback, num_threads=1, minloglevel=2)
    return [pathlib.Path(directory) / name / "tokenizer.model" for name in kinds]


def jobs(scratch):
    golden, shared = ROOT / "tests/golden", SHARED / "data/tokenizers"
    files = sorted(shared.glob("*/tokenizer.json"), reverse=True) + sorted(golden.glob("tokenizer_steps/*.json"))
    files += sorted(p for p in golden.glob("tokenizer_tiny/*.json") if p.name != "tokenizer_config.json")
    files += sorted(SHARED.glob("data/models/stories260K/tokenizer.json")) + variants(scratch)
    work = [(check, path, None) for path in files]
    for name, same in (("llama-bpe", "llama3"), ("llama-spm", "llama2"), ("qwen2", "qwen2")):
        gguf = shared / f"gguf/ggml-vocab-{name}.gguf"
        if gguf.exists():
            work.append((check, shared / same / "tokenizer.json", gguf))
    models = [golden / "tokenizer_tiny/tokenizer.model", *sorted(shared.glob("*/tokenizer.model")),
              SHARED / "data/models/stories260K/tokenizer.model", *trained_models(scratch)]
    return work + [(check_sentencepiece, path, None) for path in models if path.exists()]


def work_on(job):
    function, path, ours_from = job
    arguments = {"ours_from": ours_from} if ours_from else {}
    return function(GRAFT, path, STRINGS, **arguments)


def run(graft, count=100000):
    global GRAFT, STRINGS  # what the processes of the pool inherit
    GRAFT, STRINGS = graft, random_strings(count, 7)
    with tempfile.TemporaryDirectory() as scratch, multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        wrong = sum(pool.imap_unordered(work_on, jobs(scratch)))
    assert wrong == 0, f"{wrong} strings differ"


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 100000)
