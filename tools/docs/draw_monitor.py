"""Draw the screenshot of `facial-service monitor`: start a service, send requests, watch it, and write an SVG.

Example: python tools/docs/draw_monitor.py docs/monitor.svg
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

from app.cli.monitor.scraper import Scraper, clock, parse_targets
from app.cli.monitor.screen import View, draw_screen
from app.cli.monitor.snapshot import History, build_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

EXAMPLES = Path(__file__).parents[2] / "examples"
CROP = "/api/v1/frontal/crop"
WIDTH, HEIGHT = 110, 34
ROUNDS, INTERVAL_S, WINDOW_S = 56, 0.5, 10.0
CLIENTS = 3
START_TIMEOUT_S = 60
PERIOD_S = 16.0  # of the load, which rises and falls

BLACK, WHITE = (22, 27, 34), (201, 209, 217)
COLOURS = (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255), (57, 197, 207)
THEME = TerminalTheme(BLACK, WHITE, [(72, 79, 88), *COLOURS, WHITE])
# Metrics of Rich's SVG export: width of a cell, height of a line, offset of the baseline. PAD is the outer margin.
CELL, LINE, BASE, PAD = 12.2, 24.4, 20, 10
BLOCKS = " ▁▂▃▄▅▆▇█"
# Rich's template without the web fonts, which a browser would download.
TEMPLATE = f"""\
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
    """Run the service with tasks, and yield the addresses of API and metrics."""
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
    """Wait until the service and its task workers are ready, and return the addresses of API and metrics."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text(encoding="utf-8").splitlines():
            found = json.loads(line) if line.endswith("}") else {}
            if "api" in found and is_ready(found["metrics"]):
                return found["api"], found["metrics"]
        time.sleep(0.1)
    raise RuntimeError(
        f"expected the service to be ready within {START_TIMEOUT_S} s, got:\n{log.read_text(encoding='utf-8')}"
    )


def is_ready(metrics: str) -> bool:
    """Return whether all workers are ready."""
    try:
        report = httpx.get(f"{metrics}/health", timeout=10).json()
    except httpx.TransportError:
        return False
    workers = [*report["workers"], *report["task_workers"]]
    return bool(report["task_workers"]) and {worker["state"] for worker in workers} == {"ready"}


def requests() -> list[tuple[str, bytes]]:
    """Build a realistic mix of requests: most are valid, some submit tasks, a few are invalid."""
    image = (EXAMPLES / "astronaut.png").read_bytes()
    landmarks = (EXAMPLES / "astronaut.landmarks.json").read_bytes()
    valid, empty, truncated = form(image, landmarks), form(image, b"[]"), form(image[:1000], landmarks)
    return [(CROP, valid)] * 30 + [(f"{CROP}/submit", valid)] * 14 + [(CROP, empty)] * 3 + [(CROP, truncated)]


def form(image: bytes, landmarks: bytes) -> bytes:
    """Build a multipart form with an image and its landmarks."""
    fields = [(b"image", image), (b"landmarks", landmarks)]
    parts = (b'Content-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % field for field in fields)
    return b"".join(b"--cut\r\n" + part for part in parts) + b"--cut--\r\n"


async def call(api: str, number: int) -> None:
    """Send requests until cancelled, at a rate that rises and falls."""
    choose = random.Random(number)  # noqa: S311 - a reproducible mix
    mix = requests()
    # One connection per request distributes the requests over all workers.
    headers = {"Content-Type": "multipart/form-data; boundary=cut", "Connection": "close"}
    async with httpx.AsyncClient(base_url=api, headers=headers, timeout=30, trust_env=False) as client:
        while True:
            path, body = choose.choice(mix)
            await client.post(path, content=body)
            idleness = abs(time.monotonic() % PERIOD_S - PERIOD_S / 2) / (PERIOD_S / 2)
            await asyncio.sleep(choose.uniform(0.02, 0.06) * (1 + 2 * idleness))


async def watch(api: str, metrics: str) -> RenderableType:
    """Scrape the service under load, and return the last screen."""
    clients = [asyncio.create_task(call(api, number)) for number in range(CLIENTS)]
    history, started_at = History(), clock()
    async with contextlib.aclosing(Scraper(parse_targets([metrics]), timeout_s=5, window_s=WINDOW_S)) as scraper:
        scraper.instances[0].name = "127.0.0.1:9000"  # the actual port is random
        for number in range(ROUNDS):
            await asyncio.sleep(max(0.0, started_at + number * INTERVAL_S - clock()))
            await scraper.scrape()
            snapshot = build_snapshot(
                scraper.instances,
                at=clock(),
                time=datetime.now(UTC),
                started_at=started_at,
                interval_s=INTERVAL_S,
                window_s=WINDOW_S,
            )
            history.add(snapshot, scraper.instances)
    for client_task in clients:
        client_task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return draw_screen(View(snapshot, history), WIDTH, HEIGHT, hint="q quits")


def to_svg(screen: RenderableType) -> str:
    """Render as an SVG that needs no external resources."""
    console = Console(width=WIDTH, height=HEIGHT, record=True, file=io.StringIO(), force_terminal=True)
    console.print(screen)
    template = TEMPLATE.replace("{background}", THEME.background_color.hex)
    svg = console.export_svg(title="", theme=THEME, code_format=template, unique_id="m")
    svg = re.sub(r'<text class="([\w-]+)" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)</text>', draw_shapes, svg)
    if addresses := set(re.findall(r"https?://[^\s\"'<]+", svg)) - {"http://www.w3.org/2000/svg"}:
        raise ValueError(f"expected no external URLs, got {sorted(addresses)}")
    return svg


def draw_shapes(found: re.Match[str]) -> str:
    """Replace block characters and vertical lines by shapes, because most fonts leave gaps between them."""
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
    """Write the SVG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="output file")
    target = parser.parse_args().file
    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as (api, metrics):
        print(f"watching for {ROUNDS * INTERVAL_S:g} s", file=sys.stderr)
        screen = asyncio.run(watch(api, metrics))
    target.write_text(to_svg(screen), encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
