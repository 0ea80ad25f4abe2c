// The ways to an endpoint that Node has: gRPC over HTTP/2, and gRPC-Web over HTTP/1.1.

import http from "node:http";
import https from "node:https";
import net from "node:net";
import tls from "node:tls";

import { createGrpcTransport, createGrpcWebTransport, Http2SessionManager } from "@connectrpc/connect-node";

import type { Channel } from "./calls.js";

const KEEP_ALIVE_MS = 20_000;
/** A connection that leaves a ping unanswered for so long is given up. Not above the default deadline, so that a call notices. */
const PING_TIMEOUT_MS = 5_000;

/** Leaves time for another endpoint when a host is gone: the system would wait for minutes, and spend the deadline. */
const CONNECT_TIMEOUT_MS = 2_000;

const HEALTH_HEADERS = { "content-type": "application/grpc", te: "trailers" };
/** Before each message of gRPC: not compressed, length. */
const FRAME_HEAD_BYTES = 5;
/** The message that says so: `status: SERVING`. */
const SERVING = Buffer.of(0x08, 0x01);

/** One HTTP/2 connection, opened at first use. It does not keep the process running while it is idle. */
export function grpc(endpoint: string): Channel {
  const pings = { pingIntervalMs: KEEP_ALIVE_MS, pingTimeoutMs: PING_TIMEOUT_MS, pingIdleConnection: true };
  const sessionManager = new Http2SessionManager(endpoint, pings, { createConnection });
  return {
    transport: createGrpcTransport({ baseUrl: endpoint, sessionManager }),
    serves: () => serves(sessionManager),
    close: () => sessionManager.abort(),
  };
}

/** Asks a node over its connection whether it serves (grpc.health.v1), by hand: it is one call of one byte. */
async function serves(connection: Http2SessionManager): Promise<boolean> {
  const stream = await connection.request("POST", "/grpc.health.v1.Health/Check", HEALTH_HEADERS, {});
  const timer = setTimeout(() => stream.close(), CONNECT_TIMEOUT_MS);
  const received: Buffer[] = [];
  stream.on("error", () => undefined); // The loop tells of it; one that comes after it must not end the process.
  try {
    stream.end(new Uint8Array(FRAME_HEAD_BYTES)); // An empty message: of all services.
    for await (const data of stream) {
      received.push(data as Buffer);
      connection.notifyResponseByteRead(stream);
    }
  } finally {
    clearTimeout(timer);
  }
  return Buffer.concat(received).subarray(FRAME_HEAD_BYTES).equals(SERVING);
}

/** HTTP/1.1, as browsers and their proxies speak it. */
export function grpcWeb(endpoint: string): Channel {
  const agent = new (endpoint.startsWith("https:") ? https : http).Agent({ keepAlive: true, keepAliveMsecs: KEEP_ALIVE_MS });
  const connect = agent.createConnection;
  agent.createConnection = (...given) => bounded(connect.apply(agent, given) as net.Socket);
  return {
    transport: createGrpcWebTransport({ baseUrl: endpoint, httpVersion: "1.1", nodeOptions: { agent } }),
    close: () => agent.destroy(),
  };
}

function createConnection({ protocol, hostname, port }: URL): net.Socket {
  const host = hostname.replace(/^\[|\]$/g, "");
  if (protocol === "http:") {
    return bounded(net.connect(Number(port || 80), host));
  }
  const servername = net.isIP(host) === 0 ? { servername: host } : {};
  return bounded(tls.connect({ host, port: Number(port || 443), ALPNProtocols: ["h2"], ...servername }));
}

/** Gives a socket up that does not get connected. */
export function bounded(socket: net.Socket, timeoutMs = CONNECT_TIMEOUT_MS): net.Socket {
  const late = (): void => {
    socket.destroy(Object.assign(new Error(`no connection within ${timeoutMs} ms`), { code: "ETIMEDOUT" }));
  };
  const timer = setTimeout(late, timeoutMs);
  const clear = (): void => clearTimeout(timer);
  return socket.once("connect", clear).once("close", clear);
}
