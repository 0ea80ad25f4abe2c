"""Walks over keys: pages, bounds, order, and one stream for many. Needs a server, by default at 127.0.0.1:9090."""

from kvstore import Client


def main() -> None:
    with Client() as kv:
        kv.batch_put({f"examples/day/{day:02}": {"day": day} for day in range(1, 32)})

        week = kv.range(start="examples/day/01", end="examples/day/08")
        print("first week:", [entry.json()["day"] for entry in week])

        newest = kv.range(prefix="examples/day/", reverse=True, limit=3)
        print("newest:", [entry.json()["day"] for entry in newest])

        # Pages are fetched as the loop goes; leaving it fetches no more.
        for entry in kv.range(prefix="examples/day/", page_size=10):
            if entry.json()["day"] == 15:
                print("found:", entry.key)
                break

        # One stream; the server holds no more than a page, however long the range.
        print("days:", sum(1 for _ in kv.scan(prefix="examples/day/", keys_only=True)))

        for entry in kv.scan(prefix="examples/day/", keys_only=True):
            kv.delete(entry.key)


if __name__ == "__main__":
    main()
