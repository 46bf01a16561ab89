// oidc-provider's storage on SQLite: a table for each model, WAL, synchronous=FULL.
//
// Written as well as we know how, since a slow adapter would flatter us: prepared statements, no columns
// beyond what the provider asks for, and a group commit. better-sqlite3 is synchronous, so that every write
// of its own would be a commit of its own and stop the event loop for a sync of the disk; instead the writes
// of one turn of the event loop share a transaction, and none is acknowledged before its COMMIT.

import Database from 'better-sqlite3';

// A string that is presented again revokes the codes of its grant as well.
const MODELS = new Set([
  'RefreshToken', 'Grant', 'AccessToken', 'AuthorizationCode', 'Session', 'Interaction',
]);

/** The adapter's class for one database; `group: false` commits every write by itself, as is usual. */
export function sqliteAdapter(path, { group = true } = {}) {
  const db = open(path);
  const write = group ? groupCommit(db) : async (work) => work();

  return class SqliteAdapter {
    #table;

    constructor(model) {
      // A model that no refresh uses gets no table, and an error at its first use.
      if (MODELS.has(model)) this.#table = prepare(db, model);
    }

    async upsert(id, payload, expiresIn) {
      const expiresAt = expiresIn === undefined ? null : now() + expiresIn;
      const text = JSON.stringify(payload);
      await write(() => this.#table.upsert.run(id, text, payload.grantId ?? null, expiresAt));
    }

    async find(id) {
      const row = this.#table.find.get(id);
      if (row === undefined || (row.expires_at !== null && row.expires_at <= now())) return undefined;
      const payload = JSON.parse(row.payload);
      if (row.consumed !== null) payload.consumed = row.consumed;
      return payload;
    }

    async consume(id) {
      await write(() => this.#table.consume.run(now(), id));
    }

    async destroy(id) {
      await write(() => this.#table.destroy.run(id));
    }

    async revokeByGrantId(grantId) {
      await write(() => this.#table.revoke.run(grantId));
    }
  };
}

function open(path) {
  const db = new Database(path);
  db.pragma('journal_mode = WAL');
  db.pragma('synchronous = FULL');
  db.pragma('busy_timeout = 5000');
  return db;
}

function prepare(db, model) {
  db.exec(
    `CREATE TABLE IF NOT EXISTS ${model} (
       id TEXT PRIMARY KEY, payload TEXT NOT NULL, grant_id TEXT, expires_at INTEGER, consumed INTEGER
     ) WITHOUT ROWID;
     CREATE INDEX IF NOT EXISTS ${model}_grant ON ${model} (grant_id) WHERE grant_id IS NOT NULL;`,
  );
  return {
    upsert: db.prepare(
      `INSERT INTO ${model} (id, payload, grant_id, expires_at) VALUES (?, ?, ?, ?)
       ON CONFLICT (id) DO UPDATE SET payload = excluded.payload, grant_id = excluded.grant_id,
         expires_at = excluded.expires_at`,
    ),
    find: db.prepare(`SELECT payload, expires_at, consumed FROM ${model} WHERE id = ?`),
    consume: db.prepare(`UPDATE ${model} SET consumed = ? WHERE id = ?`),
    destroy: db.prepare(`DELETE FROM ${model} WHERE id = ?`),
    revoke: db.prepare(`DELETE FROM ${model} WHERE grant_id = ?`),
  };
}

function groupCommit(db) {
  const [begin, commit, rollback] = ['BEGIN IMMEDIATE', 'COMMIT', 'ROLLBACK'].map((sql) => db.prepare(sql));
  let waiting = [];

  function flush() {
    const batch = waiting;
    waiting = [];
    try {
      begin.run();
      for (const { work } of batch) work();
      commit.run();
    } catch (error) {
      if (db.inTransaction) rollback.run();
      for (const { reject } of batch) reject(error);
      return;
    }
    for (const { resolve } of batch) resolve();
  }

  return (work) =>
    new Promise((resolve, reject) => {
      waiting.push({ work, resolve, reject });
      if (waiting.length === 1) setImmediate(flush);
    });
}

function now() {
  return Math.floor(Date.now() / 1000);
}
