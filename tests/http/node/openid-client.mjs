// openid-client as its users have it: discover, refresh, ask, revoke.
import * as client from "openid-client";
import { readTask, refusal, report } from "./task.mjs";

const task = await readTask();
const issuer = new URL(task.issuer);
// RFC 8414, and http because the server under test is on loopback.
const options = { algorithm: "oauth2", execute: [client.allowInsecureRequests] };

const app = await client.discovery(issuer, task.client_id, undefined, client.None(), options);
const asking = async (authentication) =>
  client.discovery(issuer, task.api.id, undefined, authentication(task.api.secret), options);
const basic = await asking(client.ClientSecretBasic);
const post = await asking(client.ClientSecretPost);

const pair = await client.refreshTokenGrant(app, task.refresh_token);
// As after a lost response.
const retried = await client.refreshTokenGrant(app, task.refresh_token);
const active = {
  basic: await client.tokenIntrospection(basic, pair.access_token),
  post: await client.tokenIntrospection(post, pair.access_token),
  refresh: await client.tokenIntrospection(basic, pair.refresh_token, { token_type_hint: "refresh_token" }),
};

await client.tokenRevocation(app, pair.refresh_token, { token_type_hint: "refresh_token" });
const refused = await refusal(client.refreshTokenGrant(app, pair.refresh_token));
const wrong = await refusal(client.tokenIntrospection(await asking(() => client.ClientSecretBasic("wrong")), "x"));

report({
  metadata: app.serverMetadata(),
  token_type: pair.token_type,
  expires_in: pair.expiresIn(),
  rotated: pair.refresh_token !== task.refresh_token,
  same_when_retried: retried.refresh_token === pair.refresh_token,
  active,
  revoked: {
    access: await client.tokenIntrospection(basic, pair.access_token),
    refresh: await client.tokenIntrospection(post, pair.refresh_token),
  },
  refused: { name: refused.name, error: refused.error, status: refused.status },
  wrong_secret: { name: wrong.name, status: wrong.status, scheme: wrong.cause?.[0]?.scheme },
});
