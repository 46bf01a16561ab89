// A resource server that finds the key with jwks-rsa and verifies with jsonwebtoken, as most Express ones do.
import jwt from "jsonwebtoken";
import { JwksClient } from "jwks-rsa";
import { readTask, report } from "./task.mjs";

const task = await readTask();
const keys = new JwksClient({ jwksUri: task.jwks_uri });
const findKey = ({ kid }, done) => keys.getSigningKey(kid).then((key) => done(null, key.getPublicKey()), done);
const options = { issuer: task.issuer, audience: task.issuer, algorithms: ["ES256"], complete: true };

jwt.verify(task.access_token, findKey, options, (error, verified) => {
  if (error) throw error;
  report({ payload: verified.payload, header: verified.header });
});
