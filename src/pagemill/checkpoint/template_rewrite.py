"""Route what Jinja's sandbox has no hook for through filters that count."""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer


class MeteringTransformer(NodeTransformer):
    """Loops tick at each item, comparisons once; literals, slices and `~` pay for their result."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        match node:
            case nodes.For(iter=nodes.Expr() as iterable):
                node.iter = _through("_watched", iterable)
            case nodes.Compare():
                node.expr = _through("_ticked", node.expr)
            case nodes.Concat():
                return _through("_concat", nodes.List(node.nodes, lineno=node.lineno))
            case nodes.Getitem(arg=nodes.Slice()):
                return _through("_charged", node)
            case nodes.List() | nodes.Tuple(ctx="load"):
                return _charged_unless_constant(node, node.items)
            case nodes.Dict():
                return _charged_unless_constant(node, [pair.value for pair in node.items])
        return node


def _charged_unless_constant(node: nodes.Expr, items: list[nodes.Expr]) -> nodes.Expr:
    constant = all(isinstance(item, nodes.Const) for item in items)
    return node if constant else _through("_charged", node)


def _through(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
