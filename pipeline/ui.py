"""`make ui`: MLflow's web page, straight on the charts that compare the runs."""

import contextlib
import os
import socket
import subprocess
import sys
import webbrowser
from threading import Timer

from minigpt.errors import UserError
from pipeline import run_stage, store

PORT = os.environ.get("PORT", "5000")


def main() -> None:
    try:
        mlflow = store.mlflow()  # makes the store where there is none yet
    except Exception as error:  # whatever is wrong with the store
        raise UserError(f"the tracking store cannot be opened: {store.reason(error)}") from None
    uri = mlflow.get_tracking_uri()
    server = uri if uri.startswith("http") else f"http://127.0.0.1:{PORT}"
    url = f"{server}/#/experiments/{store.experiment_id()}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    if server != uri:
        _check_port()
    print(f"{url}\nCtrl-C ends it", flush=True)
    if sys.stdout.isatty():
        Timer(5, webbrowser.open, [url]).start()  # the server takes about so long to start
    if server == uri:
        return
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", PORT, "--workers", "1"]
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(subprocess.run(command, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}).returncode)


def _check_port() -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(PORT)))
    except (OSError, ValueError, OverflowError):
        raise UserError(f"PORT: {PORT} is taken, or no port; name another: PORT=5001 make ui") from None


if __name__ == "__main__":
    run_stage(main)
