"""Checks the manifests, as they are built for each environment; part of `make check`.

    python -m deploy.k8s.check

Kubernetes' own kinds are held to its published schemas (unknown fields refused), custom resources to what operators
publish of them (published.py) and, where that is nothing or leaves much open, to models of ours (crds.py), and what
production gets to checkov's rules. A tool that cannot be had is said, and costs nothing: what it would have found is
then for CI to find.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import yaml
from pydantic import ValidationError

from deploy.k8s import published
from deploy.k8s.crds import MODELS
from deploy.tools import ToolMissing, find, strict, verdict

HERE: Final = Path(__file__).parent
OVERLAYS: Final = tuple(sorted(path.name for path in (HERE / "overlays").iterdir()))
VERSION: Final = "1.34"
"""The oldest Kubernetes that we keep to (a pod's `sleep` before its end is stable there)."""
SKIPPED: Final[Mapping[str, str]] = {
    "CKV_K8S_43": "a digest is known when the image was pushed: the pipeline sets it (docs/deploy.md)",
    "CKV_K8S_15": "tags are never moved, and a node that has the image should start without the registry",
}

Resource = dict[str, Any]
Kind = tuple[str, str]


def built(overlay: str) -> list[Resource]:
    """Return what kustomize makes of an overlay. Raises ToolMissing."""
    done = subprocess.run(  # noqa: S603 - our own arguments
        [find("kubectl"), "kustomize", HERE / "overlays" / overlay], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return list(yaml.safe_load_all(done.stdout))


def faults(resources: Iterable[Resource], known: Mapping[Kind, Resource] | None) -> Iterator[str]:
    """Yield what is wrong with each of resources; `known`: what operators publish, None where that is not to be had."""
    for resource in resources:
        name = f"{resource['kind']} {resource['metadata']['name']}"
        kind = (resource["apiVersion"], resource["kind"])
        modelled, defined = kind in MODELS, known is not None and kind in known
        try:
            if modelled:
                MODELS[kind].model_validate(resource)
            if known is not None and defined:
                yield from (f"{name}: {fault}" for fault in published.faults(resource, known[kind]))
            if not modelled and not defined:
                kubernetes_validate.validate(resource, VERSION, strict=True)
        except ValidationError as error:
            yield from (f"{name}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        except kubernetes_validate.ValidationError as error:
            yield f"{name}: {'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError:
            if known is not None:
                yield f"{name}: neither Kubernetes nor deploy/k8s/published.py nor deploy/k8s/crds.py has such a kind"


def checkov(resources: Iterable[Resource]) -> Iterator[str]:
    """Yield what checkov says of resources. Raises ToolMissing."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "built.yaml").write_text(yaml.safe_dump_all(resources))
        command = [find("checkov"), "--framework", "kubernetes", "--directory", scratch, "--skip-download", "--compact"]
        done = subprocess.run(  # noqa: S603 - our own arguments
            [*command, "--quiet", "--skip-check", ",".join(SKIPPED)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        yield done.stdout + done.stderr


def definitions() -> Mapping[Kind, Resource] | None:
    """Return what operators publish, by API version and kind; without it, say so and return None.

    Raises ToolMissing where that may not be (OPENBELL_CHECK_STRICT).
    """
    try:
        return published.schemas()
    except ToolMissing as missing:
        if strict():
            raise
        sys.stderr.write(f"SKIPPED: of custom resources, only those with models of ours were checked: {missing}\n")
        return None


def problems() -> Iterator[str]:
    """Yield what is wrong, overlay by overlay. Raises ToolMissing, ValueError."""
    known = definitions()
    for overlay in OVERLAYS:
        resources = built(overlay)
        yield from (f"{overlay}: {fault}" for fault in faults(resources, known))
        if overlay == "production":
            yield from checkov(resources)


def main() -> int:
    """Tell what is wrong; return the exit code."""
    return verdict(
        "the manifests were", f"Kubernetes: the overlays {', '.join(OVERLAYS)} are as the schemas say.", problems()
    )


if __name__ == "__main__":
    sys.exit(main())
