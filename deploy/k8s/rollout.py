"""`make deploy`: a version onto a cluster, schemas first, and back where it does not become healthy.

    python -m deploy.k8s.rollout production --image registry.example/openbell@sha256:...

It uses kubectl with the cluster and the rights that are set up. What would surprise you: the schema stays when the code
goes back, which the version before runs on (tests/deploy/test_rollback.py); and a cluster that runs no version yet has
nothing to go back to.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, Final

import yaml

from deploy.k8s.check import OVERLAYS, built
from deploy.tools import ToolMissing, find

NAMESPACE: Final = "openbell"
MIGRATIONS_S: Final = 600
HEALTHY_S: Final = 600


class RolloutFailed(Exception):
    """The new version does not run; the message says what runs instead."""


def roll_out(resources: list[dict[str, Any]], image: str) -> str:
    """Bring resources onto the cluster with this image; return what there is to say. Raises RolloutFailed."""
    for container in _ours(resources):
        container["image"] = image
    jobs = [one for one in resources if one["kind"] == "Job"]
    names = [one["metadata"]["name"] for one in resources if one["kind"] == "Deployment"]
    for job in jobs:  # a Job cannot be changed
        _kubectl("delete", "job", job["metadata"]["name"], "--ignore-not-found")
    try:
        _apply(one for one in resources if one["kind"] != "Deployment")
        for job in jobs:
            _kubectl("wait", f"job/{job['metadata']['name']}", "--for=condition=Complete", f"--timeout={MIGRATIONS_S}s")
    except RolloutFailed as error:
        raise RolloutFailed(f"{error}\nno service was touched: the version before runs on") from error
    try:
        _apply(one for one in resources if one["kind"] == "Deployment")
        for name in names:
            _kubectl("rollout", "status", f"deployment/{name}", f"--timeout={HEALTHY_S}s")
    except RolloutFailed as error:
        stuck = [name for name in names if not _undone(name)]
        after = (
            f"these did not go back: {', '.join(stuck)}" if stuck else "all services went back to the version before"
        )
        raise RolloutFailed(f"{error}\n{after}") from error
    return f"{len(names)} services run {image}"


def _undone(name: str) -> bool:
    try:
        _kubectl("rollout", "undo", f"deployment/{name}")
        _kubectl("rollout", "status", f"deployment/{name}", f"--timeout={HEALTHY_S}s")
    except RolloutFailed:
        return False
    return True


def _ours(resources: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield the containers of Deployments and Jobs: all of them run our image."""
    for one in resources:
        if one["kind"] in {"Deployment", "Job"}:
            yield from one["spec"]["template"]["spec"]["containers"]


def _apply(resources: Iterable[dict[str, Any]]) -> None:
    _kubectl("apply", "--server-side", "-f", "-", given=yaml.safe_dump_all(resources))


def _kubectl(*words: str, given: str = "") -> None:
    command = [str(find("kubectl")), "--namespace", NAMESPACE, *words]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    sys.stdout.write(done.stdout)
    if done.returncode:
        raise RolloutFailed(f"kubectl {' '.join(words[:3])}: {done.stderr.strip()}")


def main() -> int:
    """Roll out; return the exit code."""
    parser = argparse.ArgumentParser(prog="make deploy", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("overlay", choices=OVERLAYS)
    parser.add_argument("--image", required=True, help="with its registry and tag or digest")
    asked = parser.parse_args()
    try:
        sys.stdout.write(f"{roll_out(built(asked.overlay), asked.image)}\n")
    except (RolloutFailed, ToolMissing) as error:
        sys.stderr.write(f"make deploy: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
