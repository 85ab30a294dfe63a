"""Imports follow the arrows of the layout, and pure modules load nothing that acts."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import cast

import pytest

PACKAGE = Path(__file__).parents[2] / "bridge"
# The packages that each package imports. Flask is imported by web alone.
ARROWS = {
    "intake": set[str](),
    "outbox": {"intake", "network", "storage"},
    "braze": {"intake", "network", "outbox"},
    "bulk": {"intake", "outbox", "sessionm", "storage"},
    "lookups": {"sessionm", "storage"},
    "network": set[str](),
    "sessionm": {"network", "outbox"},
    "storage": set[str](),
    "liquid": {"network"},
    "sandbox": set[str](),
    "ops": {"bulk", "intake", "network", "outbox", "storage"},
    "web": {
        *("bulk", "intake", "liquid", "lookups", "network", "ops", "outbox", "sessionm"),
        "storage",
    },
    "cli": {
        *("braze", "bulk", "intake", "liquid", "lookups", "network", "ops", "outbox", "sandbox"),
        *("sessionm", "storage", "web"),
    },
}
PACKAGES_WITHOUT_FLASK = sorted(ARROWS.keys() - {"web"})
# No network, clock, database or web framework: decisions only.
PURE = (
    "braze/answers.py",
    "breaker.py",
    "bulk/model.py",
    "bulk/moves.py",
    "bulk/segment.py",
    "calls.py",
    "customer.py",
    "fields.py",
    "intake/broken.py",
    "intake/message.py",
    "intake/payload.py",
    "intake/printed.py",
    "intake/rules.py",
    "lookups/query.py",
    "lookups/shape.py",
    "network/failure.py",
    "ops/incidents.py",
    "outbox/model.py",
    "outbox/verdict.py",
    "planner.py",
    "sessionm/answers.py",
    "web/plots.py",
)
IMPURE = {"flask", "requests", "sqlite3", "time", "threading", "socket", "urllib3"}
# What a pure module must not load, directly or through others.
ACTS = ("flask", "requests", "sqlalchemy", "urllib3", "psycopg")


def modules(folder: str = "") -> Iterator[Path]:
    return (PACKAGE / folder).rglob("*.py")


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a module."""
    return [*ast.walk(ast.parse(path.read_text()))]


@cache
def imports(path: Path) -> set[str]:
    """The full names of everything that a module imports."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package_of(name: str) -> str | None:
    top, _, rest = name.partition(".")
    package = rest.partition(".")[0]
    return package if top == "bridge" and package in ARROWS else None


@pytest.mark.parametrize("package", ARROWS)
def test_a_package_imports_what_its_arrows_say(package: str) -> None:
    names = {name for path in modules(package) for name in imports(path)}
    assert {found for name in names if (found := package_of(name))} - {package} == ARROWS[package]


def test_the_arrows_make_no_circle() -> None:
    TopologicalSorter(ARROWS).prepare()


def test_the_picture_of_the_packages_has_every_arrow() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    picture = text.partition("```mermaid\n")[2].partition("```")[0]
    drawn = {package: set[str]() for package in re.findall(r"(\w+)\[", picture)}
    for source, targets in re.findall(r"(\w+) --> (.+)", picture):
        drawn[source] |= set(targets.split(" & "))
    assert drawn == ARROWS


def test_the_outbox_loads_no_destination() -> None:
    """It knows neither SessionM's tags nor Braze: destinations are given to it."""
    code = (
        "import sys, bridge.outbox.accept, bridge.outbox.delivery, bridge.outbox.events; "
        "print([n for n in sys.modules if n.startswith(('bridge.sessionm', 'bridge.braze'))])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES_WITHOUT_FLASK)
def test_web_alone_imports_flask(package: str) -> None:
    for path in modules(package):
        assert not {name for name in imports(path) if name.split(".")[0] == "flask"}, path


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_imports_nothing_that_acts(module: str) -> None:
    tops = {name.split(".")[0] for name in imports(PACKAGE / module)}
    assert not tops & IMPURE


def test_pure_modules_load_nothing_that_acts_through_others() -> None:
    names = ["bridge." + module.removesuffix(".py").replace("/", ".") for module in PURE]
    code = f"import sys, {', '.join(names)}; print(sorted(set({ACTS!r}) & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_fields_load_a_few_dozen_modules() -> None:
    code = (
        "import sys; before = set(sys.modules); import bridge.fields; "
        "print(len(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) < 60


def test_sql_stands_in_the_stores_alone() -> None:
    with_sql = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if {name for name in imports(path) if name.startswith("sqlalchemy")}
    }
    stores = {
        *(
            f"outbox/{name}.py"
            for name in ("schema", "store", "events", "extent", "search", "tallies")
        ),
        *(f"bulk/{name}.py" for name in ("schema", "store", "backlog")),
        *("lookups/cache.py", "lookups/fleet.py"),
        *(
            f"storage/{name}.py"
            for name in ("database", "expressions", "postgres", "sqlite", "statements")
        ),
        *(f"ops/{name}.py" for name in ("telemetry", "chronicle", "watch", "move")),
    }
    assert with_sql == stores


def test_the_edge_holds_no_rule_of_the_trade() -> None:
    """Views call one thing; the decisions are in the packages below."""
    for path in modules("web"):
        names = imports(path)
        assert not {
            n for n in names if n.startswith(("bridge.sessionm.tags", "bridge.outbox.verdict"))
        }
        assert not {n for n in names if n.startswith("bridge.intake.rules")}, path


def test_no_module_is_too_long_to_read() -> None:
    for path in modules():
        assert len(path.read_text().splitlines()) < 900, path


def test_no_private_name_of_a_dependency_is_used() -> None:
    """Ruff's SLF001 finds uses; this finds exceptions from it, imports and overridden methods."""
    for path in (*modules(), PACKAGE.parent / "app.py"):
        text = path.read_text()
        assert "SLF001" not in text, path
        private = {
            name
            for name in imports(path)
            if not name.startswith("bridge.")
            and any(part[:1] == "_" and part[:2] != "__" for part in name.split("."))
        }
        assert not private, (path, private)
    assert sorted(overridden()) == []


def overridden() -> Iterator[str]:
    """Private methods of the bridge's classes that a dependency's class has as well."""
    for path in modules():
        if path.stem == "__main__":
            continue
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        module = importlib.import_module(name.removesuffix(".__init__"))
        for one in vars(module).values():
            if not isinstance(one, type) or one.__module__ != module.__name__:
                continue
            own = {
                name
                for name, value in vars(one).items()
                if name[0] == "_" and name[:2] != "__"
                # Metaclasses of dependencies add attributes of their own.
                if getattr(value, "__module__", "") == module.__name__
            }
            for base in one.__mro__[1:]:
                if base.__module__.split(".")[0] not in {"bridge", *sys.stdlib_module_names}:
                    yield from (f"{one.__module__}.{one.__name__}.{n}" for n in own & {*vars(base)})


# What reads the wall clock, by the module that has it.
_WALL_CLOCK = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "asctime", "strftime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}


def reads_of_the_wall_clock(path: Path) -> list[str]:
    """Where a module asks for the time of day."""
    imported = {name.rpartition(".")[2] for name in imports(path)}
    found = [
        f"{node.lineno}: {node.value.id}.{node.attr}"
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in imported
        and node.attr in _WALL_CLOCK.get(node.value.id, ())
    ]
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [a.name for a in node.names if a.name in _WALL_CLOCK["time"]]
        if isinstance(node, ast.Attribute) and node.attr == "CLOCK_REALTIME":
            found.append(f"{node.lineno}: CLOCK_REALTIME")
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "formatdate":
            # Without a time it takes the present one.
            found += [] if node.args else [f"{node.lineno}: formatdate()"]
    return found


def test_one_module_reads_the_wall_clock() -> None:
    found = {str(path.relative_to(PACKAGE)): reads_of_the_wall_clock(path) for path in modules()}
    assert [name for name, reads in found.items() if reads] == ["clock.py"], found


def test_only_the_databases_own_clock_is_asked_in_sql() -> None:
    """SQLite's would be the wall clock, and ``now()`` of PostgreSQL stands still."""
    clocks = ("current_timestamp", "julianday(", "datetime('now", "strftime('%s", " now()")
    for path in modules():
        texts = [
            node.value.lower()
            for node in nodes(path)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not [text for text in texts for name in clocks if name in text], path


def test_a_class_name_stands_once() -> None:
    found = Counter(
        node.name
        for path in modules()
        for node in cast("ast.Module", nodes(path)[0]).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, number in found.items() if number > 1] == []
