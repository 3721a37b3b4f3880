// A client of a peer in another language, written from protocol/SPEC.md alone: Node.js 20, no packages.
// Usage: node client.mjs ws://HOST:PORT ID-OF-THE-PEER; prints one JSON object of what it saw. §n: the section followed.

import crypto from "node:crypto";
import net from "node:net";

const CHUNK = 524288, INLINE_PAYLOAD = 65536, MAX_HEADER = 65536, MAX_FRAME = 589888, WINDOW = 8388608;
const [HELLO, CHALLENGE, PROOF, WELCOME, REQUEST, REPLY, FAULT, CHUNKS, CREDIT, ABORT] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

function check(condition, what) {
  if (!condition) throw new Error(`the peer broke a rule: ${what}`);
}

// --- msgpack, as far as headers need it (§3) ---------------------------------------------------------------

class Float {
  constructor(value) { this.value = value; }
}

function pack(value, out = []) {
  const sized = (fix, limit, wide, length) => {
    if (length < limit) out.push(Buffer.from([fix | length]));
    else if (length < 0x10000) { const b = Buffer.alloc(3); b[0] = wide; b.writeUInt16BE(length, 1); out.push(b); }
    else { const b = Buffer.alloc(5); b[0] = wide + 1; b.writeUInt32BE(length, 1); out.push(b); }
  };
  if (value === null) out.push(Buffer.from([0xc0]));
  else if (typeof value === "boolean") out.push(Buffer.from([value ? 0xc3 : 0xc2]));
  else if (typeof value === "number") {
    check(Number.isSafeInteger(value), "an integer of ours is not safe");
    const b = Buffer.alloc(9);
    if (value >= 0) { b[0] = 0xcf; b.writeBigUInt64BE(BigInt(value), 1); }
    else { b[0] = 0xd3; b.writeBigInt64BE(BigInt(value), 1); }
    out.push(b);
  } else if (value instanceof Float) { const b = Buffer.alloc(9); b[0] = 0xcb; b.writeDoubleBE(value.value, 1); out.push(b); }
  else if (typeof value === "string") {
    const text = Buffer.from(value, "utf8");
    sized(0xa0, 32, 0xda, text.length);
    out.push(text);
  } else if (value instanceof Uint8Array) {
    const b = Buffer.alloc(5);
    b[0] = 0xc6; b.writeUInt32BE(value.length, 1);
    out.push(b, Buffer.from(value));
  } else if (Array.isArray(value)) {
    sized(0x90, 16, 0xdc, value.length);
    for (const item of value) pack(item, out);
  } else {
    const entries = Object.entries(value).filter(([, item]) => item !== undefined);
    sized(0x80, 16, 0xde, entries.length);
    for (const [key, item] of entries) { pack(key, out); pack(item, out); }
  }
  return out;
}

function unpack(data) {
  let at = 0;
  const take = (n) => { check(at + n <= data.length, "msgpack is cut off"); at += n; return data.subarray(at - n, at); };
  const integer = (big) => (big <= BigInt(Number.MAX_SAFE_INTEGER) && big >= BigInt(Number.MIN_SAFE_INTEGER) ? Number(big) : big);
  const text = (n) => new TextDecoder("utf-8", { fatal: true }).decode(take(n));
  const list = (n) => Array.from({ length: n }, one);
  const map = (n) => {
    const made = {};
    for (let i = 0; i < n; i++) {
      const key = one();
      check(typeof key === "string", "a key is not text");
      check(!(key in made), "a key stands twice");
      made[key] = one();
    }
    return made;
  };
  function one() {
    const kind = take(1)[0];
    if (kind < 0x80) return kind;
    if (kind < 0x90) return map(kind & 15);
    if (kind < 0xa0) return list(kind & 15);
    if (kind < 0xc0) return text(kind & 31);
    if (kind >= 0xe0) return kind - 256;
    switch (kind) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return Buffer.from(take(take(1)[0]));
      case 0xc5: return Buffer.from(take(take(2).readUInt16BE()));
      case 0xc6: return Buffer.from(take(take(4).readUInt32BE()));
      case 0xca: return take(4).readFloatBE();
      case 0xcb: return take(8).readDoubleBE();
      case 0xcc: return take(1)[0];
      case 0xcd: return take(2).readUInt16BE();
      case 0xce: return take(4).readUInt32BE();
      case 0xcf: return integer(take(8).readBigUInt64BE());
      case 0xd0: return take(1).readInt8();
      case 0xd1: return take(2).readInt16BE();
      case 0xd2: return take(4).readInt32BE();
      case 0xd3: return integer(take(8).readBigInt64BE());
      case 0xd9: return text(take(1)[0]);
      case 0xda: return text(take(2).readUInt16BE());
      case 0xdb: return text(take(4).readUInt32BE());
      case 0xdc: return list(take(2).readUInt16BE());
      case 0xdd: return list(take(4).readUInt32BE());
      case 0xde: return map(take(2).readUInt16BE());
      case 0xdf: return map(take(4).readUInt32BE());
      default: return check(false, `msgpack type 0x${kind.toString(16)}`);
    }
  }
  const value = one();
  check(at === data.length, "bytes after the value");
  return value;
}

// --- frames (§2) -------------------------------------------------------------------------------------------

function frame(type, header, payload = Buffer.alloc(0)) {
  const packed = Buffer.concat(pack(header));
  check(packed.length <= MAX_HEADER, "a header of ours is too large");
  const prelude = Buffer.alloc(20);
  prelude.write("PGRD", 0, "latin1");
  prelude[4] = 1;
  prelude[5] = type;
  prelude.writeUInt32LE(packed.length, 8);
  prelude.writeBigUInt64LE(BigInt(payload.length), 12);
  return Buffer.concat([prelude, packed, payload]);
}

function* frames(message) {
  check(message.length > 0, "an empty message");
  for (let at = 0; at < message.length;) {
    check(message.length - at >= 20, "a prelude is cut off");
    check(message.toString("latin1", at, at + 4) === "PGRD", "the magic");
    check(message[at + 4] === 1 && message.readUInt16LE(at + 6) === 0, "version or flags");
    const headerBytes = message.readUInt32LE(at + 8), payloadBytes = Number(message.readBigUInt64LE(at + 12));
    check(headerBytes <= MAX_HEADER && payloadBytes <= CHUNK, "lengths");
    const payloadAt = at + 20 + headerBytes, end = payloadAt + payloadBytes;
    check(end <= message.length, "a frame is cut off");
    yield { type: message[at + 5], header: unpack(message.subarray(at + 20, payloadAt)), payload: message.subarray(payloadAt, end) };
    at = end;
  }
}

// --- WebSocket (§1, RFC 6455) ------------------------------------------------------------------------------

class WebSocket {
  static async connect(url) {
    const { hostname, port } = new URL(url);
    const socket = net.connect({ host: hostname, port: Number(port), noDelay: true });
    await new Promise((done, failed) => socket.once("connect", done).once("error", failed));
    const made = new WebSocket(socket);
    await made.upgrade(`${hostname}:${port}`);
    return made;
  }

  constructor(socket) {
    this.socket = socket;
    this.buffered = Buffer.alloc(0);
    this.fragments = [];
    this.onmessage = () => {};
    this.closed = new Promise((done) => { this.close_done = done; });
    this.sent = 0;
  }

  upgrade(host) {
    const key = crypto.randomBytes(16).toString("base64");
    this.socket.write(
      `GET / HTTP/1.1\r\nHost: ${host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
      `Sec-WebSocket-Key: ${key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: peergrid.1\r\n\r\n`,
    );
    return new Promise((done, failed) => {
      const take = (data) => {
        this.buffered = Buffer.concat([this.buffered, data]);
        const end = this.buffered.indexOf("\r\n\r\n");
        if (end < 0) return;
        this.socket.off("data", take);
        const [status, ...lines] = this.buffered.toString("latin1", 0, end).split("\r\n");
        const headers = Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]));
        const accept = crypto.createHash("sha1").update(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
        if (!status.includes(" 101 ") || headers["sec-websocket-accept"] !== accept || headers["sec-websocket-protocol"] !== "peergrid.1") {
          failed(new Error(`no WebSocket of subprotocol peergrid.1: ${status}`));
          return;
        }
        this.buffered = this.buffered.subarray(end + 4);
        this.socket.on("data", (more) => { this.buffered = Buffer.concat([this.buffered, more]); this.parse(); });
        this.socket.on("close", () => this.close_done(this.code ?? 1006));
        this.socket.on("error", () => {});
        done();
        this.parse();
      };
      this.socket.on("data", take).once("close", () => failed(new Error("closed during the upgrade")));
    });
  }

  parse() {
    for (;;) {
      const data = this.buffered;
      if (data.length < 2) return;
      const isLast = (data[0] & 0x80) !== 0, kind = data[0] & 15;
      check((data[0] & 0x70) === 0, "an extension that nobody asked for");
      check((data[1] & 0x80) === 0, "a masked frame from a server");
      let length = data[1] & 0x7f, at = 2;
      if (length === 126) { if (data.length < 4) return; length = data.readUInt16BE(2); at = 4; }
      else if (length === 127) { if (data.length < 10) return; length = Number(data.readBigUInt64BE(2)); at = 10; }
      check(length <= MAX_FRAME, "a message is too large");
      if (data.length < at + length) return;
      const payload = data.subarray(at, at + length);
      this.buffered = data.subarray(at + length);
      if (kind === 9) this.write(10, payload);
      else if (kind === 8) {
        this.code ??= payload.length >= 2 ? payload.readUInt16BE() : 1005;
        if (!this.isClosing) this.write(8, payload);
        this.isClosing = true;
        this.socket.end();
      } else if (kind === 0 || kind === 2) {
        this.fragments.push(payload);
        if (isLast) { const message = Buffer.concat(this.fragments); this.fragments = []; this.onmessage(message); }
      } else check(kind === 10, `WebSocket frame ${kind}`);
    }
  }

  write(kind, payload) {
    const head = [0x80 | kind];
    if (payload.length < 126) head.push(0x80 | payload.length);
    else if (payload.length < 0x10000) head.push(0x80 | 126, payload.length >> 8, payload.length & 255);
    else { const size = Buffer.alloc(8); size.writeBigUInt64BE(BigInt(payload.length)); head.push(0x80 | 127, ...size); }
    const mask = crypto.randomBytes(4), masked = Buffer.from(payload);
    for (let i = 0; i < masked.length; i++) masked[i] ^= mask[i & 3];
    return this.socket.write(Buffer.concat([Buffer.from(head), mask, masked]));
  }

  async send(message) {
    this.sent += 1;
    if (!this.write(2, message)) await new Promise((done) => this.socket.once("drain", done));
  }

  close() {
    this.isClosing = true;
    this.write(8, Buffer.from([3, 232])); // 1000
    return this.closed;
  }
}

// --- identity (§4) -----------------------------------------------------------------------------------------

function base32(data) {
  let bits = [...data].map((byte) => byte.toString(2).padStart(8, "0")).join("");
  bits = bits.padEnd(Math.ceil(bits.length / 5) * 5, "0");
  return bits.match(/.{5}/g).map((five) => "abcdefghijklmnopqrstuvwxyz234567"[parseInt(five, 2)]).join("");
}

const idOf = (key) => base32(crypto.createHash("sha256").update(key).digest());

function transcript(part, dialerKey, acceptorKey, dialerNonce, acceptorNonce) {
  const parts = [Buffer.from("peergrid-auth-v1"), Buffer.from(part), dialerKey, acceptorKey, dialerNonce, acceptorNonce];
  return Buffer.concat(parts.flatMap((each) => { const size = Buffer.alloc(4); size.writeUInt32LE(each.length); return [size, each]; }));
}

function verify(key, signature, message) {
  const made = crypto.createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: key.toString("base64url") }, format: "jwk" });
  return crypto.verify(null, message, made, signature);
}

// --- the session (§4 to §7) --------------------------------------------------------------------------------

class PeerFault extends Error {
  constructor(fault) { super(fault.message); this.fault = fault; }
}

class Session {
  static async open(url, expect, seen) {
    const session = new Session(await WebSocket.connect(url), seen);
    const { publicKey, privateKey } = crypto.generateKeyPairSync("ed25519");
    const key = Buffer.from(publicKey.export({ format: "jwk" }).x, "base64url"), nonce = crypto.randomBytes(32);
    const handshake = [];
    let arrived = () => {};
    session.ws.onmessage = (message) => { handshake.push(message); arrived(); };
    const next = async (type) => {
      while (!handshake.length) await new Promise((done) => { arrived = done; session.ws.closed.then(done); });
      const [only, ...more] = [...frames(handshake.shift())];
      if (only.type === FAULT) throw new PeerFault(only.header);
      check(only.type === type && !more.length, "a message of the handshake");
      return only.header;
    };
    await session.ws.send(frame(HELLO, { versions: [1], key, nonce, role: "client", name: "node", expect, lease: crypto.randomBytes(16) }));
    const challenge = await next(CHALLENGE);
    check(challenge.version === 1, "the version");
    check(idOf(challenge.key) === expect, "it is another peer");
    const theirs = transcript("acceptor", key, challenge.key, nonce, challenge.nonce);
    check(verify(challenge.key, challenge.signature, theirs), "it did not prove its key");
    const flipped = Buffer.from(challenge.signature);
    flipped[7] ^= 1;
    seen.handshake = {
      id: idOf(key),
      peer: challenge.name,
      verified: true,
      refuses_flipped_signature: !verify(challenge.key, flipped, theirs),
      refuses_own_role: !verify(challenge.key, challenge.signature, transcript("dialer", key, challenge.key, nonce, challenge.nonce)),
    };
    session.ws.onmessage = (message) => session.receive(message); // before PROOF: what follows WELCOME must not be missed
    const welcome = new Promise((done, failed) => { session.welcome = done; session.failed = failed; });
    await session.ws.send(frame(PROOF, { signature: crypto.sign(null, transcript("dialer", key, challenge.key, nonce, challenge.nonce), privateKey) }));
    session.window = (await welcome).window;
    check(session.window >= CHUNK && session.window <= WINDOW, "the window");
    return session;
  }

  constructor(ws, seen) {
    this.ws = ws;
    this.seen = seen;
    this.lastRequest = 0;
    this.lastStream = -1; // ours are odd: we dialled
    this.waiting = new Map(); // request id -> {done, failed}
    this.incoming = new Map(); // stream -> {nbytes, chunks, received, reply}
    this.credit = new Map(); // stream of ours -> {bytes, wake}
    ws.closed.then(() => { for (const { failed } of this.waiting.values()) failed(new Error("the peer closed the connection")); });
  }

  receive(message) {
    for (const { type, header, payload } of frames(message)) {
      if (type === WELCOME) this.welcome(header);
      else if (type === REPLY) this.onReply(header, payload);
      else if (type === FAULT) this.onFault(header);
      else if (type === CHUNKS) this.onChunk(header, payload);
      else if (type === CREDIT) this.onCredit(header);
      else if (type === ABORT) this.onAbort(header);
      else if (type === REQUEST) this.ws.send(frame(FAULT, { id: header.id, code: "bad_request", message: "a client", fields: {} }));
      // other types are of a later version (§13)
    }
  }

  onReply(header, payload) {
    const waiting = this.waiting.get(header.id);
    this.waiting.delete(header.id);
    if (!waiting) { // given up: its stream is, too (§5)
      if (header.stream) this.ws.send(frame(ABORT, { stream: header.stream, message: "" }));
      return;
    }
    this.seen.order.push(header.id);
    if (!header.stream) { waiting.done({ result: header.result, payload: Buffer.from(payload) }); return; }
    check(header.stream % 2 === 0 && payload.length === 0, "a stream of the acceptor");
    this.incoming.set(header.stream, { nbytes: header.nbytes, chunks: [], received: 0, credited: this.window, ...waiting, result: header.result });
  }

  onFault(header) {
    if (header.id === undefined || header.id === null) { this.failed?.(new PeerFault(header)); return; }
    const waiting = this.waiting.get(header.id);
    this.waiting.delete(header.id);
    waiting?.failed(new PeerFault(header));
  }

  onChunk(header, payload) {
    const into = this.incoming.get(header.stream);
    if (!into) return; // aborted
    check(header.offset === into.received, "chunks in order");
    check(payload.length >= 1, "an empty chunk");
    into.received += payload.length;
    check(into.received <= into.nbytes && into.received <= into.credited, "size and credit");
    into.chunks.push(Buffer.from(payload));
    this.seen.largest_unread = Math.max(this.seen.largest_unread, into.received - (into.credited - this.window));
    if (into.stopAfter && into.received >= into.stopAfter) {
      this.incoming.delete(header.stream);
      this.ws.send(frame(ABORT, { stream: header.stream, message: "enough" }));
      into.done({ result: into.result, payload: Buffer.concat(into.chunks) });
    } else if (into.received === into.nbytes) {
      this.incoming.delete(header.stream);
      into.done({ result: into.result, payload: Buffer.concat(into.chunks) });
    } else if (into.credited < into.nbytes) {
      into.credited += payload.length;
      this.seen.credits_given += 1;
      this.ws.send(frame(CREDIT, { stream: header.stream, nbytes: payload.length }));
    }
  }

  onCredit(header) {
    const room = this.credit.get(header.stream);
    if (!room) return;
    this.seen.credits_taken += 1;
    room.bytes += header.nbytes;
    room.wake();
  }

  onAbort(header) {
    const room = this.credit.get(header.stream), into = this.incoming.get(header.stream);
    if (room) { room.aborted = true; room.wake(); }
    if (into) { this.incoming.delete(header.stream); into.failed(new Error(`the peer gave up: ${header.message}`)); }
  }

  // Ask; the reply is {result, payload}. With stopAfter the payload's stream is given up after so many bytes.
  request(op, args = {}, payload = Buffer.alloc(0), stopAfter = 0) {
    const id = ++this.lastRequest;
    const answered = new Promise((done, failed) => this.waiting.set(id, { done, failed, stopAfter }));
    if (payload.length <= INLINE_PAYLOAD) this.ws.send(frame(REQUEST, { id, op, args }, payload));
    else this.stream(id, op, args, payload);
    return answered;
  }

  async stream(id, op, args, payload) {
    const stream = (this.lastStream += 2), room = { bytes: this.window, wake: () => {}, aborted: false };
    this.credit.set(stream, room);
    await this.ws.send(frame(REQUEST, { id, op, args, stream, nbytes: payload.length }));
    for (let offset = 0; offset < payload.length && !room.aborted;) {
      if (room.bytes === 0) { this.seen.waited_for_credit = true; await new Promise((done) => { room.wake = done; }); continue; }
      const part = payload.subarray(offset, offset + Math.min(CHUNK, room.bytes));
      await this.ws.send(frame(CHUNKS, { stream, offset }, part));
      offset += part.length;
      room.bytes -= part.length;
    }
    this.credit.delete(stream);
  }

  giveUp(id) {
    this.waiting.get(id)?.failed(new Error("given up"));
    this.waiting.delete(id);
    return this.ws.send(frame(ABORT, { request: id, message: "" }));
  }
}

function rows(payload) { // §5
  const made = [];
  for (let at = 0; at < payload.length;) {
    const size = payload.readUInt32LE(at);
    made.push(unpack(payload.subarray(at + 4, at + 4 + size)));
    at += 4 + size;
  }
  return made;
}

// --- what it does ------------------------------------------------------------------------------------------

const hash = (data) => crypto.createHash("sha256").update(data).digest("hex");
const floats = (buffer) => Array.from({ length: buffer.length / 4 }, (_, i) => buffer.readFloatLE(4 * i));
const fault = (error) => { if (!(error instanceof PeerFault)) throw error; return error.fault; };
const shown = (record) => ({ ...record, id: record.id.toString("hex") });

async function main(url, expect) {
  const seen = { order: [], credits_given: 0, credits_taken: 0, waited_for_credit: false, largest_unread: 0 };
  const session = await Session.open(url, expect, seen);
  seen.window = session.window;

  seen.peers = rows((await session.request("peers")).payload);
  seen.status = (await session.request("status")).result;

  const small = crypto.randomBytes(16), smallData = Buffer.alloc(24);
  [1.5, -2, 3, 0.25, 0, 1e10].forEach((value, i) => smallData.writeFloatLE(value, 4 * i));
  const smallArgs = { id: small, kind: "tensor", dtype: "float32", shape: [2, 3], publish: true, tags: ["#interop", "#small"], description: "from node, with ünïcode" };
  seen.put_small = shown((await session.request("put", smallArgs, smallData)).result.record);

  const large = crypto.randomBytes(16), largeData = crypto.randomBytes(24 * CHUNK + 4 * 1000);
  const largeArgs = { id: large, kind: "tensor", dtype: "int32", shape: [largeData.length / 4], publish: true, tags: ["#interop", "#large"] };
  seen.put_large = shown((await session.request("put", largeArgs, largeData)).result.record);

  const found = await session.request("search", { query: "#interop" });
  seen.search = { truncated: found.result.truncated, records: rows(found.payload).map(shown) };
  seen.search_small = rows((await session.request("search", { query: "#interop #small" })).payload).map(shown);
  seen.describe = shown((await session.request("describe", { id: small })).result.record);
  seen.describe_prefix = shown((await session.request("describe", { prefix: large.toString("hex").slice(0, 12) })).result.record);

  const inline = await session.request("fetch", { id: small });
  seen.fetch_small = { ...inline.result, same: inline.payload.equals(smallData) };
  const streamed = await session.request("fetch", { id: large });
  seen.fetch_large = { ...streamed.result, same: hash(streamed.payload) === hash(largeData), nbytes: streamed.payload.length };

  const sum = crypto.randomBytes(16), product = crypto.randomBytes(16);
  const run = await session.request("run", { operations: [
    ["aten.add.Tensor", [small, small], {}, [sum]],
    ["aten.mul.Tensor", [sum, new Float(0.5)], {}, [product]],
  ] });
  seen.run = { results: run.result.results };
  const computed = await session.request("fetch", { id: sum });
  seen.run.sum = { ...computed.result, values: floats(computed.payload) };
  seen.run.product = floats((await session.request("fetch", { id: product })).payload);

  // Faults answer their own request, and the session goes on.
  seen.faults = {};
  const ask = async (name, op, args, payload) => {
    seen.faults[name] = await session.request(op, args, payload).then(() => null, fault);
  };
  await ask("unknown object", "fetch", { id: crypto.randomBytes(16) });
  await ask("unknown op", "levitate", {});
  await ask("bad id", "fetch", { id: "text" });
  await ask("lying header", "put", { ...smallArgs, id: crypto.randomBytes(16), shape: [2, 4] }, smallData);
  await ask("bad query", "search", { query: "#a | | #b" });
  await ask("same object again", "put", smallArgs, smallData);
  await ask("same id, other value", "put", smallArgs, Buffer.alloc(24));
  const refused = crypto.randomBytes(16), after = crypto.randomBytes(16);
  const bad = await session.request("run", { operations: [
    ["aten.from_file.default", ["/etc/passwd"], {}, [refused]],
    ["aten.neg.default", [small], {}, [after]],
  ] });
  seen.faults["forbidden operation"] = bad.result.results[0];
  seen.faults["its neighbour"] = bad.result.results[1];
  await ask("out of a failed operation", "fetch", { id: refused });
  seen.neighbour = floats((await session.request("fetch", { id: after })).payload);

  // Many at once; small ones overtake a large one; some are given up.
  const first = session.lastRequest + 1;
  seen.order = [];
  const big = session.request("fetch", { id: large });
  const others = Array.from({ length: 200 }, () => session.request("describe", { id: small }));
  const answers = await Promise.all([big, ...others]);
  seen.many = { answers: answers.length, all: seen.order.length === 201 && new Set(seen.order).size === 201, first: seen.order.includes(first) };
  const part = await session.request("fetch", { id: large }, undefined, 2 * CHUNK);
  seen.aborted_after = part.payload.length;
  const given = session.request("fetch", { id: large }).catch((error) => error.message);
  await session.giveUp(session.lastRequest);
  seen.given_up = await given;

  await session.request("release", { ids: [sum, product, after, refused] });
  seen.deleted = (await session.request("delete", { ids: [small, large] })).result.deleted;
  seen.left = rows((await session.request("search", { query: "#interop" })).payload).length;
  delete seen.order;
  seen.closed = await session.ws.close();

  // Another id than expected is refused by the peer, in words, before anything else.
  const other = await Session.open(url, base32(crypto.randomBytes(32)), {}).then(() => null, fault);
  seen.wrong_peer = { code: other.code, message: other.message };
  console.log(JSON.stringify(seen));
}

await main(process.argv[2], process.argv[3]).then(() => process.exit(0), (error) => {
  console.error(error);
  process.exit(1);
});
