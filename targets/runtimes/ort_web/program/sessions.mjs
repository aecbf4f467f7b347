// What ONNX Runtime Web is asked to do, whoever carries the messages: load a model, run it, time it. Seconds.

const TICKS = 200; // of the clock, that one timed value lasts at least: a coarser one would be half noise
const SETTLED = 0.02; // share by which the fastest run may still fall once the engine has compiled what is hot
const WINDOW = 0.03; // seconds in which the fastest run is looked for,
const RUNS = 10; // and how many there must be: on a busy machine seconds alone say little
const WARMED = 3; // seconds of warming up at most

/** Answers requests with [header, arrays]; `ort` is the library, `facts` what the host says of itself. */
export class Service {
  constructor(ort, facts) {
    this.ort = ort;
    this.facts = facts;
    this.models = new Map();
    this.loaded = 0;
    this.tick = clockTick();
  }

  async answer(header, arrays) {
    try {
      return await this[header.operation](header, arrays);
    } catch (error) {
      // After a trap, or when it gave itself up, the library is in no state to go on.
      const fatal = error instanceof WebAssembly.RuntimeError || typeof error === "number";
      return [{ error: fatal ? "MeasurementError" : "ModelError", fatal, message: String(error?.message ?? error) }];
    }
  }

  async load(_, { model }) {
    const session = await this.ort.InferenceSession.create(model.data, { executionProviders: ["wasm"] });
    this.models.set(++this.loaded, { session, feeds: {} });
    return [{ model: this.loaded, inputs: session.inputMetadata.map(described) }];
  }

  async release({ model }) {
    const { session } = this.models.get(model);
    this.models.delete(model);
    await session.release();
    return [{}];
  }

  async run({ model }, arrays) {
    const { session } = this.models.get(model);
    const outputs = await session.run(this.tensors(arrays));
    const named = session.outputNames.map((name, place) => [place, plain(outputs[name])]);
    return [{ outputs: named.length }, Object.fromEntries(named)];
  }

  /** Keep what is fed from now on in `block`, and run until the engine has compiled what is hot. */
  async feed({ model }, arrays) {
    const kept = this.models.get(model);
    kept.feeds = this.tensors(arrays);
    const start = now();
    for (let best = Infinity, calm = 0; calm < 2 && now() - start < WARMED; ) {
      const found = await this.fastest(kept);
      calm = found > best * (1 - SETTLED) ? calm + 1 : 0;
      best = Math.min(best, found);
    }
    return [{}];
  }

  async fastest(kept) {
    const times = [];
    for (const start = now(); now() - start < WINDOW || times.length < RUNS; ) times.push(...(await this.times(kept, 1)));
    return Math.min(...times);
  }

  async block({ model, runs }) {
    return [{ seconds: await this.times(this.models.get(model), runs) }];
  }

  /** Seconds of so many runs at least; of the mean of as many as the clock needs, where it is too coarse for one. */
  async times({ session, feeds }, runs) {
    const least = TICKS * this.tick;
    const times = [];
    for (let done = 0; done < runs; ) {
      const start = now();
      let count = 0;
      let spent = 0;
      do {
        await session.run(feeds);
        count += 1;
        spent = now() - start;
      } while (spent < least);
      times.push(spent / count);
      done += count;
    }
    return times;
  }

  async describe() {
    const { versions, wasm } = this.ort.env;
    return [{ facts: { ...this.facts, version: versions.web, threads: wasm.numThreads, tick: this.tick } }];
  }

  async spin({ seconds }) {
    for (const start = now(); now() - start < seconds; );
    return [{}];
  }

  async tidy() {
    globalThis.gc();
    return [{}];
  }

  tensors(arrays) {
    const entries = Object.entries(arrays);
    return Object.fromEntries(entries.map(([name, one]) => [name, new this.ort.Tensor(one.type, one.data, one.shape)]));
  }
}

const now = () => performance.now() / 1000;

/** The smallest step that the clock shows. */
function clockTick() {
  let smallest = Infinity;
  for (let seen = 0; seen < 50; seen++) {
    const start = performance.now();
    let next = start;
    while (next === start) next = performance.now();
    smallest = Math.min(smallest, next - start);
  }
  return smallest / 1000;
}

function described({ name, isTensor, type, shape }) {
  return { name, type: isTensor ? type : "sequence", shape: (shape ?? []).map((axis) => (axis >= 0 ? axis : null)) };
}

const plain = (tensor) => ({ type: tensor.type, shape: tensor.dims, data: tensor.data });
