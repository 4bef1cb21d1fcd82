#!/usr/bin/env python3
"""Records in every form that datasets give them, and what transformers renders for what they mean ->
record_golden.jsonl: {"name", "record", "template", "text"}.

A form is the record as it stands in a file (tool arguments as JSON text, null content, lists of
parts, the null members that Parquet pads records with); beside it here stands the conversation that
it means, which transformers renders.

usage: make_record_goldens.py          (see HOW_text.md for the versions)
"""
import copy
import json
import os

from transformers.utils.chat_template_utils import render_jinja_template

HERE = os.path.dirname(os.path.abspath(__file__))
# Shows every difference that a template can see: kinds, absent members, order, number formats.
KINDS = """{%- for t in tools or [] %}<tool>{{ t | tojson }}</tool>{% endfor %}
{%- for m in messages %}<{{ m.role }}{% for k in m if k not in ['role', 'content', 'tool_calls'] %} {{ k }}={{ m[k] }}{% endfor %}>
{%- if m.content is not defined %}absent{% elif m.content is none %}null{% elif m.content is string %}text:{{ m.content }}
{%- else %}{% for p in m.content %}[{% for k, v in p.items() %}{{ k }}:{{ v }};{% endfor %}]{% endfor %}{% endif %}
{%- for c in m.tool_calls or [] %}{% set f = c.function if c.function is defined else c %}
<call {{ f.name }}{{ ' text' if f.arguments is string }}>{{ f.arguments if f.arguments is string else f.arguments | tojson }}</call>{% endfor %}
{%- endfor %}"""
ARGUMENTS = {"city": "Köln", "days": [1, 2.0, None], "deep": {"a": None, "b": "<&>"}, "n": None}
CALL = {"type": "function", "id": "call_1", "function": {"name": "weather", "arguments": ARGUMENTS}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "é", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "n": {"type": ["integer", "null"], "default": 3}}, "required": ["city"]}}}
ASK, ANSWER = {"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "Yes."}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call_1", "content": "wet"}


def with_calls(calls, **content):
    return [ASK, {"role": "assistant", **content, "tool_calls": calls}, RESULT, ANSWER]


def text_call():
    call = copy.deepcopy(CALL)
    call["function"]["arguments"] = json.dumps(ARGUMENTS, ensure_ascii=False, separators=(",", ":"))
    return call


def without_nulls(value):
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def padded(messages, keys):
    return [{**m, **{k: None for k in keys if k not in m}} for m in messages]


def forms():
    """name, the record as it is given, the messages and tools that it means."""
    bare = {"name": "weather", "arguments": ARGUMENTS}
    yield "arguments as an object", {"messages": with_calls([without_nulls(CALL)], content="")}, with_calls([without_nulls(CALL)], content=""), None
    yield "arguments as a JSON text", {"messages": with_calls([text_call()], content="")}, with_calls([CALL], content=""), None
    yield "arguments that are no JSON", {"messages": with_calls([{"name": "f", "arguments": "x=1"}], content="")}, \
        with_calls([{"name": "f", "arguments": "x=1"}], content=""), None
    yield "arguments as a JSON list", {"messages": with_calls([{"name": "f", "arguments": "[1]"}], content="")}, \
        with_calls([{"name": "f", "arguments": "[1]"}], content=""), None
    yield "a call without the function wrapper", {"messages": with_calls([without_nulls(bare)], content="so")}, \
        with_calls([without_nulls(bare)], content="so"), None
    yield "null content beside calls", {"messages": with_calls([text_call()], content=None)}, with_calls([CALL], content=None), None
    yield "no content beside calls", {"messages": with_calls([text_call()])}, with_calls([CALL]), None
    yield "empty content beside calls", {"messages": with_calls([text_call()], content="")}, with_calls([CALL], content=""), None
    parts = [{"type": "text", "text": "Rain"}, {"type": "text", "text": "?"}]
    yield "content as parts", {"messages": [{"role": "user", "content": parts}, ANSWER]}, [{"role": "user", "content": parts}, ANSWER], None
    yield "parts with padding", {"messages": [{"role": "user", "content": [{**p, "image_url": None} for p in parts]}, ANSWER]}, \
        [{"role": "user", "content": parts}, ANSWER], None
    yield "messages with padding", {"messages": padded([ASK, ANSWER], ["tool_calls", "name", "tool_call_id", "reasoning_content"])}, [ASK, ANSWER], None
    padded_call = copy.deepcopy(without_nulls(CALL))
    padded_call["function"]["arguments"]["zip"] = None
    padded_call["index"] = None
    yield "calls with padding", {"messages": padded(with_calls([padded_call], content=""), ["tool_calls", "name"])}, \
        with_calls([without_nulls(CALL)], content=""), None
    padded_tool = copy.deepcopy(TOOL)
    padded_tool["function"]["parameters"]["properties"]["city"]["default"] = None
    padded_tool["function"]["strict"] = None
    yield "tools with padding", {"messages": [ASK, ANSWER], "tools": [padded_tool]}, [ASK, ANSWER], [TOOL]
    yield "tools as a JSON text", {"messages": [ASK, ANSWER], "tools": json.dumps([padded_tool])}, [ASK, ANSWER], [padded_tool]
    yield "tools that are null", {"messages": [ASK, ANSWER], "tools": None}, [ASK, ANSWER], None
    yield "a thought", {"messages": [ASK, {**ANSWER, "reasoning_content": "wet?"}]}, [ASK, {**ANSWER, "reasoning_content": "wet?", "thinking": "wet?"}], None
    yield "training members", {"messages": [{**ASK, "train": False}, {**ANSWER, "weight": 0.5}]}, [ASK, ANSWER], None
    yield "speakers", {"conversations": [{"from": "human", "value": "Rain?"}, {"from": "gpt", "value": "Yes."}]}, [ASK, ANSWER], None


def main():
    with open(os.path.join(HERE, "record_golden.jsonl"), "w") as out:
        for name, record, messages, tools in forms():
            text, _ = render_jinja_template([messages], tools=tools, chat_template=KINDS)
            out.write(json.dumps({"name": name, "record": record, "template": KINDS, "text": text[0]}) + "\n")


main()
