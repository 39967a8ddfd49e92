"""A headless Chromium, where one is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATH = next(filter(None, map(shutil.which, _NAMES)), None)

needs_browser = pytest.mark.skipif(PATH is None, reason="no Chromium is installed")


def dom(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the elements of a page after its scripts have run, and the lines written to the console.

    Args:
        page: a file.
        profile: a folder for the browser's profile.
    """
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    command = [
        str(PATH),
        *options,
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--dump-dom",
        page.as_uri(),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
