"""Rows of plans and plan_members: what a dry run has shown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tokenctl.core.selector import Selector, SelectState
from tokenctl.storage.schema import plan_members, plans

_ID_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be revoked, by its id. Instants in µs.

    tokens, users: how many, when it was made. `selector` is resolved; None where ids and strings were named.
    """

    id: str
    created_at: int
    expires_at: int
    actor: str
    selector: Selector | None
    tokens: int
    users: int


def insert(connection: Connection, plan: Plan) -> bool:
    """Store a plan without its members; False when there is one of that id."""
    if connection.scalar(sa.select(plans.c.id).where(plans.c.id == plan.id)) is not None:
        return False
    values = {column.name: getattr(plan, column.name) for column in plans.c}
    selector = None if plan.selector is None else json.dumps(as_data(plan.selector))
    connection.execute(sa.insert(plans), values | {"selector": selector})
    return True


def add_members(connection: Connection, plan_id: str, number: int, raw_ids: Iterable[bytes]) -> None:
    """Store the members of one row, which is the `number`th: at most CHUNK ids."""
    values = {"plan_id": plan_id, "number": number, "ids": b"".join(raw_ids)}
    connection.execute(sa.insert(plan_members), values)


def complete(connection: Connection, plan_id: str, *, expires_at: int) -> None:
    """From now on it can be acted on, until then (µs): all its members are there."""
    connection.execute(sa.update(plans).where(plans.c.id == plan_id).values(expires_at=expires_at))


def get(connection: Connection, plan_id: str) -> Plan | None:
    """The plan, over or not."""
    row = connection.execute(sa.select(plans).where(plans.c.id == plan_id)).one_or_none()
    if row is None:
        return None
    selector = None if row.selector is None else _from_json(row.selector)
    return Plan(**{**row._mapping, "selector": selector})


def members(connection: Connection, plan: Plan, number: int) -> list[bytes]:
    """The ids of the `number`th row of that plan's members, from 0; none behind the last.

    Of that plan: an id of four digits is given again when its plan was deleted.
    """
    joined = plan_members.join(plans, plans.c.id == plan_members.c.plan_id)
    statement = (
        sa.select(plan_members.c.ids)
        .select_from(joined)
        .where(plans.c.id == plan.id, plans.c.created_at == plan.created_at, plan_members.c.number == number)
    )
    ids = connection.scalar(statement) or b""
    return [ids[i : i + _ID_BYTES] for i in range(0, len(ids), _ID_BYTES)]


def delete_old(connection: Connection, *, before: int) -> None:
    """Delete the plans that were made before that instant (µs), finished or not."""
    connection.execute(sa.delete(plans).where(plans.c.created_at < before))


def as_data(selector: Selector) -> dict[str, Any]:
    """The selector as plain values."""
    return asdict(selector)


def _from_json(text: str) -> Selector:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(text).items()
    }
    return Selector(**(values | {"states": tuple(map(SelectState, values["states"]))}))
