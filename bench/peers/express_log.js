// Webhooks stored in log files with Express, two processes with a file each. Webhooks that arrive
// during an fdatasync are written together and answered after the next one.
const cluster = require('node:cluster');
const { timingSafeEqual } = require('node:crypto');
const fs = require('node:fs/promises');
const path = require('node:path');
const express = require('express');

const { SECRET, DATA, PORT } = process.env;
const expected = Buffer.from(`Bearer ${SECRET}`);

function authorize(request, response, next) {
  const given = Buffer.from(request.get('Authorization') || '');
  if (given.length === expected.length && timingSafeEqual(given, expected)) return next();
  response.status(401).json({ status: 'error' });
}

class Log {
  constructor(file) {
    this.file = file;
    this.waiting = [];
    this.busy = false;
  }

  append(line) {
    return new Promise((resolve, reject) => {
      this.waiting.push({ line, resolve, reject });
      if (!this.busy) this.flush();
    });
  }

  async flush() {
    this.busy = true;
    while (this.waiting.length) {
      const batch = this.waiting.splice(0);
      try {
        await this.file.appendFile(batch.map((one) => one.line).join(''));
        await this.file.datasync();
        batch.forEach((one) => one.resolve());
      } catch (error) {
        batch.forEach((one) => one.reject(error));
      }
    }
    this.busy = false;
  }
}

async function serve() {
  const name = path.join(DATA, `events-${cluster.worker.id}.log`);
  const log = new Log(await fs.open(name, 'a'));
  const app = express();
  app.use(authorize);
  app.use(express.json());
  app.post('/webhooks/braze', async (request, response) => {
    await log.append(`${JSON.stringify(request.body)}\n`);
    response.status(202).json({ status: 'accepted', id: request.body.dispatch_id });
  });
  app.listen(Number(PORT), '127.0.0.1');
}

if (cluster.isPrimary) {
  for (let n = 0; n < 2; n += 1) cluster.fork();
  process.on('SIGTERM', () => process.exit(0));
} else {
  serve();
}
