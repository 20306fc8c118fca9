"""Look at a page in a real browser: Chromium without a window, driven by its command line alone.

The page is copied and given a script that notes every error from the beginning on and, when all is loaded, tells what
it measured to the page around it, which `--dump-dom` prints. The page stands in a frame, because a window has at least
500 pixels. Other hosts do not resolve, so a page that needs the network shows it.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ERRORS = """<script>
window.noted = [];
window.addEventListener("error", e => window.noted.push(String(e.message || (e.target && e.target.outerHTML))), true);
window.addEventListener("unhandledrejection", e => window.noted.push(String(e.reason)));
</script>"""
MEASURE = """<script>
window.addEventListener("load", () => setTimeout(() => {
  const inside = box => {
    for (let node = box.parentElement; node; node = node.parentElement) {
      if (/auto|scroll|hidden/.test(getComputedStyle(node).overflowX)) return true;
    }
    return false;
  };
  const right = window.innerWidth + 1;
  const shown = box => box.getClientRects().length > 0;
  const cut = [...document.querySelectorAll("body *")].filter(
    box => shown(box) && !inside(box) &&
      (box.getBoundingClientRect().right > right || box.getBoundingClientRect().left < -1)
  );
  const found = {
    errors: window.noted,
    width: window.innerWidth,
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    cut: cut.map(box => box.outerHTML.slice(0, 120)),
    figures: [...document.querySelectorAll("img")].map(
      one => ({loaded: one.complete && one.naturalWidth > 0, natural: one.naturalWidth, width: one.clientWidth})
    ),
    requests: performance.getEntriesByType("resource").map(one => one.name).filter(name => !name.startsWith("data:")),
    text: document.body.innerText,
  };
  parent.postMessage(JSON.stringify(found), "*");
}, 1000));
</script>"""


def browser() -> str | None:
    """Return the path of a browser, None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def _run(folder: Path, width: int, height: int, *words: str) -> str:
    command = [browser() or "", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--hide-scrollbars", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def _framed(page: Path, folder: Path, width: int, height: int) -> str:
    """Write a page with another in a frame of this size; return its address."""
    around = folder / f"around-{width}.html"
    around.write_text(
        f"""<!DOCTYPE html><body style="margin: 0"><iframe src="{page.absolute().as_uri()}" width="{width}"
        height="{height}" style="border: 0"></iframe><pre id="measured"></pre><script>
        addEventListener("message", e => {{ document.getElementById("measured").textContent = e.data; }});
        </script></body>""",
        encoding="utf-8",
    )
    return around.as_uri()


def look_at(page: Path, folder: Path, *, width: int) -> dict[str, Any]:
    """Open a page of this width; return what was measured. folder: for the copy and the browser's files."""
    text = page.read_text(encoding="utf-8")
    copy = folder / f"probed-{width}.html"
    head, rest = text.split("<head>", 1)
    body, end = rest.rsplit("</body>", 1)
    copy.write_text(f"{head}<head>{ERRORS}{body}{MEASURE}</body>{end}", encoding="utf-8")
    address = _framed(copy, folder, width, 900)
    dom = _run(folder, max(width, 600), 1000, "--virtual-time-budget=10000", "--dump-dom", address)
    measured = re.search(r'<pre id="measured">(.+?)</pre>', dom, re.DOTALL)
    assert measured, dom[:2000]
    return dict(json.loads(html.unescape(measured[1])))


def picture(page: Path, target: Path, folder: Path, *, width: int, height: int) -> None:
    """Save a picture of the page."""
    address = _framed(page, folder, width, height)
    _run(folder, max(width, 600), height, "--virtual-time-budget=10000", f"--screenshot={target}", address)
