# ruff: noqa: E501  templates have the lines that their authors give them
"""An end, and one error, for every hostile chat template."""

import subprocess
import sys
import time
import tracemalloc

import pytest

from fastllm import DataError, FormatError

pytest.importorskip("jinja2")

from fastllm.tokenizers import chat_template
from fastllm.tokenizers.chat_template import BUDGET, MOST_SOURCE, ChatTemplate

HI = [{"role": "user", "content": "Hi"}]

NAMESPACE = "{% set ns = namespace(s='aaaa', t=[1]) %}"
GROWING = NAMESPACE + "{% for i in range(100) %}{% set ns.s = HERE %}{% endfor %}"
NESTED = NAMESPACE + "{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}HERE"
TUPLES = NESTED.replace("[1]", "(1,)").replace("[ns.t, ns.t]", "(ns.t, ns.t)")
FOREVER = "{% for i in range(99999) %}"
SOUGHT = "{% set s = 'a' * 200000 %}{% set p = 'ab' + 'a' * 100000 %}"
STRIPPED = "{% set s = 'a' * 200000 %}{% set p = 'b' * 100000 + 'a' %}"
SAME = "{% set same = [messages[0]] * 1000 %}"
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
    **{f"{n}, a method": f"{SOUGHT}{{% set x = s.{n}(p) %}}" for n in ("rfind", "rindex", "rpartition", "rsplit")},
    **{f"{n}, a method": f"{STRIPPED}{{% set x = s.{n}(p) %}}" for n in ("lstrip", "rstrip", "strip")},
    "trim, a filter": STRIPPED + "{{ s|trim(p) }}",
    "trim, by name": STRIPPED + "{{ s|trim(chars=p) }}",
    "a long path in map": SAME + "{{ same|map(attribute='role' ~ '.x' * 100000, default=1)|list|length }}",
    "many paths in sort": SAME + "{{ same|sort(attribute='role' ~ ',role' * 20000)|length }}",
    "large copies in sort": "{{ [{'a': 'x' * 100000}]|sort(attribute='a' ~ ',a' * 3000)|length }}",
    **{
        f"a long path in {name}": f"{SAME}{{{{ same|{name}('role' ~ '.0' * 30000)|list|length }}}}"
        for name in ("rejectattr", "selectattr")
    },
    **{
        f"a long path in {name}": f"{SAME}{{% set x = same|{name}(attribute='role' ~ '.0' * 3000) %}}"
        for name in ("max", "min", "unique")
    },
    "a long path in join": SAME + "{{ same|join(',', attribute='role' ~ '.0' * 3000)|length }}",
    "nested tuples in a namespace": TUPLES.replace("HERE", "{{ namespace([[ns.t, 1]]) }}"),
    "maps": FOREVER + "{{ range(99999)|map('string')|map('upper')|list|length }}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_asks_for_too_much_ends(name, monkeypatch):
    monkeypatch.setattr(chat_template, "BUDGET", BUDGET // 20)  # for the sake of time
    tracemalloc.start()
    try:
        with pytest.raises(
            FormatError, match=r"takes more than 2000000 steps, characters and items|at most 60 bits"
        ) as caught:
            ChatTemplate(TOO_MUCH[name]).render(HI)
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
    (
        "{% set a = ('f' * 1000000)|int(base=16) %}{% for i in range(99999) %}{{ (a + a) and 1 }}{% endfor %}",
        "1000 characters",
    ),
    ("{{ ('f' * 1000)|int(base=16) }}", "at most 60 bits; got one of 4000"),
    ("{{ ['f' * 99]|map('int', base=16)|list }}", "at most 60 bits"),
    ("{{ 1e300|int }}", "at most 60 bits"),
    ("{{ 1152921504606846976 }}", "at most 60 bits"),
    ("{{ 1152921504606846975 + 1 }}", "at most 60 bits"),
    ("{{ -1152921504606846975 - 1 }}", "at most 60 bits"),
    ("{{ 1073741824 * 1073741824 }}", "at most 60 bits"),
    ("{{ 3 ** 38 }}", "at most 60 bits"),
    ("{{ 0x" + "f" * 60000 + " is divisibleby 3 }}", "at most 60 bits"),
    (
        "{% set t %}{% for i in range(40000) %}{{ i * 2305843009213693951 }},{% endfor %}{% endset %}"
        "{{ t.split(',')|map('int')|unique|list|length }}",
        "at most 60 bits",
    ),
    (NESTED.replace("HERE", "{{ raise_exception(ns.t) }}"), "raise_exception takes a text; got list"),
    (
        "{% set ns = namespace(t=1) %}{% for i in range(50000) %}{% set ns.t = [ns.t] %}{% endfor %}{{ raise_exception(ns.t) }}",
        "raise_exception takes a text",
    ),
    (NESTED.replace("HERE", "{{ strftime_now(ns.t) }}"), "must be a text; got list"),
    ("{{ 'a' }}\ud800", "surrogates not allowed"),
    ("{{ '\\ud800' }}", "surrogates not allowed"),
    ("{{ '%c' % 0xd800 }}", "surrogates not allowed"),
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
        ChatTemplate(source).render(HI)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_each_rendering_has_a_budget_of_its_own():
    template = ChatTemplate("{% for i in range(99999) %}{% endfor %}" * 8)
    assert [template.render([]) for _ in range(5)] == [""] * 5


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


def test_tuples_of_one_hash():
    """Python's hash of a tuple is no secret: any second number can be chosen such that all are the same."""
    modulus, first, second, start = 2**64, 11400714785074694791, 14029467366897019727, 2870177450012600261

    def begun(number):
        lane = (start + number * second) % modulus
        return (lane << 31 | lane >> 33) * first % modulus

    pairs = [(x, (1 - begun(x)) * pow(second, -1, modulus) % modulus) for x in range(1, 30000)]
    pairs = [pair for pair in pairs if pair[1] < 2**60][:1400]
    assert len(pairs) == 1400
    if sys.hash_info.width == 64:
        assert len(set(map(hash, pairs))) == 1
    source = f"{{% set t = {pairs} %}}{FOREVER}{{% set x = t|unique|list %}}{{% endfor %}}".replace(", ", ",")
    template = ChatTemplate(source)
    begin = time.perf_counter()
    with pytest.raises(FormatError, match="more than 40000000 steps"):
        template.render(HI)
    assert time.perf_counter() - begin < 8  # 15 s at one unit for each, 0.5 s now


def test_the_largest_numbers():
    largest = 2**60 - 1
    template = "{{ N }} {{ -N }} {{ 0 - N }} {{ 'N'|int }} {{ 2 ** 59 }} {{ 3 ** 37 }} {{ 1 ** N }} {{ 10 ** 18 }}"
    shown = f"{largest} {-largest} {-largest} {largest} {2**59} {3**37} 1 {10**18}"
    assert ChatTemplate(template.replace("N", str(largest))).render([]) == shown


@pytest.mark.parametrize("value", ["'a' * 300", "5", "2.5", "true", "none", "missing"])
def test_what_raise_exception_takes(value):
    with pytest.raises(DataError, match="it says"):
        ChatTemplate(f"{{{{ raise_exception({value}) }}}}").render(HI)
