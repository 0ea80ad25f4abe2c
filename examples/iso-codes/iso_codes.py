#!/usr/bin/env python3
"""Every record of Debian's iso-codes as one document: loads about 15,000 through `kvstore batch`, reads them all back byte for
byte over gRPC, gRPC-Web and REST, walks a range by pages, restarts the node in between, and compares.

Needs Python 3.10 or later, the package iso-codes (apt-get install iso-codes) and the program:

    examples/iso-codes/iso_codes.py --kvstore target/release/kvstore
    examples/iso-codes/iso_codes.py --lines      # only prints the lines that `kvstore batch` takes
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse

SOURCE = "/usr/share/iso-codes/json"

# File, name in the keys, and the member that names a record.
TABLES = [
    ("iso_3166-1.json", "3166-1", "alpha_2"),
    ("iso_3166-2.json", "3166-2", "code"),
    ("iso_3166-3.json", "3166-3", "alpha_4"),
    ("iso_4217.json", "4217", "alpha_3"),
    ("iso_639-2.json", "639-2", "alpha_3"),
    ("iso_639-3.json", "639-3", "alpha_3"),
    ("iso_639-5.json", "639-5", "alpha_3"),
    ("iso_15924.json", "15924", "alpha_4"),
]

PAGE = 5
PATIENCE_SECONDS = 30


def records(source):
    """All records as {key: JSON text}, the text exactly as it stands in the file, line breaks and indentation included."""
    found = {}
    for file, name, member in TABLES:
        with open(os.path.join(source, file), encoding="utf-8") as stream:
            text = stream.read()
        for record, start, end in objects(text):
            found[f"iso/{name}/{record[member]}"] = text[start:end]
    return found


def objects(text):
    """The objects in the one array of a file, with where their text begins and ends."""
    decoder = json.JSONDecoder()
    position = text.index("[") + 1
    while True:
        while text[position] in " \t\r\n,":
            position += 1
        if text[position] == "]":
            return
        record, end = decoder.raw_decode(text, position)
        yield record, position, end
        position = end


def lines(documents):
    """What `kvstore batch` takes: one entry a line, the document as text so that every byte of it is kept."""
    for key, text in documents.items():
        yield json.dumps({"key": key, "text": text}, ensure_ascii=False) + "\n"


class Node:
    """A node on free ports, with a data directory that outlives it."""

    def __init__(self, program, directory):
        self.program, self.directory = program, directory
        self.http, self.grpc = free_port(), free_port()

    def __enter__(self):
        settings = [f"server.port={self.http}", f"kvstore.grpc.port={self.grpc}"]
        settings += [f"kvstore.storage.data-dir={self.directory}/data"]
        command = [self.program, "serve"] + [word for one in settings for word in ("--set", one)]
        log = open(os.path.join(self.directory, "log"), "a")
        self.process = subprocess.Popen(command, cwd=self.directory, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                with open(log.name) as output:
                    sys.exit(f"the node does not become ready:\n{output.read()}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=PATIENCE_SECONDS)
        assert code == 0, f"the node ended with code {code}"

    def healthy(self):
        return self.run("health", check=False).returncode == 0

    def run(self, *arguments, check=True, **options):
        """One command of the program against this node."""
        command = [self.program, *arguments, "--endpoint", f"http://127.0.0.1:{self.grpc}"]
        done = subprocess.run(command, capture_output=True, **options)
        assert not check or done.returncode == 0, f"{command}: {done.stderr.decode()}"
        return done

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.http, timeout=PATIENCE_SECONDS)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(connection, path, body=None, headers=None):
    connection.request("POST" if body is not None else "GET", path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, f"{path}: HTTP {answer.status}: {content.decode()}"
    return content


def over_grpc(node):
    """All documents, by one streamed Scan."""
    scanned = node.run("scan", "--prefix", "iso/", "--output", "json").stdout.decode()
    # Documents with line breaks come as `text`, as they went in.
    return {item["key"]: item["text"] for item in map(json.loads, scanned.splitlines())}


def over_rest(node, keys):
    """Each document by its own path, as it is."""
    connection = node.connect()
    path = "/api/v1/json/" + "{}"
    return {key: fetch(connection, path.format(urllib.parse.quote(key))).decode() for key in keys}


def over_grpc_web(node, keys):
    """Each document by a Get in gRPC-Web framing over HTTP/1.1, as a browser sends it."""
    connection = node.connect()
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    found = {}
    for key in keys:
        request = field(1, key.encode())
        frame = struct.pack(">BI", 0, len(request)) + request
        answer = fetch(connection, "/kvstore.v1.KvService/Get", frame, headers)
        flags, length = struct.unpack_from(">BI", answer)
        assert flags == 0, f"{key}: {answer!r}"
        fields = dict(text_fields(answer[5 : 5 + length]))
        assert fields[1] == key.encode()
        found[key] = fields[2].decode()
    return found


def field(number, content):
    """A protobuf field of bytes."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(number):
    encoded = b""
    while number >= 0x80:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def text_fields(message):
    """The fields of bytes in a protobuf message of bytes and varints."""
    position = 0

    def read_varint():
        nonlocal position
        number = shift = 0
        while True:
            byte = message[position]
            position += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while position < len(message):
        tag = read_varint()
        value = read_varint()
        if tag & 7 == 2:
            yield tag >> 3, message[position : position + value]
            position += value


def pages(node, prefix):
    """All items below a prefix, some at a time, over REST."""
    connection = node.connect()
    token = ""
    while True:
        query = urllib.parse.urlencode({"prefix": prefix, "limit": PAGE, "pageToken": token})
        page = json.loads(fetch(connection, f"/api/v1/kv/range?{query}"))
        assert len(page["items"]) <= PAGE
        yield page["items"]
        token = page["nextPageToken"]
        if not token:
            return


def compare(name, expected, found):
    missing, foreign = expected.keys() - found.keys(), found.keys() - expected.keys()
    different = [key for key in expected.keys() & found.keys() if expected[key] != found[key]]
    wrong = sorted(missing)[:3], sorted(foreign)[:3], sorted(different)[:3]
    assert not any(wrong), f"{name}: missing {wrong[0]}, foreign {wrong[1]}, different {wrong[2]}"
    print(f"{name}: {len(found)} documents, equal byte for byte")


@contextlib.contextmanager
def measured(name):
    started = time.monotonic()
    yield
    print(f"{name}: {time.monotonic() - started:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvstore", default="target/release/kvstore", help="the program")
    parser.add_argument("--source", default=SOURCE, help="directory of the JSON files")
    parser.add_argument("--lines", action="store_true", help="only print the lines for `kvstore batch`")
    arguments = parser.parse_args()
    documents = records(arguments.source)
    if arguments.lines:
        sys.stdout.writelines(lines(documents))
        return
    program = os.path.abspath(arguments.kvstore)
    with tempfile.TemporaryDirectory() as directory:
        with Node(program, directory) as node:
            with measured("loaded through kvstore batch"):
                node.run("batch", "-", input="".join(lines(documents)).encode())
            compare("over gRPC", documents, over_grpc(node))
        with Node(program, directory) as node:
            print("the node was restarted")
            compare("over gRPC", documents, over_grpc(node))
            compare("over REST", documents, over_rest(node, documents))
            compare("over gRPC-Web", documents, over_grpc_web(node, documents))
            german = [item for page in pages(node, "iso/3166-2/DE-") for item in page]
            keys = [key for key in sorted(documents, key=str.encode) if key.startswith("iso/3166-2/DE-")]
            assert [item["key"] for item in german] == keys, "the range differs"
            assert all(item["value"] == documents[item["key"]] for item in german)
            print(f"range over iso/3166-2/DE-: {len(german)} states in pages of {PAGE}")
    print("all equal")


if __name__ == "__main__":
    main()
