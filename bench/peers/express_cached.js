// Lookups with Express and node-cache, two processes.
const cluster = require('node:cluster');
const { timingSafeEqual } = require('node:crypto');
const express = require('express');
const NodeCache = require('node-cache');

const { UPSTREAM, UPSTREAM_KEY, UPSTREAM_AUTH, SECRET, PORT } = process.env;
const expected = Buffer.from(`Bearer ${SECRET}`);

function authorize(request, response, next) {
  const given = Buffer.from(request.get('Authorization') || '');
  if (given.length === expected.length && timingSafeEqual(given, expected)) return next();
  response.status(401).json({ status: 'error' });
}

async function fetchTags(userId) {
  const answer = await fetch(`${UPSTREAM}/priv/v1/apps/${UPSTREAM_KEY}/users/${userId}/tags`, {
    headers: { Authorization: UPSTREAM_AUTH },
  });
  if (!answer.ok) throw new Error(`upstream: ${answer.status}`);
  const { tags } = await answer.json();
  const names = Object.keys(tags);
  return { status: 'ok', user_id: userId, tags, names, count: names.length };
}

if (cluster.isPrimary) {
  for (let n = 0; n < 2; n += 1) cluster.fork();
  process.on('SIGTERM', () => process.exit(0));
} else {
  const app = express();
  const cache = new NodeCache({ stdTTL: 300, useClones: false });
  app.use(authorize);
  app.get('/connected-content/tags', async (request, response) => {
    const userId = request.query.user_id;
    let found = cache.get(userId);
    if (found === undefined) {
      found = await fetchTags(userId);
      cache.set(userId, found);
    }
    response.json(found);
  });
  app.listen(Number(PORT), '127.0.0.1');
}
