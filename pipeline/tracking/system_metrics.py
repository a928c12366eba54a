"""Load of the machine, measured by MLflow's own monitors."""

import contextlib
from typing import Any


class SystemMetrics:
    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(Exception):  # no GPU, or no library that reads its state
            self._monitors.append(GPUMonitor())

    def __call__(self) -> dict[str, float]:
        """Return the current values, by MLflow's names."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.clear_metrics()
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
        return {f"system/{name}": value for name, value in values.items()}
