"""Read what a dataclass declares out of its source: nothing is imported."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any


def dataclasses(source: Path, method: str) -> dict[str, ast.ClassDef]:
    """Return the dataclasses of a file that have a method of this name, by name."""
    tree = ast.parse(source.read_text(encoding="utf-8"), filename=str(source))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and _is_one(node, method)}


def fields(node: ast.ClassDef) -> dict[str, ast.AnnAssign]:
    """Return the fields of a dataclass; what belongs to the class, such as ``environment``, is none."""
    return {
        item.target.id: item
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not ast.unparse(item.annotation).startswith("ClassVar")
    }


def literals(annotation: ast.expr) -> tuple[Any, ...]:
    """Return the values of an annotation such as ``Literal[8, 4] | None``; none where it allows anything else."""
    match annotation:
        case ast.Constant(value=None):
            return (None,)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            parts = literals(left), literals(right)
            return (*parts[0], *parts[1]) if all(parts) else ()
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=items)):
            return tuple(item.value for item in items if isinstance(item, ast.Constant))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Constant(value=only)):
            return (only,)
        case _:
            return ()


def is_among(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Tell whether a value is one of those: 1, 1.0 and true, which are equal, are not the same."""
    return any(type(value) is type(each) and value == each for each in allowed)


def in_words(allowed: tuple[Any, ...]) -> str:
    """Return the values as a configuration has them: ``8, 4, null``."""
    return ", ".join("null" if value is None else str(value) for value in allowed)


def _is_one(node: ast.ClassDef, method: str) -> bool:
    decorators = [item.func if isinstance(item, ast.Call) else item for item in node.decorator_list]
    names = {item.attr if isinstance(item, ast.Attribute) else getattr(item, "id", "") for item in decorators}
    return "dataclass" in names and any(isinstance(item, ast.FunctionDef) and item.name == method for item in node.body)
