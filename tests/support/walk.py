"""Walk the page as a newcomer does, with the app as it ships, and measure what the walk is like.

    python -m tests.support.walk [--steps 120] [--pictures FOLDER]

Prints how soon the page can be used, how far its parts move by themselves (CLS), how many clicks lead to the mesh, how
soon a turned object is seen, what the page asks of the server a minute while it streams, and what a page that watches
costs a run.  ``--pictures`` keeps screenshots of the first screen, a run, its end, a comparison, the dark page and a
phone.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from statistics import median

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, ViewportSize, expect, sync_playwright

from psd.models.hub import ROOT
from psd.runs.jobs.orbit import snap_camera
from tests.support.browsing import (
    ARGUMENTS,
    PATIENCE_MS,
    expect_new_picture,
    expect_state,
    find_chromium,
    number_of,
    open_advanced,
    open_tab,
    press,
    type_number,
)

PORT = 7899
# As Core Web Vitals define it: the largest sum of shifts less than a second apart, within five seconds.
SHIFT = """window.shift = 0
let sum = 0, first = 0, last = 0
new PerformanceObserver(list => { for (const {hadRecentInput, startTime, value} of list.getEntries()) {
  if (hadRecentInput) continue
  if (startTime - last > 1000 || startTime - first > 5000) { sum = 0; first = startTime }
  last = startTime
  window.shift = Math.max(window.shift, sum += value)
} }).observe({type: 'layout-shift', buffered: true})"""
TURNS = (-60, -130, 90, -160, 50)  # pixels of a drag
STREAM_S = 20.0
IDLE_S = 3.0  # in which an idle app takes less than a tenth of a core
WATCHED_RUNS = 3
LAPTOP, PHONE = ViewportSize(width=1440, height=900), ViewportSize(width=390, height=844)


@contextmanager
def start_app(runs: Path) -> Iterator[str]:
    """The app in a process of its own; gives its address."""
    command = [sys.executable, "app.py", "--port", str(PORT), "--runs", str(runs)]
    app = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    try:
        assert app.stdout
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in app.stdout)), None)
        assert found, "the app did not start"
        wait_until_idle(app.pid)
        yield found[0] + "/"
    finally:
        app.terminate()
        app.wait()


def wait_until_idle(pid: int) -> None:
    """Until the app has loaded its models and measured its pace, which it does once, right after its start."""

    def read_cpu_s() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    busy = True
    while busy:
        before = read_cpu_s()
        time.sleep(IDLE_S)
        busy = read_cpu_s() - before > 0.1 * IDLE_S


def drag_object(page: Page, pixels: int) -> float:
    """Turn the object by hand; seconds from letting go until the picture from where it was left is seen."""
    box = page.locator("#view").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = float(page.locator("#picture .large").get_attribute("data-azimuth") or 0)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels, y, steps=4)
    page.mouse.up()
    start = time.monotonic()
    azimuth, _ = snap_camera((before - pixels / 2) % 360, 0)  # as the page turns it
    expect(page.locator("#picture .turned")).to_have_attribute(
        "alt", re.compile(rf"from {azimuth}°"), timeout=PATIENCE_MS
    )
    return time.monotonic() - start


def walk(browser: Browser, address: str, steps: int, keep: Callable[[Page, str], None]) -> dict[str, str]:
    """A newcomer's path from the open page to the mesh, with a turn and a move of guidance on the way."""
    said: dict[str, str] = {}
    asked: list[Request] = []
    page = browser.new_context(viewport=LAPTOP).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("request", lambda request: asked.append(request))
    start = time.monotonic()
    page.goto(address)
    page.wait_for_selector("#run:not([disabled])")
    said["usable after, s"] = f"{time.monotonic() - start:.1f}"
    page.evaluate(SHIFT)
    page.wait_for_timeout(2000)
    said["requests of the first load"] = str(len(asked))
    keep(page, "first")
    open_advanced(page)
    type_number(number_of(page, "control-steps"), str(steps))
    clicked: list[Locator] = []

    def click(button: Locator) -> None:
        clicked.append(button)
        button.click()

    pressed = time.monotonic()
    click(page.locator("#run"))
    expect_new_picture(page)
    said["first picture after, s"] = f"{time.monotonic() - pressed:.1f}"
    expect(page.locator("#picture .turned")).to_be_attached(timeout=PATIENCE_MS)
    page.wait_for_timeout(2000)

    turned = [drag_object(page, pixels) for pixels in TURNS]
    said["a turn is seen after, s"] = f"{median(turned):.2f} (median of {len(turned)}, at most {max(turned):.2f})"
    type_number(number_of(page, "control-guidance_scale"), "5")
    expect(page.locator("#moves")).to_contain_text("guidance_scale = 5", timeout=PATIENCE_MS)
    keep(page, "run")

    before = len(asked)
    page.wait_for_timeout(STREAM_S * 1000)
    streamed = asked[before:]
    posts = sum(request.method == "POST" for request in streamed)
    rate = 60 / STREAM_S
    said["requests a minute while it streams"] = f"{len(streamed) * rate:.0f}, of which {posts * rate:.0f} ask for news"
    expect(page.locator("#status .badge")).to_have_text("Finished", timeout=10 * PATIENCE_MS)
    said["from Run to the end, s"] = f"{time.monotonic() - pressed:.0f}"
    page.wait_for_selector("#viewer canvas")
    said["clicks from the open page to the mesh"] = str(len(clicked))
    with page.expect_download() as download:
        click(page.locator("#take a"))
    said["clicks to its file"] = f"{len(clicked)} ({download.value.suggested_filename})"
    said["parts moved by themselves (CLS)"] = f"{page.evaluate('window.shift'):.3f}"
    page.wait_for_timeout(3000)
    keep(page, "end")
    page.emulate_media(color_scheme="dark")
    page.goto(page.url.replace("?", "?__theme=dark&"))
    page.wait_for_selector("#viewer canvas")
    page.wait_for_timeout(3000)
    keep(page, "dark")
    page.context.close()
    return said


def time_watching(browser: Browser, address: str, runs: Path) -> dict[str, str]:
    """The default run with a page that watches against one that nobody watches, in turn."""
    page = browser.new_context(viewport=LAPTOP).new_page()
    page.set_default_timeout(PATIENCE_MS)

    def time_run(is_watched: bool) -> float:
        page.goto(address)
        page.wait_for_selector("#run:not([disabled])")
        page.wait_for_timeout(2000)
        before, start = set(runs.rglob("*.glb")), time.monotonic()
        page.locator("#run").click()
        expect_new_picture(page)
        if not is_watched:
            page.goto("about:blank")
        while not set(runs.rglob("*.glb")) - before:
            page.wait_for_timeout(200)
        taken = time.monotonic() - start
        page.wait_for_timeout(5000)  # its films are made
        return taken

    alone, watched = zip(*[(time_run(False), time_run(True)) for _ in range(WATCHED_RUNS)], strict=True)
    page.context.close()
    ratio = median(watched) / median(alone)
    said = f"{median(watched):.0f} s, {ratio:.2f} times the {median(alone):.0f} s of one that nobody watches"
    return {f"a watched run takes (median of {WATCHED_RUNS})": said}


def compare(browser: Browser, address: str, keep: Callable[[Page, str], None]) -> None:
    """The comparison of two short runs."""
    page = browser.new_context(viewport=LAPTOP).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.wait_for_selector("#run:not([disabled])")
    open_advanced(page)
    type_number(number_of(page, "control-steps"), "40")
    open_tab(page, "Compare")
    press(page.locator("#compare-button"))
    table = page.locator("#compare-scores tbody")
    expect(table).to_contain_text(re.compile("Finished.*Finished", re.DOTALL), timeout=3 * PATIENCE_MS)
    page.locator("#compare-views").evaluate("element => element.scrollIntoView()")
    page.wait_for_timeout(3000)
    keep(page, "compare")
    page.context.close()


def walk_on_a_phone(browser: Browser, address: str, keep: Callable[[Page, str], None]) -> dict[str, str]:
    page = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.wait_for_selector("#run:not([disabled])")
    page.evaluate(SHIFT)
    page.locator("#run").tap()
    expect_new_picture(page)
    page.wait_for_timeout(5000)
    keep(page, "phone")
    press(page.locator("#stop"))
    expect_state(page, "Stopped")
    page.wait_for_selector("#viewer canvas")
    page.wait_for_timeout(3000)
    shift = page.evaluate("window.shift")
    page.context.close()
    return {"parts moved by themselves on a phone (CLS)": f"{shift:.3f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=120, help="of the run that is walked through (default: 120)")
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()

    def keep(page: Page, name: str) -> None:
        if arguments.pictures:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
            few = picture.quantize(200, dither=Image.Dither.NONE)  # colours: a third of the bytes, to the eye the same
            few.save(arguments.pictures / f"studio-{name}.png", optimize=True)

    with (
        tempfile.TemporaryDirectory() as runs, start_app(Path(runs)) as address, sync_playwright() as playwright
    ):  # fmt: skip
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        said = walk(browser, address, arguments.steps, keep)
        said |= walk_on_a_phone(browser, address, keep) | time_watching(browser, address, Path(runs))
        if arguments.pictures:
            compare(browser, address, keep)
        browser.close()
    for name, value in said.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
