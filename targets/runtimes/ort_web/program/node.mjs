// ONNX Runtime Web in Node: answers frames on stdin with frames on a descriptor of their own, until stdin is closed.
// What the library prints goes to stdout and cannot get in between. SETUP, the only argument, is JSON: `library` (the
// address of its module), `threads`, `replies` and `lifeline` (descriptors).
import { readSync, writeSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { PREFIX, decode, encode, lengths } from "./frames.mjs";
import { Service } from "./sessions.mjs";

const setup = JSON.parse(process.argv[2]);
// A model may keep this thread busy for ever; another one sees that the parent is gone.
new Worker(new URL("./lifeline.mjs", import.meta.url), { workerData: setup.lifeline }).unref();
// Ctrl-C reaches the whole group, and the parent decides what it means.
process.on("SIGINT", () => {});

function take(size) {
  const bytes = new Uint8Array(size);
  for (let got = 0; got < size; ) {
    const more = readSync(0, bytes, got, size - got);
    if (more === 0) return null;
    got += more;
  }
  return bytes;
}

function send(header, arrays) {
  for (const part of encode(header, arrays)) {
    for (let sent = 0; sent < part.length; ) sent += writeSync(setup.replies, part, sent);
  }
}

const { default: ort } = await import(setup.library);
ort.env.logLevel = "fatal";
ort.env.wasm.numThreads = setup.threads;
const { node, v8 } = process.versions;
const service = new Service(ort, { host: `Node ${node}`, engine: `V8 ${v8}` });
for (let prefix = take(PREFIX); prefix !== null; prefix = take(PREFIX)) {
  const [head, body] = lengths(prefix).map(take);
  if (head === null || body === null) break;
  const [header, arrays] = await service.answer(...decode(head, body));
  send(header, arrays);
}
process.exit(0);
