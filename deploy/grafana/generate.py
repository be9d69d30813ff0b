"""Writes the dashboards, and how Grafana finds them and Prometheus.

    python -m deploy.grafana.generate     # write deploy/grafana/dashboards

The JSON is committed, for Grafana reads files; a test generates it anew and compares. What is shown stands in
boards_whole.py and boards_parts.py.
"""

import json
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

from deploy.grafana.boards_parts import PARTS
from deploy.grafana.boards_whole import WHOLE
from deploy.grafana.panel import Board, Panel

FOLDER: Final = Path(__file__).parent / "dashboards"
BOARDS: Final = (*WHOLE, *PARTS)
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="openbell-prometheus")
"""As deploy/grafana/provisioning/datasources names it."""
LABEL: Final = "grafana_dashboard"
"""By which the sidecar of Grafana's chart finds a ConfigMap."""
_WIDTH: Final = 8
_HEIGHT: Final = 8


def render(board: Board) -> str:
    """Return a board's JSON."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["openbell"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("utc")
        .readonly()
    )
    for number, panel in enumerate(board.panels, 1):
        builder = builder.with_panel(_panel(panel).id(number))
    encoded = json.loads(JSONEncoder(sort_keys=True, indent=2).encode(builder.build()))
    return json.dumps(encoded, indent=2, sort_keys=True) + "\n"


def kustomization() -> str:
    """Return what makes a ConfigMap of all boards on a cluster."""
    files = "".join(f"      - {board.uid}.json\n" for board in BOARDS)
    return f"""# Made by `python -m deploy.grafana.generate`: the boards as a ConfigMap that Grafana's sidecar finds.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
configMapGenerator:
  - name: openbell-dashboards
    options:
      disableNameSuffixHash: true
      labels:
        {LABEL}: "1"
    files:
{files}"""


def _panel(panel: Panel) -> timeseries.Panel | stat.Panel:
    about = f"{panel.about} {panel.after_fault[:1].upper()}{panel.after_fault[1:]}".strip()
    if panel.on_cluster:
        about += f" On Kubernetes alone: {panel.on_cluster} tells it."
    built = (stat.Panel() if panel.stat else timeseries.Panel()).title(panel.title).description(about)
    built = built.unit(panel.unit).datasource(SOURCE).span(_WIDTH).height(_HEIGHT)
    for number, (query, legend) in enumerate(panel.asks):
        target = prometheus.Dataquery().expr(query).legend_format(legend).ref_id(chr(ord("A") + number))
        built = built.with_target(target.datasource(SOURCE))
    return built


def main() -> None:
    """Write all boards; remove those that are gone."""
    FOLDER.mkdir(exist_ok=True)
    for left in FOLDER.glob("*.json"):
        left.unlink()
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(render(board))
    (FOLDER / "kustomization.yaml").write_text(kustomization())


if __name__ == "__main__":
    main()
