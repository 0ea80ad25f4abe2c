#!/usr/bin/env python3
"""Shows what deploy/nginx/nginx.conf does with nodes that misbehave: deploy/nginx/check.py

Starts nginx with that file, on free ports, before three nodes that this program plays, and says what the nodes saw and the client got. A node
answers, or goes away once it has read a request, or does not take connections. A second nginx never sees what the first one learnt
about a node. Needs nginx and curl.
"""

import http.client
import http.server
import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

CONFIGURATION = pathlib.Path(__file__).with_name("nginx.conf")
START_SECONDS = 10
ANSWER_SECONDS = 10
# Rounds enough for every node to be first in turn, for each worker.
REQUESTS = 12

ANSWERS, GOES_AWAY, REFUSES = "answers", "goes away", "refuses"


class Node:
    """One node: HTTP/1.1, and a port for gRPC where it can only go away. Keeps what it has read."""

    def __init__(self, manner):
        self.manner = manner
        self.seen = []
        self.grpc_seen = 0
        # Bound and not listening: connections are refused, and nobody else gets the port.
        self.http, self.grpc = socket.socket(), socket.socket()
        for port in (self.http, self.grpc):
            port.bind(("127.0.0.1", 0))
        if manner != REFUSES:
            for port, serve in ((self.http, self.serve_http), (self.grpc, self.go_away)):
                port.listen(64)
                threading.Thread(target=self.accept, args=(port, serve), daemon=True).start()

    def accept(self, port, serve):
        while True:
            try:
                connection, peer = port.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection, peer), daemon=True).start()

    def go_away(self, connection, _peer):
        # The preface and the first frames; the headers of the call come with them.
        if connection.recv(65536):
            self.grpc_seen += 1
        connection.close()

    def serve_http(self, connection, peer):
        node = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                node.seen.append((self.command, self.path, body))
                if node.manner == GOES_AWAY:
                    self.close_connection = True
                    return
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_GET = do_PUT = do_DELETE = do_POST = answer

            def log_message(self, *_):
                pass

        try:
            Handler(connection, peer, None)
        except OSError:
            pass
        connection.close()

    def close(self):
        self.http.close()
        self.grpc.close()


class Front:
    """nginx before nodes of these manners."""

    def __init__(self, *manners):
        self.nodes = [Node(manner) for manner in manners]

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory()
        # nginx cannot pick ports; two that were free a moment ago.
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self.http, self.grpc = one.getsockname()[1], other.getsockname()[1]
        text = CONFIGURATION.read_text(encoding="utf-8")
        for number, node in enumerate(self.nodes, 1):
            for own, port in (("8080", node.http), ("9090", node.grpc)):
                text = text.replace(f"kv-store-node{number}:{own}", "127.0.0.1:%d" % port.getsockname()[1])
        text = text.replace("listen 8080", f"listen 127.0.0.1:{self.http}").replace("listen 9090", f"listen 127.0.0.1:{self.grpc}")
        text = re.sub(r" /tmp/", f" {self.directory.name}/", text)
        own = pathlib.Path(self.directory.name, "nginx.conf")
        own.write_text(text, encoding="utf-8")
        self.log = open(pathlib.Path(self.directory.name, "log"), "w+", encoding="utf-8")
        # With root's rights the workers would become another user, who may not write to the directory.
        options = "daemon off; user root;"
        self.nginx = subprocess.Popen(["nginx", "-c", own, "-e", "stderr", "-g", options], stderr=self.log)
        deadline = time.monotonic() + START_SECONDS
        while not (listens(self.http) and listens(self.grpc)):
            if self.nginx.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                sys.exit(f"nginx does not start:\n{self.log.read()}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.nginx.terminate()
        self.nginx.wait()
        self.log.close()
        for node in self.nodes:
            node.close()
        self.directory.cleanup()

    def ask(self, method, path="/api/v1/json/key", body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=ANSWER_SECONDS)
        connection.request(method, path, body)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def call(self):
        """One gRPC call, without the repetitions of a real client: the headers of the answer. Without a message, because curl takes an answer
        that comes before all was sent for a failure; gRPC clients do not."""
        return subprocess.run(
            ["curl", "--silent", "--include", "--max-time", str(ANSWER_SECONDS), "--http2-prior-knowledge",
             "--header", "content-type: application/grpc", "--header", "te: trailers", "--request", "POST",
             f"http://127.0.0.1:{self.grpc}/kvstore.v1.KvService/Put"],
            stdout=subprocess.PIPE, check=False,
        ).stdout.decode()

    def seen(self):
        return [request for node in self.nodes for request in node.seen]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def reason(answer):
    status, body = answer
    try:
        return status, json.loads(body)["details"][0]["reason"]
    except ValueError:
        return status, body


def requests_reach_every_node_as_they_were_sent():
    sent = [("PUT", "/api/v1/kv/a%2Fb//c?x=%20", b"x" * 3_000_000), ("POST", "/api/v1/kv/batch", b"y" * 3_000_000), ("GET", "/api/v1/kv/a//b", b"")]
    with Front(ANSWERS, ANSWERS, ANSWERS) as front:
        for _ in range(REQUESTS):
            for method, path, body in sent:
                assert front.ask(method, path, body or None) == (200, b"ok"), (method, path)
        assert set(front.seen()) == set(sent) and len(front.seen()) == len(sent) * REQUESTS
        assert all(node.seen for node in front.nodes), [len(node.seen) for node in front.nodes]


def a_node_that_is_down_costs_no_request():
    for down in range(3):
        manners = [ANSWERS] * 3
        manners[down] = REFUSES
        with Front(*manners) as front:
            for _ in range(REQUESTS):
                for method in ("PUT", "DELETE", "POST", "GET"):
                    answer = front.ask(method, body=b"body" if method != "GET" else None)
                    assert answer == (200, b"ok"), (method, answer)
            assert len(front.seen()) == 4 * REQUESTS
            assert all(body == b"body" for method, _, body in front.seen() if method != "GET")


def a_write_that_a_node_has_seen_is_not_repeated():
    for method in ("PUT", "DELETE", "POST"):
        with Front(GOES_AWAY, GOES_AWAY, GOES_AWAY) as front:
            assert reason(front.ask(method, body=b"body")) == (504, "OUTCOME_UNKNOWN"), method
            assert len(front.seen()) == 1, (method, front.seen())
    # Nor when it is the second node that it was sent to.
    with Front(REFUSES, GOES_AWAY, GOES_AWAY) as front:
        assert reason(front.ask("PUT", body=b"body")) == (504, "OUTCOME_UNKNOWN")
        assert len(front.seen()) == 1, front.seen()


def a_call_that_a_node_has_seen_is_not_repeated():
    with Front(GOES_AWAY, GOES_AWAY, GOES_AWAY) as front:
        answer = front.call()
        assert "grpc-status: 14" in answer and answer.startswith("HTTP/2 200"), answer
        assert sum(node.grpc_seen for node in front.nodes) == 1, [node.grpc_seen for node in front.nodes]


def a_read_goes_on_to_a_node_that_answers():
    with Front(GOES_AWAY, GOES_AWAY, ANSWERS) as front:
        for _ in range(REQUESTS):
            assert front.ask("GET") == (200, b"ok")


def without_nodes_nothing_was_applied():
    with Front(REFUSES, REFUSES, REFUSES) as front:
        for method in ("PUT", "DELETE", "POST", "GET"):
            assert reason(front.ask(method, body=b"body" if method != "GET" else None)) == (503, "NOT_SERVING"), method
        answer = front.call()
        assert "grpc-status: 14" in answer, answer


def main():
    checks = [
        requests_reach_every_node_as_they_were_sent,
        a_node_that_is_down_costs_no_request,
        a_write_that_a_node_has_seen_is_not_repeated,
        a_call_that_a_node_has_seen_is_not_repeated,
        a_read_goes_on_to_a_node_that_answers,
        without_nodes_nothing_was_applied,
    ]
    failed = 0
    for check in checks:
        try:
            check()
        except AssertionError as error:
            failed += 1
            print(f"{check.__name__}: {error}", file=sys.stderr)
    print(f"{len(checks) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
