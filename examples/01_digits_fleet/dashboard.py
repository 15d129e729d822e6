"""Pictures of the coordinator's pages, where a chromium is installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PAGES = {
    "fleet": "/",
    "device": "/devices/camera-1",
    "rollouts": "/rollouts",
    "learning": "/learning",
    "releases": "/releases",
    "alerts": "/alerts",
}


def photograph(url: str, folder: Path, rollout: int) -> str:
    """Open each page as a browser does, and keep what it shows as ``page-NAME.png``.

    Args:
        url: Of the coordinator.
        folder: For the pictures.
        rollout: Number of one to show.

    Returns:
        Where they are, or why there are none.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        return "no pictures of it: no chromium is installed here"
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return "no pictures of it: playwright is not installed here"
    # A sandbox needs rights that root in a container has not; what is opened here is ours.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=options)
            for kind, width, height in (("page", 1280, 800), ("phone", 390, 844)):
                tab = browser.new_page(viewport={"width": width, "height": height})
                shown = PAGES | {"rollout": f"/rollouts/{rollout}"} if kind == "page" else {"fleet": "/"}
                for name, path in shown.items():
                    tab.goto(url + path)
                    tab.wait_for_selector("#line.is-live")
                    tab.screenshot(path=folder / f"{kind}-{name}.png", full_page=True)
            browser.close()
    except Error as exc:
        return f"no pictures of it: {str(exc).splitlines()[0]}"
    return f"{folder}/page-*.png"
