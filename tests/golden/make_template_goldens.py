#!/usr/bin/env python3
"""Renders the templates below with transformers' own renderer -> template_golden.jsonl: {"name", "template",
"messages", "tools", "add_generation_prompt", "vars", "text", "spans"} or "error" instead of the last two.

usage: make_template_goldens.py          (see HOW_text.md for the versions)
"""
import json
import os

from transformers.utils.chat_template_utils import render_jinja_template

HERE = os.path.dirname(os.path.abspath(__file__))
VARS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}{% for m in loop_messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}{% else %}{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
    {% if message['role'] == 'assistant' %}
        {% set role = 'model' %}
    {% else %}
        {% set role = message['role'] %}
    {% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
GENERATION = """{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
    {{- '<|assistant|>\\n' }}
    {%- generation %}
    {{- message['content'] | trim + eos_token }}
    {%- endgeneration %}
{%- else %}
    {{- '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""
TOOLS = """{%- macro show(tool, mark='-') %}
{{ mark }} {{ tool.name | upper }}: {{ tool.parameters | tojson }}
{%- endmacro %}
{%- set ns = namespace(calls=0, last='') %}
{%- if tools is defined and tools is not none %}
Tools ({{ tools | length }}):
    {%- for tool in tools %}
        {{- show(tool.function, mark='*') }}
    {%- endfor %}
{%- endif %}
{%- for m in messages if m.role != 'system' %}
    {%- set ns.calls = ns.calls + (m.tool_calls | length if m.tool_calls is defined else 0) %}
    {%- if m.content is string %}[{{ m.role }}]{{ m.content.split('</think>')[-1].lstrip('\\n') }}
    {%- elif m.content is iterable and m.content is not none %}
        {%- for part in m.content if part.type == 'text' %}{{ part.text }}{% if not loop.last %}, {% endif %}{% endfor %}
    {%- endif %}
    {%- for call in m.get('tool_calls') or [] %}
<call {{ loop.index }}/{{ loop.length }}>{{ call.function.arguments | tojson(indent=2) }}</call>
    {%- endfor %}
{%- else %}
none
{%- endfor %}
{{ 'calls: ' ~ ns.calls ~ ' ' ~ [1, 2.5, none, true, {'k': 'v"'}] ~ ' ' ~ (7 // 2, -7 // 2, 7 % 3, -7 % 3, 1 / 4) }}"""
WORDS = """{% set x = messages[0]['content'] %}
{{ x[::-1] }}|{{ x[1:3] }}|{{ x[-2:] }}|{{ x | upper }}|{{ x.title() }}|{{ x.split(',') | join('-') }}|{{ x | replace('a', 'bb') }}
  {#- comment -#}
  {% set y %}  block {{ x }} {% endset %}
{{ y | trim | length }} {{ 'in' if 'a' in x else 'out' }} {{ missing | default('none') }} {{ x is string and x is not none }}
{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}={{ v }}{{ ';' if not loop.last }}{% endfor %}
{% for i in range(10) %}{% if i == 3 %}{% continue %}{% elif i > 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{%+ if true %}  kept {%+ endif +%}
{{ messages | map(attribute='role') | unique | list }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% filter upper %}shout {{ x }}{% endfilter %}
{% with a = 1, b = 'z' %}{{ a }}{{ b }}{% endwith %} {{ x.startswith('h') }} {{ x.endswith(('q', 'o')) }} {{ "%s" is defined }}
{% call(w) twice('q') %}<{{ w }}>{% endcall %}
""".replace("{% call", "{% macro twice(v) %}{{ caller(v) }}{{ caller(v ~ v) }}{% endmacro %}{% call")
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "gemma": GEMMA, "generation": GENERATION, "tools": TOOLS, "words": WORDS,
             "undefined_attribute": "{{ missing.name }}", "none_plus": "{{ 'a' + none }}", "raises": "{{ raise_exception('no') }}",
             "huge_range": "{% for i in range(1000000000) %}x{% endfor %}", "newlines": "a\r\nb{{ '\\n' }}\r{% if true %}\n\nc{% endif %}\n\n"}
TOOL = {"type": "function", "function": {"name": "f", "description": "é<", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": "é<\n\"", "z": [1.0, 1e22, None]}}}
CHATS = [
    ([{"role": "user", "content": "hello, a-o"}], None),
    ([{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "hi\n"}, {"role": "assistant", "content": " ok "}], None),
    ([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "é日🙂"},
      {"role": "assistant", "content": "<think>\nx\n</think>\n\nYes."}], None),
    ([{"role": "assistant", "content": "first"}], None),
    ([{"role": "user", "content": [{"type": "text", "text": "p1"}, {"type": "image"}, {"type": "text", "text": "p2"}]},
      {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}, {"role": "tool", "name": "f", "content": "42"}], [TOOL]),
    ([], None),
]


def main():
    with open(os.path.join(HERE, "template_golden.jsonl"), "w") as out:
        for name, template in TEMPLATES.items():
            for messages, tools in CHATS:
                for prompt in (False, True):
                    row = {"name": name, "template": template, "messages": messages, "tools": tools,
                           "add_generation_prompt": prompt, "vars": VARS}
                    try:
                        text, spans = render_jinja_template([messages], tools=tools, chat_template=template,
                                                            add_generation_prompt=prompt, return_assistant_tokens_mask=True, **VARS)
                        row.update(text=text[0], spans=spans[0] if spans else [])
                    except Exception as error:
                        row["error"] = str(error)
                    out.write(json.dumps(row) + "\n")


main()
