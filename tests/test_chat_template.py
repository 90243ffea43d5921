# ruff: noqa: E501  templates have the lines that models give them
"""Chat templates: the text that transformers renders. Hostile ones are in test_chat_template_hostile.py."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import HARD_TEXTS, TEMPLATE

import fastllm
from fastllm import DataError, FormatError
from fastllm.dialogue import prompt_tokens
from fastllm.tokenizers.huggingface_document import chat_templates_of

jinja2 = pytest.importorskip("jinja2")

from fastllm.tokenizers.chat_template import ChatTemplate, compiled  # noqa: E402

# Of the constructs that models' templates are made of.
TEMPLATES = {
    "smollm": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are kind<|im_end|>\n' }}{% endif %}" + TEMPLATE.removeprefix("{% for message in messages %}"),
    "llama3": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
    "qwen3": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}
""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ '<|assistant|>\\n'  + message['content'] + eos_token }}{% endgeneration %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "odds and ends": """{#- a comment #}
{%- macro turn(role, content='', mark="#") -%}
    {{ mark * 2 ~ role|capitalize }}: {{ content|replace('a', 'A')|default('none', true) }}{{ caller() if caller else '' }}
{%- endmacro %}
{%- set joined %}{% for m in messages %}{{ m.role[:2] }}{{ ", " if not loop.last }}{% endfor %}{% endset %}
{{ joined|upper }} {{ messages|map(attribute='role')|unique|join('/') }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ 7 % 4 }} {{ 1 / 4 }}
{%- for m in messages if m.role != 'system' %}
    {%- if loop.index > 3 %}{% break %}{% endif %}
    {%- if not m.content %}{% continue %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ loop.cycle('odd', 'even') }} {{ turn(m.role, m.content) }}
    {%- for key, value in m.items() %} {{ key }}={{ value|length }}{% endfor %}
    {%- for key in m|dictsort %} {{ key[0] }}{% endfor %}
{% else %}
none
{% endfor %}
{%- call turn('x', mark='=') %}!{% endcall %}
{%- filter upper %}shout {{ 'it' }}{% endfilter %}
{%- with a = 1, b = [1, 2, {'c': none}] %}{{ a }} {{ b }} {{ b|tojson }} {{ {'k': "é<"}|tojson(indent=2) }}{% endwith %}
{{- [3, 1, 2]|sort|first }}{{ 'a,b'.split(',')|last }}{{ missing }}{{ missing is defined }}{{ true and not false }}{{ none }}
{{- range(3)|list }}{{ 'x' in 'xyz' }}{{ "%s-%03d" % ('a', 7) }}{{ "%s"|format(5) }}{{ 'é' | e }}{{ '<b>'|e }}{{ dict(a=1).a }}
{{- (messages|length) if messages else 0 }}{{ cycler('a', 'b').next() }}{{ 3.75|round(1) }}{{ -5|abs }}{{ '5'|int + 1 }}
{{- "a\\nb"|indent(2) }}{{ 'abc'[::-1] }}{{ 'word word'|title|wordcount }}{{ ' x '|trim }}{{ strftime_now('%%') }}{{ {}.get('a', 'b') }}
{{- messages|selectattr('role', 'in', ['user'])|list|length }}{{ [1, 2]|reverse|list }}{{ namespace(a=1).a }}{{ 1 < 2 < 3 }}
""",
}  # fmt: skip

CONVERSATIONS = [
    [],
    ["Hi"],
    ["Hi", " Hello <there>\n", "And  now?\n"],
    [None, "You are terse.", "Hi"],
    [None, "Sys", "a", "<think>\nhm\n</think>\n\nb", "c</think>d", "e"],
    ["", "", "a"],
    [None, "Sys", "<|im_end|>", "[INST]"],
    HARD_TEXTS,
]


def messages_of(texts):
    """Messages of user and assistant in turn; a leading None marks the next text as the system message."""
    system = [{"role": "system", "content": texts[1]}] if texts[:1] == [None] else []
    rest = texts[2 if system else 0 :]
    return system + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(rest)]


def transformers_render(template, messages, **variables):
    """The text, or the error in place of it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        return render_jinja_template([messages], chat_template=template, **variables)[0][0]
    except (jinja2.TemplateError, TypeError) as error:
        return type(error)


VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_the_text_is_transformers_text(name, add_generation_prompt):
    pytest.importorskip("transformers")
    for texts in CONVERSATIONS:
        check(TEMPLATES[name], messages_of(texts), add_generation_prompt)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30)
@given(texts=st.lists(st.text(st.sampled_from("ab <>|/\n{}%'\"é</think>")), max_size=5), system=st.booleans())
def test_any_messages(name, texts, system):
    pytest.importorskip("transformers")
    check(TEMPLATES[name], messages_of([None, *texts] if system and texts else texts), True)


def check(template, messages, add_generation_prompt):
    expected = transformers_render(template, messages, add_generation_prompt=add_generation_prompt, **VARIABLES)
    if isinstance(expected, str):
        assert compiled(template).render(messages, add_generation_prompt, VARIABLES) == expected
    else:
        with pytest.raises((DataError, FormatError)):
            compiled(template).render(messages, add_generation_prompt, VARIABLES)


# Statements that keep the rules of scope, drawn at random.
EXPRESSIONS = st.sampled_from(
    ["a", "b", "ns.v", "i", "1", "'x'", "a ~ b", "loop.index", "messages[0].content", "missing", "[a, b]", "a == b"]
)
NAMES = st.sampled_from(["a", "b", "i"])
STATEMENTS = st.recursive(
    st.builds("{{{{ {} }}}}".format, EXPRESSIONS)
    | st.builds("{{% set {} = {} %}}\n".format, NAMES, EXPRESSIONS)
    | st.builds("{{% set ns.v = {} %}}".format, EXPRESSIONS)
    | st.sampled_from([" text\n", "  {%- if a %} x {% endif -%}\n ", "{% break %}", "{% continue %}"]),
    lambda inner: st.builds(
        lambda kind, name, body, other: kind.format(name, "".join(body), "".join(other)),
        st.sampled_from([
            "{{% for {0} in [1, 2] %}}{1}{{% else %}}{2}{{% endfor %}}",
            "{{% for {0} in messages %}}{1}\n{{% endfor %}}{2}",
            "{{% if {0} %}}{1}{{% elif a == 1 %}}{{% set b = 5 %}}{{% else %}}{2}{{% endif %}}",
            "{{% set {0} %}}{1}{{% endset %}}{2}",
            "{{% with {0} = 7 %}}{1}{{% endwith %}}{2}",
            "{{% macro m({0}) %}}{1}{{% endmacro %}}{2}{{{{ m(3) }}}}",
            "{{% generation %}}{1}{{% endgeneration %}}{2}",
        ]),
        NAMES,
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2),
    ),
    max_leaves=12,
)  # fmt: skip


@given(parts=st.lists(STATEMENTS, max_size=5))
def test_any_template(parts):
    pytest.importorskip("transformers")
    template = "{% set ns = namespace(v=0) %}{% set a = 1 %}" + "".join(parts)
    messages = messages_of(["Hi", "Ho"])
    try:
        expected = transformers_render(template, messages)
    except SyntaxError:  # break outside of a loop; transformers lets it through
        expected = SyntaxError
    if isinstance(expected, str):
        assert ChatTemplate(template).render(messages) == expected
    else:
        with pytest.raises((DataError, FormatError)):
            ChatTemplate(template).render(messages)


def test_a_long_template_and_a_long_conversation_are_fine():
    template = ChatTemplate("{{ a }}" * 9000)
    assert template.render([], variables={"a": "é"}) == "é" * 9000
    messages = messages_of(["x" * 2000] * 1000)
    assert len(compiled(TEMPLATES["qwen3"]).render(messages)) > 2_000_000


def test_what_the_template_refuses_is_the_messages_fault():
    with pytest.raises(DataError, match="it says 'System role not supported'; change them"):
        compiled(TEMPLATES["gemma"]).render(messages_of([None, "Sys", "Hi"]))
    with pytest.raises(DataError, match="roles must alternate"):
        compiled(TEMPLATES["mistral"]).render([{"role": "user", "content": "a"}] * 2)


def test_messages_are_copies():
    messages = messages_of(["Hi"])
    ChatTemplate("{% set messages = [] %}").render(messages)
    assert messages == [{"role": "user", "content": "Hi"}]


def test_special_tokens_named_like_what_the_renderer_gives():
    tokenizer = fastllm.ByteTokenizer()
    tokenizer.chat_template = (
        "{{ messages[0].content }}{{ x }}{{ tools is none }}{{ documents is none }}"
        "{% if add_generation_prompt %}!{% endif %}"
    )
    names = ("messages", "self", "add_generation_prompt", "variables", "tools", "documents", "x")
    tokenizer.special_tokens = dict.fromkeys(names, "<s>")
    for prompt, end in ((True, "!"), (False, "")):
        ids = prompt_tokens(tokenizer, messages_of(["Hi"]), add_generation_prompt=prompt)
        assert tokenizer.decode(ids) == "Hi<s>TrueTrue" + end


@pytest.mark.parametrize(
    "value",
    [
        "a\ud800",
        {"default": "a", "tool_use": "\udfff"},
        [{"name": "default", "template": "\ud800"}],
        [{"name": "\ud800", "template": "a"}],
    ],
)
def test_a_lone_surrogate_is_refused_where_it_is_read(value):
    with pytest.raises(ValueError, match=r"chat_template must be valid Unicode; got .*; copy tokenizer_config.json"):
        chat_templates_of(value)


def test_without_jinja2_one_error_says_what_to_install():
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "import fastllm\nfrom fastllm.dialogue import prompt_tokens\n"
        "tokenizer = fastllm.ByteTokenizer(); tokenizer.chat_template = 'x'\n"
        "try: prompt_tokens(tokenizer, [])\n"
        "except fastllm.FastllmError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("a chat template needs the package jinja2; got ")
    assert done.stdout.endswith('; pip install "fastllm-numba[hf]"\n')


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{ 'abab'|replace(new='x', old='a') }}", "xbxb"),
        ("{{ 'abab'|replace('a', count=1, new='x') }}", "xbab"),
        ("{{ messages|join(', ', attribute='role') }}", "user"),
        ("{{ [1, 2]|join(d='-') }}", "1-2"),
        ("{{ 'a'|center(width=3) }}|", " a |"),
    ],
)
def test_arguments_by_name(template, shown):
    assert ChatTemplate(template).render([{"role": "user", "content": "hi"}]) == shown
