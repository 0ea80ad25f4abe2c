"""Documents, missing keys, expiry, and a change that loses no other. Needs a server, by default at 127.0.0.1:9090."""

from kvstore import Client, VersionMismatch


def main() -> None:
    with Client() as kv:
        version = kv.put("examples/user/1", {"name": "Ada", "visits": 0})
        user = kv.get("examples/user/1")
        assert user is not None
        print(user.json()["name"], user.version == version)

        print(kv.get("examples/user/none"))

        kv.put("examples/session", {"user": 1}, ttl=60)
        session = kv.get("examples/session")
        assert session is not None
        print("expires within a minute:", session.ttl is not None and session.ttl <= 60)

        for _ in range(3):
            count_visit(kv, "examples/user/1")
        counted = kv.get("examples/user/1")
        assert counted is not None
        print("visits:", counted.json()["visits"])

        print(kv.batch_put({"examples/a": 1, "examples/b": [2]}), "stored")
        print([entry.key for entry in kv.batch_get(["examples/b", "examples/none", "examples/a"])])

        for entry in kv.scan(prefix="examples/", keys_only=True):
            kv.delete(entry.key)


def count_visit(kv: Client, key: str) -> None:
    """Read, change, write if nobody wrote in between; else again."""
    while True:
        found = kv.get(key)
        user = found.json() if found else {"visits": 0}
        user["visits"] += 1
        try:
            kv.put(key, user, if_version=found.version if found else 0)
        except VersionMismatch:
            continue
        return


if __name__ == "__main__":
    main()
