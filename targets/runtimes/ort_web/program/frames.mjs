// Messages with arrays, as targets/workers/pipes.py writes and reads them: a prefix (magic, length of the header, length
// of the body; little-endian), a JSON header, and the arrays as .npy bytes. An array here is { type, shape, data }: the
// name of its type in ONNX Runtime Web, its axes, and a typed array (of strings: a plain one).

export const PREFIX = 16;
const MAGIC = "PPM1";
const Half = globalThis.Float16Array ?? Uint16Array;
// Type in ONNX Runtime Web: what numpy calls it, and what holds its values.
const TYPES = {
  float32: ["<f4", Float32Array],
  float64: ["<f8", Float64Array],
  float16: ["<f2", Half],
  int8: ["|i1", Int8Array],
  uint8: ["|u1", Uint8Array],
  int16: ["<i2", Int16Array],
  uint16: ["<u2", Uint16Array],
  int32: ["<i4", Int32Array],
  uint32: ["<u4", Uint32Array],
  int64: ["<i8", BigInt64Array],
  uint64: ["<u8", BigUint64Array],
  bool: ["|b1", Uint8Array],
};
const NAMES = new Map(Object.entries(TYPES).map(([name, [descr]]) => [descr, name]));

/** Lengths of a frame's header and body, out of its first PREFIX bytes. */
export function lengths(prefix) {
  if (String.fromCharCode(...prefix.subarray(0, 4)) !== MAGIC) throw new Error("what came is not a frame");
  const view = new DataView(prefix.buffer, prefix.byteOffset, PREFIX);
  return [view.getUint32(4, true), Number(view.getBigUint64(8, true))];
}

/** The header and the arrays by name of a frame, given what follows its prefix. */
export function decode(head, body) {
  const document = JSON.parse(new TextDecoder().decode(head));
  const arrays = {};
  let start = 0;
  for (const [name, size] of document.arrays) {
    arrays[name] = fromNpy(body.subarray(start, start + size));
    start += size;
  }
  return [document.header, arrays];
}

/** The bytes of one frame, in parts. */
export function encode(header, arrays = {}) {
  const bodies = Object.entries(arrays).map(([name, array]) => [name, toNpy(array)]);
  const sizes = bodies.map(([name, parts]) => [name, total(parts)]);
  const head = new TextEncoder().encode(JSON.stringify({ header, arrays: sizes }));
  const prefix = new Uint8Array(PREFIX);
  prefix.set(new TextEncoder().encode(MAGIC));
  const view = new DataView(prefix.buffer);
  view.setUint32(4, head.length, true);
  view.setBigUint64(8, BigInt(sizes.reduce((sum, [, size]) => sum + size, 0)), true);
  return [prefix, head, ...bodies.flatMap(([, parts]) => parts)];
}

const total = (parts) => parts.reduce((sum, part) => sum + part.length, 0);

function fromNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const [length, start] = bytes[6] === 1 ? [view.getUint16(8, true), 10] : [view.getUint32(8, true), 12];
  const text = new TextDecoder("latin1").decode(bytes.subarray(start, start + length));
  const descr = /'descr': '([^']+)'/.exec(text)[1];
  const shape = (/'shape': \(([^)]*)\)/.exec(text)[1].match(/\d+/g) ?? []).map(Number);
  const raw = bytes.slice(start + length);
  const wide = /^<U(\d+)$/.exec(descr);
  if (wide) return { type: "string", shape, data: strings(new Uint32Array(raw.buffer), Number(wide[1])) };
  const type = NAMES.get(descr);
  if (type === undefined) throw new Error(`arrays of type ${descr} cannot be taken`);
  return { type, shape, data: new TYPES[type][1](raw.buffer) };
}

function strings(points, width) {
  const found = [];
  for (let start = 0; width && start < points.length; start += width) {
    const word = points.subarray(start, start + width);
    found.push(String.fromCodePoint(...word.filter((point) => point)));
  }
  return found;
}

function toNpy({ type, shape, data }) {
  const [descr, raw] = type === "string" ? fixedWidth(data) : [TYPES[type]?.[0], bytesOf(data)];
  if (descr === undefined) throw new Error(`outputs of type ${type} cannot be given back`);
  const axes = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const text = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${axes}), }`;
  const padded = new TextEncoder().encode(`${text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11)}\n`);
  const front = Uint8Array.of(0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, padded.length & 255, padded.length >> 8);
  return [front, padded, raw];
}

const bytesOf = (data) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

function fixedWidth(words) {
  const all = words.map((word) => Array.from(word, (one) => one.codePointAt(0)));
  const width = Math.max(1, ...all.map((one) => one.length));
  const points = new Uint32Array(width * all.length);
  all.forEach((one, place) => points.set(one, place * width));
  return [`<U${width}`, bytesOf(points)];
}
