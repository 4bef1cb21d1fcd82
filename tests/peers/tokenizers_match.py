#!/usr/bin/env python3
"""Random Unicode through graft, `tokenizers` and sentencepiece. Usage: tokenizers_match.py path/to/graft [count]

For every tokenizer of tests/golden/tokenizer_steps and of ../shared: `count` random strings (100,000
by default) and every Unicode character in four contexts; ids and offsets must be equal. run.py
calls it.
"""
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "true"
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


def all_characters():
    """Each character between letters, digits, spaces and at an end."""
    chunk = 32
    return ["".join(f"a{c}a 1{c}1 {c} !{c}\n" for c in map(chr, POINTS[i:i + chunk])) for i in range(0, len(POINTS), chunk)]


def graft_encode(graft, tokenizer, strings):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as lines:
        for text in strings:
            lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        lines.flush()
        out = subprocess.run([str(graft), "data", "encode", "--tokenizer", str(tokenizer)], stdin=open(lines.name, "rb"),
                             stdout=subprocess.PIPE, check=True).stdout
    return [json.loads(line) for line in out.decode().splitlines()]


def byte_offsets(text, offsets):
    if text.isascii():
        return [list(o) for o in offsets]
    at = [0]
    for c in text:
        at.append(at[-1] + len(c.encode()))
    return [[at[a], at[b]] for a, b in offsets]


def check(graft, path, strings):
    start = time.time()
    ours = graft_encode(graft, path, strings)
    theirs = Tokenizer.from_file(str(path))
    theirs.no_truncation()
    theirs.no_padding()
    assert len(ours) == len(strings)
    wrong = []
    for begin in range(0, len(strings), 5000):
        part = strings[begin:begin + 5000]
        for text, mine, encoding in zip(part, ours[begin:begin + 5000], theirs.encode_batch(part, add_special_tokens=False)):
            if mine["ids"] != encoding.ids or mine["offsets"] != byte_offsets(text, encoding.offsets):
                wrong.append((text, mine, encoding.ids, byte_offsets(text, encoding.offsets)))
    name = path.parent.name + "/" + path.name
    print(f"    {name}: {len(strings)} strings, {len(wrong)} differ ({time.time() - start:.1f} s)", flush=True)
    for text, mine, ids, offsets in wrong[:3]:
        print(f"      {text!r}\n        graft {mine['ids']} {mine['offsets']}\n        peer  {ids} {offsets}")
    return len(wrong)


def check_sentencepiece(graft, path, strings):
    import sentencepiece
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    # Control pieces in text are tokens for graft and Hugging Face, never for sentencepiece.
    strings = [s for s in strings if "<s>" not in s and "</s>" not in s and "<unk>" not in s]
    ours = [row["ids"] for row in graft_encode(graft, path, strings)]
    wrong = sum(a != b for a, b in zip(ours, model.encode(strings)))
    print(f"    {path.parent.name}/{path.name} against sentencepiece: {len(strings)} strings, {wrong} differ", flush=True)
    return wrong


def run(graft, count=100000):
    files = sorted((ROOT / "tests/golden/tokenizer_steps").glob("*.json"))
    files += sorted(p for p in (ROOT / "tests/golden/tokenizer_tiny").glob("*.json") if p.name != "tokenizer_config.json")
    files += sorted(SHARED.glob("data/tokenizers/*/tokenizer.json")) + sorted(SHARED.glob("data/models/stories260K/tokenizer.json"))
    strings = random_strings(count, 7)
    characters = all_characters()
    wrong = sum(check(graft, path, strings + characters) for path in files)
    models = [ROOT / "tests/golden/tokenizer_tiny/tokenizer.model", SHARED / "data/tokenizers/llama2/tokenizer.model",
              SHARED / "data/models/stories260K/tokenizer.model"]
    wrong += sum(check_sentencepiece(graft, path, strings) for path in models if path.exists())
    assert wrong == 0, f"{wrong} strings differ"


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 100000)
