"""The same client, awaited: many calls side by side. Needs a server, by default at 127.0.0.1:9090."""

import asyncio

from kvstore import AsyncClient


async def main() -> None:
    async with AsyncClient() as kv:
        await asyncio.gather(*(kv.put(f"examples/async/{number}", {"n": number}) for number in range(10)))

        total = 0
        async for entry in kv.scan(prefix="examples/async/"):
            total += entry.json()["n"]
        print("total:", total)

        removed = await asyncio.gather(*(kv.delete(f"examples/async/{number}") for number in range(10)))
        print("removed:", sum(removed))


if __name__ == "__main__":
    asyncio.run(main())
