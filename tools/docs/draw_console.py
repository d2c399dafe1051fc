"""Draw the console of `facial-service serve`: run it in a terminal, send requests, and write SVGs of its output.

`FOLDER` gets ``console-dark.svg`` (start, requests and a task) and ``console-light.svg`` (an unexpected error and the
shutdown). The error is caused by the script: it replaces a function of the service.

Example: python tools/docs/draw_console.py docs
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from draw_monitor import CELL, COLOURS, LINE, PAD
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CROP = "/api/v1/frontal/crop"
HEIGHT = 60  # of the terminal, in lines
WAIT_S = 120
DARK = TerminalTheme((22, 27, 34), (201, 209, 217), [(72, 79, 88), *COLOURS, (201, 209, 217)])
LIGHT = TerminalTheme((255, 255, 255), (31, 35, 40), [(110, 119, 129), *COLOURS, (31, 35, 40)])
# Runs the service with an option that raises an unexpected error.
PROGRAM = """
import sys
from app.service.crop import CropService
original = CropService.process
def process(self, request):
    if request.options.stroke_width == 7:
        return 1 / 0
    return original(self, request)
CropService.process = process
from app.cli.main import main
sys.argv[1:] = ["serve"]
main()
"""
TEMPLATE = """\
<svg viewBox="0 0 {width:.0f} {height:.0f}" xmlns="http://www.w3.org/2000/svg">
<title>{title}</title>
<style>
text {{{{ font: 20px Menlo, Consolas, "DejaVu Sans Mono", monospace }}}}
{{styles}}
</style>
<defs>{{lines}}</defs>
<rect width="100%" height="100%" rx="8" fill="{background}" stroke="#8b949e"/>
<g transform="translate({pad} {pad})">
{{backgrounds}}
{{matrix}}
</g>
</svg>
"""


class Session:
    """A service in a terminal of its own.

    Args:
        columns: width of the terminal.
        settings: additional environment variables.
    """

    def __init__(self, columns: int, settings: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, columns, 0, 0))
        env = {
            "PATH": os.environ["PATH"],
            "TERM": "xterm-256color",
            "PORT": "0",
            "METRICS_PORT": "0",
            "WORKERS": "1",
            "TASK_WORKERS": "1",
            "DATA_DIR": f"{self._folder.name}/data",
            **settings,
        }
        self._process = subprocess.Popen(  # noqa: S603 - the program above
            [sys.executable, "-c", PROGRAM],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            cwd=ROOT,
            start_new_session=True,
        )
        os.close(slave)
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the service has closed the terminal
            while part := os.read(self._master, 1 << 16):
                self._written += part

    def text(self) -> str:
        """Return the output so far, with control sequences."""
        text = self._written.decode().replace("\r\n", "\n")
        folder = f"{self._folder.name}/data/"
        return text.replace(folder, "data/".ljust(len(folder)))  # as wide, because it is in a panel

    def plain(self) -> str:
        """Return the output so far, without control sequences and line breaks."""
        return re.sub(r"\s+", " ", re.sub(r"\x1b\[[\d;]*m", "", self.text()))

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the output contains a pattern.

        Raises:
            TimeoutError: it does not appear.
        """
        deadline = time.monotonic() + WAIT_S
        while (found := re.search(pattern, self.plain())) is None:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise TimeoutError(f"{pattern}: expected in the output, got\n{self.plain()}")
            time.sleep(0.05)
        return found

    def stop(self) -> None:
        """Stop the service, and wait for its end."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        self._folder.cleanup()


def record(columns: int, settings: Mapping[str, str]) -> tuple[str, str]:
    """Run the service; return the output until a task has ended, and the output after that."""
    session = Session(columns, settings)
    try:
        api = session.wait_for(r"listens on (http://[\d.:]+)")[1]
        photo, landmarks = ((EXAMPLES / f"astronaut.{end}").read_bytes() for end in ("png", "landmarks.json"))

        def post(path: str = CROP, image: bytes = photo, points: bytes = landmarks, **options: str) -> httpx.Response:
            files = {"image": image, "landmarks": points}
            return httpx.post(api + path, files=files, data=options, timeout=WAIT_S)

        task = post(f"{CROP}/submit")
        while task.status_code != 202:  # noqa: PLR2004 - the queue is starting
            time.sleep(0.2)
            task = post(f"{CROP}/submit")
        session.wait_for("✅ Task success")
        requests: list[Callable[[], httpx.Response]] = [
            post,
            lambda: post(image=photo[:20_000]),
            lambda: post(points=b"[[1, 2]]"),
            lambda: httpx.get(api + task.headers["location"]),
            lambda: post(f"{CROP}/submit", image=photo[:-2000] + bytes(2000), verify="structure"),
        ]
        for number, request in enumerate(requests, 2):
            request()
            wait_for_lines(session, number)
        start = len(session.text())
        for number in (7, 8):
            post(stroke_width="7")
            wait_for_lines(session, number)
    finally:
        session.stop()
    text = session.text()
    return text[text.index("\x1b[36m╭") :][: start - text.index("\x1b[36m╭")], text[start:]


def wait_for_lines(session: Session, number: int) -> None:
    """Wait for a number of access lines."""
    session.wait_for(rf"(?:ms 127\.0\.0\.1.*?){{{number}}}")


def to_svg(text: str, title: str, columns: int, theme: TerminalTheme) -> str:
    """Render the output of a terminal as an SVG that needs no external resources."""
    lines = Text.from_ansi(text.strip("\n"))
    console = Console(width=columns, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(lines)
    count = console.export_text(clear=False).count("\n")
    template = TEMPLATE.format(
        width=columns * CELL + 2 * PAD,
        height=count * LINE + 2 * PAD,
        title=title,
        background=theme.background_color.hex,
        pad=PAD,
    )
    return console.export_svg(title="", theme=theme, code_format=template, unique_id="c")


def main() -> None:
    """Write the SVGs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder")
    parser.add_argument("--columns", type=int, default=120, help="width of the terminal")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="environment variable")
    parser.add_argument("--all", action="store_true", help="both parts with both backgrounds")
    arguments = parser.parse_args()
    settings = dict(pair.split("=", 1) for pair in arguments.set)
    parts = record(arguments.columns, settings)
    titles = "Console of facial-service: start, requests, a task", "Console of facial-service: an error, the shutdown"
    themes = {"dark": DARK, "light": LIGHT}
    for (name, theme), part, title in zip(themes.items(), parts, titles, strict=True):
        target = arguments.folder / f"console-{name}.svg"
        target.write_text(to_svg(part, title, arguments.columns, theme), encoding="utf-8")
        if arguments.all:
            for other, colours in themes.items():
                path = arguments.folder / f"all-{name}-{other}.svg"
                path.write_text(to_svg(part, title, arguments.columns, colours), encoding="utf-8")
        print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
