"""`make sync`: upload to the tracking store the runs that it lacks.

python -m pipeline.tools.sync
"""

import logging

from minigpt.common.errors import UserError
from pipeline.common.stage import run_stage
from pipeline.tracking import store
from pipeline.tracking.sync import sync

log = logging.getLogger(__name__)


def main() -> None:
    """Upload the missing runs and log a line for each."""
    try:
        for line in sync():
            log.info(line)
    except UserError:
        raise
    except Exception as error:  # any failure of the store, the network or the database
        reason = store.reason(error)
        raise UserError(f"cannot use the tracking store ({reason}); fix it and try again") from None


if __name__ == "__main__":
    run_stage(main)
