"""What GitHub runs: workflows that hold, and commands that run by hand; and a rollout, with a kubectl of our own."""

import os
import re
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.k8s.rollout import RolloutFailed, roll_out
from deploy.tools import ToolMissing, find
from tests.deploy.missing import without

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
_TARGET = re.compile(r"\bmake ([a-z-]+)")

_KUBECTL = """#!/bin/sh
words="$*"
echo "$words" >>"$0.calls"
cat >>"$0.given"
case "$words" in *"$(cat "$0.fails")"*) echo "it does not" >&2; exit 1;; esac
"""


def test_workflows_hold():
    try:
        lint = find("actionlint")
    except ToolMissing as missing:
        without(missing)
    done = subprocess.run([lint, "-shellcheck=", *WORKFLOWS], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_each_step_runs_what_runs_by_hand(file: Path):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    jobs: dict[str, Any] = yaml.safe_load(file.read_text())["jobs"]
    for job in jobs.values():
        said = "\n".join(step.get("run", "") for step in job["steps"])
        for target in job.get("strategy", {}).get("matrix", {}).get("target", []):
            said += f"\nmake {target}"
        found = _TARGET.findall(said)
        assert found or ".ci/run" in said
        assert set(found) <= set(targets)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_tool_that_a_workflow_lacks_fails_it(file: Path):
    workflow = yaml.safe_load(file.read_text())
    said = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    if any(one == ".ci/run" or "make check" in one for one in said):
        assert workflow["env"]["OPENBELL_CHECK_STRICT"] == "1"


@pytest.mark.parametrize("name", ["ci", "deploy"])
def test_what_an_image_is_made_of_is_kept_with_the_run_that_built_it(name: str):
    jobs: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]
    (steps,) = [
        job["steps"] for job in jobs.values() if any("make image" in one.get("run", "") for one in job["steps"])
    ]
    said = [one.get("run", "").partition(" TAG=")[0] for one in steps]
    kept = next(at for at, one in enumerate(steps) if "upload-artifact" in one.get("uses", ""))
    assert {"make sbom", "make scan"} <= set(said[:kept])
    assert steps[kept]["with"]["path"] == ".openbell/sbom*.json"
    assert steps[kept]["with"]["include-hidden-files"] is True  # the folder is one
    assert steps[kept]["with"]["if-no-files-found"] == "error"


def test_what_was_not_checked_stands_last(tmp_path: Path):
    """Of `.ci/run`, whatever passed or failed before."""
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "SKIPPED [1] $1: no tool"\necho done\ntest "$1" != "$FAILS"\n')
    make.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    for fails in ("", "check"):
        done = subprocess.run(
            [ROOT / ".ci" / "run"], env=env | {"FAILS": fails}, capture_output=True, text=True, check=False
        )
        assert bool(done.returncode) == bool(fails)
        assert done.stdout.endswith("not checked here:\nSKIPPED [1] check: no tool\nSKIPPED [1] test: no tool\n")


def test_workflows_hold_no_risk_that_zizmor_knows():
    """Actions by their commit, no credentials left behind, nothing of others put into a script."""
    try:
        zizmor = find("zizmor")
    except ToolMissing as missing:
        without(missing)
    done = subprocess.run([zizmor, "--offline", *WORKFLOWS], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_make_takes_no_variable_from_the_environment_of_a_workflow_unseen(file: Path):
    taken = set(re.findall(r"\$\((?:or |if )?([A-Z_]+)", (ROOT / "Makefile").read_text()))
    assert "IMAGE" in taken
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    levels = [content, *content["jobs"].values(), *(one for job in content["jobs"].values() for one in job["steps"])]
    assert [name for level in levels for name in level.get("env", {}) if name in taken] == []


def _steps(file: str, job: str) -> list[dict[str, Any]]:
    text = next(one for one in WORKFLOWS if one.stem == file).read_text()
    return yaml.safe_load(text)["jobs"][job]["steps"]


def _position(steps: list[dict[str, Any]], words: str) -> int:
    (found,) = [number for number, step in enumerate(steps) if words in step.get("run", "")]
    return found


@pytest.mark.parametrize(("file", "job"), [("ci", "image"), ("nightly", "scan"), ("deploy", "deploy")])
def test_each_image_that_is_built_is_scanned(file: str, job: str):
    steps = _steps(file, job)
    built, scanned = _position(steps, "make image"), _position(steps, "make scan")
    assert built < scanned
    assert steps[built]["run"].split()[2:] == steps[scanned]["run"].split()[2:], "the same one"


def test_what_was_pushed_is_run_before_it_is_rolled_out():
    steps = _steps("deploy", "deploy")
    order = [_position(steps, words) for words in ("make scan", "docker push", "make test-image", "make deploy")]
    assert order == sorted(order)
    tried, rolled_out = (steps[number]["run"] for number in order[2:])
    assert [re.findall(r'IMAGE="(\$\w+)"', one) for one in (tried, rolled_out)] == [["$PUSHED"], ["$PUSHED"]]
    assert not [step for step in steps if step.get("continue-on-error") or "if" in step]


def test_a_scan_fails_by_what_could_be_mended(tmp_path: Path):
    """The scanner is one of ours: the real one's findings need its database."""
    scanner = tmp_path / "grype"
    scanner.write_text('#!/bin/sh\necho "asked: $*"\nexit 2\n')
    scanner.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["make", "scan", "IMAGE=place/openbell:2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "asked: docker:place/openbell:2 --only-fixed --fail-on high --output table" in done.stdout
    assert "--output cyclonedx-json=.openbell/sbom-image.json" in done.stdout


class Cluster:
    """A kubectl that writes down what it is asked, and fails at what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "kubectl"
        self.program.write_text(_KUBECTL)
        self.program.chmod(0o755)
        self.fails("never")

    def fails(self, at: str) -> None:
        self.program.with_name("kubectl" + ".fails").write_text(at)

    @property
    def calls(self) -> list[str]:
        return [
            line.removeprefix("--namespace openbell ")
            for line in self.program.with_name("kubectl" + ".calls").read_text().splitlines()
        ]

    @property
    def given(self) -> str:
        return self.program.with_name("kubectl" + ".given").read_text()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    find.cache_clear()
    return Cluster(tmp_path)


@pytest.fixture(autouse=True)
def _other_tests_find_theirs() -> Generator[None]:
    yield
    find.cache_clear()


def _resources() -> list[dict[str, Any]]:
    def running(kind: str, name: str) -> dict[str, Any]:
        spec = {"template": {"spec": {"containers": [{"name": name, "image": "old"}]}}}
        return {"kind": kind, "metadata": {"name": name}, "spec": spec}

    return [running("Deployment", "api"), running("Deployment", "alerts"), running("Job", "migrations")]


HEALTHY = ["rollout status deployment/api --timeout=600s", "rollout status deployment/alerts --timeout=600s"]


def test_schemas_come_before_code(cluster: Cluster):
    assert roll_out(_resources(), "place/openbell:2") == "2 services run place/openbell:2"
    apply = "apply --server-side -f -"
    wait = "wait job/migrations --for=condition=Complete --timeout=600s"
    assert cluster.calls == ["delete job migrations --ignore-not-found", apply, wait, apply, *HEALTHY]
    assert cluster.given.count("image: place/openbell:2") == 3
    assert "old" not in cluster.given


def test_nothing_is_touched_when_a_migration_fails(cluster: Cluster):
    cluster.fails("wait job/migrations")
    with pytest.raises(RolloutFailed, match="no service was touched"):
        roll_out(_resources(), "place/openbell:2")
    assert not [call for call in cluster.calls if "rollout" in call]
    assert "kind: Deployment" not in cluster.given


def test_all_services_go_back_when_one_is_not_healthy(cluster: Cluster):
    cluster.fails("status deployment/alerts")
    with pytest.raises(RolloutFailed, match="these did not go back: alerts"):
        roll_out(_resources(), "place/openbell:2")
    assert [call for call in cluster.calls if "undo" in call] == [
        "rollout undo deployment/api",
        "rollout undo deployment/alerts",
    ]
