# ruff: noqa: E501  templates have the lines that models give them
"""Chat templates: the text that transformers renders, and an end for every hostile template."""

import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import HARD_TEXTS, TEMPLATE

from fastllm import DataError, FormatError

jinja2 = pytest.importorskip("jinja2")

from fastllm.tokenizers import chat_template  # noqa: E402
from fastllm.tokenizers.chat_template import BUDGET, MOST_SOURCE, ChatTemplate, compiled  # noqa: E402

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
    """user and assistant in turn; None stands before a system message."""
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
        check(TEMPLATES[name], messages_of(texts), add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30)
@given(texts=st.lists(st.text(st.sampled_from("ab <>|/\n{}%'\"é</think>")), max_size=5), system=st.booleans())
def test_any_messages(name, texts, system):
    pytest.importorskip("transformers")
    check(TEMPLATES[name], messages_of([None, *texts] if system and texts else texts), add_generation_prompt=True)


def check(template, messages, **variables):
    expected = transformers_render(template, messages, **VARIABLES, **variables)
    if isinstance(expected, str):
        assert compiled(template).render(messages, **VARIABLES, **variables) == expected
    else:
        with pytest.raises((DataError, FormatError)):
            compiled(template).render(messages, **VARIABLES, **variables)


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


# Hostile templates

NAMESPACE = "{% set ns = namespace(s='aaaa', t=[1]) %}"
GROWING = NAMESPACE + "{% for i in range(100) %}{% set ns.s = HERE %}{% endfor %}"
NESTED = NAMESPACE + "{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}HERE"
TUPLES = NESTED.replace("[1]", "(1,)").replace("[ns.t, ns.t]", "(ns.t, ns.t)")
FOREVER = "{% for i in range(99999) %}"
MUCH = "{% set s = 'a' * 1000000 %}{% set t = 'a' * 1000000 %}" + FOREVER

TOO_MUCH = {
    "loops": FOREVER * 4 + "{% endfor %}" * 4,
    "loops with text": FOREVER + "x" * 5000 + "{% endfor %}",
    "a block set": "{% set a %}" + FOREVER + "x" * 5000 + "{% endfor %}{% endset %}",
    "a filtered loop": (FOREVER[:-3] + " if [][5] %}{% endfor %}") * 200,
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a string times": "{{ 'a' * 10 ** 10 }}",
    "times a string": "{{ 10 ** 9 * 'a' }}",
    "a list times": "{{ ([1] * 10 ** 9)|length }}",
    "a power": "{{ 10 ** 100000 }}",
    "a product": "{% set ns = namespace(n=7) %}{% for i in range(40) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "growing by ~": GROWING.replace("HERE", "ns.s ~ ns.s"),
    "growing by +": GROWING.replace("HERE", "ns.s + ns.s"),
    "growing by a filter": GROWING.replace("HERE", "ns.s|replace('a', 'aaaaaa')"),
    "growing by a method": GROWING.replace("HERE", "ns.s.replace('', 'aaaaaa')"),
    "growing by %": GROWING.replace("HERE", "'%s%s' % (ns.s, ns.s)"),
    "growing by join": GROWING.replace("HERE", "[ns.s, ns.s]|join(ns.s)"),
    "growing by join, a method": GROWING.replace("HERE", "ns.s.join([ns.s, ns.s])"),
    "growing by escapes": GROWING.replace("HERE", "ns.s|replace('a', '&')|e|replace('a', '&')"),
    "growing lists": NAMESPACE + "{% for i in range(100) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "nested lists shown": NESTED.replace("HERE", "{{ ns.t }}"),
    "nested lists joined": NESTED.replace("HERE", "{{ ns.t ~ 'a' }}"),
    "nested lists as JSON": NESTED.replace("HERE", "{{ ns.t|tojson }}"),
    "nested lists compared": NESTED.replace("HERE", "{% set a = ns.t %}{{ [ns.t] == [a] }}"),
    "nested lists tested": NESTED.replace("HERE", "{{ ns.t is in [ns.t] }}"),
    "nested lists formatted": NESTED.replace("HERE", "{{ '%s' % [ns.t] }}"),
    "nested lists sought": NESTED.replace("HERE", "{{ [[1]].index(ns.t) }}"),
    "nested lists sorted": NESTED.replace("HERE", "{{ [ns.t, ns.t]|sort }}"),
    "nested tuples as keys": TUPLES.replace("HERE", "{{ {ns.t: 1}|length }}"),
    "nested tuples looked up": TUPLES.replace("HERE", "{{ messages[0][ns.t] }}"),
    "nested tuples got": TUPLES.replace("HERE", "{{ messages[0].get(ns.t) }}"),
    "deep JSON": "{% set ns = namespace(t=range(9999)|list) %}{% for i in range(500) %}{% set ns.t = [ns.t] %}{% endfor %}"
    "{{ ns.t|tojson(indent=16) }}",
    "a wide word": "{{ 'a'.center(10 ** 10) }}{{ 'a'|center(10 ** 10) }}",
    "a word wide on the right": "{{ 'a'.ljust(10 ** 10) }}",
    "zeros": "{{ '1'.zfill(10 ** 10) }}",
    "tabs": "{{ ('\t' * 9).expandtabs(10 ** 9) }}",
    "indented": "{{ 'a\nb'|indent(10 ** 9) }}",
    "indented by a string": "{% set w = 'a' * 1000000 %}{{ ('a\n' * 1000000)|indent(w) }}",
    "long joints": "{{ range(90000)|join('x' * 1000000) }}",
    "characters": "{% set s = '日' * 5000000 %}{% set l = s|list %}",
    "words": "{% set s = 'ab ' * 9000000 %}{% set a = s.split() %}{% set b = s.split(' ') %}",
    "searches": MUCH + "{{ s in t }}{% endfor %}",
    "comparisons": MUCH + "{{ s == t }}{% endfor %}",
    "finds": MUCH + "{{ s.find('b') }}{% endfor %}",
    "slices": MUCH + "{% set a = s[1:] %}{% endfor %}",
    "upper": MUCH + "{{ s.upper()|length }}{% endfor %}",
    "many strings": "".join(f"{{% set n{i} = 'a' * 1000000 %}}" for i in range(100)),
    "maps": FOREVER + "{{ range(99999)|map('string')|map('upper')|list|length }}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_asks_for_too_much_ends(name, monkeypatch):
    monkeypatch.setattr(chat_template, "BUDGET", BUDGET // 20)  # for the sake of time
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"takes more than 2000000 steps, characters and items|4096 bits") as caught:
            ChatTemplate(TOO_MUCH[name]).render(messages_of(["Hi"]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000  # so many characters of four bytes, and as much for all else
    assert "\n" not in str(caught.value)


NOT_ALLOWED = [
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ ''['__class__']['__mro__'] }}", "unsafe"),
    ("{{ ''|attr('__class__') }}", "No filter named 'attr'"),
    ("{{ raise_exception.__globals__['x'] }}", "unsafe"),
    ("{{ namespace.__init__.__globals__ }}", "unsafe"),
    ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
    ("{{ self.__init__.__globals__ }}", "unsafe"),
    ("{{ dict.fromkeys([1]) }}", "fromkeys"),
    ("{{ '{0.__class__}'.format(1) }}", "unsafe"),
    ("{{ '{:1000000000}'.format(1) }}", "unsafe"),
    ("{{ '%1000000000d' % 1 }}", "short numbers"),
    ("{{ '%*d' % (1000000000, 1) }}", "short numbers"),
    ("{{ '%999999999d'|format(1) }}", "short numbers"),
    ("{{ strftime_now('%1000000000d') }}", "short"),
    ("{{ 5|round(-10 ** 9) }}", "100 digits"),
    ("{{ 5.5|round(10 ** 9, 'ceil') }}", "100 digits"),
    ("{{ [1]|tojson(indent=10 ** 9) }}", "indented by 0 to 16"),
    ("{{ [1, 2]|tojson(separators=('x' * 99, '')) }}", "separators"),
    ("{{ [1]|batch(10 ** 9, 'x') }}", "No filter named 'batch'"),
    ("{{ lipsum(n=10 ** 9) }}", "undefined"),
    ("{{ range(10 ** 9) }}", "Range too big"),
    ("{% include '/etc/passwd' %}", "without include"),
    ("{% import 'x' as y %}", "without import"),
    ("{% from 'x' import y %}", "without fromimport"),
    ("{% extends 'x' %}", "without extends"),
    ("{% block a %}{{ self.a() }}{% endblock %}", "without block"),
    ("{% for x in [[1]] recursive %}{{ loop(x) }}{% endfor %}", "recursive"),
    ("{% set l = [] %}{{ l.append(1) }}", "unsafe"),
    ("{{ messages[0].update({'a': 1}) }}", "unsafe"),
    ("{{ messages.clear() }}", "unsafe"),
    ("{{ namespace(__class__=1) }}", "underscore"),
    ("{% set n = namespace() %}{% set n._x = 1 %}", "underscore"),
    ("{% set n = namespace() %}{{ [n, n] }}", "plain values"),
    ("{{ namespace() }}", "plain value"),
    ("{{ messages|map('upper') }}", "plain value"),
    ("{{ [-10 ** 15]|map('=body')|list }}", "below 0"),
    ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
    ("{{ foo() }}", "'foo' is undefined"),
    ("{{ foo.bar.baz }}", "'foo' is undefined"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ 'a' + 1 }}", "TypeError"),
    ("{{ messages[0]() }}", "must not be called"),
    ("{{ x|nothing }}", "No filter named 'nothing'"),
    ("{{ x is nothing }}", "No test named 'nothing'"),
    ("{% for %}", "in line 1"),
    ("\n\n{% if 1 %}", "in line 3"),
    ("{{ 'a", "in line 1"),
    ("{% break %}", "SyntaxError"),
    ("{{" + "(" * 20000 + "}}", "RecursionError"),
    ("{{ " + "not " * 15000 + "1 }}", "RecursionError"),
    ("{% if 1 %}" * 500 + "{% endif %}" * 500, "RecursionError"),
    ("{% for a in b %}" * 50 + "{% endfor %}" * 50, "SyntaxError"),
    ("{{ " + "+".join("1" * 30000) + " }}", "RecursionError"),
    ("{{ a" + ".b" * 30000 + " }}", "RecursionError"),
    ("{{ a" + "|trim" * 10000 + " }}", "RecursionError"),
    ("{{ " + "9" * 60000 + " }}", "ValueError"),
    ("{#" * 30000, "end of comment"),
    ("{%-" * 20000, "tag name expected"),
    ("x" * (MOST_SOURCE + 1), f"at most {MOST_SOURCE} characters"),
]


@pytest.mark.parametrize(("source", "said"), NOT_ALLOWED, ids=[source[:40] for source, _ in NOT_ALLOWED])
def test_what_is_not_allowed_is_one_error(source, said):
    with pytest.raises(FormatError) as caught:
        ChatTemplate(source).render(messages_of(["Hi"]))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_long_template_and_a_long_conversation_are_fine():
    template = ChatTemplate("{{ a }}" * 9000)
    assert template.render([], a="é") == "é" * 9000
    messages = messages_of(["x" * 2000] * 1000)
    assert len(compiled(TEMPLATES["qwen3"]).render(messages)) > 2_000_000


def test_each_rendering_has_a_budget_of_its_own():
    template = ChatTemplate("{% for i in range(99999) %}{% endfor %}" * 8)
    assert [template.render([]) for _ in range(5)] == [""] * 5


def test_what_the_template_refuses_is_the_messages_fault():
    with pytest.raises(DataError, match="it says 'System role not supported'; change them"):
        compiled(TEMPLATES["gemma"]).render(messages_of([None, "Sys", "Hi"]))
    with pytest.raises(DataError, match="roles must alternate"):
        compiled(TEMPLATES["mistral"]).render([{"role": "user", "content": "a"}] * 2)


def test_messages_are_copies():
    messages = messages_of(["Hi"])
    ChatTemplate("{% set messages = [] %}").render(messages)
    assert messages == [{"role": "user", "content": "Hi"}]


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


@pytest.mark.parametrize("loops", [2000, 90000])
def test_filters_of_filters_are_no_chain_of_generators(loops):
    """Which, freed one by the other, would be the end of the process."""
    template = (
        "{% set ns=namespace(g=[1]) %}{% for i in range(LOOPS) %}{% set ns.g=ns.g|map('string') %}{% endfor %}"
        "{{ ns.g|first }}"
    ).replace("LOOPS", str(loops))
    code = (
        "from fastllm.tokenizers.chat_template import ChatTemplate\n"
        "from fastllm.errors import FastllmError\n"
        f"try: print(ChatTemplate({template!r}).render([{{'role': 'user', 'content': 'hi'}}]))\n"
        "except FastllmError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("1", "refused")


@pytest.mark.parametrize(
    "template",
    [
        "{% set x=('a'*20000)|replace(new='b'*100000,old='a') %}done",
        "{% set x=(['a']*20000)|join(attribute=0,d='x'*100000) %}done",
        "{{ ['a'*9000]|map('replace', new='b'*100000, old='a')|join }}",
    ],
)
def test_arguments_by_name_are_no_way_around_the_price(template):
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            ChatTemplate(template).render([{"role": "user", "content": "hi"}])
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


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
