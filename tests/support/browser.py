"""The browser that pages are opened in."""

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
"""None: there is none, and the tests that need it are skipped."""
