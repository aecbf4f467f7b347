// ONNX Runtime Web in a page: sends its reply to the last request and gets the next one, for as long as it is there.
import { PREFIX, decode, encode, lengths } from "./frames.mjs";
import { Service } from "./sessions.mjs";

const { default: ort } = await import("./ort.wasm.min.mjs");
ort.env.logLevel = "fatal";
ort.env.wasm.numThreads = Number(new URLSearchParams(location.search).get("threads"));
const [, browser] = /(Chrome\/[\d.]+)/.exec(navigator.userAgent) ?? [null, navigator.userAgent];
const service = new Service(ort, { host: browser, engine: "V8", isolated: crossOriginIsolated });
for (let reply = []; ; ) {
  const answer = await fetch("next", { method: "POST", body: new Blob(reply) });
  const frame = new Uint8Array(await answer.arrayBuffer());
  const [head] = lengths(frame);
  const request = decode(frame.subarray(PREFIX, PREFIX + head), frame.subarray(PREFIX + head));
  reply = encode(...(await service.answer(...request)));
}
