"""What the machine code of libgraft_cuda.so does: disassembled by the cuobjdump and nvdisasm that
Triton's wheel (a dependency of torch) brings along.

No kernel reads or writes local memory, and the forms for aligned arrays move whole words: 128 bits of
float32, 64 of bfloat16 (CLAIMS). Usage by hand: sass.py libgraft_cuda.so [ARCH…]
"""
import collections
import os
import pathlib
import re
import subprocess
import sys

ARCHITECTURES = ("sm_80", "sm_90a")

# Kernels, of which "Element, true" are the forms for aligned arrays, and what they have to hold. The
# element is what the access is of; a conversion reads one and writes the other.
CLAIMS = [
    (r"(addition|softcap_forward|softcap_backward|dropout|rope|rmsnorm_forward|rmsnorm_backward|"
     r"embedding_forward|scatter_rows)_kernel<(?P<read>\w+), true>", "read"),
    (r"gate_(forward|backward)_kernel<(?P<read>\w+), \(graft_gate\)\d, true>", "read"),
    (r"conversion_kernel<(?P<read>\w+), (?P<write>\w+), true>", "write"),
    (r"cross_entropy_kernel<(?P<read>\w+), (?P<write>\w+), true, \w+>", "write"),
]
# Kernel and instructions that it has to hold whatever its element.
FIXED_CLAIMS = [
    (r"decode_kernel<\w+, true>", ["STG.128"]),
    (r"decode_rows_kernel<\w+>", ["STG.128", "LDG.128"]),
    (r"small_product_kernel<\w+, [12]>", ["LDG.128"]),
    (r"adamw_step_kernel", ["LDG.128", "STG.128"]),
    (r"adamw_squares_kernel", ["LDG.128"]),
    (r"attention_(forward|query_gradient|key_gradient)_kernel<float, \d>", ["LDG.128", "LDS.128"]),
    (r"attention_(forward|query_gradient|key_gradient)_kernel<Bf16, \d>", ["LDG.64", "LDS.128"]),
    (r"attention_decode_kernel<float, \d>", ["LDG.128"]),
    (r"attention_decode_kernel<Bf16, \d>", ["LDG.64"]),
]
WIDTH = {"float": "128", "Bf16": "64"}


def tools():
    """The folder of Triton's cuobjdump, or None."""
    import importlib.util
    found = importlib.util.find_spec("triton")
    if found is None or not found.submodule_search_locations:
        return None
    folder = pathlib.Path(found.submodule_search_locations[0]) / "backends/nvidia/bin"
    return folder if (folder / "cuobjdump").exists() else None


def disassemble(folder, library, architecture):
    """{kernel: Counter of LDG.128, STG.32, LDL, …}"""
    environment = dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}")  # it runs nvdisasm
    text = subprocess.run([folder / "cuobjdump", "-arch", architecture, "-sass", library],
                          capture_output=True, text=True, env=environment, check=True).stdout
    kernels, current = {}, None
    for line in text.splitlines():
        name = re.match(r"\s*Function : (\S+)", line)
        if name:
            current = kernels.setdefault(name[1], collections.Counter())
            continue
        instruction = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*(LD[GLS]|ST[GLS])([.\w]*)", line)
        if instruction and current is not None:
            width = re.search(r"\.(128|64)\b", instruction[2])
            current[f"{instruction[1]}.{width[1] if width else '32'}"] += 1
    names = subprocess.run(["c++filt"], input="\n".join(kernels), capture_output=True, text=True,
                           check=True).stdout.splitlines()
    short = [re.sub(r"\(anonymous namespace\)::|graft::kernels::(cuda::)?|^void ", "", name)
             for name in names]
    return {name[:name.rindex("(")]: counts for name, counts in zip(short, kernels.values())}


def faults(kernels):
    """Lines that say which kernel does not hold what."""
    lines = []
    for name, counts in kernels.items():
        for access in counts:
            if access[:3] in ("LDL", "STL"):
                lines.append(f"{name}: {counts[access]} accesses of local memory ({access})")
    used = set()
    for name, counts in kernels.items():
        wanted = []
        for pattern, stored in CLAIMS:
            match = re.fullmatch(pattern, name)
            if match:
                used.add(pattern)
                wanted += [f"LDG.{WIDTH[match['read']]}", f"STG.{WIDTH[match[stored]]}"]
        for pattern, fixed in FIXED_CLAIMS:
            if re.fullmatch(pattern, name):
                used.add(pattern)
                wanted += fixed
        lines += [f"{name}: no {access}" for access in wanted if not counts[access]]
    for pattern in [p for p, _ in CLAIMS + FIXED_CLAIMS if p not in used]:
        lines.append(f"no kernel is called {pattern}")
    return lines


def check(library, architectures=ARCHITECTURES):
    """(kernels looked at, lines of what is wrong), or None without Triton's tools."""
    folder = tools()
    if folder is None:
        return None
    count, lines = 0, []
    for architecture in architectures:
        kernels = disassemble(folder, library, architecture)
        count += len(kernels)
        lines += [f"{architecture} {line}" for line in faults(kernels)]
        if not kernels:
            lines.append(f"{architecture}: no kernel at all")
    return count, lines


if __name__ == "__main__":
    looked_at, wrong = check(sys.argv[1], sys.argv[2:] or ARCHITECTURES)
    print("\n".join(wrong + [f"{looked_at} kernels, {len(wrong)} faults"]))
    sys.exit(bool(wrong))
