"""What goes into an image: each service's own dependencies suffice for its code, and nothing else is copied."""

import ast
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shared.schema import SERVICES

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: Final = PROJECT["optional-dependencies"]
PROVIDES: Final = metadata.packages_distributions()
DRAWN_IN: Final = frozenset({"shared.messaging.asyncapi"})  # writes a document, on a developer's machine
OURS: Final = frozenset({"services", "shared", "cli", "deploy", "tests"})


def test_there_is_an_extra_for_each_service_and_one_for_all():
    (everything,) = EXTRAS["services"]
    assert set(SERVICES) <= set(EXTRAS)
    assert Requirement(everything).extras == set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_of_one_service_has_all_that_its_code_imports(service: str):
    has = _closure([*PROJECT["dependencies"], *_of_extra(service)])
    files = [*ROOT.glob(f"services/{service}/**/*.py"), *ROOT.glob("shared/**/*.py")]
    reached = _reached({_module(path) for path in files if "shared" not in path.parts})
    lacking = {
        f"{module}: {top}"
        for module in reached - DRAWN_IN
        for top in _third_parties(module)
        if not {canonicalize_name(name) for name in PROVIDES.get(top, [top])} & has
    }
    assert lacking == set()


def test_a_gateway_carries_no_market_data_no_charts_and_no_chains():
    has = _closure(PROJECT["dependencies"])
    assert has & {"pyarrow", "numpy", "pandas", "matplotlib", "web3", "stripe", "ccxt", "faststream"} == set()


def test_the_image_is_built_by_any_builder_and_copies_only_what_runs():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert not lines[0].startswith("# syntax")  # it would be fetched from a registry
    ignored = (ROOT / ".dockerignore").read_text().split()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert kept == {"pyproject.toml", "requirements.lock", "LICENSE", "services", "shared"}
    last_stage = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM")) :]
    assert [line for line in last_stage if line.startswith(("RUN", "ADD"))] == []  # nothing is built or fetched there
    assert "USER 10001:10001" in last_stage


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _of_extra(name: str) -> list[str]:
    return [
        inner
        for line in EXTRAS[name]
        for inner in (
            [one for extra in Requirement(line).extras for one in _of_extra(extra)]
            if Requirement(line).name == "openbell"
            else [line]
        )
    ]


def _closure(requirements: list[str]) -> set[str]:
    """Return the distributions that these need, themselves included, as they are installed here."""
    seen: set[tuple[str, str]] = set()
    ahead = [Requirement(line) for line in requirements]
    while ahead:
        wanted = ahead.pop()
        for extra in ("", *wanted.extras):
            if (key := (canonicalize_name(wanted.name), extra)) in seen:
                continue
            seen.add(key)
            try:
                further = metadata.requires(wanted.name) or []
            except metadata.PackageNotFoundError:  # for another Python or system
                continue
            found = (Requirement(line) for line in further)
            ahead += [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {str(name) for name, _ in seen}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _source(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)


@cache
def _imports(module: str) -> frozenset[str]:
    source = _source(module)
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())) if source else ():
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def _third_parties(module: str) -> set[str]:
    tops = {name.partition(".")[0] for name in _imports(module)}
    return tops - OURS - set(sys.stdlib_module_names)


def _reached(modules: set[str]) -> set[str]:
    seen: set[str] = set()
    while modules:
        module = modules.pop()
        if module in seen:
            continue
        seen.add(module)
        modules |= {name for name in _imports(module) if name.partition(".")[0] in OURS}
        modules |= {module.rpartition(".")[0]} - {""}
    return {module for module in seen if _source(module)}
