// A resource server that verifies with jose.
import { createRemoteJWKSet, jwtVerify } from "jose";
import { readTask, report } from "./task.mjs";

const task = await readTask();
const keys = createRemoteJWKSet(new URL(task.jwks_uri));
const { payload, protectedHeader } = await jwtVerify(task.access_token, keys, {
  issuer: task.issuer,
  audience: task.issuer,
  typ: "at+jwt",
  algorithms: ["ES256"],
  requiredClaims: ["sub", "exp", "iat", "jti", "client_id", "scope", "sid"],
});
report({ payload, header: protectedHeader });
