"""Many operations in flight on one stream: none waits for the way to the server and back. Needs a server, as the others."""

import asyncio

from kvstore import AsyncClient, Client, VersionMismatch


def with_threads() -> None:
    with Client() as kv, kv.session() as session:
        stored = [session.put(f"examples/session/{number:04}", number) for number in range(1_000)]
        print("stored:", sum(1 for future in stored if future.result() > 0))

        # Every failure comes through the future of its operation; the others go on.
        refused = session.put("examples/session/0000", "new", if_version=0)
        print("refused:", isinstance(refused.exception(), VersionMismatch))

        found = session.get("examples/session/0999").result()
        print("last:", found.json() if found else None)


async def with_asyncio() -> None:
    async with AsyncClient() as kv, kv.session() as session:
        removed = await asyncio.gather(*(session.delete(f"examples/session/{number:04}") for number in range(1_000)))
        print("removed:", sum(removed))


if __name__ == "__main__":
    with_threads()
    asyncio.run(with_asyncio())
