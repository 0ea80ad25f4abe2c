"""The cases of clients/conformance, each through `Client`, `AsyncClient` and the sessions of both."""

import asyncio
import base64
import inspect
import json
import re
import secrets
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from kvstore import AsyncClient, Client, Entry, KvError

FOLDER = Path(__file__).parents[2] / "conformance"
CASES = {
    f"{file.stem}-{case['name']}": case
    for file in sorted(FOLDER.glob("*.json"))
    for case in json.loads(file.read_text("utf-8"))
    if "python" in case.get("clients", ["python"])
}


@pytest.mark.parametrize("way", ["Client", "AsyncClient", "Client.session", "AsyncClient.session"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_case(case: dict[str, Any], way: str, endpoints: str) -> None:
    asyncio.run(run(case, way, endpoints))


async def run(case: dict[str, Any], way: str, endpoints: str) -> None:
    async with AsyncExitStack() as stack:
        client: Any
        if way.startswith("Async"):
            client = await stack.enter_async_context(AsyncClient(endpoints))
        else:
            client = stack.enter_context(Client(endpoints))
        # What a session does not offer goes through its client.
        keys = client
        if way == "Client.session":
            keys = stack.enter_context(client.session())
        elif way == "AsyncClient.session":
            keys = await stack.enter_async_context(client.session())

        kept: dict[str, Any] = {}
        prefix = "p" + secrets.token_hex(8)
        for number, step in enumerate(case["steps"], 1):
            arguments = expand(step, prefix)
            want, error = arguments.pop("expect", {}), arguments.pop("error", None)
            where = f"step {number}, {json.dumps(step)[:300]}"
            try:
                result = await perform(client, keys, arguments, kept)
            except KvError as failure:
                assert {"code": failure.code, "reason": failure.reason} == error, f"{where}: {failure}"
            else:
                assert error is None, f"{where}: got {result!r:.300}"
                compare(want, result, kept, where)


async def perform(client: Any, keys: Any, arguments: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """The result of a step, with the suite's names."""
    op = arguments.pop("op")
    if isinstance(arguments.get("if_version"), dict):
        arguments["if_version"] = kept[arguments["if_version"]["saved"]]
    match op:
        case "put" if "raw_base64" in arguments:
            raw = base64.b64decode(arguments.pop("raw_base64"))
            return {"version": await settled(keys.put_raw(arguments.pop("key"), raw, **arguments))}
        case "put":
            put = keys.put_text(arguments.pop("key"), arguments.pop("value"), **arguments)
            return {"version": await settled(put)}
        case "get":
            found = await settled(keys.get(**arguments))
            return {"missing": True} if found is None else fields(found)
        case "delete":
            return {"deleted": await settled(keys.delete(**arguments))}
        case "batch_put":
            return {"count": await settled(keys.batch_put_text(arguments.pop("entries"), **arguments))}
        case "batch_get":
            return listed(await settled(keys.batch_get(**arguments)))
        case "range" | "scan":
            items: Any = getattr(client, op)(**arguments)
            if hasattr(items, "__aiter__"):
                return listed([item async for item in items])
            return listed(list(items))
        case "stats":
            stats = await settled(client.stats())
            return {name: getattr(stats, name) for name in ("keys", "bytes", "uptime_seconds")}
    raise AssertionError(f"operation {op!r} is not one of the suite's")


async def settled(result: Any) -> Any:
    if isinstance(result, Future):
        return result.result(timeout=10)
    return await result if inspect.isawaitable(result) else result


def fields(entry: Entry) -> dict[str, Any]:
    raw = None if entry.raw is None else base64.b64encode(entry.raw).decode()
    return {"key": entry.key, "value": entry.text, "raw_base64": raw, "version": entry.version, "ttl": entry.ttl}


def listed(entries: list[Entry]) -> dict[str, Any]:
    return {"items": [fields(entry) for entry in entries], "count": len(entries)}


def expand(value: Any, prefix: str) -> Any:
    """`value` with $P, $REPEAT and $ENTRIES put in."""
    if isinstance(value, dict):
        return {expand(name, prefix): expand(each, prefix) for name, each in value.items()}
    if isinstance(value, list):
        return [expand(each, prefix) for each in value]
    if not isinstance(value, str):
        return value
    value = value.replace("$P", prefix)
    if repeat := re.fullmatch(r"\$REPEAT\((.*),(\d+)\)", value, re.DOTALL):
        return repeat[1] * int(repeat[2])
    if entries := re.fullmatch(r"\$ENTRIES\(([^,]*),(\d+),(.*)\)", value, re.DOTALL):
        return {f"{entries[1]}{number:06}": entries[3] for number in range(int(entries[2]))}
    return value


def compare(want: Any, got: Any, kept: dict[str, Any], where: str) -> None:
    """Asserts that `got` is what `want` names."""
    if isinstance(want, dict) and isinstance(got, dict):
        for name, each in want.items():
            compare(each, got.get(name), kept, f"{where}: {name}")
    elif isinstance(want, list):
        assert len(want) == len(got), where
        for index, each in enumerate(want):
            compare(each, got[index], kept, f"{where}[{index}]")
    elif isinstance(want, dict):
        assert got is not None, where
        for rule, operand in want.items():
            match rule:
                case "save":
                    kept[operand] = got
                case "same":
                    assert got == kept[operand], where
                case "not":
                    assert got != kept[operand], where
                case "above":
                    assert got > kept[operand], where
                case "min":
                    assert got >= operand, where
                case "max":
                    assert got <= operand, where
                case _:
                    pytest.fail(f"{where}: rule {rule!r} is not one of the suite's")
    else:
        assert (type(got), got) == (type(want), want), where
