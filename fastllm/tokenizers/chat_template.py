"""Chat templates: Jinja source that comes with a model and formats a conversation as text.

A template is untrusted code. It runs in jinja2's immutable sandbox, in the same environment as in transformers
(trim_blocks, lstrip_blocks, break and continue, `{% generation %}`, raise_exception, strftime_now, tojson as JSON), but
with limits on time and memory:

- It works on texts, numbers (integers of at most 60 bits), lists and dicts, with the methods in METHODS; it can't
  include or import anything.
- Every operation costs units of a BUDGET, and so does each run of the body of a loop, branch or macro: one unit per
  character or item that is read or made, more for a call. A template that would exceed the budget fails, before memory
  is allocated for the result. Constants are not folded at compile time.
- It has only the filters in FILTERS and tojson, whose costs are known.

Needs jinja2 (the extra `hf`); import this module only to render a template.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from types import BuiltinMethodType, GeneratorType, MethodType
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner, Namespace

from ..errors import DataError, FormatError
from .chat_template_prices import STEP, Priced, check_bits

BUDGET = 40_000_000
"""Units that a rendering may spend: enough for several megabytes of conversation, or two seconds of a hostile loop."""
MOST_SOURCE = 1 << 16
"""Maximum length of a template, in characters. The longest in use has about 20,000."""
MOST_DIGITS = 1000
"""Maximum length of a text that becomes an integer, in characters."""

METHODS: tuple[tuple[type, str], ...] = (
    (str, "capitalize casefold center count endswith expandtabs find index isalnum isalpha isascii isdecimal isdigit "
          "islower isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix "
          "replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper "
          "zfill"),
    (list, "count index"),
    (tuple, "count index"),
    (dict, "get items keys values"),
    (Cycler, "current next reset"),
    (Macro, "arguments caller catch_kwargs catch_varargs name"),
    (LoopContext, "changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0"),
)  # fmt: skip
"""Methods and attributes that a template may use."""
WHOLE = "count d default first items last length list map reject rejectattr reverse select selectattr"
"""Filters that don't look into the items of a list."""
FILTERS = WHOLE + (
    " abs capitalize center dictsort e escape float forceescape format indent int join lower max min replace round"
    " safe sort string title trim truncate unique upper wordcount"
)
ATTRIBUTES = "join map max min rejectattr selectattr sort unique"
"""Filters that look up attributes by paths such as "a.b"; sort takes several, "a.b,c"."""
LONG_NUMBER = re.compile(r"\d{4}|\*")
SIZED: tuple[Any, ...] = (str, dict, range, list, tuple, type({}.keys()), type({}.values()), type({}.items()))
SEQUENCES: tuple[Any, ...] = (list, tuple, type({}.keys()), type({}.values()), type({}.items()))
ListIterator: type[Iterator[int]] = type(iter([1]))
# Arguments after the first whose price depends on their position; templates may pass them as keywords, in any order.
IN_ORDER = {"replace": ("old", "new", "count"), "join": ("d",), "center": ("width",)}


class ChatTemplate:
    """A compiled template.

    Raises FormatError for a source that doesn't compile, is too long, or uses something that is not allowed.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MOST_SOURCE:
            raise FormatError(
                f"a chat template must have at most {MOST_SOURCE} characters; got {len(source)}; use another"
            )
        self._environment = _Environment()
        self._lock = threading.Lock()
        try:
            source.encode()  # raises for a lone surrogate
            tree = Priced(self._environment).visit(self._environment.parse(source))
            code = self._environment.compile(tree)
            self._template = jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))
        except (Exception, MemoryError) as error:
            raise _one_error(error, "be one that jinja2 can compile") from None

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The conversation as text.

        messages               {"role": ..., "content": ...} each
        add_generation_prompt  whether to end it with the beginning of an answer
        variables              further variables, such as bos_token; they don't replace the above

        Raises DataError if the template refuses the messages, FormatError if it fails, does something that is not
        allowed, or exceeds the budget.
        """
        given = {**(variables or {}), "messages": [dict(message) for message in messages],
                 "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}  # fmt: skip
        with self._lock:
            self._environment.spent = 0
            try:
                text = "".join(self._template.root_render_func(self._template.new_context(given)))
                text.encode()  # a lone surrogate would be blamed on the messages later
                return text
            except _RefusedError as refusal:
                raise DataError(
                    f"the messages must suit the chat template; it says {str(refusal)!r:.200}; change them"
                ) from None
            except (Exception, MemoryError) as error:
                raise _one_error(error, "end with a text") from None


@functools.lru_cache(maxsize=16)
def compiled(source: str) -> ChatTemplate:
    """The compiled template of a source; cached."""
    return ChatTemplate(source)


class _RefusedError(Exception):
    """The template called raise_exception."""


class _BudgetError(Exception):
    """The template has exceeded the budget."""


def _one_error(error: BaseException, rule: str) -> FormatError:
    said = " ".join(str(error).split())
    if not isinstance(error, (_BudgetError, jinja2.TemplateError)):
        said = f"{type(error).__name__}: {said}"
    where = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return FormatError(f"a chat template must {rule}; got the error {said!r:.200}{where}; use another")


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's text for training in transformers; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = nodes.Call(nodes.EnvironmentAttribute("generation"), [], [], None, None)
        return nodes.CallBlock(call, [], [], body).set_lineno(line)  # as in transformers, for the same scope


def _generation(caller: Macro) -> str:
    return caller()


class _Namespace(Namespace):
    """Variables that a template keeps across scopes; names must not begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _Namespace._check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: object) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError(f"names in a namespace must not begin with an underscore; got {name!r:.60}")


def _raise_exception(message: object) -> None:
    if not isinstance(message, (str, int, float, Undefined, type(None))):
        raise SecurityError(f"raise_exception takes a text; got {type(message).__name__}")
    raise _RefusedError(str(message)[:200])


def _strftime_now(format: str) -> str:  # the name that templates may use
    if not isinstance(format, str):
        raise SecurityError(f"a format of time must be a text; got {type(format).__name__}")
    if len(format) > 200 or LONG_NUMBER.search(format):
        raise SecurityError(f"a format of time must be short; got {format!r:.60}")
    return datetime.now().strftime(format)


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of transformers, in which every operation has a price."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        self.spent = 0
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # don't compute constants, such as "a" * 10 ** 9, at compile time
            finalize=pass_context(_shown),
            extensions=(_Generation, loopcontrols),
            cache_size=0,
        )
        self.globals = {
            "range": safe_range,
            "dict": _dict,
            "namespace": _Namespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.generation = _generation
        self._callables = frozenset(map(id, (*self.globals.values(), _generation)))
        self.filters = {name: self._priced(name, self.filters[name]) for name in FILTERS.split()}
        self.filters["tojson"] = self._priced("tojson", self._json)
        # For Priced. A template can use them too, as in map("=body"), but only to pay more.
        self.filters |= {"=body": self.spend, "=items": self._items, "=size": self._sized, "=deep": self._measured}
        self.tests = {name: self._priced("", test) for name, test in self.tests.items()}  # type: ignore[arg-type]

    # Prices

    def spend(self, units: int) -> None:
        if units < 0:
            raise SecurityError("nothing has a price below 0")
        self.spent += units
        if self.spent > BUDGET:
            raise _BudgetError(f"it takes more than {BUDGET} steps, characters and items")

    def _sized(self, value: Any) -> Any:
        """Pay for a new value and return it. An item costs 8 units, as it takes the memory of several characters."""
        if isinstance(value, int):
            check_bits(value.bit_length())
        self.spend(_size(value) * (1 if isinstance(value, str) else 8))
        return value

    def _measured(self, value: Any) -> Any:
        """Pay for everything in a value, once per occurrence, as repr, == and hash look at it, and return the value."""
        if type(value) is str:
            self.spend(len(value))
            return value
        waiting: list[Any] = [value]
        while waiting:
            item = waiting.pop()
            self.spend(5)
            if isinstance(item, str):
                self.spend(12 * len(item))  # the most characters that repr or JSON write for one
            elif isinstance(item, dict):
                self.spend(2 * len(item))
                waiting += chain.from_iterable(item.items())
            elif isinstance(item, SEQUENCES):
                # More for tuples, which may be made to collide in hash.
                self.spend(len(item) + (1000 if isinstance(item, tuple) else 0))
                waiting += item
            elif item is not value and not isinstance(item, (int, float, Undefined, type(None))):
                raise SecurityError(f"a list or dict must hold plain values; got {type(item).__name__}")
        return value

    def _items(self, value: Any, price: int) -> Any:
        """Pay for what a loop runs over, at `price` per item, and return it; an iterator pays as it goes."""
        if isinstance(value, Collection) and not isinstance(value, Undefined):
            self.spend(len(value) * price)
            return value
        return value if isinstance(value, Undefined) else self._counted(value, price)

    def _counted(self, items: Iterable[Any], price: int = STEP) -> Iterator[Any]:
        for item in items:
            self.spend(price)
            yield item

    # Operations

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.spend(STEP + _size(left) + _size(right))
        if operator == "%" and isinstance(left, str):
            self._check_format(left)
            self._measured(right)
        elif operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, (str, list, tuple)) and isinstance(times, int):
                    self.spend(len(text) * max(times, 0))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_bits((left.bit_length() - 1) * right + 1)  # a lower bound
        return self._sized(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __callee: Any, *args: Any, **kwargs: Any) -> Any:
        """The names of the parameters are mangled, so that no keyword in a template clashes with them, as in jinja2."""
        self, callee = __self, __callee
        args = tuple([*value] if isinstance(value, (GeneratorType, ListIterator)) else value for value in args)
        given = [*args, *kwargs.values()]
        self.spend(STEP + sum(map(_size, given)))
        if isinstance(callee, (BuiltinMethodType, MethodType)):
            subject = callee.__self__
            if not _allowed(subject, callee.__name__):
                raise SecurityError(f"the method {callee.__name__!r:.60} must not be called")
            given = [*args, *(value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars"))]
            for value in (subject, *given) if isinstance(subject, (list, tuple)) else given:
                self._measured(value)
            self.spend(_size(subject))
            if isinstance(subject, str):
                self._check_growth(callee.__name__, subject, given)
        elif callee is _dict or callee is _Namespace:
            for value in args:
                self._measured(value)
        elif not (isinstance(callee, (Macro, Joiner, Undefined)) or id(callee) in self._callables):
            raise SecurityError(f"{type(callee).__name__} must not be called")
        return self._sized(super().call(__context, callee, *args, **kwargs))

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Undefined):
            return obj[attribute]  # raises UndefinedError
        if isinstance(obj, Namespace):
            if attribute.startswith("_"):
                return self.unsafe_undefined(obj, attribute)
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        if _allowed(obj, attribute):
            return getattr(obj, attribute)
        if hasattr(type(obj), attribute):
            return self.unsafe_undefined(obj, attribute)
        try:
            return obj[attribute]
        except (TypeError, LookupError):
            return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.spend(STEP)  # filters call this for each part of a path and each item
        if not isinstance(argument, (str, int)):
            self._measured(argument)  # to hash it
        try:
            return obj[argument]
        except (TypeError, LookupError):
            if isinstance(argument, str):
                return self.getattr(obj, str(argument))
        return self.undefined(obj=obj, name=argument)

    def _check_format(self, text: str) -> None:
        """Pay for a format string. Raises SecurityError for one with a width of four digits or "*"."""
        if LONG_NUMBER.search(text):
            raise SecurityError(f"widths in a format must be short numbers; got {text!r:.60}")
        self.spend(1000 * text.count("%"))

    def _check_growth(self, name: str, text: str, given: list[Any]) -> None:
        """Pay for the result of a method or filter of a text, before it is computed."""
        width = max((value for value in given if isinstance(value, int)), default=0)
        longest = max((len(value) for value in given if isinstance(value, str)), default=0)
        if name in ("rfind", "rindex", "rpartition", "rsplit", "strip", "lstrip", "rstrip", "trim"):
            self.spend(len(text) * longest // 16)  # worst case, in C
        if name in ("center", "ljust", "rjust", "zfill"):
            self.spend(max(width, 0))
        elif name in ("split", "rsplit", "list"):
            separator = next((value for value in given if isinstance(value, str)), "")
            self.spend(15 * (text.count(separator) + 1) if separator else 8 * len(text))
        elif name == "splitlines":
            self.spend(8 * len(text))
        elif name == "expandtabs":
            self.spend((8 + max(width, 0)) * text.count("\t"))
        elif name == "indent":
            self.spend((4 + max(width, 0) + longest) * (1 + len(text.splitlines())))
        elif name == "replace" and len(given) > 1:
            old, new = str(given[0]), str(given[1])
            self.spend((text.count(old) if old else len(text) + 1) * len(new))
        elif name == "join" and given:
            self.spend(len(text) * _size(given[0]))
        elif name == "round" and any(isinstance(value, int) and abs(value) > 100 for value in given):
            raise SecurityError("a number must be rounded to at most 100 digits")
        elif name == "int" and len(text) > MOST_DIGITS:
            raise SecurityError(f"what becomes a number must have at most {MOST_DIGITS} characters; got {len(text)}")

    def _priced(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a filter or test so that it pays for what it reads and returns."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0
        looks_inside, looks_up = name not in WHOLE.split(), name in ATTRIBUTES.split()

        @functools.wraps(function)
        def priced(*args: Any, **kwargs: Any) -> Any:
            for key in IN_ORDER.get(name, ())[len(args) - first - 1 :]:
                if key not in kwargs:
                    break
                args = (*args, kwargs.pop(key))
            if looks_inside:
                args = tuple([*value] if isinstance(value, (GeneratorType, ListIterator)) else value for value in args)
            given = [*args[first:], *kwargs.values()]
            self.spend(STEP + sum(map(_size, given)))
            if looks_inside:
                for value in given:
                    self._measured(value)
            if looks_up:
                for path in given[1:]:
                    if isinstance(path, str):
                        self.spend(15 * path.count("."))
                        for _ in range(path.count(",") if name == "sort" else 0):
                            self._measured(given[0])  # sort copies and compares once more per key
            if name == "format":
                self._check_format(str(given[0]))
            elif name == "join":
                self._check_growth("join", str(given[1]) if len(given) > 1 else "", given)
            elif name in ("center", "indent", "int", "replace", "round", "trim") or (
                name == "list" and isinstance(given[0], str)
            ):
                self._check_growth(name, str(given[0]), given[1:])
            result = function(*args, **kwargs)
            if isinstance(result, Iterator) and not isinstance(result, LoopContext):
                return iter([*self._counted(result)])  # generators of generators would be freed by recursion, in C
            return self._sized(result)

        return priced

    def _json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """The filter tojson as in transformers. jinja2's own escapes "<" for HTML."""
        if separators is not None and not all(isinstance(text, str) and len(text) < 16 for text in separators):
            raise SecurityError(f"separators of JSON must be short; got {separators!r:.60}")
        text = json.dumps(value, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)
        if indent is None:
            return text
        if not isinstance(indent, int) or not 0 <= indent <= 16:
            raise SecurityError(f"JSON must be indented by 0 to 16; got {indent!r:.60}")
        brackets = text.count("[") + text.count("{")
        self.spend((2 * brackets + text.count(",")) * (1 + indent * min(brackets, 1000)))
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _shown(context: Context, value: Any) -> Any:
    """Pay for a value that is output, and return it."""
    if not isinstance(value, (str, int, float, dict, Undefined, type(None), *SEQUENCES)):
        raise SecurityError(f"what is shown must be a plain value; got {type(value).__name__}")
    return context.environment._measured(value)  # type: ignore[attr-defined]


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """dict() as a function, which has no attributes that a template could use."""
    return dict(*args, **kwargs)


def _size(value: Any) -> int:
    """Price of a value without what its items hold."""
    return len(value) if isinstance(value, SIZED) else 1


def _allowed(value: Any, attribute: str) -> bool:
    """Whether a template may use this attribute."""
    return any(attribute in names.split() for kind, names in METHODS if isinstance(value, kind))
