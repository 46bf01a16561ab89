"""README.txt of an evidence bundle: what each file is, how to verify it, and what that does not prove."""

from __future__ import annotations

from tokenctl.service.evidence_lines import printable


def readme(*, reason: str, made_at: str, made_by: str, seal: str, head: str | None, has_export: bool) -> str:
    """The text. `head` of the audit log, if there is one; `has_export`: whether the log's export is there."""
    title = f"Evidence of {printable(reason)}"
    return _TEXT.format(
        title=title,
        line="=" * len(title),
        made_at=made_at,
        made_by=printable(made_by),
        seal=seal,
        head_file="" if head is None else _HEAD_FILE,
        export_file=_EXPORT_FILE if has_export else "",
        verify_export=_VERIFY_EXPORT if has_export else "",
        verify_head="" if head is None else _VERIFY_HEAD,
    )


_TEXT = """\
{title}
{line}

Made at {made_at} by {made_by}. All times are UTC.

What is here
------------

summary.html        What happened, for reading in any browser; it loads nothing from anywhere.
summary.json        The same numbers for a program.
plans.json          The plans (what dry runs had shown) that were acted on with this reason: who made
                    them, who acted on them, and how many logins each ended.
before.jsonl        The logins that were revoked with this reason, one a line, in order of their ids, as
                    they were just before that.
after.jsonl         The same logins as they were when this was made.
events.jsonl        The audit events of these logins, of the plans, and all others with this reason, in
                    order; each with the number of the sealed segment that holds it (null: not sealed).
{head_file}{export_file}SHA256SUMS          The sums of these files.

A login that was purged meanwhile has "purged": true, and only what its events tell. "before" is the row
without its revocation, since nothing else changes a row after that; whether it was live or blocked then
follows from the user and the cut-offs as they are now, as far as they are older than the revocation.

No file holds a token, the hash of one, a password or a key. They do hold names, addresses and user agents:
they are personal data.

How to verify
-------------

That the files are those that were made, by anybody:

    sha256sum -c SHA256SUMS
{verify_export}{verify_head}
{seal}

What none of this proves
------------------------

Events are sealed some time after they were stored; whoever could write to the database before that could
change them. The sums in SHA256SUMS protect against accidents: keep the sum of the whole archive, which
`tokenctl evidence` printed, where nobody can change it.
"""
_HEAD_FILE = """\
audit-head.txt      The end of the audit log when this was made; see below.
"""
_EXPORT_FILE = """\
audit-export.jsonl  The sealed segments from the first to the last of these events, as `tokenctl audit
                    export` writes them. They also hold events of other logins of that time.
"""
_VERIFY_EXPORT = """
That the events are those that were sealed, by whoever has the master key and the database's address. Each
line of events.jsonl stands in audit-export.jsonl, too, there with its MAC:

    tokenctl audit verify --export audit-export.jsonl
"""
_VERIFY_HEAD = """
That the audit log still has all that it had when this was made:

    tokenctl audit verify --head "$(cat audit-head.txt)"
"""
