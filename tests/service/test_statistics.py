"""The counts of the database, held against a count in Python over all rows and all events."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.conftest import START, Clock
from tests.service import DAY, SECOND, add_logins, add_rows, login_row, run_sql, statements
from tests.service.test_selectors import CUT_OFF, rows, selectors, write
from tokenctl import RefreshToken, Selector, Settings, State, TokenService
from tokenctl.core.context import hash_device, pack_ip
from tokenctl.errors import ClientNotFound, EmptySelector, InvalidInput, TokenNotFound, UserNotFound

HOUR = 3_600 * SECOND
EVERYTHING = Selector(everything=True)
#: The types that are counted, in the order of the fields of an Hour; then two that are not.
COUNTED = ["token.issue", "token.rotate", "token.reuse", "token.revoke", "token.refuse"]
TYPES = [*COUNTED, "login.failed", "token.reissue"]
MOMENTS = [START - hours * HOUR + tick for hours in (48, 24, 23, 22, 2, 1, 0) for tick in (-1, 0, 1)]


@st.composite
def happenings(draw: st.DrawFn, numbers: int) -> dict[str, Any]:
    """An event of one of the logins, of one that is gone, or of none."""
    token_id = draw(st.none() | st.integers(1, numbers).map(lambda number: number.to_bytes(16, "big")))
    at = draw(st.sampled_from(MOMENTS))
    return {"at": at, "type": draw(st.sampled_from(TYPES)), "token_id": token_id, "data": "{}"}


def write_events(settings: Settings, drawn: list[dict[str, Any]]) -> None:
    run_sql(settings, "DELETE FROM events")
    add_rows(settings, "events", drawn)


@pytest.fixture
def users(service: TokenService, settings: Settings) -> None:
    service.create_user("ada")
    service.create_user("bob")
    service.clients.create("app")
    run_sql(settings, "UPDATE users SET not_before = ? WHERE name = 'bob'", CUT_OFF)


def context_of(row: RefreshToken, kind: str) -> set[bytes]:
    return {getattr(each, kind) for each in (row.issued, row.last)} - {None}


@pytest.mark.usefixtures("users")
class TestCountsWhatAFilterCounts:
    @given(drawn=st.lists(rows(), max_size=12), data=st.data())
    @hypothesis_settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_statistics(
        self, service: TokenService, settings: Settings, drawn: list[dict[str, Any]], data: st.DataObject
    ) -> None:
        write(service, settings, drawn)
        happened = data.draw(st.lists(happenings(len(drawn) + 2), max_size=12))
        write_events(settings, happened)
        for selector in (EVERYTHING, *data.draw(st.lists(selectors(len(drawn) + 1), max_size=4))):
            found = list(service.list(selector))
            hours = data.draw(st.sampled_from([1, 2, 24]))
            seen = service.statistics(selector, top=2, hours=hours)
            assert seen.at == START
            self.demand_counts(seen, found)
            self.demand_lists(seen, [row for row in found if row.is_valid(START)])
            # What a row is known by to its events; a selector that does not restrict has them all.
            ids = {bytes.fromhex(row.id.removeprefix("rt_")) for row in found}
            restricts = selector != EVERYTHING
            counted = [each for each in happened if not restricts or each["token_id"] in ids]
            assert [tuple(each) for each in seen.hours] == hours_of(counted, hours)

    def demand_counts(self, seen: Any, found: list[RefreshToken]) -> None:
        live = [row for row in found if row.is_valid(START)]
        assert seen.states == {state: sum(row.state(START) is state for row in found) for state in State}
        assert seen.users == len({row.user_id for row in live})
        ends = [min(row.expires_at, row.idle_expires_at or row.expires_at) for row in live]
        assert seen.expiring == {
            name: sum(end <= START + span for end in ends)
            for name, span in (("1h", HOUR), ("24h", DAY), ("7d", 7 * DAY))
        }

    def demand_lists(self, seen: Any, live: list[RefreshToken]) -> None:
        by_client, by_ip, by_user = defaultdict(list), defaultdict(list), defaultdict(list)
        for row in live:
            by_client[row.client_id].append(row)
            by_ip[row.last.ip].append(row)
            by_user[row.user_id, row.user_name].append(row)
        clients = [(-len(of), -len({row.user_id for row in of}), key) for key, of in by_client.items()]
        assert [(-each.live, -each.users, each.client_id) for each in seen.clients] == sorted(clients)[:2]
        assert seen.client_count == len(by_client)
        # The address that is not known comes before its equals.
        ips = sorted((-len({row.user_id for row in of}), -len(of), key or b"") for key, of in by_ip.items())
        assert [
            (-each.users, -each.live, b"" if each.ip is None else pack_ip(each.ip)) for each in seen.addresses
        ] == ips[:2]
        assert seen.address_count == len(by_ip)
        widest = sorted(
            (-len({row.last.ip for row in of} - {None}), -len(of), *key) for key, of in by_user.items()
        )
        assert [
            (-each.addresses, -each.live, each.user_id, each.user_name) for each in seen.widest_users
        ] == widest[:2]

    @given(drawn=st.lists(rows(), min_size=2, max_size=12), limit=st.integers(1, 12))
    @hypothesis_settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_related(
        self, service: TokenService, settings: Settings, drawn: list[dict[str, Any]], limit: int
    ) -> None:
        write(service, settings, drawn)
        everything = list(service.list(EVERYTHING))
        for row in everything:
            shared = {
                other.id: tuple(
                    kind for kind in ("ip", "device") if context_of(row, kind) & context_of(other, kind)
                )
                for other in everything
                if other.id != row.id
            }
            expected = sorted(
                (other for other in everything if shared.get(other.id)),
                key=lambda other: (not other.is_valid(START), -other.rotated_at, -int(other.id[3:], 16)),
            )
            found = service.related(row.id, limit=limit)
            assert found.total == len(expected)
            assert [(each.token, each.state, each.shared) for each in found.logins] == [
                (other, other.state(START), shared[other.id]) for other in expected[:limit]
            ]


def hours_of(happened: list[dict[str, Any]], hours: int) -> list[tuple[int, ...]]:
    """Each of the hours up to the running one, with what was counted in it."""
    counts = Counter((each["at"] // HOUR, each["type"]) for each in happened if each["at"] <= START)
    last = START // HOUR
    return [
        (hour * HOUR, *(counts[hour, type_] for type_ in COUNTED))
        for hour in range(last - hours + 1, last + 1)
    ]


class TestStatistics:
    def test_of_nothing(self, service: TokenService, settings: Settings) -> None:
        run_sql(settings, "DELETE FROM events")
        seen = service.statistics(EVERYTHING)
        assert not any(seen.states.values())
        assert (seen.users, *seen.expiring.values()) == (0, 0, 0, 0)
        assert (seen.client_count, seen.clients, seen.address_count, seen.addresses) == (0, [], 0, [])
        assert seen.widest_users == []
        assert [tuple(each) for each in seen.hours] == hours_of([], 24)

    def test_counts_what_the_service_notes(self, service: TokenService, clock: Clock) -> None:
        """The types of the events are those that the use cases write."""
        from tokenctl.core.context import Context
        from tokenctl.errors import TokenRefused

        service.create_user("ada")
        first, second = service.issue("ada"), service.issue("ada")
        clock.now += HOUR
        service.rotate(first.refresh_token, context=Context.of(ip="192.0.2.1"))
        clock.now += HOUR
        for _ in range(2):  # reuse, and then a string of a dead login
            with pytest.raises(TokenRefused):
                service.rotate(first.refresh_token)
        service.revoke([second.token_id], reason="test")
        seen = service.statistics(Selector(users=("ada",)), hours=3)
        assert [tuple(each)[1:] for each in seen.hours] == [
            (2, 0, 0, 0, 0),
            (0, 1, 0, 0, 0),
            (0, 0, 1, 1, 1),
        ]
        [of_first, _] = (service.statistics(Selector(token_ids=(each.token_id,))) for each in (first, second))
        assert sum(hour.issued for hour in of_first.hours) == 1
        # What is gone can be selected no more, and still happened.
        service.users.delete("ada", reason="test")
        everything = service.statistics(EVERYTHING, hours=3)
        assert sum(hour.issued for hour in everything.hours) == 2
        assert sum(everything.states.values()) == 0

    @pytest.mark.parametrize(
        ("selector", "limits", "error"),
        [
            pytest.param(Selector(), {}, EmptySelector, id="empty"),
            pytest.param(Selector(users=("nobody",)), {}, UserNotFound, id="user"),
            pytest.param(Selector(clients=("none",)), {}, ClientNotFound, id="client"),
            pytest.param(EVERYTHING, {"top": 0}, InvalidInput, id="top"),
            pytest.param(EVERYTHING, {"top": 1_001}, InvalidInput, id="large top"),
            pytest.param(EVERYTHING, {"hours": 0}, InvalidInput, id="hours"),
            pytest.param(EVERYTHING, {"hours": 169}, InvalidInput, id="many hours"),
        ],
    )
    def test_refused(
        self, service: TokenService, selector: Selector, limits: dict[str, int], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            service.statistics(selector, **limits)

    def test_as_much_as_can_be_asked_for(self, service: TokenService, settings: Settings) -> None:
        service.create_user("ada")
        ids = add_logins(settings, [login_row(1, service.users.get("ada").id)])
        others = (f"rt_{number:032x}" for number in range(2, 100_000))
        seen = service.statistics(Selector(token_ids=(*ids, *others)), top=1_000, hours=168)
        assert (seen.states[State.LIVE], len(seen.hours)) == (1, 168)


class TestRelated:
    def test_nothing_known_shares_nothing(self, service: TokenService) -> None:
        """And asks nothing of the whole table."""
        service.create_user("ada")
        pair = service.issue("ada")
        service.issue("ada")
        with statements(service) as sent:
            found = service.related(pair.token_id)
        assert (found.total, found.logins) == (0, [])
        assert sum("refresh_tokens" in each for each in sent) == 1

    def test_reads_the_table_once(self, service: TokenService, settings: Settings) -> None:
        service.create_user("ada")
        context = {"last_ip": pack_ip("192.0.2.1"), "issued_device": hash_device("laptop")}
        ada = service.users.get("ada").id
        token_ids = add_logins(settings, [login_row(number, ada, **context) for number in range(1, 30)])
        with statements(service) as sent:
            found = service.related(token_ids[0])
        assert (found.total, len(found.logins)) == (28, 20)
        whole = [each for each in sent if "refresh_tokens" in each and "refresh_tokens.id IN" not in each]
        assert len(whole) == 1

    @pytest.mark.parametrize(
        ("token_id", "limit", "error"),
        [
            pytest.param("rt_" + "0" * 32, 20, TokenNotFound, id="unknown"),
            pytest.param("nonsense", 20, InvalidInput, id="no id"),
            pytest.param("rt_" + "0" * 32, 0, InvalidInput, id="none at all"),
        ],
    )
    def test_refused(self, service: TokenService, token_id: str, limit: int, error: type[Exception]) -> None:
        with pytest.raises(error):
            service.related(token_id, limit=limit)
