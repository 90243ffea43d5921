"""Puts the price of running a chat template's code into its syntax tree; chat_template.py prices its operations."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

STEP = 30
"""Units for a call, an operation or an iteration of a loop, however small."""
MOST_BITS = 60
"""Maximum size of an integer. Hashes are modulo 2 ** 61 - 1: a set of its multiples would be as slow as a list."""
NOT_ALONE = (nodes.Extends, nodes.Block, nodes.Include, nodes.Import, nodes.FromImport)
BODIES = {nodes.For: ("body", "else_"), nodes.If: ("body", "else_"), nodes.Macro: ("body",), nodes.CallBlock: ("body",)}


def check_bits(bits: int) -> None:
    """Raise SecurityError for an integer of more than MOST_BITS bits."""
    if bits > MOST_BITS:
        raise SecurityError(f"whole numbers must have at most {MOST_BITS} bits; got one of {bits}")


class Priced(NodeTransformer):
    """Adds the price of each body when it runs, and of operations that jinja2 compiles to plain Python."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if isinstance(node, NOT_ALONE):
            raise SecurityError(f"a chat template stands alone, without {type(node).__name__.lower()}")
        if isinstance(node, nodes.For) and node.recursive:
            raise SecurityError("loops must not be recursive")
        if isinstance(node, nodes.Const) and isinstance(node.value, int):
            check_bits(node.value.bit_length())
        bodies = next((names for kind, names in BODIES.items() if isinstance(node, kind)), ())
        prices = [sum(map(_price, getattr(node, name))) for name in bodies]
        test = _price(node.test) if isinstance(node, nodes.For) and node.test is not None else 0
        node = self.generic_visit(node)
        for name, price in zip(bodies, prices, strict=True):
            body = getattr(node, name)
            if body or isinstance(node, (nodes.Macro, nodes.CallBlock)) or name == "body":
                body.insert(0, nodes.ExprStmt(_filtered("=body", nodes.Const(STEP + price))))
        if isinstance(node, nodes.For):
            node.iter = _filtered("=items", node.iter, nodes.Const(1 + test))
        elif isinstance(node, nodes.Concat):
            node.nodes = [_filtered("=deep", part) for part in node.nodes]
        elif isinstance(node, nodes.Compare):
            node.expr = _filtered("=deep", node.expr)
            for operand in node.ops:
                operand.expr = _filtered("=deep", operand.expr)
        elif isinstance(node, nodes.Dict):
            for pair in node.items:
                pair.key = _filtered("=deep", pair.key)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return _filtered("=size", node)
        return node


def _filtered(name: str, node: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno or 1)


def _price(node: nodes.Node) -> int:
    """Units for running a node once, without the bodies in it, which pay for themselves."""
    price, waiting = 0, [node]
    while waiting:
        node = waiting.pop()
        price += len(node.data) if isinstance(node, nodes.TemplateData) else 5
        bodies = next((names for kind, names in BODIES.items() if isinstance(node, kind)), ())
        waiting += node.iter_child_nodes(exclude=bodies)
    return price
