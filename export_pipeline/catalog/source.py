"""YAML text with the line of everything in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from export_pipeline.catalog.checks import Location


class CatalogError(Exception):
    """Declarations that cannot be used; one line a problem, ``file:line: place: what to do``."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class YamlSource:
    """One YAML document: ``data`` is what it says, ``line`` where it says so.

    Raises:
        CatalogError: it is not one sound mapping.
    """

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        try:
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            if not isinstance(root, yaml.MappingNode):
                raise CatalogError([f"{file}:1: is not a mapping; a declaration begins with name:, title:, table:"])
            problems = [f"{file}:{line}: {message}" for line, message in _faults(root, (), ())]
            if problems:
                raise CatalogError(problems)
            self._root: yaml.Node = root
            self.data: Any = loader.construct_document(root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise CatalogError([f"{file}:{line}: is not valid YAML: {error.problem or error.context}"]) from None
        except (yaml.YAMLError, ValueError) as error:
            raise CatalogError([f"{file}:1: is not valid YAML: {' '.join(str(error).split())}"]) from None

    def line(self, location: Location) -> int:
        """The line of a place, or of the nearest thing around it that is in the file."""
        node, line = self._root, self._root.start_mark.line + 1
        for part in location:
            line = _own_line(node, part) or line
            child = _child(node, part)
            if child is None:
                break
            node = child
        return line

    def written(self, location: Location) -> Location:
        """A pydantic location without the parts that name no place in the file (branches of a union)."""
        written: list[str | int] = []
        node = self._root
        for part in location:
            child = _child(node, part)
            if child is not None:
                written.append(part)
                node = child
        return tuple(written)


def place(location: Location) -> str:
    """A place as messages begin with it: ``columns.3.type: ``, nothing for the whole file."""
    return ".".join(map(str, location)) + ": " if location else ""


def _faults(node: yaml.Node, location: Location, above: tuple[int, ...]) -> Iterator[tuple[int, str]]:
    """What PyYAML lets pass: a key twice in a mapping (the last would win), an anchor in itself."""
    if id(node) in above:
        yield node.start_mark.line + 1, f"{place(location)}an anchor refers to itself; write the value out"
        return
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            yield from _faults(item, (*location, at), above)
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first_lines:
                yield line, f"{place((*location, name))}is already on line {first_lines[name]}; keep one of them"
            first_lines.setdefault(name, line)
            yield from _faults(value, (*location, name), above)


def _own_line(node: yaml.Node, part: str | int) -> int | None:
    if isinstance(node, yaml.MappingNode):
        return next((key.start_mark.line + 1 for key, _ in node.value if key.value == str(part)), None)
    child = _child(node, part)
    return child.start_mark.line + 1 if child is not None else None


def _child(node: yaml.Node, part: str | int) -> yaml.Node | None:
    child: object = None
    if isinstance(node, yaml.MappingNode):
        child = next((value for key, value in node.value if key.value == str(part)), None)
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        child = node.value[part]
    return child if isinstance(child, yaml.Node) else None
