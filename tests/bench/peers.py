"""The other implementations' arms of `graft bench kernels`: one line in, one line out.

    run ARM CALLS   -> {"wall": seconds of all calls, "cpu": seconds of this process}
    check ARM       -> {"error": "..."} when the arm cannot run here, else {}

One thread, 4096 x 4096 weights from a seed; everything is made at an arm's first use.
"""
import json
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print must not reach graft

import torch  # noqa: E402

torch.set_num_threads(1)
SIZE = 4096
MADE = {}


def once(function):
    def value():
        if function.__name__ not in MADE:
            MADE[function.__name__] = function()
        return MADE[function.__name__]
    return value


@once
def weight():
    return torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 0.02


@once
def packed():
    import bitsandbytes.functional as bnb
    return bnb.quantize_4bit(weight().bfloat16(), blocksize=64, quant_type="nf4")


@once
def dense():
    return weight().bfloat16()


def rows(count):
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(2)).bfloat16()


def bnb_quantize():
    import bitsandbytes.functional as bnb
    w = weight()
    return lambda: bnb.quantize_4bit(w, blocksize=64, quant_type="nf4")


def bnb_decode():
    import bitsandbytes.functional as bnb
    data, state = packed()
    return lambda: bnb.dequantize_4bit(data, state)


def bnb_forward(count):
    import bitsandbytes as bnb
    (data, state), x = packed(), rows(count)

    def call():
        with torch.no_grad():
            bnb.matmul_4bit(x, data.t(), quant_state=state)
    return call


def linear(count):
    w, x = dense(), rows(count)

    def call():
        with torch.no_grad():
            torch.nn.functional.linear(x, w)
    return call


def optimizer(make):
    parameter = torch.nn.Parameter(weight().clone())
    parameter.grad = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(3)) * 1e-3
    return make([parameter]).step


def bnb_adamw8():
    import bitsandbytes as bnb
    return optimizer(lambda p: bnb.optim.AdamW8bit(p, lr=1e-4, weight_decay=0.01))


def torch_adamw():
    return optimizer(lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.01, fused=True))


def aten_attention():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    make = lambda seed: torch.randn(4, 12, 256, 64, requires_grad=seed < 3,  # noqa: E731
                                    generator=torch.Generator().manual_seed(seed))
    q, k, v, dout = make(0), make(1), make(2), make(3)

    def call():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(out, (q, k, v), dout)
    return call


ARMS = {
    "bitsandbytes quantize": bnb_quantize,
    "bitsandbytes decode": bnb_decode,
    "bitsandbytes forward 1": lambda: bnb_forward(1),
    "bitsandbytes forward 16": lambda: bnb_forward(16),
    "bitsandbytes forward 256": lambda: bnb_forward(256),
    "at::linear 256": lambda: linear(256),
    "bitsandbytes AdamW8bit": bnb_adamw8,
    "torch AdamW fused": torch_adamw,
    "ATen flash": aten_attention,
}
READY = {}


def answer(line):
    verb, _, rest = line.strip().partition(" ")
    name, calls = (rest, 0) if verb == "check" else rest.rsplit(" ", 1)
    if name not in READY:
        READY[name] = ARMS[name]()
        READY[name]()
    if verb == "check":
        return {}
    call = READY[name]
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(int(calls)):
        call()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


for request in sys.stdin:
    try:
        result = answer(request)
    except Exception as error:  # noqa: BLE001 - told to the other side, which names the arm
        result = {"error": f"{type(error).__name__}: {error}"[:300]}
    answers.write(json.dumps(result) + "\n")
    answers.flush()
