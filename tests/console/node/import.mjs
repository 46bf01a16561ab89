// No window, no document: loading and making it is fine, and a timer left behind would keep this running.
import * as client from "tokenctl-client";

console.log(Object.keys(client).sort().join());
const auth = client.createAuth({ baseUrl: "http://127.0.0.1:9", mode: "token" });
const code = await auth.getToken().catch((error) => error.code);
console.log(auth.state.status, code);
