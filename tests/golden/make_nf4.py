#!/usr/bin/env python3
"""Writes nf4_bitsandbytes.json: what bitsandbytes makes of inputs that the test computes again.

    python3 make_nf4.py > nf4_bitsandbytes.json      (versions: nf4_HOW.md)

Packed bytes and absmax are bitsandbytes' own (CPU backend, whose 4-bit quantizer is exact). Decoded
values are the definition, table[code] * absmax in float32: the CPU backend's decode is wrong for
some shapes. The nested codes are the exact nearest values of bitsandbytes' own dynamic map, because
its CPU 8-bit quantizer looks codes up in 65,536 equal bins and misses small ones; `cpu_mismatches`
counts by how many it differs.
"""
import hashlib
import json
import sys

import bitsandbytes
import bitsandbytes.functional as F
import numpy as np
import torch


def inputs(seed, count):
    """x = 1664525 x + 1013904223 mod 2^32; value = (x >> 16) - 32768, over 2^19: exact float32."""
    values, x = [], seed
    for _ in range(count):
        x = (1664525 * x + 1013904223) & 0xFFFFFFFF
        values.append(((x >> 16) - 32768) / 2**19)
    return np.array(values, dtype=np.float32)


def hexed(array):
    return np.ascontiguousarray(array).tobytes().hex()


def mean(absmax):
    """The order that kernels/nf4.h defines."""
    lanes = np.zeros(256)
    for i, value in enumerate(absmax):
        lanes[i % 256] += float(value)
    width = 128
    while width:
        lanes[:width] += lanes[width:2 * width]
        width //= 2
    return np.float32(lanes[0] / len(absmax))


def nearest(values, table):
    """By float32 midpoints of neighbours; a tie goes to the lower index."""
    midpoints = (table[:-1] + table[1:]) * np.float32(0.5)
    return np.searchsorted(midpoints, values, side="left").astype(np.uint8)


def nested(absmax, table):
    offset = mean(absmax)
    centred = absmax - offset
    codes, scales = [], []
    for first in range(0, len(absmax), 256):
        part = centred[first:first + 256]
        scale = np.max(np.abs(part))
        inverse = np.float32(1) / np.maximum(scale, np.float32(1e-38))
        codes.append(nearest(part * inverse, table))
        scales.append(scale)
    codes, scales = np.concatenate(codes), np.array(scales, dtype=np.float32)
    theirs, _ = F.quantize_blockwise(torch.from_numpy(centred), code=torch.from_numpy(table),
                                     blocksize=256)
    return {
        "offset": hexed(offset),
        "nested_absmax": hexed(scales),
        "absmax8": codes.tobytes().hex(),
        "cpu_mismatches": int((theirs.numpy().ravel() != codes).sum()),
    }


def case(seed, count, block_size, code, dynamic_map):
    weight = inputs(seed, count)
    packed, state = F.quantize_4bit(torch.from_numpy(weight), blocksize=block_size,
                                    quant_type="nf4")
    packed, absmax = packed.numpy().ravel(), state.absmax.numpy()
    codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()[:count]
    decoded = code[codes] * np.repeat(absmax, block_size)[:count]
    result = {
        "seed": seed,
        "count": count,
        "block_size": block_size,
        "packed": packed.tobytes().hex() if count < 500 else None,
        "packed_sha256": hashlib.sha256(packed.tobytes()).hexdigest(),
        "absmax": hexed(absmax) if len(absmax) < 20 else None,
        "absmax_sha256": hashlib.sha256(absmax.tobytes()).hexdigest(),
        "decoded_sha256": hashlib.sha256(decoded.tobytes()).hexdigest(),
        "decoded_bf16_sha256": hashlib.sha256(
            torch.from_numpy(decoded).bfloat16().view(torch.int16).numpy().tobytes()).hexdigest(),
        "decoded_f16_sha256": hashlib.sha256(
            torch.from_numpy(decoded).half().view(torch.int16).numpy().tobytes()).hexdigest(),
    }
    if len(absmax) > 256:
        result["nested"] = nested(absmax, dynamic_map)
    return {key: value for key, value in result.items() if value is not None}


def main():
    code = F.get_4bit_type("nf4", device="cpu").data.numpy()
    dynamic_map = F.create_dynamic_map(signed=True).numpy()
    cases = [(1, 1, 64), (2, 63, 64), (3, 64, 64), (4, 65, 64), (5, 197, 64), (6, 33, 32),
             (7, 1000, 128), (8, 4097, 4096), (9, 40000, 64), (10, 30001, 32)]
    cases += [(20 + i, 9000, 32 << i) for i in range(8)]
    json.dump({
        "made_with": f"bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}",
        "code": hexed(code),
        "dynamic_map": hexed(dynamic_map),
        "cases": [case(*c, code, dynamic_map) for c in cases],
    }, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
