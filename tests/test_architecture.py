"""The house is as it is drawn: imports follow the arrows."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bridge"
ROOMS = ("intake", "outbox", "lookups", "sessionm")
# Which rooms a room may look into.
ARROWS = {
    "intake": set[str](),
    "outbox": {"intake", "sessionm"},
    "lookups": {"sessionm"},
    "sessionm": set[str](),
}
# No network, clock, database or web framework: decisions only.
PURE = (
    "customer.py",
    "fields.py",
    "intake/payload.py",
    "intake/rules.py",
    "intake/segment.py",
    "lookups/query.py",
    "lookups/shape.py",
    "outbox/gate.py",
    "outbox/plan.py",
    "outbox/verdict.py",
    "planner.py",
    "sessionm/answers.py",
    "web/plots.py",
)
IMPURE = {"flask", "requests", "sqlite3", "time", "random", "threading", "socket", "urllib3"}


def modules(folder: str = "") -> Iterator[Path]:
    return (PACKAGE / folder).rglob("*.py")


def imports(path: Path) -> set[str]:
    """The full names of everything that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(name: str) -> str | None:
    top, _, rest = name.partition(".")
    room = rest.partition(".")[0]
    return room if top == "bridge" and room in {*ROOMS, "web"} else None


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_looks_only_where_its_arrow_points(room: str) -> None:
    for path in modules(room):
        rooms = {found for name in imports(path) if (found := room_of(name))}
        assert rooms <= ARROWS[room] | {room}, path


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_knows_the_web(room: str) -> None:
    for path in modules(room):
        assert not {name for name in imports(path) if name.split(".")[0] == "flask"}, path


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_imports_nothing_that_acts(module: str) -> None:
    tops = {name.split(".")[0] for name in imports(PACKAGE / module)}
    assert not tops & IMPURE


def test_sql_stands_in_the_stores_alone() -> None:
    with_sql = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if {name for name in imports(path) if name.startswith("sqlalchemy")}
    }
    names = ("schema", "store", "events", "search", "tallies", "move", "jobs", "backlog")
    stores = {*(f"outbox/{name}.py" for name in names), "lookups/cache.py", "lookups/fleet.py"}
    assert with_sql == {"database.py", "postgres.py", "statements.py", "telemetry.py", *stores}


def test_the_edge_holds_no_rule_of_the_trade() -> None:
    """Views call one thing; what is decided stands in the rooms."""
    for path in modules("web"):
        names = imports(path)
        assert not {n for n in names if n.startswith(("bridge.outbox.plan", "bridge.outbox.gate"))}
        assert not {n for n in names if n.startswith("bridge.intake.rules")}, path


def test_no_module_is_too_long_to_read() -> None:
    for path in modules():
        assert len(path.read_text().splitlines()) < 900, path
