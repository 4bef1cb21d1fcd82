#!/usr/bin/env python3
"""Proves that the tests notice: applies one-line mutations and expects a test to fail.

Usage: run.py [text of a mutation's title or file]        (`make mutate`)

Every *.mutants file beside this script lists mutations:

    # What would go wrong for a user.
    in data/text/mask.cpp
    - the line as it stands (once in the file, without its indent)
    + the line that it becomes
    test text "tests to run, as Catch2 selects them"

They are applied to a copy of the tree in build/mutants, so only the mutated file and what links it
is built again; the tests named must pass on the tree as it is. Prints caught n of n; exit code 1
when a mutation survives.
"""
import pathlib
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPY, BUILD = ROOT / "build/mutants/tree", ROOT / "build/mutants/build"


def read_mutations(path):
    mutations, current = [], None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        kind, _, rest = line.partition(" ")
        if not line.strip():
            current = None
        elif kind == "#":
            if current is None:
                current = {"title": rest, "at": f"{path.name}:{number}"}
                mutations.append(current)
            else:
                current["title"] += " " + rest
        elif kind == "in":
            current["file"] = rest
        elif kind == "-":
            current["old"] = rest
        elif kind == "+":
            current["new"] = rest
        elif kind == "test":
            current["program"], current["tests"] = shlex.split(rest)
        else:
            sys.exit(f"error: {path.name}:{number}: a line must begin with #, in, -, + or test")
    return mutations


def refresh_copy():
    """Copies what differs, so that ninja builds only that."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, listed):
        source, target = ROOT / name, COPY / name
        if not source.is_file():
            continue
        data = source.read_bytes()
        if not target.exists() or target.read_bytes() != data:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(source.stat().st_mode & 0o777)


def build(program):
    return subprocess.run(["cmake", "--build", str(BUILD), "--target", f"test_{program}"], capture_output=True, text=True)


def passes(program, tests):
    environment = {"GRAFT_SHARED": str(ROOT.parent / "shared"), "PATH": "/usr/bin:/bin"}
    try:
        pattern = tests.replace(",", "\\,")  # a comma would begin another pattern
        done = subprocess.run([str(BUILD / f"bin/test_{program}"), pattern], capture_output=True, text=True,
                              env=environment, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return False  # a mutation may loop
    if "No test cases matched" in done.stdout + done.stderr:
        sys.exit(f"error: no test of test_{program} is named {tests}")
    return done.returncode == 0


def place_of(mutation):
    """Index of the one line to change."""
    lines = (COPY / mutation["file"]).read_text().splitlines()
    places = [i for i, line in enumerate(lines) if line.strip() == mutation["old"].strip()]
    if len(places) != 1:
        sys.exit(f"error: {mutation['at']}: {mutation['file']} has the line {len(places)} times, expected once:\n"
                 f"  {mutation['old']}\n  fix: bring the mutation up to date")
    return places[0]


def mutate(mutation):
    """Whether a test noticed."""
    path = COPY / mutation["file"]
    original = path.read_text()
    lines = original.splitlines()
    lines[place_of(mutation)] = mutation["new"]
    path.write_text("\n".join(lines) + "\n")
    try:
        built = build(mutation["program"])
        if built.returncode != 0:
            sys.exit(f"error: {mutation['at']}: the mutation does not compile\n{built.stdout[-2000:]}")
        return not passes(mutation["program"], mutation["tests"])
    finally:
        path.write_text(original)


def main():
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    mutations = [m for path in sorted(pathlib.Path(__file__).parent.glob("*.mutants")) for m in read_mutations(path)
                 if wanted in m["title"] or wanted in m["file"]]
    COPY.mkdir(parents=True, exist_ok=True)
    refresh_copy()
    for mutation in mutations:
        place_of(mutation)
    subprocess.run(["cmake", "-S", str(COPY), "-B", str(BUILD), "-G", "Ninja", "-DGRAFT_TESTS=ON", "-DGRAFT_TORCH=OFF",
                    "-DGRAFT_CUDA=off"], capture_output=True, check=True)
    for program in sorted({m["program"] for m in mutations}):
        built = build(program)
        if built.returncode != 0:
            sys.exit(f"error: test_{program} does not build\n{built.stdout[-2000:]}")
    for program, tests in sorted({(m["program"], m["tests"]) for m in mutations}):
        if not passes(program, tests):
            sys.exit(f"error: test_{program} fails without a mutation: {tests}")
    survivors = []
    for number, mutation in enumerate(mutations, 1):
        start = time.time()
        caught = mutate(mutation)
        if not caught:
            survivors.append(mutation)
        print(f"{number:3} {'caught  ' if caught else 'SURVIVED'} {mutation['title']}  "
              f"({mutation['file']}, {time.time() - start:.0f} s)", flush=True)
    for program in sorted({m["program"] for m in mutations}):
        build(program)  # the next run starts from an unmutated build
    print(f"caught {len(mutations) - len(survivors)} of {len(mutations)}")
    return 1 if survivors else 0


sys.exit(main())
