"""`make sync`: upload to the tracking store the runs that it lacks.

python -m pipeline.tools.sync
"""

import logging

from pipeline.common.stage import run_stage
from pipeline.tracking import store
from pipeline.tracking.sync import sync

log = logging.getLogger(__name__)


def main() -> None:
    """Upload the missing runs and log a line for each."""
    with store.user_errors():
        for line in sync():
            log.info(line)


if __name__ == "__main__":
    run_stage(main)
