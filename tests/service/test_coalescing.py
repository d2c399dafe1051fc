"""Sharing of concurrent calls between requests."""

from __future__ import annotations

import asyncio

import pytest

from app.service.coalescing import Coalescer


def test_requests_during_a_call_share_the_next_one() -> None:
    async def main() -> None:
        coalescer, begun = Coalescer[int](), 0

        async def call() -> int:
            nonlocal begun
            begun += 1
            number = begun
            await asyncio.sleep(0.01)
            return number

        first = asyncio.create_task(coalescer.run("a", call))
        await asyncio.sleep(0)
        later = [asyncio.create_task(coalescer.run("a", call)) for _ in range(50)]
        other = asyncio.create_task(coalescer.run("b", call))
        assert await first == 1
        assert set(await asyncio.gather(*later)) == {3}
        assert await other == 2
        assert await coalescer.run("a", call) == 4

    asyncio.run(main())


def test_error_reaches_all_requests_of_the_call_and_no_later_one() -> None:
    async def main() -> None:
        coalescer = Coalescer[int]()

        async def fail() -> int:
            await asyncio.sleep(0)
            raise ValueError

        async def succeed() -> int:
            return 1

        found = await asyncio.gather(*(coalescer.run("a", fail) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in found] == [ValueError] * 3
        assert await coalescer.run("a", succeed) == 1

    asyncio.run(main())


def test_cancelled_request_does_not_cancel_the_call_of_others() -> None:
    async def main() -> None:
        coalescer, release = Coalescer[int](), asyncio.Event()

        async def call() -> int:
            await release.wait()
            return 1

        gone = asyncio.create_task(coalescer.run("a", call))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        release.set()
        assert await coalescer.run("a", call) == 1

    asyncio.run(main())
