"""The page of an evidence bundle: what happened, in words, a picture and tables, for whoever decides.

Owns the HTML and the SVG. One file that asks nobody for anything: no script, no picture, no font, its style
inside. Names, reasons and user agents are hostile: `_text` is the only way for them into the page.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenctl.service.evidence_lines import printable
from tokenctl.service.instants import show_utc

#: Lanes that are drawn.
MOST_LANES = 60
#: Users that the table lists.
MOST_USERS = 200
#: Plans that are listed, and other events with the reason.
MOST_ACTS = 20

_MINUTE = 60_000_000
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
#: Distances (µs) between two marks of the time axis.
_STEPS = (
    _MINUTE, 5 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR,
    _DAY, 2 * _DAY, 7 * _DAY, 14 * _DAY, 28 * _DAY, 91 * _DAY, 365 * _DAY,
)  # fmt: skip
_MOST_MARKS = 8
#: The heads of columns of numbers.
_NUMBERS = frozenset({"Logins", "Revoked", "Events"})

# The picture, in its own units.
_WIDTH, _LANE, _TOP, _FOOT = 960, 20, 34, 66
_LEFT, _RIGHT = 236, 920
_DOTS_APART = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One login in the picture. Instants in µs; dots: its events but its end, in order."""

    token_id: str
    user_name: str
    client_id: str
    created_at: int | None
    revoked_at: int | None
    events: int
    dots: Sequence[int] = ()
    reuse: Sequence[int] = ()
    last_ip: str | None = None
    last_user_agent: str | None = None
    is_purged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UserShare:
    """How many of the logins were one user's."""

    user_name: str
    user_id: str
    logins: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanShare:
    """What a dry run had shown, and what was then revoked of it. `made_at` in µs."""

    plan_id: str
    made_at: int | None
    made_by: str | None
    tokens: int | None
    revoked: int
    acted_by: Sequence[str]


class Act(NamedTuple):
    """An event with the reason that is no revocation; `at` in µs."""

    at: int
    type: str
    actor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What the page tells. Instants in µs; where nothing was revoked there are none."""

    reason: str
    made_at: int
    made_by: str
    version: str
    database: str
    logins: int
    users: int
    reuse: int
    refused_since: int
    alive: int
    events: int
    issued_from: int | None
    revoked_from: int | None
    revoked_until: int | None
    actors: Sequence[str]
    access_until: int | None
    lanes: Sequence[Lane]
    shares: Sequence[UserShare]
    plans: Sequence[PlanShare]
    #: Whether the audit log holds; None where nobody could look.
    verified: bool | None
    seal: str
    head: str | None
    has_export: bool
    other_acts: Sequence[Act] = ()


def page(story: Story) -> str:
    """The whole document."""
    policy = f"default-src 'none'; style-src 'sha256-{_digest(_STYLE)}'; base-uri 'none'; form-action 'none'"
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{_text(story.reason)}: evidence</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        *_opening(story),
        *_timeline(story),
        *_users(story),
        *_plans(story),
        *_others(story),
        *_verifying(story),
        "</main>",
        *_footer(story),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --- texts -----------------------------------------------------------------------------------


def _text(value: str) -> str:
    r"""What may stand anywhere in the page: controls and bidi marks as `\u202e`, the rest escaped."""
    return html.escape(printable(value))


def _name(value: str) -> str:
    """A text of somebody's, whose direction must not turn round what stands beside it."""
    return f'<bdi dir="ltr">{_text(value)}</bdi>'


def _moment(instant: int) -> str:
    """`2026-03-14 03:10:02`, in UTC; an instant that no calendar has as `@` and its µs."""
    shown = show_utc(instant)
    return shown if shown.startswith("@") else shown[:19].replace("T", " ")


def _time(instant: int | None) -> str:
    if instant is None:
        return "not known"
    shown = _moment(instant)
    machine = "" if shown.startswith("@") else f' datetime="{shown.replace(" ", "T")}Z"'
    return f"<time{machine}>{shown}</time>"


def _amount(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = [_name(name) for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most:,} more")
    if len(shown) < 2:
        return "".join(shown) or "nobody who is named"
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


# --- the sections ----------------------------------------------------------------------------


def _opening(story: Story) -> Iterable[str]:
    yield "<header>"
    yield "<p>Evidence of an incident</p>"
    yield f"<h1>{_name(story.reason)}</h1>"
    yield "</header>"
    yield '<section aria-labelledby="what">'
    yield '<h2 id="what">What happened</h2>'
    yield f"<p>{_revoked_sentence(story)}</p>"
    if story.logins:
        yield f"<p>{_before_sentence(story)}</p>"
        yield f"<p>{_after_sentence(story)}</p>"
    yield '<dl class="figures">'
    figures = [
        (f"{story.logins:,}", "login" if story.logins == 1 else "logins"),
        (f"{story.users:,}", "user" if story.users == 1 else "users"),
        (f"{story.refused_since:,}", "tried since"),
        (f"{story.alive:,}", "alive now"),
        (f"{story.events:,}", "event" if story.events == 1 else "events"),
    ]
    for number, label in figures:
        yield f"<div><dt>{label}</dt><dd>{number}</dd></div>"
    yield "</dl>"
    kind = {True: "good", False: "bad", None: "open"}[story.verified]
    yield f'<p class="seal {kind}">{_text(story.seal)}</p>'
    yield "</section>"


def _revoked_sentence(story: Story) -> str:
    if not story.logins or story.revoked_from is None:
        return "No login was revoked with this reason; what else was done with it stands below."
    when = f"at {_time(story.revoked_from)} UTC"
    if story.revoked_until is not None and _moment(story.revoked_until) != _moment(story.revoked_from):
        when = f"from {_time(story.revoked_from)} to {_time(story.revoked_until)} UTC"
    were = "was" if story.logins == 1 else "were"
    return (
        f"<strong>{_amount(story.logins, 'login')} of {_amount(story.users, 'user')} {were} revoked</strong> "
        f"{when}, by {_listed(story.actors)}."
    )


def _before_sentence(story: Story) -> str:
    parts = []
    if story.issued_from is not None:
        parts.append(f"the oldest of these logins began at {_time(story.issued_from)} UTC")
    if story.reuse:
        parts.append(
            f"with <strong>{story.reuse:,} of them</strong> a spent refresh token was presented again, as "
            "happens when one was copied"
        )
    if story.refused_since:
        parts.append(
            f"since the revocation somebody tried to use <strong>{story.refused_since:,} of them</strong>, "
            "and was refused"
        )
    else:
        parts.append("since the revocation nobody is known to have tried to use any of them")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _after_sentence(story: Story) -> str:
    alive = (
        "None of these logins is alive now"
        if not story.alive
        else f"<strong>{_amount(story.alive, 'login')} of these "
        f"{'is' if story.alive == 1 else 'are'} alive now</strong>"
    )
    if story.access_until is None:
        return f"{alive}."
    until = f"{_time(story.access_until)} UTC"
    if story.revoked_from is not None and story.access_until <= story.revoked_from:
        return f"{alive}; their last access tokens had expired before, at {until}."
    were = "were" if story.access_until <= story.made_at else "are"
    return f"{alive}; access tokens that were out already {were} good until {until} at the latest."


def _users(story: Story) -> Iterable[str]:
    if not story.shares:
        return
    yield '<section aria-labelledby="users">'
    yield '<h2 id="users">Whose logins</h2>'
    rows = [
        f"<td>{_name(share.user_name)}</td><td><code>{_text(share.user_id)}</code></td>"
        f'<td class="number">{share.logins:,}</td>'
        for share in story.shares
    ]
    yield from _table("Users", ("User", "Id", "Logins"), rows)
    if (more := story.users - len(story.shares)) > 0:
        yield f"<p>… and {more:,} more; <code>before.jsonl</code> has them all.</p>"
    yield "</section>"


def _plans(story: Story) -> Iterable[str]:
    if not story.plans:
        return
    yield '<section aria-labelledby="plans">'
    yield '<h2 id="plans">What was looked at before</h2>'
    yield "<p>A plan is what a dry run has shown, and exactly what was then acted on. "
    yield "<code>plans.json</code> has all of them, and what they were selected by.</p>"
    rows = [
        f"<td><code>{_text(plan.plan_id)}</code></td><td>{_time(plan.made_at)}</td>"
        f"<td>{_name(plan.made_by or 'not known')}</td>"
        f'<td class="number">{"not known" if plan.tokens is None else f"{plan.tokens:,}"}</td>'
        f'<td class="number">{plan.revoked:,}</td><td>{_listed(plan.acted_by)}</td>'
        for plan in story.plans
    ]
    yield from _table("Plans", ("Plan", "Made (UTC)", "By", "Logins", "Revoked", "Acted on by"), rows)
    yield "</section>"


def _others(story: Story) -> Iterable[str]:
    if not story.other_acts:
        return
    yield '<section aria-labelledby="others">'
    yield '<h2 id="others">What else was done with this reason</h2>'
    rows = [
        f"<td>{_time(at)}</td><td><code>{_text(type_)}</code></td><td>{_name(actor or 'not known')}</td>"
        for at, type_, actor in story.other_acts
    ]
    yield from _table("Other events", ("At (UTC)", "What", "By"), rows)
    yield "<p>All of it is in <code>events.jsonl</code>.</p>"
    yield "</section>"


def _verifying(story: Story) -> Iterable[str]:
    yield '<section aria-labelledby="verify">'
    yield '<h2 id="verify">How to verify this</h2>'
    yield "<p>That the files of this bundle are those that were made, by anybody:</p>"
    yield "<pre>sha256sum -c SHA256SUMS</pre>"
    if story.has_export:
        yield "<p>That the events are those that were sealed, by whoever has the master key:</p>"
        yield "<pre>tokenctl audit verify --export audit-export.jsonl</pre>"
    if story.head is not None:
        yield "<p>That the audit log still has all it had when this was made:</p>"
        yield f"<pre>tokenctl audit verify --head {_text(story.head)}</pre>"
    yield "<p><code>README.txt</code> says what each file is, and what none of this proves.</p>"
    yield "</section>"


def _footer(story: Story) -> Iterable[str]:
    yield "<footer>"
    yield (
        f"<p>Made at {_time(story.made_at)} UTC by {_name(story.made_by)}, with tokenctl "
        f"{_text(story.version)}, from <code>{_name(story.database)}</code>. All times are UTC.</p>"
    )
    yield "</footer>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[str]) -> Iterable[str]:
    # Wider than a telephone: it scrolls by itself, also by keyboard.
    yield f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">'
    yield f'<table><caption class="unseen">{caption}</caption>'
    cells = "".join(map(_head, heads))
    yield f"<thead><tr>{cells}</tr></thead><tbody>"
    for row in rows:
        yield f"<tr>{row}</tr>"
    yield "</tbody></table></div>"


def _head(text: str) -> str:
    kind = ' class="number"' if text in _NUMBERS else ""
    return f'<th scope="col"{kind}>{text}</th>'


# --- the picture -----------------------------------------------------------------------------


def _timeline(story: Story) -> Iterable[str]:
    span = _span(story)
    if not story.lanes or span is None:
        return
    yield '<section aria-labelledby="when">'
    yield '<h2 id="when">When it happened</h2>'
    yield "<figure>"
    yield '<div class="scroll" role="region" aria-label="Timeline" tabindex="0">'
    yield from _Picture(story, *span, name="whole").draw()
    yield "</div>"
    more = story.logins - len(story.lanes)
    if more > 0:
        yield (
            f"<figcaption>Those with reuse and with most events come first. … and {more:,} more: "
            "<code>before.jsonl</code> and <code>events.jsonl</code> have them all.</figcaption>"
        )
    yield "</figure>"
    if (day := _last_day(story, *span)) is not None:
        yield "<h3>The last day of it</h3>"
        yield '<figure><div class="scroll" role="region" aria-label="Timeline of the last day" tabindex="0">'
        yield from _Picture(story, *day, name="day").draw()
        yield "</div></figure>"
    yield "<h3>The same as a table</h3>"
    rows = (
        f"<td>{_name(lane.user_name)}</td><td><code>{_text(lane.token_id)}</code></td>"
        f"<td>{_name(lane.client_id)}</td><td>{_time(lane.created_at)}</td><td>{_time(lane.revoked_at)}</td>"
        f'<td class="number">{lane.events:,}</td><td>{"yes" if lane.reuse else "no"}</td>'
        f"<td>{_text(lane.last_ip or 'not known')}</td>"
        f'<td class="agent">{_agent(lane)}</td>'
        for lane in story.lanes
    )
    heads = (
        "User", "Login", "Client", "Began (UTC)", "Revoked (UTC)", "Events", "Reuse", "Last address",
        "Last user agent",
    )  # fmt: skip
    yield from _table("Logins", heads, rows)
    yield "</section>"


def _agent(lane: Lane) -> str:
    return "row purged" if lane.is_purged else _name(lane.last_user_agent or "not known")


def _span(story: Story) -> tuple[int, int] | None:
    """From when to when (µs) the picture goes."""
    instants = [at for lane in story.lanes for at in (lane.created_at, lane.revoked_at) if at is not None]
    instants += [at for lane in story.lanes for at in (*lane.dots, *lane.reuse)]
    if not instants:
        return None
    first, last = min(instants), max(instants)
    # Some of the grey after the end is to be seen, and a login of one instant is not all there is.
    return first, last + max((last - first) // 20, _MINUTE)


def _last_day(story: Story, first: int, last: int) -> tuple[int, int] | None:
    """Where the whole is so long that all which matters is at its end: the day before the revocation."""
    end = story.revoked_until
    if end is None or last - first < 3 * _DAY or end - (story.revoked_from or end) > _DAY:
        return None
    return end - _DAY, end + _DAY // 20


class _Picture:
    """A lane for each login over a time axis, from `first` to `last` (µs).

    No other picture of the page has its `name`.
    """

    def __init__(self, story: Story, first: int, last: int, *, name: str) -> None:
        self._story = story
        self._first, self._last = first, last
        self._name = name
        self._bottom = _TOP + _LANE * len(story.lanes)

    def draw(self) -> Iterable[str]:
        height = self._bottom + _FOOT
        title, words = f"{self._name}-title", f"{self._name}-words"
        yield f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="{title} {words}">'
        yield f'<title id="{title}">The logins over time</title>'
        yield f'<desc id="{words}">{self._described()}</desc>'
        yield from self._axis()
        for number, lane in enumerate(self._story.lanes):
            yield from self._lane(lane, _TOP + _LANE * number + _LANE // 2)
        yield from self._revocation()
        yield from self._legend()
        yield "</svg>"

    def _described(self) -> str:
        lanes = self._story.lanes
        reuse = sum(bool(lane.reuse) for lane in lanes)
        return (
            f"{_amount(len(lanes), 'lane')}, one for each login, from {_moment(self._first)} to "
            f"{_moment(self._last)} UTC: a line while the login lived, a dot for each event, a cross for "
            f"each reuse, grey after its end. {_amount(reuse, 'lane')} with a reuse. "
            "The table below has the same."
        )

    def _x(self, instant: int) -> float:
        instant = min(max(instant, self._first), self._last)
        share = (instant - self._first) / (self._last - self._first)
        return round(_LEFT + share * (_RIGHT - _LEFT), 1)

    def _axis(self) -> Iterable[str]:
        span = self._last - self._first
        step = next((each for each in _STEPS if span // each < _MOST_MARKS), span)
        mark, shown_date = -(-self._first // step) * step, ""
        while mark <= self._last:
            x, shown = self._x(mark), _moment(mark)
            date, _, time = shown.partition(" ")
            yield f'<line class="mark" x1="{x}" y1="{_TOP}" x2="{x}" y2="{self._bottom}"/>'
            low = self._bottom + 15
            if step < _DAY and time:
                yield f'<text class="axis" x="{x}" y="{low}">{time[:5]}</text>'
                low += 14
            if date != shown_date:
                yield f'<text class="axis" x="{x}" y="{low}">{date}</text>'
                shown_date = date
            mark += step
        yield f'<text class="axis zone" x="{_LEFT - 10}" y="{self._bottom + 15}">UTC</text>'

    def _lane(self, lane: Lane, y: int) -> Iterable[str]:
        begin = self._first if lane.created_at is None else lane.created_at
        end = self._last if lane.revoked_at is None else lane.revoked_at
        yield "<g>"
        yield f"<title>{_text(lane.user_name)}, {_text(lane.token_id)}</title>"
        # A picture within the picture cuts off what is too long.
        yield f'<svg x="0" y="{y - _LANE // 2}" width="132" height="{_LANE}">'
        yield f'<text class="user" x="2" y="14">{_text(lane.user_name)}</text></svg>'
        yield f'<text class="id" x="140" y="{y + 4}">…{_text(lane.token_id[-8:])}</text>'
        if lane.revoked_at is not None:
            yield f'<line class="dead" x1="{self._x(end)}" y1="{y}" x2="{_RIGHT}" y2="{y}"/>'
        yield f'<line class="alive" x1="{self._x(begin)}" y1="{y}" x2="{self._x(end)}" y2="{y}"/>'
        yield from (f'<circle class="event" cx="{x}" cy="{y}" r="3.5"/>' for x in self._places(lane.dots))
        yield from (_cross(x, y) for x in self._places(lane.reuse))
        yield "</g>"

    def _places(self, instants: Iterable[int]) -> Iterable[float]:
        """Where they are; of those that would cover each other the first."""
        last_x = float("-inf")
        for at in instants:
            x = self._x(at)
            if self._first <= at <= self._last and x - last_x >= _DOTS_APART:
                yield x
                last_x = x

    def _revocation(self) -> Iterable[str]:
        first, last = self._story.revoked_from, self._story.revoked_until
        if first is None or last is None or not self._first <= first <= self._last:
            return
        left, right = self._x(first), self._x(min(last, self._last))
        top = _TOP - 8
        if right - left > 2:
            box = f'x="{left}" y="{top}" width="{round(right - left, 1)}" height="{self._bottom - top}"'
            yield f'<rect class="period" {box}/>'
        yield f'<line class="revoked" x1="{left}" y1="{top}" x2="{left}" y2="{self._bottom}"/>'
        side = "ends" if left > (_LEFT + _RIGHT) / 2 else "begins"
        yield f'<text class="revoked {side}" x="{left}" y="{top - 7}">revoked {_moment(first)[:16]}</text>'

    def _legend(self) -> Iterable[str]:
        y = self._bottom + _FOOT - 12
        x = _LEFT
        yield f'<line class="alive" x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}"/>'
        yield f'<text class="legend" x="{x + 30}" y="{y + 4}">alive</text>'
        yield f'<circle class="event" cx="{x + 90}" cy="{y}" r="3"/>'
        yield f'<text class="legend" x="{x + 100}" y="{y + 4}">event</text>'
        yield _cross(x + 165, y)
        yield f'<text class="legend" x="{x + 176}" y="{y + 4}">reuse</text>'
        yield f'<line class="revoked" x1="{x + 240}" y1="{y - 8}" x2="{x + 240}" y2="{y + 8}"/>'
        yield f'<text class="legend" x="{x + 248}" y="{y + 4}">revocation</text>'
        yield f'<line class="dead" x1="{x + 345}" y1="{y}" x2="{x + 369}" y2="{y}"/>'
        yield f'<text class="legend" x="{x + 375}" y="{y + 4}">after its end</text>'


def _cross(x: float, y: int) -> str:
    path = f"M{x - 5:g} {y - 5}L{x + 5:g} {y + 5}M{x + 5:g} {y - 5}L{x - 5:g} {y + 5}"
    return f'<path class="reuse" d="{path}"/>'


_STYLE = """
:root {
  --ground: #fff; --ink: #1b1f24; --soft: #57606a; --edge: #d0d7de; --panel: #f6f8fa;
  --alive: #1f6feb; --reuse: #b3261e; --dead: #b4bcc5; --revoked: #9a3d00; --good: #1a7f37;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f1318; --ink: #e6eaef; --soft: #9aa4b0; --edge: #303842; --panel: #181e26;
    --alive: #6ea8fe; --reuse: #ff8a80; --dead: #4a5360; --revoked: #ffb77c; --good: #6fd08c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
}
main, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0 0 .5rem; font-size: 2.1rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.3rem; }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem; }
section > p { max-width: 46rem; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .85em; }
pre {
  margin: .5rem 0; padding: .7rem .9rem; background: var(--panel); border: 1px solid var(--edge);
  border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere;
}
.figures { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
.figures div {
  flex: 1 1 6.5rem; display: flex; flex-direction: column-reverse; padding: .7rem .9rem;
  background: var(--panel); border: 1px solid var(--edge); border-radius: 6px;
}
.figures dt { color: var(--soft); font-size: .85rem; }
.figures dd { margin: 0; font-size: 1.6rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.seal { padding: .6rem .9rem; border-left: 4px solid var(--soft); background: var(--panel); }
.seal.good { border-color: var(--good); }
.seal.bad { border-color: var(--reuse); font-weight: 600; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--alive); outline-offset: 2px; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: .9rem; }
table { border-collapse: collapse; font-size: .875rem; min-width: min(100%, 36rem); }
th, td { padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--edge); text-align: left; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td { vertical-align: top; }
p time, td code { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td:first-child { max-width: 16rem; overflow-wrap: break-word; }
td time { display: inline-block; min-width: 5.5rem; }
.agent { max-width: 20rem; overflow-wrap: break-word; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
figure > div > svg { display: block; width: 100%; min-width: 52rem; height: auto; }
svg text { fill: var(--ink); font-size: 12px; unicode-bidi: isolate; }
svg .id { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 11px; }
svg .id, svg .axis, svg .legend { fill: var(--soft); }
svg .axis { text-anchor: middle; font-size: 11px; }
svg .zone { text-anchor: end; }
svg .mark { stroke: var(--edge); }
svg .alive { stroke: var(--alive); stroke-width: 2.5; }
svg .dead { stroke: var(--dead); stroke-width: 2; stroke-dasharray: 3 3; }
svg .event { fill: var(--ground); stroke: var(--alive); stroke-width: 2; }
svg .reuse { stroke: var(--reuse); stroke-width: 2.5; fill: none; }
svg line.revoked { stroke: var(--revoked); stroke-width: 2; }
svg text.revoked { fill: var(--revoked); font-weight: 600; }
svg .ends { text-anchor: end; }
svg .period { fill: var(--revoked); opacity: .15; }
footer { margin-top: 3rem; padding-bottom: 2.5rem; color: var(--soft); font-size: .85rem; }
footer p { padding-top: 1rem; border-top: 1px solid var(--edge); overflow-wrap: anywhere; }
@page { size: A4; margin: 14mm; }
@media print {
  :root {
    --ground: #fff; --ink: #000; --soft: #444; --edge: #bbb; --panel: #fff; --alive: #1f6feb;
    --reuse: #b3261e; --dead: #aaa; --revoked: #9a3d00; --good: #1a7f37;
  }
  body { font-size: 10.5pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main, footer { max-width: none; padding: 0; }
  header { padding-top: 0; }
  .scroll { overflow: visible; }
  figure > div > svg { min-width: 0; max-height: 250mm; }
  table { font-size: 7.5pt; }
  th, td { padding-right: .5rem; }
  td code { white-space: normal; overflow-wrap: anywhere; }
  td time { min-width: 0; }
  th { white-space: normal; }
  td:first-child, .agent { max-width: 38mm; }
  tr, figure, pre, .figures { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
