/**
 * tokenctl in the browser: keeps the tokens of one login, and refreshes them by itself.
 *
 * Owns the state of the login, that one refresh goes on at a time in this tab and across tabs, and what a
 * token is sent to. Knows only HTTP. Loading it touches nothing: everything begins with `createAuth`.
 * Times are milliseconds. The wall clock only tells that the machine slept, and the age of a stored record.
 */

/** How long to wait for a tab that refreshes; then go on without the lock, as the server takes that. */
const LOCK_WAIT = 5_000;
/** For one request to the server: shorter than its grace, in which a lost answer is given again. */
const REQUEST_LIMIT = 15_000;
/** For the news of the tab that had the lock, or has just had it: they come behind it.
 * On a new page, for a tab that is logged in already. */
const NEWS_WAIT = 1_000;
const NEWS_LAG = 10;
const GREETING_WAIT = 100;
/** How long before its end an access token is renewed: the smaller of the two. */
const LEAD = 60_000;
const LEAD_SHARE = 0.2;
/** Between attempts while the server is away: doubled from the first to the last, unless it says Retry-After. */
const COOL_FIRST = 1_000;
const COOL_LAST = 30_000;
const MAX_TIMER = 2 ** 31 - 1;
/** What this module itself calls, and `fetch` therefore leaves alone. */
const OWN_PATHS = ["/auth/login", "/auth/register", "/auth/refresh", "/auth/logout"];

/** What went wrong. `code` is stable; `status` is 0 without an answer; no token is ever in it. */
export class AuthError extends Error {
  name = "AuthError";

  constructor(code, message, { status = 0, retryAfter = null, errors = [], cause } = {}) {
    super(message, { cause });
    Object.assign(this, { code, status, retryAfter, errors });
  }
}

const loggedOut = () => new AuthError("logged_out", "nobody is logged in: log in first");

/** What an access token says of itself. Nobody has checked it: for display, never for a decision. */
export function claimsUnverified(token) {
  const part = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
  return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(part), (c) => c.charCodeAt(0))));
}

/** The client of one server and one `clientId`. Options and methods: tokenctl.d.ts. */
export const createAuth = (options = {}) => new Auth(options);

class Auth {
  #base; #clientId; #cookie; #origins; #patience; #key;
  #store = null; // where the record of all tabs is; null: in memory
  #channel = null; #locks = null;
  #status = "unknown";
  #record = null;
  #got = null; // when the record was got, on both clocks
  #logouts = 0; // a login that began before one does not commit after it
  #endedLogin = null; // its tokens are not taken up again, whoever still offers them
  #unrevoked; // the refresh token of a logout that the server has not heard of
  #flight = null; // the refresh that goes on
  #failures = 0;
  #coolUntil = 0;
  #timer; #sleepers = new Map();
  #subscribers = new Set(); #events = []; #quiet = 0;
  #undo = []; #disposed = false;

  constructor({ baseUrl = globalThis.location?.origin, clientId = "default", mode = "cookie",
    storage = "memory", allowedOrigins = [], patience = 10_000, onEvent }) {
    const base = new URL(baseUrl, globalThis.location?.href);
    if (mode !== "cookie" && mode !== "token") throw new TypeError('mode is "cookie" or "token"');
    this.#base = base.href.replace(/\/+$/, "");
    this.#clientId = clientId;
    this.#cookie = mode === "cookie";
    this.#origins = new Set([base, ...allowedOrigins].map((each) => new URL(each).origin));
    this.#patience = patience;
    this.#key = `tokenctl ${this.#base} ${clientId}`;
    if (storage !== "memory") this.#store = storage === "local" ? localStore(this.#key) : storage;
    if (typeof this.#store === "string") throw new TypeError('storage is "memory", "local" or an object');
    if (onEvent) this.subscribe(onEvent);
    if (this.#cookie || this.#store) this.#connect();
    const wake = () => this.#wake();
    for (const name of ["visibilitychange", "pageshow", "focus", "online"]) {
      globalThis.addEventListener?.(name, wake);
      this.#undo.push(() => globalThis.removeEventListener?.(name, wake));
    }
  }

  // --- what a page calls ---

  get state() {
    const record = this.#record;
    return Object.freeze({
      status: this.#status,
      user: record && Object.freeze({ ...record.user }),
      login: record && record.login,
      scope: record && record.scope,
      accessExpiresIn: record && Math.max(0, this.#left),
      refreshExpiresIn: record && Math.max(0, record.refreshLife - this.#age),
    });
  }

  subscribe(callback) {
    this.#subscribers.add(callback);
    return () => { this.#subscribers.delete(callback); };
  }

  login(username, password, { scope } = {}) { return this.#enter("/auth/login", { username, password, scope }); }

  register(username, password, { scope } = {}) {
    return this.#enter("/auth/register", { username, password, scope });
  }

  async logout({ all = false } = {}) {
    this.#demandAlive();
    this.#logouts += 1;
    // So that all tabs get to know whose login is over.
    if (this.#status === "unknown") await this.#catchUp(false).catch(() => {});
    const refresh = this.#unrevoked = this.#record?.refresh ?? this.#unrevoked;
    if (this.#record) await this.#end("logout");
    this.#status = "out";
    if (this.#cookie || refresh) await this.#underLock(() => this.#revoke(refresh, all));
    this.#unrevoked = undefined;
  }

  async resume(options) {
    return this.getToken(options).then(() => true, (error) => {
      if (error.code !== "logged_out") throw error;
      return false;
    });
  }

  async getToken({ signal } = {}) { return unlessAborted(this.#token(), signal); }

  async fetch(input, init) {
    this.#demandAlive();
    const request = new Request(input, init);
    if (!this.#mayCarry(request.url) || request.headers.has("Authorization")) return fetch(request);
    if (this.#cookie && request.url.startsWith(`${this.#base}/auth/`)) request.headers.set("X-Tokenctl", "1");
    const used = await unlessAborted(this.#token(), request.signal);
    const again = init?.body instanceof ReadableStream ? null : request.clone();
    const response = await this.#send(request, used);
    if (response.status !== 401 || !this.#mayCarry(response.url || request.url)) return response;
    response.body?.cancel().catch(() => {});
    const current = await unlessAborted(this.#token(used), request.signal);
    if (again) return this.#send(again, current);
    throw new AuthError("body.streamed", "the access token was refused, and the body was a stream, which "
      + "cannot be sent again: call again with a new stream, or send a Blob", { status: 401 });
  }

  dispose() {
    this.#disposed = true;
    clearTimeout(this.#timer);
    this.#rouse();
    this.#subscribers.clear();
    for (const undo of this.#undo.splice(0)) undo?.();
    this.#channel = null;
  }

  // --- an access token ---

  /** A token that lives, and is not the one that was refused. */
  async #token(refused) {
    const until = performance.now() + this.#patience;
    for (;;) {
      this.#demandAlive();
      if (this.#record && this.#record.access !== refused && this.#left > this.#lead / 10) {
        if (this.#left <= this.#lead) this.#refresh().catch(() => {});
        return this.#record.access;
      }
      if (this.#status === "out") throw loggedOut();
      try { await this.#refresh(); } catch (error) {
        if (error.code !== "unavailable" || performance.now() + this.#cooling > until) throw error;
        await this.#sleep(this.#cooling + 1);
      }
    }
  }

  /** The one refresh that goes on; whoever comes meanwhile joins it, and looks afterwards what it has brought. */
  #refresh() {
    const before = this.#record?.access;
    return this.#flight ??= this.#underLock((waited) => this.#renew(waited, before)).finally(() => {
      this.#flight = null;
      this.#plan();
    });
  }

  async #renew(waited, before) {
    await this.#catchUp(waited, before);
    if (this.#disposed || !this.#still(before)) return; // another tab was quicker
    if (this.#cooling > 0) throw this.#unavailable();
    let record = null; // stays so if the refresh token was refused
    try {
      record = this.#recordOf(await this.#post("/auth/refresh", { refresh_token: this.#record?.refresh }));
    } catch (error) {
      if (!this.#still(before)) return; // what it says is about what was
      if (error.code !== "invalid_grant") throw this.#cool(error);
    }
    await this.#reread().catch(() => {}); // a store that cannot be read now costs nobody the new tokens
    if (!this.#still(before)) {
      // A logout wins, and so does another login, whose cookie this answer has replaced. A token of the login
      // that we have is no more than spare.
      const spare = !record || record.login === this.#record?.login;
      if (!spare) await this.#revoke(record.refresh).catch(() => {});
    } else if (record) {
      // Under the cookie it may be another login, of a page that we cannot hear.
      const ours = record.login === (this.#record ?? record).login;
      await this.#commit(record, ours ? "refreshed" : "adopted");
    } else if (this.#record) await this.#end("invalid_grant");
    else this.#tell({ type: "absent" }, "out");
  }

  /** Whether nobody has logged out or got other tokens since. */
  #still(before) { return this.#status !== "out" && this.#record?.access === before; }

  /** Take up what another tab has done while we waited for it, or before this page was there. */
  async #catchUp(waited, before) {
    await this.#reread();
    const wait = waited ? NEWS_WAIT : this.#status === "unknown" ? GREETING_WAIT : NEWS_LAG;
    const until = performance.now() + (this.#channel || this.#store ? wait : 0);
    const open = () => this.#still(before) && this.#cooling <= 0 && performance.now() < until;
    if (open()) this.#say({ type: "ask" });
    while (open()) await this.#sleep(until - performance.now());
  }

  async #enter(path, fields) {
    this.#demandAlive();
    const logouts = this.#logouts;
    return this.#underLock(async () => {
      const record = this.#recordOf(await this.#post(path, fields));
      if (logouts === this.#logouts) await this.#commit(record, "login");
      else await this.#revoke(record.refresh).catch(() => {});
      if (logouts !== this.#logouts) throw loggedOut();
      return this.state;
    });
  }

  // --- the record ---

  get #age() { return Math.max(performance.now() - this.#got.steady, Date.now() - this.#got.wall); }
  get #left() { return this.#record.life - this.#age; }
  get #lead() { return Math.min(LEAD, LEAD_SHARE * this.#record.life); }
  get #cooling() { return this.#coolUntil - performance.now(); }

  #recordOf(answer) {
    if (this.#cookie && answer.refresh_token) {
      throw new AuthError("mode.other", 'the server sends refresh tokens in the body: --cookies, or mode: "token"');
    }
    const known = this.#record?.user.id === answer.user.id ? this.#record.user : {};
    return {
      access: answer.access_token, refresh: answer.refresh_token, scope: answer.scope,
      life: answer.expires_in * 1000, refreshLife: answer.refresh_expires_in * 1000,
      user: { ...known, ...answer.user }, login: claimsUnverified(answer.access_token).sid, at: Date.now(),
    };
  }

  #hold(record, age, type) {
    this.#record = record;
    this.#got = { steady: performance.now() - age, wall: Date.now() - age };
    this.#failures = this.#coolUntil = 0;
    this.#tell({ type }, "in");
  }

  async #commit(record, type) {
    this.#hold(record, 0, type);
    await this.#save(record);
    this.#say(this.#store ? { type: "changed" } : { type: "tokens", record, age: 0 });
  }

  async #save(record) {
    try { await this.#store?.write(record); } catch (cause) {
      this.#store = null; // what is in it is old from now on
      this.#tell({ type: "storage_failed", cause });
    }
  }

  async #reread() {
    const stored = await this.#store?.read();
    if (stored) {
      // Just written if we have watched; else only the wall clock knows. Without an answer from it: spent.
      const age = Date.now() - stored.at;
      const watched = this.#record && this.#age <= stored.life;
      this.#adopt(stored, age >= 0 && age < stored.life ? age : watched ? 0 : stored.life);
    } else if (this.#store && this.#record) this.#forget("elsewhere", false);
    else if (!this.#cookie && this.#status === "unknown") this.#tell({ type: "absent" }, "out");
  }

  /** Take up what another tab has got, unless it is ours already, or of a login that is over. */
  #adopt(record, age) {
    if (record.login === this.#endedLogin || record.access === this.#record?.access) return;
    this.#hold(record, age, "adopted");
  }

  #forget(reason, here) {
    this.#endedLogin = this.#record.login;
    this.#record = this.#got = null;
    this.#tell({ type: "ended", reason, here }, "out");
  }

  async #end(reason) {
    this.#forget(reason, true);
    this.#say({ type: "ended", reason, login: this.#endedLogin });
    await this.#save(null);
  }

  // --- the other tabs ---

  #connect() {
    this.#locks = globalThis.navigator?.locks;
    if (globalThis.BroadcastChannel) {
      this.#channel = new BroadcastChannel(this.#key);
      this.#channel.onmessage = ({ data }) => this.#hear(data);
      this.#undo.push(() => this.#channel.close());
    }
    this.#undo.push(this.#store?.subscribe?.(() => this.#hear({ type: "changed" })));
  }

  #say(message) { this.#channel?.postMessage(message); }

  async #hear({ type, record, age, login, reason, wait }) {
    if (type === "ask") return this.#answer();
    if (type === "changed") await this.#reread().catch(() => {}); // whoever needs a token asks again
    else if (type === "ended" && login === this.#record?.login) this.#forget(reason, false);
    else if (type === "cool") this.#coolUntil = Math.max(this.#coolUntil, performance.now() + wait);
    else if (type === "tokens") {
      this.#store = null; // who sends them has no store, or could not write it: what is in it is old
      // Somebody may answer with what he had before: of one login the one that lives longer is the newer.
      if (record.login !== this.#record?.login || record.life - age > this.#left) this.#adopt(record, age);
    }
    this.#rouse();
  }

  #answer() {
    if (this.#endedLogin) this.#say({ type: "ended", reason: "elsewhere", login: this.#endedLogin });
    if (this.#cooling > 0) this.#say({ type: "cool", wait: this.#cooling });
    if (this.#record && !this.#store) this.#say({ type: "tokens", record: this.#record, age: this.#age });
  }

  /** Run `work` while no other tab does: requests and commits, never a callback of the page. */
  async #underLock(work) {
    let begun = false;
    const run = (waited) => {
      begun = true;
      this.#quiet += 1;
      return work(waited).finally(() => { this.#quiet -= 1; });
    };
    try {
      if (!this.#locks) return await run(false);
      const result = await this.#locks.request(this.#key, { ifAvailable: true }, (lock) => lock && run(false));
      if (begun) return result;
      return await this.#locks.request(this.#key, { signal: AbortSignal.timeout(LOCK_WAIT) }, () => run(true));
    } catch (error) {
      if (begun) throw error;
      return await run(true); // the wait is over, or this page may not lock
    } finally { this.#flush(); }
  }

  // --- the server ---

  async #post(path, fields) {
    let response, answer;
    try {
      response = await fetch(this.#base + path, {
        method: "POST", cache: "no-store", redirect: "error", credentials: this.#cookie ? "include" : "omit",
        headers: { "Content-Type": "application/json", ...(this.#cookie && { "X-Tokenctl": "1" }) },
        body: JSON.stringify({ ...fields, client_id: this.#clientId }),
        signal: AbortSignal.timeout(REQUEST_LIMIT),
      });
      answer = response.status === 204 ? {} : await response.json();
    } catch (cause) {
      // What could not be read is not repeated: it may have been a token.
      throw new AuthError("network", "the server cannot be reached, or its answer cannot be read",
        response ? { status: response.status, retryAfter: retryAfter(response) } : { cause });
    }
    if (response.ok && (response.status === 204 || (answer?.access_token && answer.expires_in > 0))) return answer;
    throw new AuthError(answer?.code ?? "answer.unknown", answer?.detail ?? `the server said ${response.status}`,
      { status: response.status, errors: answer?.errors, retryAfter: retryAfter(response) });
  }

  async #revoke(refresh, all = false) {
    await this.#post("/auth/logout", { refresh_token: refresh, all }).catch((error) => {
      if (error.code !== "invalid_grant" || all) throw error; // that is over already, but it ends no others
    });
  }

  /** Begin a cool-down. What is the caller's own mistake does not pass by waiting, so nobody waits for it. */
  #cool(cause) {
    const lasting = cause.status >= 400 && cause.status < 500 && cause.status !== 429;
    const backoff = lasting ? COOL_LAST : Math.min(COOL_LAST, COOL_FIRST * 2 ** this.#failures);
    const wait = (cause.retryAfter ?? backoff) * (1 + 0.2 * Math.random());
    this.#failures += 1;
    this.#coolUntil = performance.now() + wait;
    this.#say({ type: "cool", wait });
    this.#tell({ type: "unavailable", retryAfter: wait, cause });
    return this.#unavailable(cause);
  }

  #unavailable(cause) {
    return new AuthError("unavailable", "the tokens cannot be renewed now, and the login is kept: try again later",
      { status: cause?.status, retryAfter: Math.max(0, this.#cooling), cause });
  }

  #mayCarry(url) {
    const { origin, pathname } = new URL(url);
    return this.#origins.has(origin) && !OWN_PATHS.some((path) => origin + pathname === this.#base + path);
  }

  /** Send with the token. A browser does not tell where a redirect leads, so none is followed with it. */
  async #send(request, token) {
    const headers = new Headers(request.headers);
    headers.set("Authorization", `Bearer ${token}`);
    const { redirect, referrer, referrerPolicy } = request; // the last two are forgotten unless they are repeated
    const init = { headers, referrer, referrerPolicy };
    const response = await fetch(request, { ...init, redirect: redirect === "follow" ? "manual" : redirect });
    if (response.type !== "opaqueredirect" || redirect === "manual") return response;
    if (!["GET", "HEAD"].includes(request.method)) {
      throw new AuthError("redirect.refused", "only GET and HEAD are redirected: call the final address");
    }
    const bare = await fetch(request);
    if (!bare.redirected || !this.#mayCarry(bare.url)) return bare;
    bare.body?.cancel().catch(() => {});
    return fetch(new Request(bare.url, request), { ...init, redirect: "error" });
  }

  // --- time and events ---

  #plan() {
    clearTimeout(this.#timer);
    if (this.#disposed || !this.#record) return;
    const ahead = this.#left - this.#lead * (1 - LEAD_SHARE * Math.random()); // not all tabs at once
    const wait = Math.max(ahead, this.#cooling, COOL_FIRST / 2);
    this.#timer = setTimeout(() => this.#wake(), Math.min(wait, MAX_TIMER));
  }

  #wake() {
    // A page that nobody sees needs no token before it calls; a lost answer must be asked for again in time.
    if (!this.#record || (globalThis.document?.hidden && !this.#failures)) return;
    if (this.#left <= this.#lead) this.#refresh().catch(() => {});
    else this.#plan();
  }

  /** Until the time is over, or another tab says something. */
  #sleep(wait) {
    this.#demandAlive();
    return new Promise((wake) => {
      this.#sleepers.set(setTimeout(() => this.#rouse(), Math.min(wait, MAX_TIMER)), wake);
    });
  }

  #rouse() {
    for (const [timer, wake] of this.#sleepers) { clearTimeout(timer); wake(); }
    this.#sleepers.clear();
  }

  #tell(event, status = this.#status) {
    this.#status = status;
    this.#events.push(event);
    this.#plan();
    this.#flush();
  }

  /** Call back in order, but not while we have the lock: a callback may do anything, and never return. */
  #flush() {
    while (!this.#quiet && this.#events.length) {
      const event = this.#events.shift();
      this.#quiet += 1; // what a callback causes is told after what it was called for
      for (const callback of [...this.#subscribers]) {
        // Its errors are the page's own.
        try { callback(event, this.state); } catch (error) { queueMicrotask(() => { throw error; }); }
      }
      this.#quiet -= 1;
    }
  }

  #demandAlive() {
    if (this.#disposed) throw new AuthError("disposed", "dispose() was called: make a new one with createAuth");
  }
}

/** The record in localStorage: survives the page, and any script of the origin can read it. */
function localStore(key) {
  return {
    read() {
      // What is damaged is none: the error would repeat it, and a token may be in it.
      try { return JSON.parse(localStorage.getItem(key)); } catch { return null; }
    },
    write: (record) => (record ? localStorage.setItem(key, JSON.stringify(record)) : localStorage.removeItem(key)),
    subscribe(changed) {
      const hear = (event) => { if (event.key === key || event.key === null) changed(); };
      addEventListener("storage", hear);
      return () => removeEventListener("storage", hear);
    },
  };
}

/** Retry-After (RFC 9110 §10.2.3) in ms, or null. No clock of ours is asked, and a mistake costs an hour at most. */
function retryAfter(response) {
  const said = response.headers.get("Retry-After");
  const wait = /^\d+$/.test(said) ? said * 1000 : Date.parse(said) - Date.parse(response.headers.get("Date"));
  return wait >= 0 ? Math.min(wait, 3_600_000) : null;
}

/** The promise, or the reason of the signal if that comes first; the promise goes on for the others. */
function unlessAborted(promise, signal) {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener("abort", abort);
    if (signal.aborted) abort();
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}
