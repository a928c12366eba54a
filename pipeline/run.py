"""A run of MLflow's, told without holding up the work."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline import content, lineage, project, store
from pipeline.store import mlflow

log = logging.getLogger(__name__)
TRY_AGAIN_AFTER = 120.0  # seconds; a locked store holds each attempt up for twenty


class Run:
    """One MLflow run, told by a thread of its own, in order; what fails is tried again, and once more at the end."""

    def __init__(self) -> None:
        self.id = ""  # none yet
        self._actions: list[Callable[[], Any]] = []
        self._told = 0  # so many of them
        self._changed = threading.Condition()
        self._ending = False
        self._warned = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def tell(self, action: Callable[[], Any]) -> None:
        """Do `action` after all that was to be told before; it must be able to run twice."""
        with self._changed:
            self._actions.append(action)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ending or self._told < len(self._actions))
                if self._told == len(self._actions):
                    return
                last_attempt = self._ending
            if not self._tell_next():
                if last_attempt:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._ending, TRY_AGAIN_AFTER)

    def _tell_next(self) -> bool:
        try:
            self._actions[self._told]()
        except Exception as error:  # whatever a tracker does wrong, the model is worth more
            if not self._warned:
                log.warning("tracking failed (%s); trying again from time to time", store.reason(error))
            self._warned = True
            return False
        self._told += 1
        return True

    def start(self, **kwargs: Any) -> None:
        """As `mlflow.start_run`; a run that was started already stays."""
        if not self.id:
            self.id = mlflow().start_run(**kwargs).info.run_id

    def end(self, status: str) -> None:
        """Tell what is left, and close the run."""
        self.tell(lambda: mlflow().end_run(status))
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()
        if self._told < len(self._actions) and status == "KILLED":
            log.warning("not all was tracked; `dvc repro` goes on, and tells it then")
            return
        if self._told < len(self._actions) and not store.is_local():
            self._tell_local_store()
        if self._told < len(self._actions):
            log.warning("not all was tracked; later, `python -m pipeline.tracking` sends what is missing")

    def _tell_local_store(self) -> None:
        """Tell all of it once more, to the local store, where it waits to be sent."""
        server = os.environ["MLFLOW_TRACKING_URI"]
        tags = {"unsent_to": server, "unsent_run": self.id}
        store.use(store.local_uri())
        self._forget()
        self._actions.insert(-1, lambda: content.log_tags(self.id, tags))
        while self._told < len(self._actions):
            if not self._tell_next():
                return
        log.warning("the run is in the local store; later, `python -m pipeline.tracking` sends it to %s", server)

    def _forget(self) -> None:
        """Nothing is told yet."""
        self.id, self._told = "", 0

    def report(self, stage: str, config: BaseModel, values: dict[str, Any], files: list[Path]) -> None:
        """Log the numbers and the files of a stage, made with `config`, and write the model's card anew."""
        reports = {file: file.read_text(encoding="utf-8") for file in files}
        params = lineage.flatten({stage: config.model_dump()})
        self.tell(lambda: content.log_reports(self.id, stage, params, values, reports))
        if stage == "evaluate":
            self.tell(lambda: content.log_model_figures(self.id, project.MODEL))
        self.tell(lambda: content.write_card(self.id))

    def onnx_model(self, path: Path) -> None:
        """Log the exported file, untouched, as a model that takes text and gives text."""
        self.tell(lambda: content.log_onnx_model(self.id, path))
