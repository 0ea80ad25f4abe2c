"""What `clients/cluster` has this client do: for each line `PREFIX COUNT` puts and gets as many keys, and says `done`.

With the argument `asyncio` it is `AsyncClient` that does it.
"""

import asyncio
import sys

from kvstore import AsyncClient, Client, Entry

#: A shard has no leader for a while after one was killed.
TIMEOUT_SECONDS = 20.0


def check(key: str, entry: Entry | None, number: int) -> None:
    if entry is None or entry.json() != number:
        sys.exit(f"{key}: got {entry}, want {number}")


def blocking() -> None:
    with Client(timeout=TIMEOUT_SECONDS) as client:
        for line in sys.stdin:
            prefix, count = line.split()
            for number in range(int(count)):
                key = f"{prefix}/{number}"
                client.put(key, number)
                check(key, client.get(key), number)
            print("done", flush=True)


async def waiting() -> None:
    async with AsyncClient(timeout=TIMEOUT_SECONDS) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            prefix, count = line.split()
            for number in range(int(count)):
                key = f"{prefix}/{number}"
                await client.put(key, number)
                check(key, await client.get(key), number)
            print("done", flush=True)


if sys.argv[1:] == ["asyncio"]:
    asyncio.run(waiting())
else:
    blocking()
