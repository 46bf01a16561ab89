// Every public name, used as a page uses it; and what must not pass.
import { AuthError, claimsUnverified, createAuth, type Auth, type AuthEvent, type State, type Store } from "tokenctl-client";

let kept: Awaited<ReturnType<Store["read"]>> = null;
const store: Store = { read: () => kept, write: async (record) => { kept = record; } };

const auth: Auth = createAuth({
  baseUrl: new URL("https://auth.example"),
  clientId: "web",
  mode: "token",
  storage: store,
  allowedOrigins: ["https://api.example"],
  patience: 0,
  onEvent: told,
});
createAuth();

function told(event: AuthEvent, state: State): string {
  switch (event.type) {
    case "ended": return `${event.reason} ${event.here}`;
    case "unavailable": return `${event.retryAfter} ${event.cause.code}`;
    case "storage_failed": return String(event.cause);
    case "login": case "refreshed": case "adopted": case "absent": return state.user?.name ?? "";
    default: return event satisfies never;
  }
}

export async function main(): Promise<void> {
  const leave: () => void = auth.subscribe((event) => event.type);
  const state = await auth.login("ada", "seven otters knit at dawn", { scope: "profile" });
  const left: number = state.accessExpiresIn ?? 0;
  try {
    await auth.register("bob", "nine herons paint by noon");
  } catch (error) {
    if (error instanceof AuthError && error.code === "user.exists") console.log(error.errors[0]?.field, left);
  }
  const token: string = await auth.getToken({ signal: AbortSignal.timeout(1000) });
  const { sub } = claimsUnverified(token);
  const response: Response = await auth.fetch("https://api.example/orders", { method: "POST", body: String(sub) });
  if (response.ok && await auth.resume()) await auth.logout({ all: true });
  leave();
  auth.dispose();
  // @ts-expect-error - there is no such mode
  createAuth({ mode: "session" });
  // @ts-expect-error - nobody writes the state
  auth.state.status = "in";
}
