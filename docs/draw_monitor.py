"""Draw the picture of `facial-service monitor`: a service with traffic is started, watched for a while, and drawn.

Example: python docs/draw_monitor.py docs/monitor.svg
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import html
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from app.cli.monitor.feed import Feed, clock, parse_targets
from app.cli.monitor.history import History
from app.cli.monitor.moment import summarize
from app.cli.monitor.panels import View
from app.cli.monitor.screen import draw_screen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

EXAMPLES = Path(__file__).parent.parent / "examples"
CROP = "/api/v1/frontal/crop"
WIDTH, HEIGHT = 110, 34
ROUNDS, INTERVAL_S, WINDOW_S = 56, 0.5, 10.0
CALLERS = 3
START_LIMIT_S = 60
TURN = 16.0  # seconds from one ebb of the traffic to the next

BLACK, WHITE = (22, 27, 34), (201, 209, 217)
COLOURS = (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255), (57, 197, 207)
THEME = TerminalTheme(BLACK, WHITE, [(72, 79, 88), *COLOURS, WHITE])
# As Rich draws: a cell's width, a line's height, and where in it the baseline is; PAD is around all of it.
CELL, LINE, BASE, PAD = 12.2, 24.4, 20, 10
BLOCKS = " ▁▂▃▄▅▆▇█"
# Rich's own form, less the fonts that it would have a browser fetch.
FORM = f"""\
<svg viewBox="0 0 {WIDTH * CELL + 2 * PAD:.0f} {HEIGHT * LINE + 2 * PAD:.0f}" xmlns="http://www.w3.org/2000/svg">
<title>facial-service monitor</title>
<style>
text {{{{ font: 20px Menlo, Consolas, "DejaVu Sans Mono", monospace }}}}
{{styles}}
</style>
<defs>{{lines}}</defs>
<rect width="100%" height="100%" rx="8" fill="{{background}}"/>
<g transform="translate({PAD} {PAD})">
{{backgrounds}}
{{matrix}}
</g>
</svg>
"""


@contextlib.contextmanager
def service(folder: Path) -> Iterator[tuple[str, str]]:
    """Run the service with tasks; give the addresses of API and metrics."""
    settings = {"PORT": "0", "METRICS_PORT": "0", "WORKERS": "2", "TASK_WORKERS": "2", "LOG_FORMAT": "json"}
    env = {**settings, "PATH": os.environ["PATH"], "DATA_DIR": str(folder / "data")}
    log = folder / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "app", "serve"], env=env, stderr=stderr)
    try:
        yield find_addresses(process, log)
    finally:
        process.terminate()
        process.wait(60)


def find_addresses(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """Wait until the service is ready, task workers included."""
    deadline = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text(encoding="utf-8").splitlines():
            found = json.loads(line) if line.endswith("}") else {}
            if "api" in found and is_ready(found["metrics"]):
                return found["api"], found["metrics"]
        time.sleep(0.1)
    raise RuntimeError(f"expected a service that is ready, got:\n{log.read_text(encoding='utf-8')}")


def is_ready(metrics: str) -> bool:
    """Tell whether all is up."""
    try:
        report = httpx.get(f"{metrics}/health", timeout=10).json()
    except httpx.TransportError:
        return False
    workers = [*report["workers"], *report["task_workers"]]
    return bool(report["task_workers"]) and {worker["state"] for worker in workers} == {"ready"}


def requests() -> list[tuple[str, bytes]]:
    """Build requests as callers mix them: most are good, some are tasks, a few are wrong."""
    image = (EXAMPLES / "astronaut.png").read_bytes()
    landmarks = (EXAMPLES / "astronaut.landmarks.json").read_bytes()
    good, none, broken = form(image, landmarks), form(image, b"[]"), form(image[:1000], landmarks)
    return [(CROP, good)] * 30 + [(f"{CROP}/submit", good)] * 14 + [(CROP, none)] * 3 + [(CROP, broken)]


def form(image: bytes, landmarks: bytes) -> bytes:
    """Build a form with a photo and its landmarks."""
    parts = (b'Content-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % part for part in fields(image, landmarks))
    return b"".join(b"--cut\r\n" + part for part in parts) + b"--cut--\r\n"


def fields(image: bytes, landmarks: bytes) -> list[tuple[bytes, bytes]]:
    """Name the parts of the form."""
    return [(b"image", image), (b"landmarks", landmarks)]


async def call(api: str, number: int) -> None:
    """Send requests until cancelled, now more and now fewer."""
    choose = random.Random(number)  # noqa: S311 - a repeatable mix
    mix = requests()
    # A connection for each request, so that all workers get some.
    headers = {"Content-Type": "multipart/form-data; boundary=cut", "Connection": "close"}
    async with httpx.AsyncClient(base_url=api, headers=headers, timeout=30, trust_env=False) as client:
        while True:
            path, body = choose.choice(mix)
            await client.post(path, content=body)
            ebb = abs(time.monotonic() % TURN - TURN / 2) / (TURN / 2)
            await asyncio.sleep(choose.uniform(0.02, 0.06) * (1 + 2 * ebb))


async def watch(api: str, metrics: str) -> RenderableType:
    """Scrape while others call, and return the last picture."""
    callers = [asyncio.create_task(call(api, number)) for number in range(CALLERS)]
    history, began = History(), clock()
    async with Feed(parse_targets([metrics]), timeout_s=5, window_s=WINDOW_S) as feed:
        feed.instances[0].name = "127.0.0.1:9000"  # a free port would make each picture another
        for number in range(ROUNDS):
            await asyncio.sleep(max(0.0, began + number * INTERVAL_S - clock()))
            await feed.scrape()
            figures = summarize(
                feed.instances,
                at=clock(),
                when=datetime.now(UTC),
                began=began,
                interval_s=INTERVAL_S,
                window_s=WINDOW_S,
            )
            history.add(figures, feed.instances)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return draw_screen(View(figures, history), WIDTH, HEIGHT, hint="q quits")


def to_svg(picture: RenderableType) -> str:
    """Draw for a browser, without anything that is fetched from elsewhere."""
    console = Console(width=WIDTH, height=HEIGHT, record=True, file=io.StringIO(), force_terminal=True)
    console.print(picture)
    form = FORM.replace("{background}", THEME.background_color.hex)
    svg = console.export_svg(title="", theme=THEME, code_format=form, unique_id="m")
    svg = re.sub(r'<text class="([\w-]+)" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)</text>', draw_shapes, svg)
    if addresses := set(re.findall(r"https?://[^\s\"'<]+", svg)) - {"http://www.w3.org/2000/svg"}:
        raise ValueError(f"the picture names other places: {sorted(addresses)}")
    return svg


def draw_shapes(found: re.Match[str]) -> str:
    """Draw blocks and upright lines as shapes: as letters, they have gaps between them that depend on the font."""
    style, x, top, text = found[1], float(found[2]), float(found[3]) - BASE, html.unescape(found[4])
    if text == "│":
        return f'<path class="{style}" d="M{x + CELL / 2 - 0.5:g} {top:g}h1v{LINE:g}h-1z"/>'
    if set(text.replace("\xa0", " ")) - set(BLOCKS):
        return found[0]
    path = ""
    for at, letter in enumerate(text):
        if height := LINE * BLOCKS.find(letter) / 8:
            path += (
                f"M{x + at * CELL:.1f} {top + LINE:.1f}v{-height:.2f}h{CELL - 1:.1f}v{height:.2f}z"
                if height > 0
                else ""
            )
    return f'<path class="{style}" d="{path}"/>'


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where the picture goes")
    target = parser.parse_args().file
    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as (api, metrics):
        print(f"watching for {ROUNDS * INTERVAL_S:g} s", file=sys.stderr)
        picture = asyncio.run(watch(api, metrics))
    target.write_text(to_svg(picture), encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
