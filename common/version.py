"""Which version of the suite this is."""

import subprocess
from functools import lru_cache
from pathlib import Path

VERSION = "1.0"


@lru_cache
def commit_of_suite():
    """The git commit of this suite, with "+" where files have been changed; "unknown" outside a
    repository."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *words],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.SubprocessError):  # no git, or another user's repository
        return "unknown"
    return f"{commit}+" if changes else commit
