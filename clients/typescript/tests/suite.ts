// Where the conformance suite is, and where the server that it runs against.

import { readdirSync, readFileSync } from "node:fs";

import type { Case } from "./cases.js";

/** From dist/tests to clients/conformance. */
const FOLDER = new URL("../../../conformance/", import.meta.url);

/** The cases that this client can express, by file. */
export function suite(): [file: string, cases: Case[]][] {
  const files = readdirSync(FOLDER).filter((name) => name.endsWith(".json")).sort();
  if (files.length === 0) {
    throw new Error(`no cases in ${FOLDER.pathname}`);
  }
  return files.map((name) => {
    const cases = JSON.parse(readFileSync(new URL(name, FOLDER), "utf8")) as Case[];
    return [name, cases.filter(({ clients }) => clients === undefined || clients.includes("typescript"))];
  });
}

/** The value of an environment variable that names the running server. */
export function server(name: "KVSTORE_ENDPOINTS" | "KVSTORE_HTTP"): string {
  const value = process.env[name];
  if (!value) {
    throw new Error(`${name} is not set; it names the running server, such as http://127.0.0.1:${name === "KVSTORE_HTTP" ? 8080 : 9090}`);
  }
  return value;
}
