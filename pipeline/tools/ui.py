"""`make ui`: open MLflow's web page at the charts that compare the runs."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import webbrowser
from threading import Timer
from typing import Any

from minigpt.common.errors import UserError
from pipeline.common.stage import run_stage
from pipeline.tracking import store

PORT = os.environ.get("PORT", "5000")
VIEW = "minigpt"
# MLflow opens its assistant on the first visit to localhost or 127.0.0.1; browsers also connect
# names that end in .localhost to this machine (RFC 6761), but Safari does not
HOST = "127.0.0.1" if sys.platform == "darwin" else "minigpt.localhost"
# sections of the charts, and the metric and the x axis of each chart; no axis: bars
CHARTS = {
    "Loss": [
        ("val/loss", "step"),
        ("train/loss", "step"),
        ("val/bits_per_char", "flops"),
    ],
    "Evaluation": [
        ("evaluation/bits_per_char", ""),
        ("evaluation/accuracy", ""),
    ],
    "Training": [
        ("learning_rate", "step"),
        ("gradient_norm", "step"),
        ("tokens_per_second", "step"),
    ],
}
# metrics that a chart shows in another unit, or that are the same for all runs; MLflow would add a
# chart of each
NOT_CHARTED = (
    "evaluation/",
    "export/",
    "tokens",
    "flops",
    "parameters",
    "wall_seconds",
    "cpu_seconds",
    "peak_",
)
SYSTEM = "System metrics"  # MLflow's section of these, folded
# columns of the list of runs, and their widths
COLUMNS = {
    "attributes.`Run Name`": 300,
    "attributes.`Created`": 130,
    "attributes.`Duration`": 90,
    "metrics.`evaluation/loss`": 130,
    "metrics.`evaluation/bits_per_char`": 180,
    "metrics.`parameters`": 110,
}


def main() -> None:
    with store.user_errors():
        experiment = store.experiment_id()  # creates the store if there is none
        # MLflow stores the view of a page in such a tag, and opens the view by its key
        tag = f"mlflow.sharedViewState.{VIEW}"
        view = json.dumps(_view(_metric_names(experiment)))
        store.client().set_experiment_tag(experiment, tag, view)
    uri = store.uri()
    remote = uri.startswith("http")  # a server that is already running
    server = uri if remote else f"http://{HOST}:{PORT}"
    page = f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    url = f"{page}&compareRunsMode=CHART&viewStateShareKey={VIEW}"
    if not remote:
        _check_port()
    print(url if remote else f"{url}\nCtrl-C stops the server", flush=True)
    if sys.stdout.isatty():
        # a local server takes about five seconds to start
        Timer(0 if remote else 5, webbrowser.open, [url]).start()
    if remote:
        return
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", PORT, "--workers", "1"]
    # without it the server logs each request, and tracebacks after Ctrl-C
    command += ["--uvicorn-opts", "--log-level=critical"]
    settings = {
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{HOST}:{PORT},127.0.0.1:{PORT},localhost:{PORT}",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": server,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(subprocess.run(command, env={**os.environ, **settings}).returncode)


def _check_port() -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(PORT)))
    except (OSError, ValueError, OverflowError):
        raise UserError(
            f"PORT: {PORT} is in use or not a port; choose another: PORT=5001 make ui"
        ) from None


def _metric_names(experiment: str) -> set[str]:
    """Return the metrics of the latest runs."""
    runs = store.client().search_runs([experiment], max_results=100)
    return {name for run in runs for name in run.data.metrics}


def _view(metrics: set[str]) -> dict[str, Any]:
    """Return CHARTS and COLUMNS as MLflow's page stores them.

    The page adds a chart for each of `metrics` that neither is charted nor marked as deleted.
    """
    charted = {metric for charts in CHARTS.values() for metric, _ in charts}
    hidden = sorted(name for name in metrics - charted if name.startswith(NOT_CHARTED))
    return {
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True} for name in CHARTS
        ]
        + [{"uuid": SYSTEM, "name": SYSTEM, "display": False, "isReordered": True}],
        "compareRunCharts": [
            *(_chart(section, *chart) for section, charts in CHARTS.items() for chart in charts),
            *({**_chart("Evaluation", name, ""), "deleted": True} for name in hidden),
        ],
        "isAccordionReordered": True,
        "runsHiddenMode": "FIRST_20_RUNS",
    }


def _chart(section: str, metric: str, x: str) -> dict[str, Any]:
    return {
        "type": "LINE" if x else "BAR",
        "uuid": f"{metric} by {x}",
        "metricSectionId": section,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "metric" if x == "flops" else "step",
        "selectedXAxisMetricKey": "flops" if x == "flops" else "",
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "range": {},
        "runsCountToCompare": 20,
        "deleted": False,
        "isGenerated": False,
    }


if __name__ == "__main__":
    run_stage(main)
