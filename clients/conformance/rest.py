#!/usr/bin/env python3
"""Runs the conformance cases beside this file against plain REST: `KVSTORE_HTTP=http://host:port rest.py [PART OF A NAME]`.

Standard library only. Every case runs twice: with single keys at /api/v1/kv/{key}, and with documents at /api/v1/json/{key}.
Prints each failing case with what was expected and what came, then `N passed, N failed`; exit code 1 when any failed.
"""

import base64
import http.client
import json
import os
import re
import secrets
import sys
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

FIXED_WORDS = {"range", "batch", "batch-get", "stats", "scan"}
CODES = {
    3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION",
    10: "ABORTED", 12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE", 15: "DATA_LOSS",
}
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504, "DATA_LOSS": 500, "INTERNAL": 500,
}


class Refused(Exception):
    """An answer that is an error; it must be one in form as well."""

    def __init__(self, status: int, body: bytes):
        error = json.loads(body)
        info = next(d for d in error["details"] if d["@type"] == "type.googleapis.com/google.rpc.ErrorInfo")
        self.code, self.reason = CODES[error["code"]], info["reason"]
        super().__init__(f"{self.code} {self.reason}: {error['message']}")
        if status != HTTP_STATUS[self.code] or info["domain"] != "kvstore":
            raise AssertionError(f"HTTP status {status} and domain {info['domain']!r} do not belong to {self}")


class Rest:
    """The operations of the suite as REST requests. Results are dicts with the suite's names."""

    def __init__(self, url: str, documents: bool):
        parts = urlsplit(url)
        self.http = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=30)
        self.documents = documents

    def call(self, method: str, path: str, query: dict | None = None, body: str | None = None):
        """The answer's body and headers."""
        query = {name: str(value).lower() if value is True else value for name, value in (query or {}).items() if value is not None}
        # `quote` and not `quote_plus`: the server takes both, and a plus must not hide a space that was lost.
        target = path + ("?" + urlencode(query, quote_via=quote) if query else "")
        self.http.request(method, target, None if body is None else body.encode())
        response = self.http.getresponse()
        content = response.read()
        if response.status != 200:
            # A request may be refused before its body is read; the server closes such a connection.
            self.http.close()
            raise Refused(response.status, content)
        return content, response.headers

    def json(self, *request) -> dict:
        return json.loads(self.call(*request)[0])

    def path(self, key: str) -> str:
        root = "keys" if key in FIXED_WORDS else "kv"
        return f"/api/v1/{root}/{quote(key, safe='/')}"

    def document(self, key: str) -> str:
        return f"/api/v1/json/{quote(key, safe='')}"

    def put(self, key, value=None, raw_base64=None, ttl=None, if_version=None, request_id=None):
        options = {"ttl": ttl, "ifVersion": if_version, "requestId": request_id}
        if self.documents and raw_base64 is None:
            return integers(self.json("PUT", self.document(key), options, value))
        body = {"value": value, "raw": raw_base64, **options}
        present = {name: field for name, field in body.items() if field is not None}
        return integers(self.json("PUT", self.path(key), None, json.dumps(present)))

    def get(self, key):
        try:
            found = item(self.json("GET", self.path(key)))
        except Refused as refused:
            if refused.reason != "KEY_NOT_FOUND":
                raise
            return {"missing": True}
        if self.documents and "value" in found:
            text, headers = self.call("GET", self.document(key))
            found |= {"value": text.decode(), "version": int(headers["etag"].strip('"'))}
        return found

    def delete(self, key, if_version=None, request_id=None):
        path = self.document(key) if self.documents else self.path(key)
        return self.json("DELETE", path, {"ifVersion": if_version, "requestId": request_id})

    def batch_put(self, entries, ttl=None, request_id=None):
        query = {"ttl": ttl, "requestId": request_id}
        return self.json("POST", "/api/v1/kv/batch", query, json.dumps(entries))

    def batch_get(self, keys):
        return listed(self.json("POST", "/api/v1/kv/batch-get", None, json.dumps({"keys": keys}))["items"])

    def range(self, limit=None, page_size=None, **query):
        items, token = [], None
        while limit is None or len(items) < max(limit, 1):
            left = None if limit is None else limit - len(items)
            sizes = [size for size in (left, page_size) if size is not None]
            page = self.json("GET", "/api/v1/kv/range", {**bounds(**query), "limit": min(sizes, default=None), "pageToken": token})
            items += page["items"]
            token = page["nextPageToken"]
            if not token:
                break
        return listed(items)

    def scan(self, limit=None, **query):
        return listed(self.json("GET", "/api/v1/kv/scan", {**bounds(**query), "limit": limit}))

    def stats(self):
        stats = self.json("GET", "/api/v1/kv/stats")
        return {re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name): value for name, value in stats.items()}


def bounds(start=None, end=None, prefix=None, reverse=None, keys_only=None) -> dict:
    return {"startKey": start, "endKey": end, "prefix": prefix, "reverse": reverse, "keysOnly": keys_only}


def integers(message: dict) -> dict:
    return {**message, "version": int(message["version"])}


def item(message: dict) -> dict:
    named = {"raw_base64" if name == "raw" else name: value for name, value in message.items()}
    return integers(named)


def listed(items: list) -> dict:
    return {"items": [item(each) for each in items], "count": len(items)}


def expand(value, prefix: str):
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


def compare(want, got, kept: dict, where: str) -> None:
    """Asserts that `got` is what `want` names."""
    if isinstance(want, dict) and isinstance(got, dict):
        for name, each in want.items():
            compare(each, got.get(name), kept, f"{where}.{name}")
        return
    if isinstance(want, list):
        assert len(want) == len(got), f"{where}: expected {len(want)} items, got {shown(got)}"
        for index, each in enumerate(want):
            compare(each, got[index], kept, f"{where}[{index}]")
        return
    if not isinstance(want, dict):
        assert want == got and type(want) is type(got), f"{where}: expected {shown(want)}, got {shown(got)}"
        return
    assert got is not None, f"{where}: expected {shown(want)}, got nothing"
    for rule, operand in want.items():
        holds = {
            "save": lambda: True,
            "same": lambda: got == kept[operand],
            "not": lambda: got != kept[operand],
            "above": lambda: got > kept[operand],
            "min": lambda: got >= operand,
            "max": lambda: got <= operand,
        }[rule]()
        assert holds, f"{where}: expected {rule} {kept.get(operand, operand)}, got {shown(got)}"
    if "save" in want:
        kept[want["save"]] = got


def shown(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def run(case: dict, rest: Rest) -> str | None:
    """Why the case fails; nothing when it passes."""
    kept: dict = {}
    prefix = "p" + secrets.token_hex(8)
    for number, step in enumerate(case["steps"], 1):
        arguments = expand(step, prefix)
        want, error = arguments.pop("expect", {}), arguments.pop("error", None)
        if isinstance(arguments.get("if_version"), dict):
            arguments["if_version"] = kept[arguments["if_version"]["saved"]]
        try:
            result = getattr(rest, arguments.pop("op"))(**arguments)
            assert error is None, f"expected {error}, got {shown(result)}"
            compare(want, result, kept, "result")
        except Refused as refused:
            if error is None or (refused.code, refused.reason) != (error["code"], error["reason"]):
                return f"step {number}, {shown(step)}: expected {error or want}, got {refused}"
        except Exception as failure:
            return f"step {number}, {shown(step)}: {type(failure).__name__}: {failure}"
    return None


def main() -> int:
    url = os.environ.get("KVSTORE_HTTP", "http://127.0.0.1:8080")
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    passed = failed = 0
    for file in sorted(Path(__file__).parent.glob("*.json")):
        for case in json.loads(file.read_text("utf-8")):
            if wanted not in case["name"] or "rest" not in case.get("clients", ["rest"]):
                continue
            for documents in (False, True):
                why = run(case, Rest(url, documents))
                passed, failed = passed + (why is None), failed + (why is not None)
                if why is not None:
                    paths = "/api/v1/json" if documents else "/api/v1/kv"
                    print(f"FAILED {file.name} {case['name']} ({paths})\n    {why}")
    print(f"{passed} passed, {failed} failed")
    # A suite that has found nothing to run has shown nothing.
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
