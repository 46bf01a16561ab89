"""The evidence of an incident: one archive of all that was revoked with a reason, and of how that was done.

Owns what is in the archive and in which order. What a line looks like is `evidence_lines`, the page
`evidence_page`. Everything is streamed into files beside the archive, so that a million logins need little
memory: a few numbers for each user, and the logins that are drawn.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO

from tokenctl.core import ids
from tokenctl.core.names import clean_note
from tokenctl.core.refresh_token import RefreshToken
from tokenctl.errors import DatabaseExists, DatabaseFull, KeyUnusable, KeyWrong, NotFound
from tokenctl.service import evidence_lines, exporting
from tokenctl.service.evidence_lines import Line, encoded, shown
from tokenctl.service.evidence_page import MOST_ACTS, MOST_USERS, Act, Lane, PlanShare, Story, UserShare, page
from tokenctl.service.evidence_readme import readme
from tokenctl.service.evidence_runs import Runs, least
from tokenctl.service.evidence_tally import Login, PlanUse, Tally, Use
from tokenctl.service.instants import show_utc
from tokenctl.service.revocation import Progress, unseen
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.service.verifying import verify
from tokenctl.storage import evidence as stored
from tokenctl.storage import files, segments, tokens, users
from tokenctl.storage.evidence import REVOKE, SlicedEvent

_ID_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much is in a bundle.

    Of the logins: reuse: a spent string of it was presented; refused_since: a string of it was presented
    after its revocation, and refused; alive: not dead now; purged: its row is gone.
    """

    logins: int
    users: int
    revoked: int
    reuse: int
    refused_since: int
    alive: int
    purged: int
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was written. `sha256` of the archive, in hex; `head` of the audit log, if anything is sealed.

    verified: whether the audit log holds; None where that could not be looked at. `seal` says it in words.
    """

    path: Path
    sha256: str
    counts: Counts
    head: str | None
    verified: bool | None
    seal: str


@dataclass(frozen=True, slots=True)
class _Seal:
    """How the audit log stands."""

    verified: bool | None
    words: str
    head: str | None


def write(
    runtime: Runtime,
    reason: str,
    path: Path,
    *,
    actor: str,
    export: bool = True,
    progress: Progress = unseen,
) -> Evidence:
    """The archive in a new file of mode 0600, whole or not at all. See `TokenService.evidence`."""
    reason = clean_note(reason)
    if files.is_there(path):
        raise _there(path)
    _demand_some(runtime, reason)
    seal = _look_at_seal(runtime, progress)
    try:
        with ExitStack() as stack:
            stack.enter_context(files.file_errors(path))
            directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix=".evidence-", dir=path.parent))
            )
            bundle = _Bundle(runtime, reason, directory, actor=actor, seal=seal, progress=progress)
            bundle.write(export)
            files.create(path, bundle.pack)
            return Evidence(
                path=path,
                sha256=_sum(path),
                counts=bundle.counts(),
                head=seal.head,
                verified=seal.verified,
                seal=seal.words,
            )
    except FileExistsError:
        raise _there(path) from None
    except DatabaseFull as full:
        raise DatabaseFull(
            full.message, hint="free some space, or name a file on another file system with -o"
        ) from None


def _there(path: Path) -> DatabaseExists:
    return DatabaseExists(f"{path} is there already, and stays as it is", hint="name a new file with -o")


@repeated
def _demand_some(runtime: Runtime, reason: str) -> None:
    with runtime.storage.read() as connection:
        if stored.is_known(connection, reason):
            return
    raise NotFound(
        f"nothing was done with the reason {reason!r}", hint="tokenctl audit search --type token.revoke"
    )


def _look_at_seal(runtime: Runtime, progress: Progress) -> _Seal:
    """Seal and verify, where the master key is at hand: evidence is collected without it, too."""
    try:
        has_key, why = runtime.has_master_key, "the master key is not here"
    except (KeyUnusable, KeyWrong) as error:
        has_key, why = False, error.message
    if not has_key:
        return _Seal(None, f"The audit log was not verified: {why}.", _head(runtime))
    done = verify(runtime, head=None, progress=progress)
    head = None if done.head is None else str(done.head)
    looked = f"{_amount(done.events, 'event')} in {_amount(done.segments, 'sealed segment')}"
    if done.holds:
        words = f"The audit log was verified when this was made: what it holds is what was sealed ({looked})."
    else:
        words = (
            f"THE AUDIT LOG DOES NOT HOLD: {_amount(done.found, 'finding')} in {looked}. What is told here "
            "may have been changed; `tokenctl audit verify` names what is wrong."
        )
    return _Seal(done.holds, words, head)


@repeated
def _head(runtime: Runtime) -> str | None:
    with runtime.storage.read() as connection:
        head = segments.head(connection)
    return None if head is None else str(head)


def _amount(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_name(reason: str) -> str:
    """The name of the directory in the archive: what of the reason is safe on every file system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", reason).strip("-.")[:64] or "incident"


# --- collecting ------------------------------------------------------------------------------


class _Bundle:
    """The files of one archive, in a directory of their own."""

    def __init__(
        self, runtime: Runtime, reason: str, directory: Path, *, actor: str, seal: _Seal, progress: Progress
    ) -> None:
        self._runtime = runtime
        self._reason = reason
        self._directory = directory
        self._actor = actor
        self._seal = seal
        self._progress = progress
        self._now = runtime.clock()
        self._tally = Tally()
        self._other_acts: list[Act] = []
        self._has_export = False
        self._names: list[str] = []

    def counts(self) -> Counts:
        tally = self._tally
        return Counts(
            logins=tally.logins,
            users=len(tally.users),
            revoked=tally.revoked,
            reuse=tally.reuse,
            refused_since=tally.refused_since,
            alive=tally.alive,
            purged=tally.purged,
            events=tally.events,
        )

    def write(self, export: bool) -> None:
        """All files but the archive."""
        with Runs(self._directory / "runs") as runs:
            self._write_logins(runs)
            self._write_acts(runs)
            with self._new("events.jsonl") as file:
                for line in runs.merged():
                    file.write(line)
                    self._tally.events += 1
            self._tally.first_at, self._tally.last_at = runs.first_at, runs.last_at
        if self._seal.head is not None:
            self._write_text("audit-head.txt", f"{self._seal.head}\n")
        if export and self._tally.first_at is not None and self._tally.last_at is not None:
            self._has_export = True
            lines = exporting.export(
                self._runtime,
                since=self._tally.first_at,
                until=self._tally.last_at + 1,
                # Those that came since, and without the key all that are not sealed yet.
                unsealed=True,
            )
            self._write_lines("audit-export.jsonl", lines)
        self._write_json("plans.json", self._plans())
        self._write_json("summary.json", self._summary())
        self._write_text("summary.html", page(self._story()))
        self._write_text(
            "README.txt",
            readme(
                reason=self._reason,
                made_at=show_utc(self._now),
                made_by=self._actor,
                seal=self._seal.words,
                head=self._seal.head,
                has_export=self._has_export,
            ),
        )

    def _write_logins(self, runs: Runs) -> None:
        """Each login before and after, and a run of the events of every thousand."""
        with (
            (self._directory / "ids").open("w+b") as found,
            self._new("before.jsonl") as before,
            self._new("after.jsonl") as after,
        ):
            _find(self._runtime, self._reason, found)
            found.seek(0)
            while piece := found.read(_ID_BYTES * tokens.CHUNK):
                chunk = [piece[i : i + _ID_BYTES] for i in range(0, len(piece), _ID_BYTES)]
                rows, logins, names = self._read(chunk, runs)
                for raw_id in chunk:
                    row, login = rows.get(raw_id), logins[raw_id]
                    was, is_now = self._add(raw_id, row, login, names)
                    before.write(encoded(was))
                    after.write(encoded(is_now))
                self._progress(len(chunk))

    def _read(
        self, chunk: list[bytes], runs: Runs
    ) -> tuple[dict[bytes, RefreshToken], dict[bytes, Login], dict[bytes, str]]:
        """The rows of a thousand logins, what their events tell, and the names of the users without a row."""
        rows, logins, uses = _read(self._runtime, self._reason, chunk, runs)
        for use in uses:
            self._tally.add_use(use)
        gone = {login.user_id for raw_id, login in logins.items() if raw_id not in rows and login.user_id}
        names = _names(self._runtime, [ids.to_bytes(each) for each in gone]) if gone else {}
        return rows, logins, names

    def _add(
        self, raw_id: bytes, row: RefreshToken | None, login: Login, names: dict[bytes, str]
    ) -> tuple[Line, Line]:
        """Count a login; its lines."""
        tally = self._tally
        tally.logins += 1
        tally.reuse += bool(login.reuse)
        tally.refused_since += login.refused_since
        if row is None:
            return self._add_purged(raw_id, login, names)
        revoked_at = row.revoked_at if login.revoked_at is None else login.revoked_at
        if login.revoked_at is None and revoked_at is not None:  # its event is not there any more
            tally.add_revocation(revoked_at, row.revoked_by, row.access_until)
        tally.revoked += row.is_revoked
        tally.alive += not row.is_dead(self._now)
        tally.users[ids.to_bytes(row.user_id)] += 1
        tally.issued_from = least(tally.issued_from, row.created_at)
        tally.add_lane(
            raw_id,
            Lane(
                token_id=row.id,
                user_name=row.user_name,
                client_id=row.client_id,
                created_at=row.created_at,
                revoked_at=row.revoked_at,
                events=login.events,
                dots=login.dots,
                reuse=login.reuse,
                last_ip=row.last.ip_text,
                last_user_agent=row.last.user_agent,
            ),
        )
        at = self._now if revoked_at is None else revoked_at
        return evidence_lines.before(row, at), evidence_lines.after(row, self._now)

    def _add_purged(self, raw_id: bytes, login: Login, names: dict[bytes, str]) -> tuple[Line, Line]:
        tally, token_id = self._tally, ids.token_id(raw_id)
        tally.purged += 1
        tally.revoked += 1
        name = None
        if login.user_id is not None:
            name = names.get(ids.to_bytes(login.user_id))
            tally.users[ids.to_bytes(login.user_id)] += 1
        line = evidence_lines.purged(token_id, login.told, name)
        created_at = next((event.at for event in login.told if event.type == "token.issue"), None)
        if created_at is not None:
            tally.issued_from = least(tally.issued_from, created_at)
        tally.add_lane(
            raw_id,
            Lane(
                token_id=token_id,
                user_name=name or login.user_id or "not known",
                client_id=line.get("client", "not known"),
                created_at=created_at,
                revoked_at=login.revoked_at,
                events=login.events,
                dots=login.dots,
                reuse=login.reuse,
                is_purged=True,
            ),
        )
        return {key: value for key, value in line.items() if not key.startswith("revoked_")}, line

    def _write_acts(self, runs: Runs) -> None:
        """What else was done with that reason, and the makings of the plans, as runs of their own."""
        self._other_acts = _read_acts(self._runtime, self._reason, runs)
        plans = self._tally.plans
        if not plans:
            return
        last = max(use.first_event for use in plans.values())
        for sliced in _plans_before(self._runtime, last, frozenset(plans)):
            use = plans[sliced.event.data["plan"]]
            # An id that is over may be given again: the last one before it was acted on is meant.
            if (sliced.event.id or 0) < use.first_event:
                use.made = sliced
        made = [use.made for use in plans.values() if use.made is not None]
        runs.add(sorted(made, key=lambda sliced: sliced.event.id or 0))

    # --- what is told of it ---

    def _plans(self) -> list[Line]:
        return [
            {
                "plan": plan_id,
                "made_at": None if use.made is None else show_utc(use.made.event.at),
                "made_by": None if use.made is None else use.made.event.actor,
                "tokens": None if use.made is None else use.made.event.data.get("tokens"),
                "users": None if use.made is None else use.made.event.data.get("users"),
                "selector": None
                if use.made is None
                else evidence_lines.selector(use.made.event.data.get("selector")),
                "revoked": use.revoked,
                "acted_by": list(use.actors),
                "acted_from": show_utc(use.first_at),
                "acted_until": show_utc(use.last_at),
            }
            for plan_id, use in self._plan_uses()
        ]

    def _plan_uses(self) -> list[tuple[str, PlanUse]]:
        return sorted(self._tally.plans.items(), key=lambda item: item[1].first_event)

    def _summary(self) -> Line:
        tally = self._tally
        return {
            "reason": self._reason,
            "made_at": show_utc(self._now),
            "made_by": self._actor,
            "tokenctl": version("tokenctl"),
            "database": self._runtime.storage.label,
            **asdict(self.counts()),
            "revoked_by": list(tally.actors),
            "revoked_from": shown(tally.revoked_from),
            "revoked_until": shown(tally.revoked_until),
            "first_event_at": shown(tally.first_at),
            "last_event_at": shown(tally.last_at),
            "access_until": shown(tally.access_until),
            "plans": [plan_id for plan_id, _ in self._plan_uses()],
            "revoked_without_plan": tally.without_plan,
            "audit": {
                "verified": self._seal.verified,
                "said": self._seal.words,
                "head": self._seal.head,
                "exported": self._has_export,
            },
        }

    def _story(self) -> Story:
        tally = self._tally
        return Story(
            reason=self._reason,
            made_at=self._now,
            made_by=self._actor,
            version=version("tokenctl"),
            database=self._runtime.storage.label,
            logins=tally.logins,
            users=len(tally.users),
            reuse=tally.reuse,
            refused_since=tally.refused_since,
            alive=tally.alive,
            events=tally.events,
            issued_from=tally.issued_from,
            revoked_from=tally.revoked_from,
            revoked_until=tally.revoked_until,
            actors=list(tally.actors),
            access_until=tally.access_until,
            lanes=[entry[-1] for entry in sorted(tally.lanes, key=lambda entry: entry[:3], reverse=True)],
            shares=self._shares(),
            plans=[
                PlanShare(
                    plan_id=plan_id,
                    made_at=None if use.made is None else use.made.event.at,
                    made_by=None if use.made is None else use.made.event.actor,
                    tokens=None if use.made is None else use.made.event.data.get("tokens"),
                    revoked=use.revoked,
                    acted_by=list(use.actors),
                )
                for plan_id, use in self._plan_uses()[:MOST_ACTS]
            ],
            verified=self._seal.verified,
            seal=self._seal.words,
            head=self._seal.head,
            has_export=self._has_export,
            other_acts=self._other_acts,
        )

    def _shares(self) -> list[UserShare]:
        most = self._tally.users.most_common(MOST_USERS)
        names = _names(self._runtime, [raw_id for raw_id, _ in most]) if most else {}
        shares = [
            UserShare(user_name=names.get(raw_id, "deleted"), user_id=ids.user_id(raw_id), logins=logins)
            for raw_id, logins in most
        ]
        return sorted(shares, key=lambda share: (-share.logins, share.user_name))

    # --- files ---

    def _new(self, name: str) -> IO[bytes]:
        self._names.append(name)
        return (self._directory / name).open("xb")

    def _write_text(self, name: str, text: str) -> None:
        with self._new(name) as file:
            file.write(text.encode())

    def _write_json(self, name: str, value: object) -> None:
        self._write_text(name, json.dumps(value, indent=2) + "\n")

    def _write_lines(self, name: str, lines: Iterable[Line]) -> None:
        with self._new(name) as file:
            for line in lines:
                file.write(encoded(line))

    def pack(self, building: Path) -> None:
        """All files into the archive, with their sums."""
        names = [name for name in _ORDER if name in self._names]
        sums = "".join(f"{_sum(self._directory / name)}  {name}\n" for name in names)
        self._write_text("SHA256SUMS", sums)
        seconds = self._now // 1_000_000
        with building.open("r+b") as raw:
            with (
                gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=seconds) as packed,
                tarfile.open(mode="w", fileobj=packed, format=tarfile.PAX_FORMAT) as archive,
            ):
                for name in [*names, "SHA256SUMS"]:
                    self._pack_one(archive, name, seconds)
            raw.flush()
            os.fsync(raw.fileno())

    def _pack_one(self, archive: tarfile.TarFile, name: str, seconds: int) -> None:
        entry = tarfile.TarInfo(f"{directory_name(self._reason)}/{name}")
        entry.size, entry.mtime, entry.mode = (self._directory / name).stat().st_size, seconds, 0o600
        with (self._directory / name).open("rb") as file:
            archive.addfile(entry, file)


#: The files in the order of the archive: what is read first comes first.
_ORDER = (
    "README.txt", "summary.html", "summary.json", "plans.json", "before.jsonl", "after.jsonl",
    "events.jsonl", "audit-head.txt", "audit-export.jsonl",
)  # fmt: skip


# --- one transaction each --------------------------------------------------------------------


@repeated
def _find(runtime: Runtime, reason: str, found: IO[bytes]) -> None:
    found.seek(0)
    found.truncate()
    with runtime.storage.read() as connection:
        for raw_id in stored.revoked_with(connection, reason):
            found.write(raw_id)


@repeated
def _read(
    runtime: Runtime, reason: str, chunk: list[bytes], runs: Runs
) -> tuple[dict[bytes, RefreshToken], dict[bytes, Login], list[Use]]:
    logins = {raw_id: Login() for raw_id in chunk}
    uses: list[Use] = []

    def passing(events: Iterator[SlicedEvent]) -> Iterator[SlicedEvent]:
        for sliced in events:
            event = sliced.event
            if event.token_id is not None:
                logins[ids.to_bytes(event.token_id)].add(sliced, reason)
            if event.type == REVOKE and event.reason == reason:
                plan = event.data.get("plan")
                said = plan if isinstance(plan, str) else None
                uses.append(Use(event.id or 0, event.at, event.actor, said, event.data.get("access_until")))
            yield sliced

    with runtime.storage.read() as connection:
        rows = tokens.fetch(connection, chunk)
        runs.add(passing(stored.of_logins(connection, chunk)))
    return rows, logins, uses


@repeated
def _read_acts(runtime: Runtime, reason: str, runs: Runs) -> list[Act]:
    """The events with that reason that are no revocation into a run; the first ones for the page."""
    first: list[Act] = []

    def passing(events: Iterator[SlicedEvent]) -> Iterator[SlicedEvent]:
        for sliced in events:
            if sliced.event.token_id is None and len(first) < MOST_ACTS:
                first.append(Act(sliced.event.at, sliced.event.type, sliced.event.actor))
            yield sliced

    with runtime.storage.read() as connection:
        runs.add(passing(stored.acts(connection, reason)))
    return first


@repeated
def _plans_before(runtime: Runtime, event_id: int, plan_ids: frozenset[str]) -> list[SlicedEvent]:
    with runtime.storage.read() as connection:
        found = stored.plans_before(connection, event_id)
        return [sliced for sliced in found if sliced.event.data.get("plan") in plan_ids]


@repeated
def _names(runtime: Runtime, raw_ids: list[bytes]) -> dict[bytes, str]:
    with runtime.storage.read() as connection:
        return users.names(connection, raw_ids)
