"""A Jinja sandbox in which neither loops nor values can grow without bound.

Jinja's own sandbox keeps a template from reaching Python. This one also meters it: every loop
iteration, call, filter and operator goes through a `Budget`, and operations that could make a
huge value in one step are measured before they run. What is not known to be harmless (methods,
filters) is refused, not listed as harmful.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import BuiltinMethodType
from typing import Any

from jinja2 import TemplateError, TemplateRuntimeError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace

from pagemill.checkpoint.template_budget import Budget, WatchedIterable
from pagemill.checkpoint.template_names import (
    DICT_METHODS,
    FILTERS,
    LIST_METHODS,
    PADDING_METHODS,
    STR_METHODS,
)
from pagemill.checkpoint.template_rewrite import MeteringTransformer

_MAX_COUNT = 100_000  # of iterations, padding and digits asked for by number
_MAX_INT_BITS = 1 << 16
_MAX_INDENT = 16
_LONG_NUMBER = re.compile(r"\d{6,}")
_PERCENT_SPEC = re.compile(r"%[#0\- +]*(?:\*|\d{6,})|%[#0\- +]*\d*\.(?:\*|\d{6,})|%\(")


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """An environment of one rendering at a time, whose `budget` it is. No rendering changes it."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
        )
        self.budget = budget
        self.globals = {
            "range": self._range,
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": GuardedNamespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.filters = self._metered_filters()
        tests: dict[str, Any] = self.tests
        for name in ("eq", "==", "equalto", "ne", "!=", "in", "lt", "<", "gt", ">", "le", "ge"):
            self.tests[name] = self._metered(tests[name])

    def call(  # the doubled underscores keep the names free for keyword arguments
        __self,  # noqa: N805
        __context: Context,
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if isinstance(__obj, BuiltinMethodType):
            __self._check_method(__obj.__self__, __obj.__name__, args)
        __self.budget.tick()
        return __self.budget.charge(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            self._check_product(left, right)
        elif operator == "**":
            self._check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            _check_percent(left)
        return self.budget.charge(super().call_binop(context, operator, left, right))

    def concat(self, parts: Iterable[str]) -> str:
        """Join what a block, macro or template put out; Jinja's compiled code calls this."""
        pieces = []
        size = 0
        for part in parts:
            self.budget.tick()
            size += len(part)
            self.budget.require_size(size)
            pieces.append(part)
        self.budget.pay(size)
        return "".join(pieces)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        template, by_mapping = str(value.__self__), value.__name__ == "format_map"
        formatter = _MeteredFormatter(self)

        def formatted(*args: Any, **kwargs: Any) -> str:
            if by_mapping:
                (mapping,) = args
                return formatter.vformat(template, (), mapping)
            return formatter.vformat(template, args, kwargs)

        return formatted

    def _generate(
        self,
        source: nodes.Template,
        name: str | None,
        filename: str | None,
        defer_init: bool = False,
    ) -> str:
        MeteringTransformer().generic_visit(source)  # in place
        return super()._generate(source, name, filename, defer_init)

    def _metered_filters(self) -> dict[str, Callable[..., Any]]:
        plain = {name: self.filters[name] for name in FILTERS}
        bounded: dict[str, Callable[..., Any]] = {
            "batch": self._counted(self.filters["batch"]),
            "slice": self._counted(self.filters["slice"]),
            "round": self._counted(self.filters["round"]),
            "center": self._center,
            "format": self._percent_format,
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "sum": self._sum,
            "tojson": self._tojson,
            "_concat": lambda parts: self.concat(map(str, parts)),
            "_charged": lambda value: value,
        }
        filters = {name: self._metered(run) for name, run in (plain | bounded).items()}
        filters["_watched"] = lambda value: WatchedIterable(value, self.budget)
        filters["_ticked"] = self._ticked
        return filters

    def _metered(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.budget.tick()
            return self.budget.charge(run(*args, **kwargs))

        # Jinja marks filters that want the context; functools.wraps would copy more, and slowly.
        vars(metered).update(getattr(run, "__dict__", {}))
        return metered

    def _ticked(self, value: Any) -> Any:
        self.budget.tick()
        return value

    def _range(self, *args: int) -> range:
        numbers = range(*args)
        _check_count(len(numbers))
        return numbers

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...]) -> None:
        if isinstance(owner, str):
            if name in PADDING_METHODS:
                _check_count(*args[:1])
            elif name == "replace":
                self._check_replace(owner, *args[:2])
            elif name == "join":
                self._check_join(owner, *args[:1])
            elif name not in STR_METHODS:
                raise SecurityError(f"text method {name!r} is not available in chat templates")
            return
        allowed = DICT_METHODS if isinstance(owner, dict) else LIST_METHODS
        if not isinstance(owner, dict | list | tuple) or name not in allowed:
            raise SecurityError(
                f"method {name!r} of {type(owner).__name__!r} is not available in chat templates"
            )

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, str | bytes | list | tuple):
                self.budget.require_size(len(value) * times)

    def _check_power(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * abs(right))

    def _check_replace(self, text: str, old: Any = "", new: Any = "") -> None:
        if len(new) > len(old):
            self.budget.require_size(len(text) + text.count(old) * len(new))

    def _check_join(self, separator: str, parts: Any = ()) -> None:
        if not isinstance(parts, list | tuple):
            raise SecurityError("text method 'join' takes a list in chat templates")
        self.budget.require_size(len(parts) * len(separator))

    def _counted(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose numeric arguments must be moderate; its first argument is the value."""

        def counted(value: Any, *args: Any, **kwargs: Any) -> Any:
            _check_count(*(arg for arg in (*args, *kwargs.values()) if isinstance(arg, int)))
            return run(value, *args, **kwargs)

        return counted

    def _center(self, value: Any, width: int = 80) -> str:
        _check_count(width)
        return str(value).center(width)

    def _percent_format(self, value: Any, *args: Any) -> str:
        _check_percent(str(value))
        return str(value) % args

    def _indent(
        self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        prefix = width if isinstance(width, str) else " " * _check_count(width)
        lines = str(value).splitlines() or [""]
        self.budget.require_size(len(lines) * len(prefix))
        indented = [prefix + line if line or blank else line for line in lines[1:]]
        return "\n".join([prefix + lines[0] if first else lines[0], *indented])

    def _join(self, values: Iterable[Any], separator: Any = "", attribute: Any = None) -> str:
        if attribute is not None:
            values = (self.getitem(value, attribute) for value in values)
        separator = str(separator)
        pieces: list[str] = []
        for value in values:
            if pieces:
                pieces.append(separator)
            pieces.append(str(value))
        return self.concat(pieces)

    def _replace(self, value: Any, old: Any, new: Any, count: int = -1) -> str:
        text, old, new = str(value), str(old), str(new)
        self._check_replace(text, old, new)
        return text.replace(old, new, -1 if count is None else count)

    def _sum(self, values: Iterable[Any], attribute: Any = None, start: float = 0) -> Any:
        if attribute is not None:
            values = (self.getitem(value, attribute) for value in values)
        total = float(start) if isinstance(start, float) else int(start)
        return sum(WatchedIterable(values, self.budget), total)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers has it: no HTML escaping."""
        if indent is not None and not 0 <= int(indent) <= _MAX_INDENT:
            raise SecurityError(f"tojson indents by at most {_MAX_INDENT}")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return encoder.encode(value) if indent is None else self.concat(encoder.iterencode(value))


class GuardedNamespace(Namespace):
    """`namespace()` without private names, and with a short text form however full it is."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as Jinja's: `self` stays a usable name
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class GenerationTag(Extension):
    """Accept `{% generation %}`, which marks assistant text for training; it renders its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _MeteredFormatter(SandboxedFormatter):
    def __init__(self, environment: MeteredEnvironment) -> None:
        super().__init__(environment)
        self._budget = environment.budget

    def format_field(self, value: Any, format_spec: str) -> str:
        if _LONG_NUMBER.search(format_spec):
            raise SecurityError("format widths must have at most five digits")
        text: str = self._budget.charge(super().format_field(value, format_spec))
        return text

    def vformat(self, format_string: str, args: Any, kwargs: Mapping[str, Any]) -> str:
        self._budget.tick()
        return str(super().vformat(format_string, args, kwargs))


def _check_count(*counts: Any) -> Any:
    """Refuse numbers beyond the limit; returns the first."""
    if any(isinstance(count, int) and count > _MAX_COUNT for count in counts):
        raise SecurityError(f"chat templates may count to {_MAX_COUNT} at most")
    return counts[0] if counts else None


def _check_bits(bits: int) -> None:
    if bits > _MAX_INT_BITS:
        raise SecurityError("chat templates may not compute with numbers that large")


def _check_percent(template: str) -> None:
    if _PERCENT_SPEC.search(template):
        raise SecurityError("% formats in chat templates take no names, stars or large widths")


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"namespace names may not begin with an underscore, got {name!r}")


def _raise_exception(message: str) -> None:
    raise TemplateRaised(str(message))


class TemplateRaised(TemplateError):
    """The template itself refused the messages, with `raise_exception`."""


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 256:
        raise TemplateRuntimeError("the date format is too long")
    return datetime.now().strftime(pattern)
