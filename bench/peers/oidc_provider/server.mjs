// node oidc-provider as a contender of bench/http.py: refresh grants of a public client at POST /token.
//
//   node server.mjs --port N --database PATH --chains N --strings PATH [--commit group|each]
//
// Without --database, BENCH_DATABASE_URL says which database on PostgreSQL; it is no argument, since it may
// hold a password.
//
// It seeds its own chains through the provider's models, writes their strings to a file, a line each, and
// only then listens. The same work as ours for a rotation: the refresh token is rotated, durably, and the
// access token is an ES256 JWT (RFC 9068) for one resource server. No ID token: the scope is not openid.

import { generateKeyPairSync } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

import Provider from 'oidc-provider';

const RESOURCE = 'urn:bench:api';
const SCOPE = 'profile';
const CLIENT = 'default';
const MONTH = 30 * 24 * 3600;

const { values: given } = parseArgs({
  options: {
    port: { type: 'string' },
    database: { type: 'string' },
    chains: { type: 'string' },
    strings: { type: 'string' },
    commit: { type: 'string', default: 'group' },
  },
});

const group = given.commit === 'group';
const provider = new Provider(`http://127.0.0.1:${given.port}`, {
  adapter: await storage(),
  clients: [
    {
      client_id: CLIENT,
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      redirect_uris: ['http://127.0.0.1/callback'],
      id_token_signed_response_alg: 'ES256',
    },
  ],
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  jwks: { keys: [signingKey()] },
  cookies: { keys: ['no cookie is ever set here'] },
  scopes: ['openid', 'offline_access'],
  rotateRefreshToken: true,
  findAccount: async (_ctx, sub) => ({ accountId: sub, claims: async () => ({ sub }) }),
  ttl: { AccessToken: 600, RefreshToken: MONTH, Grant: MONTH },
  features: {
    devInteractions: { enabled: false },
    userinfo: { enabled: false },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: async () => ({
        scope: SCOPE,
        audience: RESOURCE,
        accessTokenTTL: 600,
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'ES256' } },
      }),
    },
  },
});

// Either works where the other one's driver is not installed.
async function storage() {
  const url = process.env.BENCH_DATABASE_URL;
  if (given.database === undefined && url === undefined) {
    throw new Error('neither --database nor BENCH_DATABASE_URL is given');
  }
  if (given.database !== undefined) {
    return (await import('./adapter.mjs')).sqliteAdapter(given.database, { group });
  }
  return (await import('./postgres.mjs')).postgresAdapter(url, { group });
}

function signingKey() {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...privateKey.export({ format: 'jwk' }), alg: 'ES256', use: 'sig', kid: 'bench' };
}

async function chain(number) {
  const client = await provider.Client.find(CLIENT);
  const accountId = `user${number}`;
  const grant = new provider.Grant({ accountId, clientId: CLIENT });
  grant.addResourceScope(RESOURCE, SCOPE);
  const grantId = await grant.save();
  const token = new provider.RefreshToken({
    client,
    accountId,
    grantId,
    gty: 'authorization_code',
    resource: RESOURCE,
    scope: SCOPE,
  });
  return token.save();
}

const strings = await Promise.all(Array.from({ length: Number(given.chains) }, (_, number) => chain(number)));
writeFileSync(given.strings, `${strings.join('\n')}\n`);

provider.on('server_error', (_ctx, error) => console.error(error));
const server = provider.listen(Number(given.port), '127.0.0.1');
server.keepAliveTimeout = 0; // a client that waits for its turn is not cut off
process.on('SIGTERM', () => process.exit(0));
