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
# sections of the page, and the metric and the x axis of each chart
CHARTS = {
    "Loss": [
        ("val/loss", "step"),
        ("train/loss", "step"),
        ("val/loss", "tokens"),
        ("val/bits_per_char", "step"),
        ("val/bits_per_char", "tokens"),
        ("val/loss", "flops"),
    ],
    "Training": [
        ("learning_rate", "step"),
        ("gradient_norm", "step"),
        ("tokens_per_second", "step"),
    ],
}


def main() -> None:
    with store.user_errors():
        experiment = store.experiment_id()  # creates the store if there is none
        # MLflow stores the view of a page in such a tag, and opens the view by its key
        tag = f"mlflow.sharedViewState.{VIEW}"
        store.client().set_experiment_tag(experiment, tag, json.dumps(_view()))
    uri = store.uri()
    remote = uri.startswith("http")  # a server that is already running
    server = uri if remote else f"http://127.0.0.1:{PORT}"
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
    quiet = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(subprocess.run(command, env={**os.environ, **quiet}).returncode)


def _check_port() -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(PORT)))
    except (OSError, ValueError, OverflowError):
        raise UserError(
            f"PORT: {PORT} is in use or not a port; choose another: PORT=5001 make ui"
        ) from None


def _view() -> dict[str, Any]:
    """Return CHARTS as MLflow's page stores them; the page adds sections for other metrics."""
    return {
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True} for name in CHARTS
        ],
        "compareRunCharts": [
            _chart(section, *chart) for section, charts in CHARTS.items() for chart in charts
        ],
        "isAccordionReordered": True,
        "runsHiddenMode": "FIRST_20_RUNS",
    }


def _chart(section: str, metric: str, x: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": f"{metric} by {x}",
        "metricSectionId": section,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step" if x == "step" else "metric",
        "selectedXAxisMetricKey": "" if x == "step" else x,
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
