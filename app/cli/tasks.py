"""``facial-service tasks``: list, retry and drop dead letters."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import exit_with_error, print_error, settings_or_exit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.tasks.dead_letters import DeadLetter, DeadLetterQueue

tasks = typer.Typer(help="Manage tasks.", epilog="Example: facial-service tasks dead list", no_args_is_help=True)
dead = typer.Typer(
    help="List, retry and drop dead letters: tasks that failed on every attempt.",
    epilog="Example: facial-service tasks dead list",
    no_args_is_help=True,
)
tasks.add_typer(dead, name="dead")

Ids = Annotated[list[str] | None, typer.Argument(metavar="TASK_ID", show_default=False, help="Ids of the tasks.")]
All = Annotated[bool, typer.Option("--all", help="Select all dead letters.")]

EXIT_UNKNOWN_TASK = 1
EXIT_NO_QUEUE = 3
WIDTH = 240  # columns if the output is not a terminal


@tasks.callback()
def _tasks() -> None:
    """Make typer treat `dead` as a subcommand, although it is the only one."""


@dead.command("list", epilog="Example: facial-service tasks dead list --json | jq -r '.[].task_id'")
def list_dead(*, is_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List dead letters, oldest first."""

    async def run(dead_letters: DeadLetterQueue) -> None:
        found = await dead_letters.list()
        if is_json:
            _print_json(found)
        else:
            _print_table(found)

    _with_dead_letters(run)


@dead.command(epilog="Example: facial-service tasks dead retry 0f8fad5bd9cb469fa16570867728950e")
def retry(ids: Ids = None, *, is_all: All = False) -> None:
    """Move tasks back to the queue, and reset their attempts."""
    _for_each(ids, is_all=is_all, label="Retrying", act=lambda dead_letters: dead_letters.retry)


@dead.command(epilog="Example: facial-service tasks dead drop --all")
def drop(ids: Ids = None, *, is_all: All = False) -> None:
    """Delete dead letters with their images; this cannot be undone."""
    _for_each(ids, is_all=is_all, label="Dropping", act=lambda dead_letters: dead_letters.drop)


def _for_each(
    ids: list[str] | None,
    *,
    is_all: bool,
    label: str,
    act: Callable[[DeadLetterQueue], Callable[[str], Awaitable[None]]],
) -> None:
    if bool(ids) == is_all:
        exit_with_error(f"TASK_ID, --all: expected one of them, got {'both' if ids else 'neither'}")

    async def run(dead_letters: DeadLetterQueue) -> None:
        # Imported here, because `--help` does not need it.
        from rich.progress import track  # noqa: PLC0415

        from app.tasks.errors import TaskEndedError, TaskUnknownError  # noqa: PLC0415

        selected = ids or [task.task_id for task in await dead_letters.list()]
        failed = 0
        for task_id in track(selected, label, disable=len(selected) < 2 or not sys.stderr.isatty()):  # noqa: PLR2004
            try:
                await act(dead_letters)(task_id)
            except (TaskUnknownError, TaskEndedError) as error:
                failed += 1
                print_error(f"{task_id}: {error}")
        typer.echo(f"{len(selected) - failed} of {len(selected)} done")
        if failed:
            sys.exit(EXIT_UNKNOWN_TASK)

    _with_dead_letters(run)


def _with_dead_letters(act: Callable[[DeadLetterQueue], Awaitable[None]]) -> None:
    # Imported here, because `--help` does not need nats-py and the image libraries.
    from app.tasks.dead_letters import connect_dead_letters  # noqa: PLC0415
    from app.tasks.embedded_server import find_running_server  # noqa: PLC0415
    from app.tasks.errors import QueueError  # noqa: PLC0415

    async def run() -> None:
        connection, dead_letters = await connect_dead_letters(find_running_server(settings_or_exit()))
        try:
            await act(dead_letters)
        finally:
            await connection.close()

    try:
        asyncio.run(run())
    except QueueError as error:
        exit_with_error(str(error), EXIT_NO_QUEUE)


def _print_json(found: list[DeadLetter]) -> None:
    import orjson  # noqa: PLC0415

    typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())


def _print_table(found: list[DeadLetter]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Column, Table  # noqa: PLC0415

    # The id is never truncated, so that it can be copied.
    task_id = Column("task", no_wrap=True, overflow="ignore", min_width=32)
    table = Table(task_id, "dead-lettered", "attempts", "bytes", "reason", box=None)
    for task in found:
        when = datetime.fromtimestamp(task.buried_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(task.task_id, f"{when} UTC", str(task.attempts), str(task.size), task.reason)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table if found else "No dead letters.")
