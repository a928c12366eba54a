"""Call Git."""

import subprocess


def git(*command: str) -> str:
    """Return what Git prints, or "" if Git fails or is not installed."""
    try:
        return subprocess.run(
            ["git", *command], capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        return ""
