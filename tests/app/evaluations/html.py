"""Reads a page as strictly as the tests need: nesting, ids, links, tables, and the places in its pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "col"}
PHRASING = {"p", "h1", "h2", "h3", "dt", "summary", "caption", "figcaption", "code", "span", "small", "b", "strong"}
BLOCKS = {"p", "div", "ul", "ol", "dl", "table", "section", "figure", "details", "h1", "h2", "h3", "nav", "li", "tr"}
PARENTS = {
    "li": {"ul", "ol"}, "dt": {"dl", "div"}, "dd": {"dl", "div"}, "tr": {"thead", "tbody"}, "td": {"tr"},
    "th": {"tr"}, "thead": {"table"}, "tbody": {"table"}, "caption": {"table"}, "colgroup": {"table"},
    "col": {"colgroup"}, "summary": {"details"}, "figcaption": {"figure"}, "desc": {"svg"},
}  # fmt: skip


@dataclass
class Node:
    """An element."""

    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def all(self, tag: str) -> Iterator[Node]:
        """Elements of that name inside it, in order."""
        for child in self.children:
            if isinstance(child, Node):
                if child.tag == tag:
                    yield child
                yield from child.all(tag)

    def every(self) -> Iterator[Node]:
        """Itself and all elements inside it."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.every()

    @property
    def text(self) -> str:
        """Its words, with single spaces."""
        return " ".join(" ".join(self._pieces()).split())

    def _pieces(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, str):
                yield child
            elif child.tag != "style":
                yield from child._pieces()


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("#document", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute"
        node = Node(tag, {name: value or "" for name, value in attrs})
        above = {each.tag for each in self._open}
        assert not (tag in BLOCKS and above & PHRASING), f"<{tag}> inside of {above & PHRASING}"
        parents = PARENTS.get(tag)
        assert parents is None or self._open[-1].tag in parents, f"<{tag}> inside of <{self._open[-1].tag}>"
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def finish(self) -> Node:
        self.close()
        assert self._open == [self.root], f"<{self._open[-1].tag}> is left open"
        return self.root


def parse(page: str) -> Node:
    """The page as a tree. Wrong nesting is an assertion error."""
    parser = _Parser()
    parser.feed(page)
    return parser.finish()


def check_references(root: Node) -> None:
    """Ids are unique, and whatever names one names one that is there."""
    ids = [node.attributes["id"] for node in root.every() if "id" in node.attributes]
    assert len(ids) == len(set(ids)), sorted(name for name in ids if ids.count(name) > 1)
    for node in root.every():
        named = node.attributes.get("aria-labelledby", "").split()
        if "href" in node.attributes:
            assert node.attributes["href"].startswith("#"), node.attributes["href"]
            named.append(node.attributes["href"][1:])
        assert set(named) <= set(ids), set(named) - set(ids)


def check_tables(root: Node) -> None:
    """Every row of a table is as wide as the others."""
    for table in root.all("table"):
        waiting, widths = 0, set()
        for row in table.all("tr"):
            cells = [cell for cell in row.children if isinstance(cell, Node)]
            widths.add(sum(int(cell.attributes.get("colspan", 1)) for cell in cells) + waiting)
            waiting = sum(1 for cell in cells if cell.attributes.get("rowspan") == "2")
        assert len(widths) == 1, (table.text[:80], widths)


def check_pictures(root: Node) -> int:
    """Every chart is named, and all of its places are numbers inside of its box. The number of charts."""
    charts = 0
    for picture in root.all("svg"):
        if picture.attributes["class"] == "mark-icon":
            continue
        if picture.attributes["class"] != "sb":
            charts += 1
            assert picture.attributes["role"] == "img"
            assert all(next(picture.all(tag)).text for tag in ("title", "desc"))
        _, _, width, height = map(float, picture.attributes["viewbox"].split())
        for node in picture.every():
            for x, y in _places(node):
                assert math.isfinite(x), node
                assert math.isfinite(y), node
                assert -0.01 <= x <= width + 0.01, (node.tag, node.attributes, x)
                assert -0.01 <= y <= height + 0.01, (node.tag, node.attributes, y)
    return charts


def _places(node: Node) -> Iterator[tuple[float, float]]:
    def get(name: str) -> float:
        return float(node.attributes[name])

    if node.tag == "rect":
        assert get("width") >= 0
        assert get("height") >= 0
        yield get("x"), get("y")
        yield get("x") + get("width"), get("y") + get("height")
    elif node.tag == "line":
        yield get("x1"), get("y1")
        yield get("x2"), get("y2")
    elif node.tag == "circle":
        yield get("cx") - get("r"), get("cy") - get("r")
        yield get("cx") + get("r"), get("cy") + get("r")
    elif node.tag == "text":
        yield get("x"), get("y")
    elif node.tag == "path":
        yield from _along(node.attributes["d"])


def _along(path: str) -> Iterator[tuple[float, float]]:
    x = y = 0.0
    for command, arguments in re.findall(r"([MLhvVz])([^MLhvVz]*)", path):
        numbers = [float(number) for number in arguments.split()]
        if command in "ML":
            x, y = numbers
        elif command == "h":
            x += numbers[0]
        elif command == "v":
            y += numbers[0]
        elif command == "V":
            y = numbers[0]
        yield x, y
