"""The API reference, from signatures and docstrings.

    python scripts/api_reference.py            # writes docs/api/*.md, a page for each room
    python scripts/api_reference.py --check    # fails where they are stale
    python scripts/api_reference.py --freeze   # writes tests/public_api.txt, the frozen API
    python scripts/api_reference.py --audit    # public names whose docstrings leave something out

Public is what ``jaxinterp.__all__`` names, and of the rooms in it (and `MORE`) what their own
``__all__`` names, or what has no underscore where a room has none. Sources are parsed, not
imported: defaults stand here as they are written, alike in every version of Python and JAX. Links
name files without lines, so that a page is stale only when what it says is.
"""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
MORE = ("report",)  # rooms that `import jaxinterp` leaves to the user
COMMAND = "python scripts/api_reference.py"
WIDTH = 88  # of signatures on one line
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Parameter(NamedTuple):
    """One parameter as it is written; name: with its stars, or a bare ``*`` or ``/``."""

    name: str
    annotation: str = ""
    default: str = ""
    comment: str = ""

    def __str__(self) -> str:
        """With its annotation."""
        equals = " = " if self.annotation else "="
        typed = f"{self.name}: {self.annotation}" if self.annotation else self.name
        return typed + (equals + self.default if self.default else "")

    @property
    def bare(self) -> str:
        """Without it."""
        return f"{self.name}={self.default}" if self.default else self.name


class Entry(NamedTuple):
    """A public name. path: from the package on; aliases: other paths to it; module: its home."""

    path: str
    kind: str
    module: str
    parameters: tuple[Parameter, ...] | None = None
    returns: str = ""
    doc: str = ""
    members: tuple[Entry, ...] = ()
    aliases: tuple[str, ...] = ()
    node: ast.AST | None = None

    @property
    def name(self) -> str:
        return self.path.rsplit(".", 1)[-1]


class Source:
    """A module's file: its tree, and the text of its nodes."""

    def __init__(self, file: Path):
        self.file, text = file, file.read_text(encoding="utf-8")
        self.tree, self.lines = ast.parse(text), text.splitlines()

    def text(self, node: ast.expr | None) -> str:
        """An expression as it is written, on one line."""
        if node is None:
            return ""
        lines = [line.encode() for line in self.lines[node.lineno - 1 : node.end_lineno]]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return " ".join(b" ".join(lines).decode().split())

    def comment(self, node: ast.stmt) -> str:
        """What is said beside a statement."""
        rest = self.lines[(node.end_lineno or node.lineno) - 1].encode()[node.end_col_offset :]
        said = rest.decode().strip()
        return said if said.startswith("# ") and not said.startswith(("# fmt", "# type")) else ""


class Package:
    """A package's sources, and what is public in them."""

    def __init__(self, root: Path = ROOT, name: str = "jaxinterp", more: tuple[str, ...] = MORE):
        self.root, self.name, self.more = root, name, more

    @functools.cache  # noqa: B019 (one package, for one run)
    def source(self, module: str) -> Source | None:
        """Of a module of this package, if there is one by that name."""
        path = self.root / module.replace(".", "/")
        files = (path / "__init__.py", path.with_suffix(".py"))
        return next((Source(file) for file in files if file.is_file()), None)

    def find(self, module: str, name: str) -> tuple[str, str, ast.AST | None] | None:
        """(home, name there, definition) of a name of a module; no definition: a module itself."""
        source = self.source(module)
        if source is None:
            return None
        for node in reversed(source.tree.body):
            if name in _defined(node):
                return module, name, node
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                if name != (alias.asname or alias.name) or not node.module:
                    continue
                if node.module != module and (found := self.find(node.module, alias.name)):
                    return found
                if self.source(inner := f"{node.module}.{alias.name}"):
                    return inner, "", None
        return None

    def names(self, module: str) -> list[str]:
        """The public names of a module."""
        source = self.source(module)
        assert source is not None
        own = [(name, node) for node in source.tree.body for name in _defined(node)]
        for name, node in own:
            if name == "__all__" and isinstance(node, ast.Assign):
                return ast.literal_eval(node.value)
        return [name for name, _ in own if not name.startswith("_")]

    def entries(self) -> list[Entry]:
        """Everything public, each thing once, by its shortest path."""
        rooms, found = list(self.more), dict[tuple[str, str], Entry]()

        def add(path: str, home: str, name: str, node: ast.AST) -> None:
            if entry := found.get((home, name)):
                found[home, name] = entry._replace(aliases=(*entry.aliases, path))
            else:
                found[home, name] = self.entry(path, home, node)

        for name in self.names(self.name):
            located = self.find(self.name, name)
            if located is None:
                raise ValueError(f"{self.name}.__all__ names {name!r}, which it does not define.")
            if located[2] is None:
                rooms.append(name)
            else:
                add(f"{self.name}.{name}", *located)
        for room in rooms.sort() or rooms:  # grows by the rooms within rooms
            module = f"{self.name}.{room}"
            for name in self.names(module):
                if (located := self.find(module, name)) is None:
                    raise ValueError(f"{module} has no function, class, value or room {name!r}.")
                if located[2] is None:
                    rooms.append(f"{room}.{name}")
                else:
                    add(f"{module}.{name}", *located)
        return [*found.values(), *(self.room(room) for room in sorted(rooms))]

    def room(self, name: str) -> Entry:
        """A module as an entry."""
        module = f"{self.name}.{name}"
        source = self.source(module)
        doc = ast.get_docstring(source.tree) if source else ""
        return Entry(module, "module", module, doc=doc or "")

    def entry(self, path: str, module: str, node: ast.AST) -> Entry:
        """What is said of a definition."""
        source = self.source(module)
        assert source is not None
        if isinstance(node, ast.ClassDef):
            members = tuple(self.members(path, module, node))
            parameters, doc = self.fields(module, node), ast.get_docstring(node) or ""
            return Entry(path, "class", module, parameters, "", doc, members, (), node)
        if not isinstance(node, Function):
            return Entry(path, "value", module, node=node)
        parameters = _parameters(source, node.args)
        if parameters and parameters[0].name in ("self", "cls"):
            parameters = parameters[1:]
        returns, doc = source.text(node.returns), ast.get_docstring(node) or ""
        return Entry(path, "function", module, parameters, returns, doc, (), (), node)

    def members(self, path: str, module: str, node: ast.ClassDef) -> Iterator[Entry]:
        """Public methods and properties of a class: documented ones among the dunders."""
        for each in node.body:
            if not isinstance(each, Function) or each.name == "__init__":
                continue
            special = each.name.startswith("__") and ast.get_docstring(each)
            if each.name.startswith("_") and each.name != "__call__" and not special:
                continue
            made = self.entry(f"{path}.{each.name}", module, each)
            kinds = {ast.unparse(d).split(".")[-1] for d in each.decorator_list}
            known = {"property", "cached_property"} & kinds
            yield made._replace(kind="property" if known else "method")

    def fields(self, module: str, node: ast.ClassDef) -> tuple[Parameter, ...] | None:
        """What a class is made from: its ``__init__``'s parameters, or its (and bases') fields."""
        source = self.source(module)
        assert source is not None
        for each in node.body:
            if isinstance(each, ast.FunctionDef) and each.name == "__init__":
                return _parameters(source, each.args)[1:]
        found = self._fields(module, node)
        if not found:
            return None
        places = [p for p, keyword in found.values() if not keyword]
        keywords = [p for p, keyword in found.values() if keyword]
        return (*places, *([Parameter("*")] if keywords else []), *keywords)

    def _fields(self, module: str, node: ast.ClassDef) -> dict[str, tuple[Parameter, bool]]:
        source, found = self.source(module), dict[str, tuple[Parameter, bool]]()
        assert source is not None
        bases = [source.text(base) for base in node.bases]
        if any(base.split("[")[0] in ("Protocol", "Exception", "ValueError") for base in bases):
            return {}
        for base in bases:
            located = self.find(module, base)
            if located and isinstance(located[2], ast.ClassDef):
                found |= self._fields(located[0], located[2])
        for each in node.body:
            if not isinstance(each, ast.AnnAssign) or not isinstance(each.target, ast.Name):
                continue
            name, annotation = each.target.id, source.text(each.annotation)
            default, options = _default(source, each.value)
            if not annotation.startswith("ClassVar") and options.get("init") != "False":
                made = Parameter(name, annotation, default, source.comment(each))
                found[name] = made, options.get("kw_only") == "True"
        return found


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, (ast.ClassDef, *Function.__args__)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]


def _parameters(source: Source, given: ast.arguments) -> tuple[Parameter, ...]:
    def made(arg: ast.arg, default: ast.expr | None = None, stars: str = "") -> Parameter:
        return Parameter(stars + arg.arg, source.text(arg.annotation), source.text(default))

    places = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(places) - len(given.defaults)) + list(given.defaults)
    out = [made(arg, default) for arg, default in zip(places, defaults, strict=True)]
    if given.posonlyargs:
        out.insert(len(given.posonlyargs), Parameter("/"))
    if given.vararg:
        out.append(made(given.vararg, stars="*"))
    elif given.kwonlyargs:
        out.append(Parameter("*"))
    out += [made(a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return (*out, *([made(given.kwarg, stars="**")] if given.kwarg else []))


def _default(source: Source, value: ast.expr | None) -> tuple[str, dict[str | None, str]]:
    """A field's default as it is written, and the options of a ``field(...)``."""
    if not (isinstance(value, ast.Call) and source.text(value.func).split(".")[-1] == "field"):
        return source.text(value), {}
    said = {k.arg: k.value for k in value.keywords}
    made, factory = source.text(said.get("default")), said.get("default_factory")
    if isinstance(factory, ast.Lambda):
        made = source.text(factory.body)
    elif factory is not None:
        made = f"{source.text(factory)}()"
    return made, {name: source.text(option) for name, option in said.items()}


# The frozen list ----------------------------------------------------------------------------------


def frozen(entries: list[Entry]) -> str:
    """One line for each public name: kind, path, parameters and defaults."""
    lines = []
    for entry in entries:
        lines += [(entry.path, _line(entry)), *((m.path, _line(m)) for m in entry.members)]
        lines += [(alias, f"alias {alias} = {entry.path}") for alias in entry.aliases]
    return "".join(f"{line}\n" for _, line in sorted(lines))


def _line(entry: Entry) -> str:
    has = entry.kind != "property" and entry.parameters is not None
    given = f"({', '.join(p.bare for p in entry.parameters or ())})" if has else ""
    return f"{entry.kind} {entry.path}{given}"


def pages(package: Package) -> dict[str, str]:
    """The reference: markdown by file name."""
    entries = package.entries()
    rooms = {e.name: e for e in entries if e.kind == "module" and e.path.count(".") == 1}
    things = [e for e in entries if e.kind != "module" and not e.name.startswith("__")]
    by_room: dict[str, list[Entry]] = {room: [] for room in rooms}
    for entry in things:
        by_room.setdefault(entry.module.split(".")[1], []).append(entry)
    links = {}
    for room, own in by_room.items():
        own.sort(key=lambda e: (e.kind == "value", e.path.lower(), e.path))
        seen: dict[str, int] = {}
        for entry in own:
            slug = re.sub(r"[^\w\- ]", "", _short(entry.path)).lower()
            n = seen[slug] = seen.get(slug, -1) + 1  # as GitHub numbers equal headings
            links[_inner(entry.path)] = f"{room}.md#{slug}{f'-{n}' * bool(n)}"
    out = {
        f"{room}.md": _page(package, room, rooms.get(room) or package.room(room), own, links)
        for room, own in by_room.items()
    }
    return {**out, "README.md": _index(package, by_room, rooms, links)}


def _page(
    package: Package, room: str, about: Entry, own: list[Entry], links: dict[str, str]
) -> str:  # fmt: skip
    parts = [f"# {room}", _markdown(about.doc, room, links), _made()]
    parts += [_section(package, entry, room, links) for entry in own]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(package: Package, entry: Entry, room: str, links: dict[str, str]) -> str:
    source = package.source(entry.module)
    assert source is not None
    file = source.file.relative_to(package.root).as_posix()
    also = "".join(f", also `{_short(alias)}`" for alias in entry.aliases)
    kind = entry.kind.capitalize()
    parts = [f"## `{_short(entry.path)}`", f"{kind} in [{file}](../../{file}){also}"]
    if entry.kind == "value":
        value = getattr(entry.node, "value", None)
        said = source.text(value)
        said = said if len(said) <= 2 * WIDTH else f"{said[: 2 * WIDTH]} ..."
        parts.append(f"```python\n{entry.name} = {said}\n```")
    elif entry.parameters is not None:
        parts.append(f"```python\n{_call(entry, _short(entry.path))}\n```")
    parts.append(_markdown(entry.doc, room, links))
    for member in entry.members:
        call = member.name if member.kind == "property" else _call(member, member.name, 10**6)
        call += f" -> {member.returns}" if member.kind == "property" and member.returns else ""
        said = _markdown(member.doc, room, links).replace("\n", "\n  ").replace("\n  \n", "\n\n")
        parts.append(f"- `{call}`" + f": {said}" * bool(said))
    return "\n\n".join(part for part in parts if part)


def _call(entry: Entry, name: str, width: int = WIDTH) -> str:
    given = entry.parameters or ()
    returns = f" -> {entry.returns}" if entry.returns else ""
    line = f"{name}({', '.join(map(str, given))}){returns}"
    if len(line) <= width and not any(p.comment for p in given):
        return line
    rows = "".join(f"    {p},{f'  {p.comment}' if p.comment else ''}\n" for p in given)
    return f"{name}(\n{rows}){returns}"


def _index(
    package: Package, by_room: dict[str, list[Entry]], rooms: dict[str, Entry],
    links: dict[str, str],
) -> str:  # fmt: skip
    top = [e for own in by_room.values() for e in own if e.path.count(".") == 1]
    lines = ["| | |", "| --- | --- |"]
    for entry in sorted(top, key=lambda e: (e.path.lower(), e.path)):
        lines.append(
            f"| [`{_short(entry.path)}`]({links[_inner(entry.path)]}) | {_first(entry.doc)} |"
        )
    listed = []
    for room, own in sorted(by_room.items()):
        doc = (rooms.get(room) or package.room(room)).doc
        reached = f"`ji.{room}`" if room in rooms and room not in package.more else f"`{room}`"
        listed.append(f"- [{reached}]({room}.md) ({len(own)}): {_first(doc)}")
    return "\n\n".join([
        "# API reference",
        "`import jaxinterp as ji` throughout. " + _made(),
        "## Rooms",
        "What stands here without `ji.` is reached through `ji.` itself (below), "
        f"or by `from jaxinterp import {', '.join(package.more)}`.",
        "\n".join(listed), "## `ji.` itself", "\n".join(lines),
    ]) + "\n"  # fmt: skip


def _made() -> str:
    return f"*Made from the docstrings by `{COMMAND}`: change those.*"


def _short(path: str) -> str:
    return path.replace("jaxinterp.", "ji.", 1)


def _inner(path: str) -> str:
    """A path without the package's name."""
    return path.split(".", 1)[1]


def _first(doc: str) -> str:
    """A docstring's first paragraph, on one line of a table."""
    text = " ".join(inspect.cleandoc(doc).split("\n\n")[0].split())
    return _escaped(text).replace("|", "\\|")


def _markdown(doc: str, room: str, links: dict[str, str]) -> str:
    """A docstring as markdown: its text as it is, doctests and indented blocks as code."""
    parts = []
    for part in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        lines = part.split("\n")
        if lines[0].startswith(">>>"):
            parts.append(f"```pycon\n{part}\n```")
        elif all(line.startswith("    ") for line in lines):
            parts.append(f"```text\n{inspect.cleandoc(part)}\n```")
        else:
            parts.append(_linked(_escaped(part), room, links))
    return "\n\n".join(part for part in parts if part)


_KEPT = re.compile(r"(``.+?``|`[^`]+`|\*\w[\w \n]*\w\*)", re.DOTALL)  # code, and what is stressed
_SIGNS = re.compile(
    r"[*~](?=\S)|(?<=\S)[*~]|(?<!\w)_(?=\w)|<(?=[\w/!])|\](?=[(\[])|\\(?=[^\w\s])"
    r"|^\[(?=[^\]\n]*\]:)|^[#>+]",
    re.MULTILINE,
)


def _escaped(text: str) -> str:
    """Markdown's own signs made plain where they would be taken for such."""
    parts = _KEPT.split(text.replace(":meth:", ""))
    parts[::2] = [_SIGNS.sub(r"\\\g<0>", plain) for plain in parts[::2]]
    return "".join(parts)


def _linked(text: str, room: str, links: dict[str, str]) -> str:
    """The text with public names in single backticks linked to where they are described."""

    def link(match: re.Match[str]) -> str:
        name = match[1].removeprefix("jaxinterp.").removeprefix("ji.")
        to = links.get(f"{room}.{name}", links.get(name))
        return f"[{match[0]}]({to.removeprefix(f'{room}.md')})" if to else match[0]

    return re.sub(r"(?<!`)`([\w.]+)`(?!`)", link, text)


# What docstrings leave out ------------------------------------------------------------------------


def audit(entries: list[Entry]) -> list[str]:
    """What public functions, methods and classes do not say: anything, shapes, errors."""
    found = []
    each = (e for one in entries for e in (one, *one.members))
    for entry in (e for e in each if e.kind not in ("module", "value")):
        returns, said = entry.returns, entry.doc
        if not said:
            found.append(f"{entry.path}: no docstring")
        elif re.search(r"\bArray|ndarray|DataArray|Dataset", returns) and not re.search(
            r"\[|\bdims?\b|\(\w+, \w+|as in `|as `", said
        ):
            found.append(f"{entry.path}: returns {returns}, no shape")
        own = ast.walk(entry.node) if isinstance(entry.node, Function) else ()
        raises = any(isinstance(node, ast.Raise) for node in own)
        if said and raises and not re.search(r"[Rr]aise|[Rr]efuse|[Ee]rrors", said):
            found.append(f"{entry.path}: raises, and does not say so")
    return found


def stale(package: Package, folder: Path) -> list[str]:
    """The files of a folder that are missing, out of date or of nothing."""
    made = pages(package)
    kept = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.md")}
    return sorted(name for name in made.keys() | kept if made.get(name) != kept.get(name))


def write(package: Package, folder: Path) -> None:
    """Write the pages, and take away those of rooms that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages(package)
    for file in folder.glob("*.md"):
        if file.name not in made:
            file.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where the pages are stale")
    parser.add_argument("--freeze", action="store_true", help="write tests/public_api.txt")
    parser.add_argument("--audit", action="store_true", help="list what docstrings leave out")
    args = parser.parse_args()
    package, folder = Package(), ROOT / "docs/api"
    if args.audit:
        print("\n".join(audit(package.entries())))
    elif args.freeze:
        (ROOT / "tests/public_api.txt").write_text(frozen(package.entries()), encoding="utf-8")
    elif args.check:
        if old := stale(package, folder):
            sys.exit(f"docs/api is stale ({', '.join(old)}): run {COMMAND}")
    else:
        write(package, folder)


if __name__ == "__main__":
    main()
