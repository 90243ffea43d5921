"""Strangers' regular expressions: the answers of re, and no pattern that goes on for ever."""

import contextlib
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import FormatError
from fastllm.formats.patterns import DEEPEST, MOST_SOURCE, STEPS, Matcher

NAMES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 10, 11, 31)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "mlp.gate_proj", "input_layernorm")
] + ["lm_head", "model.embed_tokens", "transformer.h.3.attn.c_attn", "q_proj", ""]

IN_USE = [
    "q_proj",
    "model.layers.1.self_attn.q_proj",
    r".*\.(q_proj|v_proj)$",
    r"^model\.layers\.(0|1|[2-9])\..*_proj",
    r"(.*\.)?(self_attn.q_proj)$",
    r"(.*\.)?(^model.layers.0.self_attn.q_proj)$",
    r".*self_attn.*(q|v)_proj$",
    r"model\.layers\.(?:[0-9]|1[0-5])\.(?:self_attn|mlp)\.(?:q|k|v|o|gate|up|down)_proj",
    r"model\.layers\.\d{1,2}\.mlp\.\w+",
    r"^(?!.*(?:lm_head|embed)).*(?:q_proj|down_proj).*",
    r"(?:.*?(?:language|text|model).*?(?:self_attn|attention|attn|mlp|ffn).*?(?:q_proj|k_proj|down_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attn|mlp)\.(?:(?:q_proj|v_proj)))",
    r"(?P<all>.*)",
    r"[^.]+",
    r"(?=model).*j",
    "",
]


@pytest.mark.parametrize("pattern", IN_USE)
def test_patterns_in_use(pattern):
    matcher = Matcher()
    for name in NAMES:
        assert matcher.fullmatch(pattern, name) == (re.fullmatch(pattern, name) is not None), name
    assert matcher.left > STEPS - 30_000


@pytest.mark.parametrize("pattern", IN_USE)
def test_ends_of_names(pattern):
    """As PEFT looks for a module's rank."""
    matcher = Matcher()
    for name in NAMES:
        expected = re.match(rf"(.*\.)?({pattern})$", name) is not None
        assert matcher.endmatch(pattern, name) == expected, name


atoms = st.sampled_from([*"abc.^$", r"\w", r"\W", r"\d", r"\s", r"\b", r"\B", r"\.", r"\A", r"\Z", "[ab]", "[^a]",
                         "[a-c1]", "[]a]", "[a-]", r"[\d.]", r"[^\w]", "{", "}", "{a}", "-", "1"])  # fmt: skip
repeats = st.sampled_from(["", "", "*", "+", "?", "*?", "+?", "??", "{2}", "{1,}", "{,2}", "{1,3}", "{0,2}?", "{,}"])


def grouped(patterns):
    groups = st.sampled_from(["(", "(?:", "(?=", "(?!", "(?P<x>"])
    alternatives = st.lists(patterns, min_size=1, max_size=3).map("|".join)
    return st.tuples(groups, alternatives, repeats).map(lambda parts: f"{parts[0]}{parts[1]}){parts[2]}") | st.lists(
        patterns, max_size=3
    ).map("".join)


patterns = st.recursive(st.tuples(atoms, repeats).map("".join), grouped, max_leaves=8)


@given(patterns, st.text("ab1._ ", min_size=1, max_size=7))  # Python before 3.14 finds no \\B in ""
def test_answers_are_those_of_re(pattern, text):
    pattern = re.sub(r"\?P<x>", "", pattern)  # which may stand twice
    try:
        expected = re.fullmatch(pattern, text) is not None
    except re.error:
        with pytest.raises(FormatError):
            Matcher().fullmatch(pattern, text)
        return
    assert Matcher().fullmatch(pattern, text) == expected


@given(st.text("ab()[]{}?*+|\\.^$-,1:=!<>P\n", max_size=20))
def test_any_text_is_a_pattern_or_an_error(source):
    try:
        found = Matcher().fullmatch(source, "ab1")
    except FormatError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # [[ may one day mean something else
        assert found == (re.fullmatch(source, "ab1") is not None)


HOSTILE = {
    "nested": "(" * 30 + "a*" + ")*" * 30 + "b",
    "branches": "(a|a|aa)" * 200 + "b",
    "stars": ".*" * 900 + "b",
    "nothing": "(" + "|" * 1900 + ")*b",
    "lookahead": "(?=(a*)*b)" * 100,
    "numbers": "(((a{0,999999999}){0,999999999}){0,999999999}){999999999}b",
}


@pytest.mark.parametrize("pattern", HOSTILE.values(), ids=HOSTILE)
def test_no_pattern_goes_on(pattern):
    """The test ends; re would take years for most of these."""
    matcher = Matcher(300_000)
    with contextlib.suppress(FormatError):
        for length in range(40, 80):
            assert not matcher.fullmatch(pattern, "a" * length)
    assert matcher.left < 300_000


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("a" * MOST_SOURCE + "*", f"at most {MOST_SOURCE} characters"),
        ("(" * (DEEPEST + 1) + ")" * (DEEPEST + 1), f"at most {DEEPEST} groups"),
        ("(a", "a ) for each ("),
        ("a)", "a ( for each )"),
        ("*a", "something to repeat"),
        ("^*", "something to repeat"),
        ("a**", "one repetition"),
        ("a*+", "keeps what it has"),
        ("a{3,2}", "least repetition below the most"),
        ("a{1234567890}", "nine digits"),
        (r"(a)\1", "of \\ with a letter"),
        ("(?<=a)b", "of groups with a ?"),
        ("(?i)a", "of groups with a ?"),
        ("[a", "an end where it is complete"),
        ("[b-a]", "ranges such as a-z"),
        ("a\\", "an end where it is complete"),
    ],
)
def test_patterns_that_are_refused(pattern, rule):
    with pytest.raises(FormatError, match=f"^a pattern must have .*{re.escape(rule)}"):
        Matcher().fullmatch(pattern, "a")
