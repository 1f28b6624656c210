'use strict';
// The service of a drill. It says on which port it listens and when the first request has come, and
// writes its log when its standard input ends. Times are nanoseconds of CLOCK_MONOTONIC.

const fs = require('fs');
const http = require('http');

const [harm, seedText, logPath, lifetimeSeconds] = process.argv.slice(2);
const seed = BigInt(seedText);
const SPIN_NS = 1000000n;
const HARM_MS = 25;
const SHARE = 0.03;

// Opened by this thread, which runs all of this script.
let schedstat = null;
try {
  schedstat = fs.openSync('/proc/thread-self/schedstat');
} catch (error) {
  console.error(`waits for a CPU are not known: ${error.message}`);
}
const text = Buffer.alloc(96);

const now = () => process.hrtime.bigint();

// How long this thread has waited for a CPU in its life.
function waited() {
  if (schedstat === null) return 0n;
  const length = fs.readSync(schedstat, text, 0, text.length, 0);
  return BigInt(text.toString('latin1', 0, length).split(' ')[1]);
}

// The same choice for the same seed. (The mixer is SplitMix64's.)
function isChosen(number) {
  const u64 = (value) => BigInt.asUintN(64, value);
  let mixed = u64(seed + (number + 1n) * 0x9e3779b97f4a7c15n);
  mixed = u64((mixed ^ (mixed >> 30n)) * 0xbf58476d1ce4e5b9n);
  mixed = u64((mixed ^ (mixed >> 27n)) * 0x94d049bb133111ebn);
  return Number((mixed ^ (mixed >> 31n)) >> 11n) / 2 ** 53 < SHARE;
}

function spin(ns) {
  const end = now() + ns;
  while (now() < end) {
    // Uses the CPU.
  }
}

function answer(response) {
  response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': 3 });
  response.end('ok\n');
}

const entries = [];
let requests = 0n;
let waitedBefore = waited();

const server = http.createServer((request, response) => {
  if (request.url === '/warm-up') {
    spin(SPIN_NS);
    answer(response);
    waitedBefore = waited();
    return;
  }
  const read = now();
  const waitedAtRead = waited();
  if (requests === 0n) process.stdout.write('request\n');
  const number = requests++;
  const entry = {
    port: request.socket.remotePort,
    thread: 1n,
    read,
    readWait: waitedAtRead - waitedBefore,
    waited: 0n,
    slept: 0n,
    burnt: 0n,
  };
  const finish = () => {
    answer(response);
    entry.end = now();
    waitedBefore = waited();
    // The thread has served other requests while this one slept.
    if (entry.slept === 0n) entry.waited = waitedBefore - waitedAtRead;
    entries.push(entry);
  };
  spin(SPIN_NS);
  if (harm === 'none' || !isChosen(number)) {
    finish();
  } else if (harm === 'burn') {
    const begin = now();
    const waitedAtBegin = waited();
    spin(BigInt(HARM_MS) * 1000000n);
    entry.burnt = now() - begin - (waited() - waitedAtBegin);
    finish();
  } else {
    const begin = now();
    // No other request waits for one that sleeps.
    entry.thread = 2n + number;
    waitedBefore = waited();
    setTimeout(() => {
      entry.slept = now() - begin;
      finish();
    }, HARM_MS);
  }
});

function end() {
  const lines = entries.map((entry) => [entry.port, entry.thread, entry.thread, entry.read, entry.read,
    entry.end, entry.readWait, entry.waited, entry.slept, entry.burnt].join(','));
  const head = 'port,reader,worker,read_ns,begin_ns,end_ns,read_wait_ns,waited_ns,slept_ns,burnt_ns';
  fs.writeFileSync(logPath, `${[head, ...lines].join('\n')}\n`);
  process.exit(0);
}

process.stdin.on('end', end);
process.stdin.resume();
setTimeout(end, Number(lifetimeSeconds) * 1000);
server.keepAliveTimeout = 60000;
server.listen(0, '127.0.0.1', () => process.stdout.write(`listening ${server.address().port}\n`));
