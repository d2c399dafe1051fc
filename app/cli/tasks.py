"""``facial-service tasks``: what an operator does with tasks that were given up on."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.settings import settings_or_exit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.tasks.dead_letters import DeadLetter, DeadLetterQueue

tasks = typer.Typer(help="Tasks that need an operator.", no_args_is_help=True)
dead = typer.Typer(help="Tasks that were given up on: to look at, to try again, to drop.", no_args_is_help=True)
tasks.add_typer(dead, name="dead")

Ids = Annotated[list[str] | None, typer.Argument(metavar="TASK_ID…", show_default=False, help="Which tasks.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]

NO_SUCH = 1
WIDE = 240  # columns where nobody looks
NO_QUEUE = 3


@tasks.callback()
def _tasks() -> None:
    """Name the group, so that a single verb stays a verb."""


@dead.command("list", epilog="Example: facial-service tasks dead list --json | jq -r '.[].task_id'")
def list_dead(*, is_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List tasks that were given up on, the oldest first."""

    async def run(graveyard: DeadLetterQueue) -> None:
        found = await graveyard.list()
        if is_json:
            _print_json(found)
        else:
            _print_table(found)

    _with_graveyard(run)


@dead.command(epilog="Example: facial-service tasks dead retry 0f8fad5bd9cb469fa16570867728950e")
def retry(ids: Ids = None, *, is_all: All = False) -> None:
    """Put tasks into the queue again, with all their attempts before them."""
    _for_each(ids, is_all=is_all, verb="Trying again", act=lambda graveyard: graveyard.retry)


@dead.command(epilog="Example: facial-service tasks dead drop --all")
def drop(ids: Ids = None, *, is_all: All = False) -> None:
    """Forget tasks; their pictures are gone then."""
    _for_each(ids, is_all=is_all, verb="Dropping", act=lambda graveyard: graveyard.drop)


def _for_each(
    ids: list[str] | None,
    *,
    is_all: bool,
    verb: str,
    act: Callable[[DeadLetterQueue], Callable[[str], Awaitable[None]]],
) -> None:
    if bool(ids) == is_all:
        typer.echo("facial-service: expected ids of tasks, or --all", err=True)
        sys.exit(2)

    async def run(graveyard: DeadLetterQueue) -> None:
        # Imported here: `--help` answers without loading the renderer.
        from rich.progress import track  # noqa: PLC0415

        from app.tasks.errors import TaskEndedError, TaskUnknownError  # noqa: PLC0415

        wanted = ids or [task.task_id for task in await graveyard.list()]
        unknown = 0
        for task_id in track(wanted, verb, disable=len(wanted) < 2 or not sys.stderr.isatty()):  # noqa: PLR2004
            try:
                await act(graveyard)(task_id)
            except (TaskUnknownError, TaskEndedError) as error:
                unknown += 1
                typer.echo(f"facial-service: {task_id}: {error}", err=True)
        typer.echo(f"{len(wanted) - unknown} of {len(wanted)} done")
        if unknown:
            sys.exit(NO_SUCH)

    _with_graveyard(run)


def _with_graveyard(act: Callable[[DeadLetterQueue], Awaitable[None]]) -> None:
    # Imported here: `--help` answers without loading the picture libraries.
    from app.tasks.dead_letters import connect_dead_letters  # noqa: PLC0415
    from app.tasks.embedded_server import find_running_server  # noqa: PLC0415
    from app.tasks.errors import QueueError  # noqa: PLC0415

    async def run() -> None:
        connection, graveyard = await connect_dead_letters(find_running_server(settings_or_exit()))
        try:
            await act(graveyard)
        finally:
            await connection.close()

    try:
        asyncio.run(run())
    except QueueError as error:
        typer.echo(f"facial-service: {error}", err=True)
        sys.exit(NO_QUEUE)


def _print_json(found: list[DeadLetter]) -> None:
    import orjson  # noqa: PLC0415

    typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())


def _print_table(found: list[DeadLetter]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Column, Table  # noqa: PLC0415

    # The id whole, however narrow the terminal: it is there to be copied.
    task_id = Column("task", no_wrap=True, overflow="ignore", min_width=32)
    table = Table(task_id, "given up", "attempts", "bytes", "why", box=None)
    for task in found:
        when = datetime.fromtimestamp(task.buried_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(task.task_id, f"{when} UTC", str(task.attempts), str(task.size), task.reason)
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(table if found else "None: no task was given up on, or all have been dropped or tried again.")
