"""Call Git."""

import os
import subprocess

from minigpt.common.errors import UserError, one_line


def git(*command: str) -> str:
    """Return what Git prints, or "" if Git fails or is not installed."""
    try:
        return _run(command, {}).stdout.strip()
    except OSError:
        return ""


def checked_git(*command: str, **env: str) -> str:
    """Return what Git prints, with additional environment variables.

    Raises:
        UserError: Git fails or is not installed.
    """
    try:
        result = _run(command, env)
    except OSError as error:
        raise UserError(f"git: cannot be run ({error.strerror}); install it") from None
    if result.returncode:
        reason = one_line(result.stderr) or "without a message"
        raise UserError(f"`git {' '.join(command)}` failed: {reason}")
    return result.stdout.strip()


def _run(command: tuple[str, ...], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *command], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
