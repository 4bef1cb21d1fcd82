#!/usr/bin/env python3
"""Writes data/text/tokenizer/unicode_tables.inc: what Hugging Face `tokenizers` knows about Unicode.

usage: make_unicode_tables.py          (see HOW_text.md for the versions)

Every value is asked of the library itself, so the tables carry the Unicode version of its regular
expressions (classes), of Rust (word characters, numbers) and of its normalizer, which all differ.
"""
import pathlib
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

OUT = pathlib.Path(__file__).resolve().parents[2] / "data/text/tokenizer/unicode_tables.inc"
POINTS = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]
TEXT = "".join(map(chr, POINTS))
INDEX = {p: i for i, p in enumerate(POINTS)}
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn".split()
LETTER, NUMBER, SPACE, WORD, NUMERIC, NORMAL = 1, 2, 4, 8, 16, 32


def kept_out(splitter):
    """The code points that a splitter with behaviour "removed" removes."""
    kept = set()
    for _, (begin, end) in splitter.pre_tokenize_str(TEXT):
        kept.update(range(begin, end))
    return {POINTS[i] for i in range(len(POINTS)) if i not in kept}


def matching(pattern):
    return kept_out(pre_tokenizers.Split(Regex(pattern), "removed"))


def word_points():
    """Characters that keep a single_word token from matching (\\w of Rust's regex crate)."""
    t = Tokenizer(models.BPE({"z": 0, "\ue000q": 1}, [], unk_token="z"))
    t.add_tokens([AddedToken("\ue000q", single_word=True, normalized=False)])
    found = set()
    for start in range(0, len(POINTS), 50000):
        part = POINTS[start:start + 50000]
        for point, e in zip(part, t.encode_batch(["\ue000q" + chr(p) for p in part])):
            if 1 not in e.ids:
                found.add(point)
    return found


def numeric_points():
    digits = pre_tokenizers.Digits(individual_digits=True)
    found = set()
    for point in POINTS:  # between letters, a number stands alone
        if len(digits.pre_tokenize_str("a" + chr(point) + "a")) == 3:
            found.add(point)
    return found


def decompositions(normalizer):
    table = {}
    for point in POINTS:
        if 0xAC00 <= point < 0xD7A4:
            continue  # Hangul is arithmetic
        text = normalizer.normalize_str(chr(point))
        if text != chr(point):
            table[point] = [ord(c) for c in text]
    return table


def combining_classes(nfd):
    """Canonical combining classes, from how pairs are reordered."""
    swaps = lambda a, b: a != b and nfd.normalize_str("a" + a + b) == "a" + b + a
    low, high = "\u0334", "\u0345"  # classes 1 and 240, the ends
    by_class = {}  # a character for each class that the normalizer knows
    for point in range(0x110000):
        c = chr(point)
        ccc = unicodedata.combining(c)
        if ccc and not unicodedata.decomposition(c) and (swaps(c, low) or swaps(high, c)):
            by_class.setdefault(ccc, c)
    classes = sorted(by_class)
    for lower, higher in zip(classes, classes[1:]):  # the probes themselves are in order
        assert swaps(by_class[higher], by_class[lower]), (lower, higher)
    result = {}
    for point in POINTS:
        c = chr(point)
        if not (swaps(high, c) or swaps(c, low)):
            continue
        below = [k for k in classes if swaps(c, by_class[k])]
        equal = [k for k in classes if not swaps(c, by_class[k]) and not swaps(by_class[k], c)]
        assert len(equal) == 1 and equal[0] == (classes[len(below)]), hex(point)
        result[point] = equal[0]
    return result


def compositions(canonical, nfc):
    pairs = {}
    for point, parts in canonical.items():
        if nfc.normalize_str(chr(point)) != chr(point):
            continue  # a singleton or an exclusion
        # The first pair that gives it: its decomposition without the last character, composed.
        first = nfc.normalize_str("".join(map(chr, parts[:-1])))
        assert len(first) == 1, hex(point)
        assert nfc.normalize_str(first + chr(parts[-1])) == chr(point)
        pairs[(ord(first), parts[-1])] = point
    return pairs


def runs(values):
    """[(first code point, value)] of a list by code point."""
    result, last = [], None
    for point, value in enumerate(values):
        if value != last:
            result.append((point, value))
            last = value
    return result


def rows(numbers, width=100):
    lines, line = [], " "
    for number in numbers:
        item = f" {number},"
        if len(line) + len(item) > width:
            lines.append(line)
            line = " "
        line += item
    return lines + [line]


def main():
    nfc, nfd, nfkd = normalizers.NFC(), normalizers.NFD(), normalizers.NFKD()
    flags = [0] * 0x110000
    for bit, points in ((LETTER, matching(r"\p{L}")), (NUMBER, matching(r"\p{N}")),
                        (SPACE, matching(r"\s")), (WORD, word_points()), (NUMERIC, numeric_points())):
        for point in points:
            flags[point] |= bit
    canonical, compatible = decompositions(nfd), decompositions(nfkd)
    classes = combining_classes(nfd)
    pairs = compositions(canonical, nfc)
    # What NFC may change: everything else stays as it is, whatever stands beside it.
    unstable = {p for p in canonical if nfc.normalize_str(chr(p)) != chr(p)} | set(classes)
    unstable |= {second for _, second in pairs} | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    for point in unstable:
        flags[point] |= NORMAL
    category = ["Cn"] * 0x110000
    for name in CATEGORIES:
        if name != "Cn":
            for point in matching(r"\p{%s}" % name):
                category[point] = name
    # Code points that Unicode 14 (PCRE2 10.42) files elsewhere, and a stand-in for each: the same
    # category and length in UTF-8, and its category is the same in both.
    stand_ins = {}
    length = lambda p: len(chr(p).encode())
    for point in reversed(POINTS):
        if unicodedata.category(chr(point)) == category[point]:
            stand_ins[(category[point], length(point))] = point
    newer = [0] * 0x110000
    for point in POINTS:
        if unicodedata.category(chr(point)) != category[point]:
            newer[point] = stand_ins[(category[point], length(point))]
    assert unicodedata.unidata_version == "14.0.0"

    out = ["// Made by tests/golden/make_unicode_tables.py from Hugging Face tokenizers; do not edit."]

    def table(comment, name, numbers):
        out.extend([f"// {comment}", f"constexpr uint32_t {name}[] = {{"])
        out.extend(rows(numbers))
        out.append("};")

    table("Runs: (first code point << 8 | flags).", "kFlagRuns", [p << 8 | v for p, v in runs(flags)])
    table("Runs: first code point, stand-in for Unicode 14 (0 = none).", "kStandInRuns",
          [n for p, v in runs(newer) for n in (p, v)])
    table("(code point << 8 | combining class).", "kCombiningRuns",
          [p << 8 | v for p, v in runs([classes.get(p, 0) for p in range(0x110000)])])
    table("Code point << 8 | length, then the canonical decomposition.", "kCanonical",
          [n for p, d in sorted(canonical.items()) for n in [p << 8 | len(d)] + d])
    table("The same where the compatibility decomposition differs.", "kCompatible",
          [n for p, d in sorted(compatible.items()) if canonical.get(p) != d for n in [p << 8 | len(d)] + d])
    table("First, second, composed.", "kCompositions",
          [n for (a, b), c in sorted(pairs.items()) for n in (a, b, c)])
    OUT.write_text("\n".join(out) + "\n")
    print({name: sum(1 for f in flags if f & bit) for name, bit in
           (("letters", 1), ("numbers", 2), ("spaces", 4), ("word", 8), ("numeric", 16), ("nfc", 32))},
          "newer", sum(1 for v in newer if v), "ccc", len(classes), "pairs", len(pairs),
          "nfd", len(canonical), "nfkd", len(compatible))


if __name__ == "__main__":
    main()
