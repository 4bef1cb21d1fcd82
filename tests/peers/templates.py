"""Fresh conversations, rendered by graft and by transformers: text, generation spans and refusals.

Every chat template under `directory` with seeded conversations that no golden file holds: several
turns, system texts, tools, tool calls with arguments of every JSON type, null content, white space
and characters outside ASCII.
"""
import datetime
import json
import random

from transformers.utils.chat_template_utils import render_jinja_template

WORDS = ["order", "größe", "日本", "🙂", "a<b>&c", "\"quoted\"", "x\\y", "{{ m }}", "{% if %}", "<think>", "tab\there",
         "line\nbreak", "trailing ", " leading", "'single'", "№ 7", "0", "true"]
VARS = {"bos_token": "<s>", "eos_token": "</s>", "date_string": "26 Jul 2024"}


def text(rng):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))


def value(rng, depth=0):
    kinds = ["text", "int", "float", "bool", "null"] + (["list", "dict"] if depth < 2 else [])
    kind = rng.choice(kinds)
    if kind == "text":
        return text(rng)
    if kind == "int":
        return rng.randint(-10**6, 10**12)
    if kind == "float":
        return rng.choice([0.5, -1.25, 1e-7, 3.0, 1e22])
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "null":
        return None
    if kind == "list":
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {f"k{i}": value(rng, depth + 1) for i in range(rng.randint(0, 3))}


def tool(rng, name):
    return {"type": "function", "function": {
        "name": name, "description": text(rng),
        "parameters": {"type": "object", "properties": {
            "x": {"type": rng.choice(["integer", "string", "number"]), "description": text(rng)},
            "y": {"type": "array", "items": {"type": "string"}}}, "required": ["x"]}}}


def conversation(rng):
    messages, tools = [], None
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": text(rng)})
    with_tools = rng.random() < 0.4
    if with_tools:
        tools = [tool(rng, f"f{i}") for i in range(rng.randint(1, 3))]
    for _ in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": text(rng)})
        if with_tools and rng.random() < 0.6:
            call = {"type": "function", "id": "call12345", "function": {
                "name": "f0", "arguments": {"x": value(rng), "y": value(rng)}}}
            messages.append({"role": "assistant", "content": rng.choice(["", text(rng)]), "tool_calls": [call]})
            messages.append({"role": "tool", "name": "f0", "tool_call_id": "call12345", "content": text(rng)})
        answer = {"role": "assistant", "content": text(rng)}
        if rng.random() < 0.2:
            answer["reasoning_content"] = text(rng)
        messages.append(answer)
    prompt = rng.random() < 0.4
    if prompt:
        messages.pop()
    return {"messages": messages, "tools": tools, "add_generation_prompt": prompt, "vars": VARS}


def reference(source, row):
    try:
        rendered, spans = render_jinja_template(
            [row["messages"]], tools=row["tools"], chat_template=source,
            add_generation_prompt=row["add_generation_prompt"], return_assistant_tokens_mask=True, **row["vars"])
    except Exception as error:  # noqa: BLE001 - any refusal is one
        return {"error": str(error)}
    return {"text": rendered[0], "spans": [list(span) for span in (spans[0] if spans else [])]}


def compare(graft, directory, per_template, seed):
    """Returns (templates, renders, refusals of both, differences)."""
    today = datetime.date.today().isoformat()
    rng = random.Random(seed)
    files = sorted(directory.rglob("*.jinja"))
    renders = refusals = 0
    differences = []
    for path in files:
        source = path.read_text()
        rows = [conversation(rng) for _ in range(per_template)]
        lines = graft("data", "render", "--template", path, "--now", today,
                      text="".join(json.dumps(row) + "\n" for row in rows)).splitlines()
        for row, line in zip(rows, lines, strict=True):
            got, expected = json.loads(line), reference(source, row)
            if "error" in expected:
                refusals += 1
                equal = "error" in got
            else:
                renders += 1
                equal = got.get("text") == expected["text"] and got.get("spans") == expected["spans"]
            if not equal:
                differences.append((path.name, row, expected, got))
    return len(files), renders, refusals, differences
