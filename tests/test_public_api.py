"""The public API: frozen name by name, as importing shows it, and all of it in the reference."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import re
import types
from pathlib import Path

import pytest

import jaxinterp as ji

ROOT = Path(__file__).parents[1]
FROZEN = ROOT / "tests/public_api.txt"


def program():
    """scripts/api_reference.py, which is no package's."""
    spec = importlib.util.spec_from_file_location(
        "api_reference", ROOT / "scripts/api_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = program()
REMEDY = f"If that is meant, run: {reference.COMMAND} --freeze"


@functools.cache
def entries():
    return reference.Package().entries()


def listed(text):
    """Lines by path."""
    return {re.match(r"\w+ ([\w.]+)", line)[1]: line for line in text.splitlines()}


def changes(old, new):
    """What became of the API, in words."""
    old, new = listed(old), listed(new)
    out = [f"gone:     {old[path]}" for path in old if path not in new]
    out += [f"new:      {new[path]}" for path in new if path not in old]
    for path in old:
        if path in new and old[path] != new[path]:
            out += [f"was:      {old[path]}", f"  is now: {new[path]}"]
    return out


def test_the_api_is_the_frozen_one():
    found = changes(FROZEN.read_text(encoding="utf-8"), reference.frozen(entries()))
    if found:
        pytest.fail("\n".join(["The public API has changed.", *found, REMEDY]), pytrace=False)


def test_a_change_is_told_in_words():
    old = "class a.B(x)\nfunction a.f(x, *, y=1)\nvalue a.C\n"
    assert changes(old, old) == []
    assert changes(old, "function a.f(x, *, y=2)\nvalue a.C\nfunction a.g()\n") == [
        "gone:     class a.B(x)", "new:      function a.g()",
        "was:      function a.f(x, *, y=1)", "  is now: function a.f(x, *, y=2)",
    ]  # fmt: skip


@functools.cache
def reached(path):
    """The thing at a path: modules are imported, all else is an attribute."""
    parts = path.split(".")
    thing = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 1):
        if isinstance(thing, types.ModuleType) and not hasattr(thing, part):
            importlib.import_module(".".join(parts[: i + 1]))
        thing = getattr(thing, part)
    return thing


def signature(kind, path):
    """The parameters that Python sees."""
    thing = reached(path)
    if kind == "class":
        own = next(c for c in thing.__mro__ if {"__init__", "__new__"} & vars(c).keys())
        thing = own.__init__ if "__init__" in vars(own) else own.__new__
    found = list(inspect.signature(thing).parameters.values())
    owner, _, name = path.rpartition(".")
    bound = kind == "method" and not isinstance(
        inspect.getattr_static(reached(owner), name), types.FunctionType
    )
    return found[1:] if kind == "class" or (kind == "method" and not bound) else found


def check_parameters(line, kind, path):
    """A line's parameters, parsed as Python, against those of the thing itself."""
    (wanted,) = ast.parse(f"def f{line[line.index('(') :]}: ...").body
    a = wanted.args
    kinds = inspect.Parameter
    names = [(arg.arg, kinds.POSITIONAL_ONLY) for arg in a.posonlyargs]
    names += [(arg.arg, kinds.POSITIONAL_OR_KEYWORD) for arg in a.args]
    names += [(a.vararg.arg, kinds.VAR_POSITIONAL)] if a.vararg else []
    names += [(arg.arg, kinds.KEYWORD_ONLY) for arg in a.kwonlyargs]
    names += [(a.kwarg.arg, kinds.VAR_KEYWORD)] if a.kwarg else []
    found = signature(kind, path)
    assert [(p.name, p.kind) for p in found] == names, line
    places = [p.arg for p in (*a.posonlyargs, *a.args)]
    defaults = dict(zip(places[len(places) - len(a.defaults) :], a.defaults, strict=True))
    defaults |= {p.arg: d for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True) if d}
    assert {p.name for p in found if p.default is not kinds.empty} == set(defaults), line
    for p in found:
        with contextlib.suppress(ValueError, KeyError):  # names and calls are Python's to say
            assert p.default == ast.literal_eval(defaults[p.name]), line


def test_the_list_is_what_importing_shows():
    lines = listed(FROZEN.read_text(encoding="utf-8"))
    seen = dict.fromkeys(("function", "class", "method", "property", "value", "alias"), 0)
    for path, line in lines.items():
        kind, _, rest = line.partition(" ")
        seen[kind] = seen.get(kind, 0) + 1
        if kind == "alias":
            assert reached(path) is reached(rest.split(" = ")[1]), line
            continue
        owner, _, name = path.rpartition(".")
        if kind == "property":
            static = inspect.getattr_static(reached(owner), name)
            assert isinstance(static, (property, functools.cached_property)), line
            continue
        thing = reached(path)
        assert inspect.ismodule(thing) == (kind == "module"), line
        assert inspect.isclass(thing) == (kind == "class") or kind == "value", line
        assert callable(thing) or kind in ("module", "value"), line
        if "(" in line:
            check_parameters(line, kind, path)
    assert all(n > 10 for n in seen.values()), seen


def test_nothing_public_is_left_out():
    lines = listed(FROZEN.read_text(encoding="utf-8"))
    rooms = [n for n in ji.__all__ if inspect.ismodule(getattr(ji, n))]
    assert not [n for n in ji.__all__ if f"jaxinterp.{n}" not in lines]
    for room in (*rooms, *reference.MORE):
        module = importlib.import_module(f"jaxinterp.{room}")
        own = [
            name for name, thing in vars(module).items()
            if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
        ]  # fmt: skip
        for name in getattr(module, "__all__", own):
            assert f"jaxinterp.{room}.{name}" in lines


def test_every_public_function_and_class_says_what_it_is():
    assert not [e.path for e in entries() if e.kind in ("function", "class") and not e.doc]


def test_the_reference_is_up_to_date(monkeypatch):
    monkeypatch.setattr("sys.argv", ["api_reference.py", "--check"])
    reference.main()  # exits with what is stale, and the command


def slugs(text):
    """The anchors of a page's headings, as GitHub makes them."""
    seen, out = {}, set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")
        n = seen[slug] = seen.get(slug, -1) + 1
        out.add(f"{slug}-{n}" if n else slug)
    return out


def test_every_link_of_the_reference_leads_somewhere():
    folder, count = ROOT / "docs/api", 0
    texts = {page.name: page.read_text(encoding="utf-8") for page in folder.glob("*.md")}
    for name, text in texts.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            file, _, anchor = target.partition("#")
            assert (folder / (file or name)).resolve().is_file(), (name, target)
            assert not anchor or anchor in slugs(texts[file or name]), (name, target)
            count += 1
    assert count > len(entries())


INIT = '''"""A package."""
from small import room
from small.hidden import Thing, act as do
from small.values import TABLE
__all__ = ["TABLE", "Thing", "do", "room"]
'''
HIDDEN = '''"""What `do` does."""
from flax import struct
import dataclasses

class Base(struct.PyTreeNode):
    size: int = 3  # of all of them
    last: str = struct.field(pytree_node=False, default="z", kw_only=True)

class Thing(Base):
    """A thing. W [L D]: `do` makes it, [x](y) is none, nor is *this (*that.

    >>> Thing(1)

    - one
      `Thing.part`
    """
    parts: dict = dataclasses.field(default_factory=lambda: {"a": 1})
    shared: ClassVar[int] = 1
    found: int = dataclasses.field(init=False)

    @property
    def part(self) -> int:
        """[L]: a part."""

    def _hidden(self): ...

    def __len__(self): ...

    def __call__(self, x, /, *y: int, z: str = "é", **rest) -> np.ndarray:
        raise ValueError

def act(a, b: list[int] = [1,
                           2], *, c=None) -> Thing:
    """Acts."""
'''
ROOM = '''"""A room."""
from small.hidden import act
from small.values import TABLE
def shown(model): "[L D]: shown."
def _not(model): ...
LEFT, RIGHT = 1, 2
'''


@pytest.fixture
def small(tmp_path):
    """A package with one of each."""
    folder = tmp_path / "small"
    folder.mkdir()
    files = {"__init__": INIT, "hidden": HIDDEN, "room": ROOM, "values": "TABLE = {'a': 1}\n"}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return tmp_path


def package(root):
    return reference.Package(root, "small", more=())


def test_what_is_frozen_of_a_package(small):
    assert reference.frozen(package(small).entries()).splitlines() == [
        "value small.TABLE",
        'class small.Thing(size=3, parts={"a": 1}, *, last="z")',
        'method small.Thing.__call__(x, /, *y, z="é", **rest)',
        "property small.Thing.part",
        "function small.do(a, b=[1, 2], *, c=None)",
        "module small.room",
        "value small.room.LEFT",
        "value small.room.RIGHT",
        "function small.room.shown(model)",
    ]


def test_a_page_of_a_package(small):
    page = reference.pages(package(small))["hidden.md"]
    assert "What [`do`](#smalldo) does." in page
    assert "    size: int = 3,  # of all of them\n" in page
    assert '    parts: dict = {"a": 1},\n    *,\n    last: str = "z",\n' in page
    assert "A thing. W [L D]: [`do`](#smalldo) makes it, " in page
    assert "[x\\](y) is none, nor is \\*this (\\*that.\n" in page
    assert "```pycon\n>>> Thing(1)\n```\n\n- one\n  `Thing.part`\n" in page
    assert "- `part -> int`: \\[L]: a part.\n" in page
    assert '- `__call__(x, /, *y: int, z: str = "é", **rest) -> np.ndarray`\n' in page
    assert "small.do(a, b: list[int] = [1, 2], *, c=None) -> Thing\n" in page
    assert "Function in [small/hidden.py](../../small/hidden.py)" in page


def test_pages_go_stale_and_are_made_anew(small):
    folder = small / "docs"
    assert reference.stale(package(small), folder) == [
        "README.md", "hidden.md", "room.md", "values.md",
    ]  # fmt: skip
    reference.write(package(small), folder)
    (folder / "gone.md").write_text("# gone", encoding="utf-8")
    assert reference.stale(package(small), folder) == ["gone.md"]
    reference.write(package(small), folder)
    assert reference.stale(package(small), folder) == []
    (small / "small/hidden.py").write_text(f"\n\n{HIDDEN}", encoding="utf-8")
    assert reference.stale(package(small), folder) == []  # only lines moved
    (small / "small/hidden.py").write_text(HIDDEN.replace("Acts.", "Does."), encoding="utf-8")
    assert reference.stale(package(small), folder) == ["README.md", "hidden.md"]


def test_the_audit_names_what_is_not_said(small):
    assert reference.audit(package(small).entries()) == ["small.Thing.__call__: no docstring"]
    told = HIDDEN.replace("np.ndarray:\n", 'np.ndarray:\n        """Runs."""\n')
    (small / "small/hidden.py").write_text(told, encoding="utf-8")
    assert reference.audit(package(small).entries()) == [
        "small.Thing.__call__: returns np.ndarray, no shape",
        "small.Thing.__call__: raises, and does not say so",
    ]


def test_a_name_that_is_not_there_is_refused(small):
    (small / "small/__init__.py").write_text('__all__ = ["missing"]\n', encoding="utf-8")
    with pytest.raises(ValueError, match="names 'missing', which it does not define"):
        package(small).entries()
