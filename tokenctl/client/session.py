"""Doing what `core` decides: one refresh at a time, and what it brought stored before anybody uses it.

Owns the threads and the state. A refresh, and all that may wait (locks, files, the network), runs in a thread
of its own: so callers in threads and in event loops share it, none of them blocks a loop, and a caller that
is cancelled takes nothing away from the others. Knows no HTTP library: an adapter hands in `post`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from tokenctl.client import core
from tokenctl.client.core import Answer, Login, Moment, Need, NoAnswer
from tokenctl.client.errors import (
    CallRefused,
    LoginEnded,
    NotLoggedIn,
    RefreshFailed,
    StoreUnusable,
    TokenClientError,
)
from tokenctl.client.stores import Store

_log = logging.getLogger("tokenctl.client")

#: How long a refresh waits for that of another process (s), before it goes on beside it.
_TURN_WITHIN = 5.0
#: Before an answer that got lost is asked for again (s).
_PAUSE = 0.2

#: POST as JSON; no redirect is followed, and an answer of any status is an answer.
Post = Callable[[str, Mapping[str, Any]], Answer | NoAnswer]


class Session:
    """One login and its tokens; all methods may be called from any thread.

    Those that return a Future do so at once; the others wait for the network or for the store.
    """

    def __init__(
        self,
        *,
        base_url: str,
        client_id: str,
        store: Store,
        post: Post,
        clock: Callable[[], Moment],
        on_end: Callable[[], None] | None,
    ) -> None:
        self._base_url = core.base(base_url)
        self._client_id = client_id
        self._store = store
        self._post = post
        self._clock = clock
        self._on_end = on_end
        self._state = core.State()
        # Guards state and refresh for the length of an assignment; nobody waits for anything under it.
        self._mutex = threading.Lock()
        self._refresh: Future[Login] | None = None
        #: The one LoginEnded that is told to `on_end`; later ones only repeat it.
        self._news: LoginEnded | None = None

    @property
    def base_url(self) -> str:
        return self._base_url

    # --- what a request asks for ---------------------------------------------------------

    def token(self) -> Login | Future[Login]:
        """The tokens to send a request with, or the refresh that brings them."""
        with self._mutex:
            state = self._state
            need = core.need(state, self._clock())
            if need is Need.REFRESH or state.login is None:
                return self._begin(None)
            if need is Need.AHEAD:
                with suppress(RuntimeError):  # the interpreter ends, and starts no thread any more
                    self._begin(None)
            return state.login

    def token_after(self, rejected: str) -> Login | Future[Login]:
        """The tokens to repeat a request with, whose access token got a 401."""
        with self._mutex:
            state = self._state
            if state.login is not None and core.is_older(rejected, state):
                return state.login
            return self._begin(rejected)

    # --- the one refresh -----------------------------------------------------------------

    def _begin(self, rejected: str | None) -> Future[Login]:
        """The refresh that runs, or a new one. The caller holds the mutex."""
        if self._refresh is not None:
            return self._refresh
        refresh: Future[Login] = Future()
        # From here on no waiter can cancel it.
        refresh.set_running_or_notify_cancel()
        # No daemon: what the server has sent is stored even when the program ends now.
        thread = threading.Thread(
            target=self._run, args=(refresh, self._state.epoch, rejected), name="tokenctl-refresh"
        )
        thread.start()
        self._refresh = refresh
        return refresh

    def _run(self, refresh: Future[Login], epoch: int, rejected: str | None) -> None:
        login: Login | None = None
        error: BaseException | None = None
        try:
            login = self._settle(epoch, rejected)
        except BaseException as caught:  # noqa: BLE001 - whatever it is, it is for those who wait
            error = caught
        with self._mutex:
            if self._refresh is refresh:
                self._refresh = None
                if error is not None:
                    self._state = core.put_off(self._state, self._clock())
        # Before the callback: it may take its time, and may use us.
        if login is not None:
            refresh.set_result(login)
        else:
            refresh.set_exception(error)
        if error is not None and error is self._news:
            self._news = None
            self._tell()

    def _settle(self, epoch: int, rejected: str | None) -> Login:
        """Adopt what another one has stored, or refresh. Raises TokenClientError."""
        found = self._look(epoch, rejected)
        if found.good and found.login and not found.unsaved:
            return found.login
        with self._store.turn(_TURN_WITHIN):
            # Whoever had the turn before may have done it. Nobody who goes on without the turn does harm:
            # the same refresh token gets the same successor.
            found = self._look(epoch, rejected)
            login = found.login
            if login is None:
                raise self._nobody()
            stored = self._save(epoch, found, login) if found.unsaved else found.stored
            if found.good:
                return login
            if wait := core.cooling(self._state, self._clock()):
                raise self._failure(wait)
            return self._rotate(epoch, login, stored)

    def _look(self, epoch: int, rejected: str | None) -> core.Found:
        """What is stored against what we have; what another one has stored is ours from then on."""
        stored = self._load()
        with self._mutex:
            self._demand(epoch)
            found = core.reconcile(self._state, stored, rejected, self._clock())
            self._state = core.adopted(self._state, found.login, stored, random.random())  # noqa: S311
        return found

    def _load(self) -> Login | None:
        """What is stored. Raises StoreUnusable for the login of another server or client.

        That is not ours to send, nor to replace or to remove.
        """
        stored = self._store.load()
        if stored is not None and (stored.base_url, stored.client_id) != (self._base_url, self._client_id):
            raise StoreUnusable(
                f"the store holds a login at {stored.base_url} of client {stored.client_id}, "
                f"not one at {self._base_url} of client {self._client_id}",
                hint="give each server and client a store of its own",
            )
        return stored

    def _save(self, epoch: int, found: core.Found, login: Login) -> Login | None:
        """Store again what could not be stored when it came; returns what is stored then."""
        try:
            saved = self._store.swap(found.stored, login)
        except Exception as error:  # noqa: BLE001 - a store of the user's may raise anything
            _log.warning(_NOT_STORED, _told(error))
            if found.good:
                self._cool(epoch, core.Failed(_UNSAVED))
            return found.stored
        if not saved:
            return found.stored
        with self._mutex:
            self._demand(epoch)
            self._state = core.adopted(self._state, login, login, 0.0)
        return login

    def _rotate(self, epoch: int, login: Login, stored: Login | None) -> Login:
        asked_at, answer = self._ask(login)
        outcome = core.judge(answer, asked_at, self._base_url, self._client_id)
        if isinstance(outcome, core.Renewed):
            return self._keep(epoch, stored, outcome.login)
        if isinstance(outcome, core.Ended):
            return self._end(epoch, stored, login)
        wait = self._cool(epoch, outcome)
        raise self._failure(wait)

    def _ask(self, login: Login) -> tuple[Moment, Answer | NoAnswer]:
        url = f"{self._base_url}/auth/refresh"
        fields = {"refresh_token": login.refresh_token, "client_id": self._client_id}
        asked_at = self._clock()
        answer = self._post(url, fields)
        if isinstance(answer, NoAnswer) and answer.lost:
            # The server may have rotated, and gives that answer again for a short while only: so at once.
            time.sleep(_PAUSE)
            asked_at = self._clock()
            answer = self._post(url, fields)
        return asked_at, answer

    def _keep(self, epoch: int, expected: Login | None, new: Login) -> Login:
        """Store the rotated tokens; then they are ours. A logout meanwhile wins."""
        stored: Login | None = new
        try:
            swapped = self._store.swap(expected, new)
        except Exception as error:  # noqa: BLE001 - a store of the user's may raise anything
            # They are good, and the only ones: go on with them, and store them as soon as that works.
            _log.warning(_NOT_STORED, _told(error))
            swapped, stored = True, expected
        if not swapped:
            return self._lost(epoch, new)
        with self._mutex:
            if self._state.epoch == epoch:
                self._state = core.adopted(self._state, new, stored, random.random())  # noqa: S311
                if stored is not new:
                    self._state = core.cooled(self._state, core.Failed(_UNSAVED), self._clock(), 0.0)
                return new
        # We logged out between the two steps; that removed them from the store again.
        self._revoke(new)
        raise self._nobody()

    def _lost(self, epoch: int, new: Login) -> Login:
        """Another one changed the store while we refreshed."""
        if self._store.load() is None:
            self._revoke(new)
        found = self._look(epoch, None)
        if found.login is None:
            raise self._nobody()
        return found.login

    def _end(self, epoch: int, stored: Login | None, presented: Login) -> Login:
        """The server refused. That ends the login, unless another one has changed the store meanwhile."""
        try:
            removed = self._store.swap(stored, None)
        except Exception as error:  # noqa: BLE001 - a store of the user's may raise anything
            _log.warning("the tokens of a login that is over could not be removed: %s", _told(error))
        else:
            if not removed:
                found = self._look(epoch, presented.access_token)
                if not core.same(found.login, presented):
                    return self._go_on(epoch, found)
            stored = None
        with self._mutex:
            self._demand(epoch)
            self._state = core.ended(self._state, stored)
        self._news = LoginEnded(_ENDED)
        raise self._news

    def _go_on(self, epoch: int, found: core.Found) -> Login:
        """Use what another one has stored in the place of the login that the server refused."""
        if found.login is None:
            # It is not for us to tell of an end: whoever removed it has done so, or has logged out.
            raise self._nobody()
        return found.login if found.good else self._rotate(epoch, found.login, found.stored)

    def _cool(self, epoch: int, failed: core.Failed) -> float:
        """Seconds until the next attempt."""
        with self._mutex:
            self._demand(epoch)
            now = self._clock()
            self._state = core.cooled(self._state, failed, now, random.random())  # noqa: S311
            return core.cooling(self._state, now)

    def _failure(self, wait: float) -> RefreshFailed:
        reason = self._state.cool_reason
        return RefreshFailed(
            f"no new access token: {reason}", status=self._state.cool_status, retry_after=wait
        )

    def _demand(self, epoch: int) -> None:
        """Raises NotLoggedIn when a login or a logout of our own came between. The caller has the mutex."""
        if self._state.epoch != epoch:
            raise NotLoggedIn("the login was ended or replaced while it was refreshed")

    def _nobody(self) -> NotLoggedIn:
        if self._state.ended:
            return LoginEnded(_ENDED)
        return NotLoggedIn("nobody is logged in", hint="log in: auth.login(name, password)")

    def _tell(self) -> None:
        if self._on_end is None:
            return
        try:
            self._on_end()
        except Exception:  # noqa: BLE001 - it is the user's, and nobody waits for it
            _log.exception("on_end failed")

    # --- logging in and out --------------------------------------------------------------

    def log_in(self, path: str, fields: Mapping[str, Any]) -> Login:
        """The tokens that the server gives for that, in the place of those that are stored.

        Raises CallRefused, StoreUnusable.
        """
        asked_at = self._clock()
        answer = self._post(self._base_url + path, {**fields, "client_id": self._client_id})
        outcome = core.judge(answer, asked_at, self._base_url, self._client_id)
        if isinstance(outcome, core.Ended):
            raise CallRefused("the server refuses the login", status=401, code="invalid_grant")
        if isinstance(outcome, core.Failed):
            raise _refused("no login", outcome)
        new = outcome.login
        try:
            while not self._store.swap(self._load(), new):
                pass
        except Exception:
            self._revoke(new)
            raise
        with self._mutex:
            self._state = core.began(self._state, new, random.random())  # noqa: S311
            self._refresh = None  # the one that runs is for the login before
        return new

    def log_out(self, *, everywhere: bool) -> None:
        """Forget the tokens, and then tell the server. Nobody logged in is no error.

        Raises CallRefused when the server could not be told, or when a login that was over could not end the
        others: the tokens are gone here all the same. Raises StoreUnusable when they could not be removed,
        and the login was ended.
        """
        with self._mutex:
            ours = self._state.login
            epoch = self._forget()
        try:
            stored = self._load()
            while stored is not None and not self._store.swap(stored, None):
                stored = self._load()
        except Exception:
            if ours is not None:
                self._revoke(ours)  # what is left in the store is worth nothing then
            raise
        with self._mutex:
            # A call meanwhile may have taken up again what it found in the store, or be about to; and a login
            # meanwhile may be the one that was removed.
            if self._state.epoch == epoch or core.same(self._state.login, stored):
                self._forget()
        login = stored or ours
        if login is not None:
            self._end_on_server(login, everywhere=everywhere)

    def _forget(self) -> int:
        """Nobody is logged in from now on; returns that epoch. The caller holds the mutex."""
        self._state = core.began(self._state, None, 0.0)
        self._refresh = None  # the one that runs is for the login before
        return self._state.epoch

    def _end_on_server(self, login: Login, *, everywhere: bool) -> None:
        """Raises CallRefused when that did not end what it should."""
        answer = self._tell_server(login, everywhere=everywhere)
        if isinstance(answer, NoAnswer):
            raise _refused(_STILL_THERE, core.Failed(answer.reason))
        # A token that the server refuses is as dead as one that it has just revoked, but it ends no others.
        if answer.status < 300 or (answer.status == 401 and not everywhere):
            return
        outcome = core.judge(answer, self._clock(), self._base_url, self._client_id)
        if isinstance(outcome, core.Failed):
            raise _refused(_STILL_THERE, outcome)
        if everywhere:
            raise CallRefused(
                "this login was over already, so it could not end the others",
                status=answer.status,
                code="invalid_grant",
                hint="log in, and log out everywhere again",
            )

    def _revoke(self, login: Login) -> None:
        """End a login that nobody keeps the tokens of."""
        answer = self._tell_server(login, everywhere=False)
        if isinstance(answer, NoAnswer) or answer.status not in (204, 401):
            _log.warning("dropped tokens could not be revoked: their login ends when it is idle for long")

    def _tell_server(self, login: Login, *, everywhere: bool) -> Answer | NoAnswer:
        fields = {"refresh_token": login.refresh_token, "client_id": login.client_id, "all": everywhere}
        return self._post(f"{login.base_url}/auth/logout", fields)


_ENDED = "the server says that this login is over: log in again"
_NOT_STORED = "the new tokens could not be stored, which is tried again: %s"
_UNSAVED = "the last tokens could not be stored"
_STILL_THERE = "the tokens are gone here, but the login may still live on the server"


def _told(error: Exception) -> str:
    """What may be logged of an error: of one that is not ours only its kind."""
    return str(error) if isinstance(error, TokenClientError) else type(error).__name__


def _refused(what: str, failed: core.Failed) -> CallRefused:
    return CallRefused(
        f"{what}: {failed.reason}", status=failed.status, code=failed.code, retry_after=failed.retry_after
    )
