// oidc-provider's storage on PostgreSQL: a table for each model, prepared statements, a pool of connections.
//
// The counterpart of adapter.mjs, and as well written as we know how. Every write is one statement, and so
// one commit; nothing is acknowledged before it, and how durable it is, the server's settings say. With
// `group` the writes of one kind that came while the last statement ran go into the next one, as arrays.

import pg from 'pg';

// A string that is presented again revokes the codes of its grant as well.
const MODELS = ['RefreshToken', 'Grant', 'AccessToken', 'AuthorizationCode', 'Session', 'Interaction'];

/** The adapter's class for one database, once its tables are there. */
export async function postgresAdapter(url, { group = true, connections = 16 } = {}) {
  const pool = new pg.Pool({ connectionString: url, max: connections, idleTimeoutMillis: 0 });
  const tables = new Map();
  for (const model of MODELS) {
    await create(pool, model);
    tables.set(model, statements(pool, model, group));
  }

  return class PostgresAdapter {
    #table;

    constructor(model) {
      // A model that no refresh uses has no table, and an error at its first use.
      this.#table = tables.get(model);
    }

    async upsert(id, payload, expiresIn) {
      const expiresAt = expiresIn === undefined ? null : now() + expiresIn;
      await this.#table.upsert(id, JSON.stringify(payload), payload.grantId ?? null, expiresAt);
    }

    async find(id) {
      const row = await this.#table.find(id);
      if (row === undefined || (row.expires_at !== null && row.expires_at <= now())) return undefined;
      const payload = JSON.parse(row.payload);
      if (row.consumed !== null) payload.consumed = row.consumed;
      return payload;
    }

    async consume(id) {
      await this.#table.consume(id);
    }

    async destroy(id) {
      await this.#table.destroy(id);
    }

    async revokeByGrantId(grantId) {
      await this.#table.revoke(grantId);
    }
  };
}

async function create(pool, model) {
  // Seconds as floats: the driver hands a bigint over as a string.
  await pool.query(
    `CREATE TABLE IF NOT EXISTS "${model}" (
       id TEXT PRIMARY KEY, payload TEXT NOT NULL, grant_id TEXT,
       expires_at DOUBLE PRECISION, consumed DOUBLE PRECISION
     );
     CREATE INDEX IF NOT EXISTS "${model}_grant" ON "${model}" (grant_id) WHERE grant_id IS NOT NULL;`,
  );
}

function statements(pool, model, group) {
  const write = (name, one, many) =>
    group ? groupCommit(pool, `${model}.${name}s`, many) : each(pool, `${model}.${name}`, one);
  const into = `INSERT INTO "${model}" (id, payload, grant_id, expires_at)`;
  const replace = `ON CONFLICT (id) DO UPDATE SET payload = excluded.payload, grant_id = excluded.grant_id,
    expires_at = excluded.expires_at`;
  const consume = `UPDATE "${model}" SET consumed = floor(extract(epoch FROM clock_timestamp()))`;
  const destroy = `DELETE FROM "${model}"`;
  return {
    find: async (id) => {
      const text = `SELECT payload, expires_at, consumed FROM "${model}" WHERE id = $1`;
      return (await pool.query({ name: `${model}.find`, text, values: [id] })).rows[0];
    },
    upsert: write(
      'upsert',
      `${into} VALUES ($1, $2, $3, $4) ${replace}`,
      // Identifiers are random, so that no batch has the same one twice.
      `${into} SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[]) ${replace}`,
    ),
    consume: write('consume', `${consume} WHERE id = $1`, `${consume} WHERE id = ANY($1::text[])`),
    destroy: write('destroy', `${destroy} WHERE id = $1`, `${destroy} WHERE id = ANY($1::text[])`),
    revoke: write('revoke', `${destroy} WHERE grant_id = $1`, `${destroy} WHERE grant_id = ANY($1::text[])`),
  };
}

function each(pool, name, text) {
  return (...values) => pool.query({ name, text, values });
}

function groupCommit(pool, name, text) {
  let waiting = [];
  let running = false;

  async function run() {
    while (waiting.length > 0) {
      const batch = waiting;
      waiting = [];
      const values = batch[0].values.map((_, column) => batch.map((entry) => entry.values[column]));
      try {
        await pool.query({ name, text, values });
        for (const { resolve } of batch) resolve();
      } catch (error) {
        for (const { reject } of batch) reject(error);
      }
    }
    running = false;
  }

  return (...values) =>
    new Promise((resolve, reject) => {
      waiting.push({ values, resolve, reject });
      if (running) return;
      running = true;
      setImmediate(run);
    });
}

function now() {
  return Math.floor(Date.now() / 1000);
}
