/** The login of one user at one server, kept and renewed by itself. Times are milliseconds. */

export interface Options {
  /** Where `tokenctl serve` answers. Default: the origin of the page. */
  baseUrl?: string | URL;
  /** Default: "default". */
  clientId?: string;
  /**
   * Where the refresh token is. "cookie" (default): in the HttpOnly cookie of `serve --cookies`, out of reach of
   * every script. "token": the server sends it in the body, and it is kept in `storage`.
   */
  mode?: "cookie" | "token";
  /**
   * Where the record is kept. "memory" (default): it ends with the page. "local": localStorage, which survives
   * it, is shared by all tabs, and can be read by any script of the origin. Or a store of your own.
   */
  storage?: "memory" | "local" | Store;
  /** Origins that `fetch` sends the access token to, beside that of `baseUrl`. */
  allowedOrigins?: (string | URL)[];
  /** How long a call waits while the server is away (ms). Default: 10,000. 0: not at all. */
  patience?: number;
  /** The same as `subscribe` at once. */
  onEvent?: Subscriber;
}

/** What is kept of a login. It holds tokens: never log one. */
export interface StoredRecord {
  readonly access: string;
  /** Only with `mode: "token"`. */
  readonly refresh?: string;
  readonly scope: string;
  readonly life: number;
  readonly refreshLife: number;
  readonly user: User;
  readonly login: string;
  readonly at: number;
}

/** A place of your own. It is asked under the lock of all tabs, so let it call nothing of this module. */
export interface Store {
  read(): StoredRecord | null | Promise<StoredRecord | null>;
  /** null: the login is over. */
  write(record: StoredRecord | null): void | Promise<void>;
  /** Calls back when somebody else wrote; gives back what ends that. */
  subscribe?(changed: () => void): () => void;
}

export interface User {
  readonly id: string;
  /** Known after login and register; a refresh does not tell it: GET /auth/me does. */
  readonly name?: string;
}

export interface State {
  /** "unknown": nobody has looked yet; `resume` does. */
  readonly status: "unknown" | "in" | "out";
  readonly user: User | null;
  /** The id of the login (`rt_…`), which is no secret. */
  readonly login: string | null;
  readonly scope: string | null;
  readonly accessExpiresIn: number | null;
  readonly refreshExpiresIn: number | null;
}

export type AuthEvent =
  /** `login` or `register` was called here. */
  | { type: "login" }
  /** This tab has renewed the tokens. */
  | { type: "refreshed" }
  /** Another tab has, or has logged in: the user may be another one now. */
  | { type: "adopted" }
  /** A new page has looked, and nobody is logged in. */
  | { type: "absent" }
  /** The login is over. Every tab hears it once; `here` is true in one of them. */
  | { type: "ended"; reason: "logout" | "invalid_grant" | "elsewhere"; here: boolean }
  /** The server cannot renew now. The login is kept, and nobody tries again for `retryAfter` ms. */
  | { type: "unavailable"; retryAfter: number; cause: AuthError }
  /** The store cannot be written: from now on the record is in the memory of this page only. */
  | { type: "storage_failed"; cause: unknown };

export type Subscriber = (event: AuthEvent, state: State) => void;

/**
 * `code` is stable: "logged_out", "unavailable", "network", "disposed", "body.streamed", "redirect.refused",
 * "mode.other", "answer.unknown", and those of the server, such as "password.wrong", "user.exists", "throttled".
 */
export class AuthError extends Error {
  constructor(code: string, message: string, facts?: Partial<Pick<AuthError, "status" | "retryAfter" | "errors" | "cause">>);
  readonly code: string;
  /** The HTTP status; 0 when there was no answer. */
  readonly status: number;
  /** ms; null when the server did not say. */
  readonly retryAfter: number | null;
  /** Which field, and what is wrong there. */
  readonly errors: readonly { field: string; message: string }[];
  readonly cause?: unknown;
}

export interface Auth {
  /** As it is now: frozen, and read anew each time. */
  readonly state: State;
  /** Called with each event, never while a lock is held; gives back what ends that. */
  subscribe(callback: Subscriber): () => void;
  login(username: string, password: string, options?: { scope?: string }): Promise<State>;
  register(username: string, password: string, options?: { scope?: string }): Promise<State>;
  /**
   * Over at once in every tab. Rejects when the server could not be told: call it again then; and with `all`
   * when this login was over already (`invalid_grant`), as it could end no others.
   */
  logout(options?: { all?: boolean }): Promise<void>;
  /** Whether somebody is logged in: by another tab, by the store, or by the cookie. */
  resume(options?: { signal?: AbortSignal }): Promise<boolean>;
  /** An access token that lives. Aborting leaves the refresh that others wait for alone. */
  getToken(options?: { signal?: AbortSignal }): Promise<string>;
  /** `fetch` with the access token, for the allowed origins; for others plain `fetch`. */
  fetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response>;
  /** Removes every timer and listener. */
  dispose(): void;
}

export function createAuth(options?: Options): Auth;

/** What an access token says of itself. Nobody has checked it: for display, never for a decision. */
export function claimsUnverified(token: string): Record<string, unknown>;
