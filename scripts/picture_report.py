"""Takes docs/pictures/report.png: the first screen of a run's report. Needs Chromium; Pillow comes with matplotlib.

rest report runs/demo && python scripts/picture_report.py runs/demo/report.html
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "report.png"
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync --hide-scrollbars --window-size=1200,1120"

if __name__ == "__main__":
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [browser, *FLAGS.split(), f"--user-data-dir={folder}", f"--screenshot={shot}"]
        subprocess.run([*command, Path(sys.argv[1]).resolve().as_uri()], check=True, capture_output=True)
        with Image.open(shot) as image:
            few = image.convert("RGB").quantize(48, dither=Image.Dither.NONE)  # a page has few colours
            few.save(PICTURE, optimize=True)
    print(f"{PICTURE.name}: {PICTURE.stat().st_size // 1000} KB")
