// The loop that everybody writes, in Node: `node plain_loop.mjs LIBRARY FIRST SECOND` prints second / first. Both models are
// run until V8 has compiled them, then in turn; the fastest run of each block, the median of the blocks' ratios.
import { readFileSync } from "node:fs";

const [library, ...paths] = process.argv.slice(2);
const { default: ort } = await import(library);
ort.env.wasm.numThreads = 1;
const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

async function load(path) {
  const session = await ort.InferenceSession.create(readFileSync(path), { executionProviders: ["wasm"] });
  const [{ name, shape }] = session.inputMetadata;
  const sizes = shape.map((axis) => (axis > 0 ? axis : 1));
  const values = Float32Array.from({ length: sizes.reduce((a, b) => a * b, 1) }, normal);
  const feeds = { [name]: new ort.Tensor("float32", values, sizes) };
  return () => session.run(feeds);
}

async function block(call, milliseconds) {
  let best = Infinity;
  const end = performance.now() + milliseconds;
  for (let stop = 0; stop < end; ) {
    const start = performance.now();
    await call();
    stop = performance.now();
    best = Math.min(best, stop - start);
  }
  return best;
}

const [first, second] = [await load(paths[0]), await load(paths[1])];
for (const call of [first, second]) await block(call, 2000);
const ratios = [];
for (let round = 0; round < 15; round++) {
  const spent = await block(second, 150);
  ratios.push(spent / (await block(first, 150)));
}
console.log(ratios.sort((a, b) => a - b)[7]);
