"""The structure holds: service cards against the code, quiet imports, no registry addresses, settings and routes told.

What import-linter can say stands in pyproject.toml (`make check`); that each route states its caller stands in
tests/shared/test_http.py. Here is the rest.
"""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest
from pydantic_settings import BaseSettings

from services.api.openapi import offline
from shared.contracts.api import ActionAudited
from shared.contracts.base import Event
from shared.contracts.topics import TOPICS
from shared.schema import SERVICES
from shared.service import Environment, Service
from shared.settings import SharedSettings

ROOT: Final = Path(__file__).parents[1]


def _card(name: str) -> ModuleType:
    return importlib.import_module(f"services.{name}")


def _built(name: str) -> Service:
    return importlib.import_module(f"services.{name}.main").build(Environment())


# Service cards


def test_every_service_is_in_the_list_that_is_migrated_and_run():
    assert {path.parent.name for path in ROOT.glob("services/*/main.py")} == set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_a_card_reads_what_its_consumers_handle(name: str):
    handled = {route.event for consumer in _built(name).consumers for route in consumer.routes.values()}
    assert _names(_card(name).READS) == _names(handled)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_publishes_to_its_own_topics_and_the_audit_trail(name: str):
    card = _card(name)
    assert name == card.OWNS == _built(name).db.schema
    assert len(set(card.PUBLISHES)) == len(card.PUBLISHES)
    strangers = {event for event in card.PUBLISHES if event.topic.owner != name} - {ActionAudited}
    assert not strangers
    assert {event.topic for event in (*card.READS, *card.PUBLISHES)} <= set(TOPICS)


@pytest.mark.parametrize("name", SERVICES)
def test_a_card_publishes_what_its_code_makes(name: str):
    made = {event for path in _sources(f"services/{name}") for event in _made_in(ast.parse(path.read_text()))}
    made.add(ActionAudited)  # the operations that every service has are audited
    assert _names(_card(name).PUBLISHES) == _names(made)


def _next_version(stem: str) -> str:
    name, _, number = stem.rpartition(".v")
    return f"{name}.v{int(number) + 1}"


def test_every_event_is_published_by_somebody():
    told = {event.type for name in SERVICES for event in _card(name).PUBLISHES}
    golden = {file.stem for file in ROOT.glob("tests/contracts/golden/*.json")}
    followed = {stem for stem in golden if _next_version(stem) in golden}  # read for ever, published no more
    assert golden - followed == told


def _names(events: object) -> set[str]:
    return {event.__name__ for event in events}  # pyright: ignore[reportGeneralTypeIssues]


def _sources(folder: str) -> Iterator[Path]:
    return (path for path in sorted(ROOT.glob(f"{folder}/**/*.py")) if "migrations" not in path.parts)


def _made_in(tree: ast.Module) -> set[type[Event]]:
    """Return the events that a module makes: `X(...)`, `X.caused_by(...)`, or by a name that stands for X or Y."""
    events = _imported_events(tree)
    stands_for: dict[str, set[str]] = {name: {name} for name in events}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            meant = _choices(node.value) & events.keys()
            if meant:
                stands_for.setdefault(node.targets[0].id, set()).update(meant)
    made: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr == "caused_by":
                called = called.value
            if isinstance(called, ast.Name):
                made |= stands_for.get(called.id, set())
    return {events[name] for name in made}


def _choices(value: ast.expr) -> set[str]:
    if isinstance(value, ast.IfExp):
        return _choices(value.body) | _choices(value.orelse)
    return {value.id} if isinstance(value, ast.Name) else set()


def _imported_events(tree: ast.Module) -> dict[str, type[Event]]:
    found: dict[str, type[Event]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shared.contracts"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                value = getattr(module, name.name)
                if isinstance(value, type) and issubclass(value, Event) and value is not Event:
                    found[name.asname or name.name] = value
    return found


# Importing does nothing

_IMPORT_ALL: Final = """
import importlib, json, sys, threading
seen = []
WATCHED = ("socket.", "subprocess.", "os.fork", "os.posix_spawn", "os.system", "_thread.start_new_thread")
sys.addaudithook(lambda event, args: seen.append(f"{module}: {event}") if event.startswith(WATCHED) else None)
for module in json.load(sys.stdin):
    importlib.import_module(module)
left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
json.dump(sorted(set(seen)) + left, sys.stdout)
"""


def test_importing_opens_nothing_and_starts_nothing():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for folder in ("shared", "services")
        for path in _sources(folder)
    ]
    assert len(modules) > 100
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL],
        input=json.dumps(modules),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


# Retention

_BY_AGE: Final = re.compile(r"delete from \S+ where (?:(?!returning)[^\";])*<=? :\w+(?!\w| returning)")


def test_what_is_past_its_time_is_deleted_in_slices():
    """One statement over a large backlog would be cut off by its time-out every night (shared.retention)."""
    found = [
        f"{path.relative_to(ROOT)}: {statement}"
        for folder in ("shared", "services")
        for path in _sources(folder)
        for statement in _BY_AGE.findall(path.read_text())
    ]
    assert [one for one in found if "work_pauses" not in one] == []


# Registries


def test_no_address_of_a_package_registry_is_anywhere():
    """What is installed from where is the machine's business (its pip or uv configuration), never the repository's."""
    hosts = "|".join(("py" + "pi", "python" + "hosted", "npm" + "js", "arti" + "factory", "nex" + "us"))
    options = "|".join(("(?<!emit-)in" + "dex[-_]url", "ex" + "tra[-_]index", '"resol' + 'ved"\\s*:'))
    address = re.compile(rf"{options}|https?://[\w.:@-]*(?:{hosts})".encode(), re.IGNORECASE)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607 - whichever git is here
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    assert [path for path in files if path.is_file() and address.search(path.read_bytes())] == []


# Settings


def _settings() -> list[type[BaseSettings]]:
    found: list[type[BaseSettings]] = [SharedSettings]
    for name in SERVICES:
        module = importlib.import_module(f"services.{name}.settings")
        found += [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, BaseSettings) and value.__module__ == module.__name__
        ]
    return found


def _variables(cls: type[BaseSettings]) -> set[str]:
    return {f"{cls.model_config.get('env_prefix', '')}{name}".upper() for name in cls.model_fields}


def test_every_setting_stands_in_the_example_with_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = (ROOT / ".env.example").read_text().splitlines()
    example: dict[str, str] = {}
    for before, line in zip(["", *lines], lines, strict=False):
        if match := re.fullmatch(r"#(OPENBELL_[A-Z0-9_]+)=(.*)", line):
            assert before.startswith("# "), f"{match[1]} says in the line above what it does"
            assert match[1] not in example, f"{match[1]} stands there twice"
            example[match[1]] = match[2]
    assert set(example) == {name for cls in _settings() for name in _variables(cls)}

    taken = tmp_path / ".env"
    taken.write_text("".join(f"{name}={value}\n" for name, value in example.items() if value))
    for name in example:
        monkeypatch.delenv(name, raising=False)
    for cls in _settings():
        assert cls(_env_file=taken) == cls(_env_file=None)  # pyright: ignore[reportCallIssue] - pydantic-settings' own
        unset = {name for name in _variables(cls) if not example[name]}
        nothing = {name for name, field in cls.model_fields.items() if field.default is None}
        assert unset == {f"{cls.model_config.get('env_prefix', '')}{name}".upper() for name in nothing}


def test_nothing_that_a_stand_in_loads_lets_nested_data_end_the_process():
    code = (
        "import sys; before = sys.getrecursionlimit(); import tests.fakes.evm; print(sys.getrecursionlimit() - before)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True).stdout == b"0\n"


# Routes


def test_the_readme_lists_every_route_and_who_may_call_it():
    rows = re.findall(r"^\| `([A-Z]+) (/\S+)` \| ([a-z ]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    served = {
        (method.upper(), path, operation["x-caller"])
        for path, operations in offline()["paths"].items()
        for method, operation in operations.items()
        if not path.startswith("/ops/schema")
    }
    assert {(method, path, caller.strip()) for method, path, caller in rows} == served
