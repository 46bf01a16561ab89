// Comes before every script of a page: what the tests move (both clocks), and what they look at afterwards.
(() => {
  const page = {
    steady: 0, wall: 0, // ms that performance.now and Date.now are ahead
    calls: [], events: [], said: [], timers: new Map(), listeners: 0, channels: 0,
  };
  window.page = page;

  const now = performance.now.bind(performance), date = Date.now.bind(Date);
  performance.now = () => now() + page.steady;
  Date.now = () => date() + page.wall;
  page.pass = (ms) => { page.steady += ms; page.wall += ms; };

  const send = window.fetch.bind(window);
  window.fetch = async (input, init) => {
    const url = new URL(input.url ?? input, location.href);
    const headers = new Headers(init?.headers ?? input.headers);
    const call = { path: url.pathname, origin: url.origin, bearer: headers.has("Authorization"), status: null };
    page.calls.push(call);
    try {
      const response = await (page.instead?.(input, init) ?? send(input, init));
      call.status = response.status;
      return response;
    } catch (error) {
      call.status = 0;
      throw error;
    }
  };
  page.count = (path) => page.calls.filter((call) => call.path === path).length;

  const start = window.setTimeout.bind(window), stop = window.clearTimeout.bind(window);
  page.sleep = (ms) => new Promise((wake) => start(wake, ms));
  window.setTimeout = (work, ms, ...rest) => {
    const timer = start((...given) => { page.timers.delete(timer); work(...given); }, ms, ...rest);
    page.timers.set(timer, ms);
    return timer;
  };
  window.clearTimeout = (timer) => { page.timers.delete(timer); stop(timer); };

  for (const target of [window, document, AbortSignal.prototype]) {
    const { addEventListener: add, removeEventListener: remove } = target;
    target.addEventListener = function (...given) { page.listeners += 1; return add.apply(this, given); };
    target.removeEventListener = function (...given) { page.listeners -= 1; return remove.apply(this, given); };
  }
  if (window.BroadcastChannel) {
    window.BroadcastChannel = class extends BroadcastChannel {
      constructor(name) { super(name); page.channels += 1; }
      close() { page.channels -= 1; super.close(); }
    };
  }
  for (const name of ["log", "info", "warn", "error", "debug"]) {
    const say = console[name].bind(console);
    console[name] = (...given) => { page.said.push(given.map(String).join(" ")); say(...given); };
  }
})();
