// oauth4webapi as its users have it; it also judges the access token as a resource server after RFC 9068.
import * as oauth from "oauth4webapi";
import { readTask, refusal, report } from "./task.mjs";

const task = await readTask();
const issuer = new URL(task.issuer);
const http = { [oauth.allowInsecureRequests]: true }; // the server under test is on loopback

const found = await oauth.discoveryRequest(issuer, { algorithm: "oauth2", ...http });
const as = await oauth.processDiscoveryResponse(issuer, found);
const app = { client_id: task.client_id };
const api = { client_id: task.api.id };

async function refresh(token) {
  const answer = await oauth.refreshTokenGrantRequest(as, app, oauth.None(), token, http);
  return oauth.processRefreshTokenResponse(as, app, answer);
}

async function introspect(authentication, token) {
  const answer = await oauth.introspectionRequest(as, api, authentication(task.api.secret), token, http);
  return oauth.processIntrospectionResponse(as, api, answer);
}

async function revoke(token) {
  const answer = await oauth.revocationRequest(as, app, oauth.None(), token, http);
  await oauth.processRevocationResponse(answer);
}

const pair = await refresh(task.refresh_token);
const call = new Request(issuer, { headers: { authorization: `Bearer ${pair.access_token}` } });
const claims = await oauth.validateJwtAccessToken(as, call, task.issuer, http);
const active = {
  basic: await introspect(oauth.ClientSecretBasic, pair.access_token),
  post: await introspect(oauth.ClientSecretPost, pair.refresh_token),
};
await revoke(pair.refresh_token);
await revoke("unknown");
const refused = await refusal(refresh(pair.refresh_token));

report({
  issuer: as.issuer,
  claims,
  active,
  revoked: await introspect(oauth.ClientSecretBasic, pair.access_token),
  refused: { name: refused.name, error: refused.error, status: refused.status },
});
