"""Charges: reserved for all before anything starts, charged once whatever is retried, given back once, never lost."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterable
from uuid import uuid4

import pytest
import sqlalchemy as sa

from export_pipeline.database.enums import ChargeStatus, NotificationStatus, Stage
from export_pipeline.database.tables import email_charges, export_requests, organizations
from export_pipeline.failures import ExportCanceled, ExportFailure, FailureCode
from export_pipeline.requests import billing, notifications, ownership, queue, transitions
from export_pipeline_tests.requests.charges import charges
from export_pipeline_tests.requests.test_states import FAILURE, ask, begin, claim, complete, enter, row, running

ANA, BOB, EVE = "ana@example.com", "bob@example.com", "eve@example.com"


def bill(database: sa.Engine, balance: int | None, organization: str = "acme") -> None:
    with database.begin() as connection:
        changed = connection.execute(
            organizations.update().where(organizations.c.id == organization).values(email_balance=balance)
        )
        if not changed.rowcount:
            connection.execute(organizations.insert().values(id=organization, email_balance=balance))


def balance_of(connection: sa.Connection, organization: str = "acme") -> int | None:
    return connection.execute(
        sa.select(organizations.c.email_balance).where(organizations.c.id == organization)
    ).scalar()


def account(database: sa.Engine, organization: str = "acme") -> tuple[int | None, int, int, int]:
    """Balance, reserved, charged, released."""
    with database.connect() as connection:
        counted = charges(connection, organization_id=organization)
        reserved, charged, released = (counted[status] for status in ChargeStatus)
        return balance_of(connection, organization), reserved, charged, released


def uid_of(database: sa.Engine, request_id: int) -> str:
    return str(row(database, request_id).uid)


def reserve(database: sa.Engine, uid: str, recipients: Iterable[str], organization: str = "acme") -> int:
    with database.begin() as connection:
        billing.check_balance(connection, organization, uid, recipients)
        return billing.reserve(connection, organization, uid, recipients)


def test_reserved_once_however_often_it_is_asked_for(database: sa.Engine) -> None:
    bill(database, 3)
    uid = str(uuid4())
    assert reserve(database, uid, [ANA, BOB]) == 2
    assert reserve(database, uid, [ANA, BOB]) == 0
    assert account(database) == (1, 2, 0, 0)
    assert reserve(database, uid, [BOB, EVE, EVE]) == 1  # an empty balance is no refusal of what is paid
    assert reserve(database, uid, [ANA, BOB, EVE]) == 0
    assert account(database) == (0, 3, 0, 0)


def test_all_are_reserved_or_nobody(database: sa.Engine) -> None:
    bill(database, 2)
    uid = str(uuid4())
    for refusing in (billing.check_balance, billing.reserve):
        with pytest.raises(ExportFailure, match=r"\(cost 3 credits\)") as refused, database.begin() as connection:
            refusing(connection, "acme", uid, [ANA, BOB, EVE])
        assert refused.value.code is FailureCode.INSUFFICIENT_BALANCE
        assert account(database) == (2, 0, 0, 0)


def test_charged_once_and_released_once_whatever_is_repeated(database: sa.Engine) -> None:
    bill(database, 5)
    uid = str(uuid4())
    reserve(database, uid, [ANA, BOB, EVE])
    with database.begin() as connection:
        assert [billing.charge(connection, uid, ANA) for _ in range(2)] == [True, False]
        assert [billing.release(connection, uid, BOB) for _ in range(2)] == [1, 0]
        assert not billing.charge(connection, uid, BOB)
        assert billing.release(connection, uid, ANA) == 0  # what is spent stays spent
    assert account(database) == (3, 1, 1, 1)
    assert reserve(database, uid, [ANA, BOB, EVE]) == 1  # Bob's was given back: it is paid again
    with database.begin() as connection:
        assert [billing.release(connection, uid) for _ in range(2)] == [2, 0]
    assert account(database) == (4, 0, 1, 2)


def test_who_is_not_billed_leaves_no_charges(database: sa.Engine) -> None:
    bill(database, None)
    for organization in ("acme", "no-row"):
        uid = str(uuid4())
        assert reserve(database, uid, [ANA], organization) == 0
        with database.begin() as connection:
            assert not billing.charge(connection, uid, ANA)
            assert billing.release(connection, uid) == 0
        assert account(database, organization) == (None, 0, 0, 0)


def test_billing_switched_in_between_gives_back_what_was_taken_and_no_more(database: sa.Engine) -> None:
    bill(database, 5)
    before, after = str(uuid4()), str(uuid4())
    reserve(database, before, [ANA, BOB])
    bill(database, None)
    reserve(database, after, [ANA])
    with database.begin() as connection:
        assert billing.release(connection, before, ANA) == 1
    assert account(database) == (None, 1, 0, 1)
    bill(database, 10)
    with database.begin() as connection:
        assert billing.release(connection, after) == 0
        assert billing.release(connection, before) == 1
    assert account(database) == (11, 0, 0, 2)


def test_of_two_requests_for_the_last_executions_one_wins(database: sa.Engine) -> None:
    bill(database, 3)
    ready = threading.Barrier(2)
    ends: list[str] = []

    def race() -> None:
        try:
            with database.begin() as connection:
                if database.dialect.name == "postgresql":
                    connection.execute(sa.text("SELECT 1"))  # SQLite lets one transaction begin at a time
                    ready.wait()
                billing.reserve(connection, "acme", str(uuid4()), [ANA, BOB])
            ends.append("reserved")
        except ExportFailure as refused:
            ends.append(refused.code.value)

    threads = [threading.Thread(target=race) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["insufficient_balance", "reserved"]
    assert account(database) == (1, 2, 0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_made_on_any_way(database: sa.Engine, seed: int) -> None:
    """A random walk beside a model: balance + reserved + charged stays what was put in, and never below nothing."""
    walk = random.Random(seed)
    everybody = [f"r{n}@example.com" for n in range(4)]
    uids = [str(uuid4()) for _ in range(3)]
    put_in = 6
    bill(database, put_in)
    model: dict[tuple[str, str], ChargeStatus] = {}
    with database.begin() as connection:
        for _ in range(150):
            uid, who = walk.choice(uids), walk.choice(everybody)
            balance = balance_of(connection) or 0
            match walk.choice(["reserve", "reserve", "charge", "release", "release all", "top up"]):
                case "reserve":
                    some = walk.sample(everybody, walk.randint(0, 4))
                    unpaid = [one for one in some if model.get((uid, one)) in (None, ChargeStatus.RELEASED)]
                    if len(unpaid) <= balance:
                        assert billing.reserve(connection, "acme", uid, some) == len(unpaid)
                        model |= dict.fromkeys([(uid, one) for one in unpaid], ChargeStatus.RESERVED)
                    else:
                        with pytest.raises(ExportFailure):
                            billing.reserve(connection, "acme", uid, some)
                case "charge":
                    owed = model.get((uid, who)) is ChargeStatus.RESERVED
                    assert billing.charge(connection, uid, who) is owed
                    if owed:
                        model[uid, who] = ChargeStatus.CHARGED
                case "release":
                    owed = model.get((uid, who)) is ChargeStatus.RESERVED
                    assert billing.release(connection, uid, who) == owed
                    if owed:
                        model[uid, who] = ChargeStatus.RELEASED
                case "release all":
                    held = [key for key, status in model.items() if key[0] == uid and status is ChargeStatus.RESERVED]
                    assert billing.release(connection, uid) == len(held)
                    model |= dict.fromkeys(held, ChargeStatus.RELEASED)
                case "top up":
                    put_in += 1
                    connection.execute(organizations.update().values(email_balance=organizations.c.email_balance + 1))
            counted = charges(connection, organization_id="acme")
            assert {status: n for status, n in counted.items() if n} == Counter(model.values())
            balance = balance_of(connection) or 0
            assert balance >= 0
            assert balance + counted[ChargeStatus.RESERVED] + counted[ChargeStatus.CHARGED] == put_in


def paid(database: sa.Engine, balance: int = 5) -> int:
    """A running request whose two mails are paid for."""
    bill(database, balance)
    request_id = running(database)
    reserve(database, uid_of(database, request_id), [ANA, BOB])
    return request_id


def test_whatever_ends_a_request_without_mail_gives_everything_back_once(database: sa.Engine) -> None:
    for end in ("fail", "give up", "cancel"):
        request_id = paid(database)
        with database.begin() as connection:
            match end:
                case "fail":
                    assert not transitions.fail(connection, request_id, FAILURE, run_id="another")
                    assert charges(connection, request_uid=_uid(connection, request_id))["reserved"] == 2
                    assert transitions.fail(connection, request_id, FAILURE, run_id="run-1")
                case "give up":
                    assert transitions.give_up(connection, request_id, FAILURE, attempt=1, run_id="run-1")
                case "cancel":
                    for first in (True, False):
                        done = transitions.cancel(connection, request_id, by_requester="r", by_operator="o")
                        assert done is first
        assert account(database)[:3] == (5, 0, 0), end


def _uid(connection: sa.Connection, request_id: int) -> str:
    return str(connection.execute(sa.select(export_requests.c.uid).where(export_requests.c.id == request_id)).scalar())


def test_a_request_that_goes_back_to_the_queue_keeps_what_is_reserved(database: sa.Engine) -> None:
    request_id = paid(database)
    uid = uid_of(database, request_id)
    with database.begin() as connection:
        assert queue.release(connection, request_id, attempt=1, run_id="run-1", charged=True)
    claim(database)
    begin(database, request_id, run_id="run-2", attempt=2)
    assert reserve(database, uid, [ANA, BOB]) == 0
    assert account(database) == (3, 2, 0, 0)


def mail(database: sa.Engine, request_id: int, ends: dict[str, NotificationStatus]) -> None:
    with database.begin() as connection:
        notifications.close_interrupted(connection, request_id)
        waiting = notifications.pending(connection, request_id)
    for notification_id, recipient in waiting:
        with database.begin() as connection:
            assert notifications.start_sending(connection, notification_id)
        if recipient in ends:
            for _ in range(2):  # told twice is told once
                with database.begin() as connection:
                    notifications.record_result(connection, notification_id, ends[recipient])


def test_a_re_executed_request_is_paid_again_and_each_mail_is_charged_by_its_end(database: sa.Engine) -> None:
    request_id = paid(database)
    uid = uid_of(database, request_id)
    with database.begin() as connection:
        transitions.fail(connection, request_id, FAILURE, run_id="run-1")
    assert account(database) == (5, 0, 0, 2)
    enter(database, request_id, Stage.UPLOAD, run_id="run-2", lineage=["run-1"])
    complete(database, request_id, run_id="run-2")
    everybody = [ANA, BOB, EVE, "dan@example.com"]
    with database.begin() as connection:
        notifications.enqueue(connection, request_id, everybody)
        billing.reserve(connection, "acme", uid, everybody)
    assert account(database) == (1, 4, 0, 0)
    mail(
        database,
        request_id,
        {ANA: NotificationStatus.SENT, BOB: NotificationStatus.REFUSED, EVE: NotificationStatus.PENDING},
    )
    # Ana's is spent, Bob's given back, Eve's not taken for now, and Dan's process died while it was sending.
    assert account(database) == (2, 2, 1, 1)
    mail(database, request_id, {EVE: NotificationStatus.SENT})
    assert account(database) == (2, 0, 3, 1)
    mail(database, request_id, {})
    with database.connect() as connection:
        charged = sa.select(email_charges.c.recipient).where(email_charges.c.status == "charged")
        assert set(connection.execute(charged).scalars()) == {ANA, EVE, "dan@example.com"}
        assert sum(charges(connection, request_uid=uid).values()) == 4
        assert charges(connection) == charges(connection, organization_id="acme")


def test_a_mail_of_who_is_not_billed_settles_all_the_same(database: sa.Engine) -> None:
    request_id = ask(database)
    with database.begin() as connection:
        notifications.enqueue(connection, request_id, [ANA, BOB])
    mail(database, request_id, {ANA: NotificationStatus.SENT, BOB: NotificationStatus.REFUSED})
    with database.connect() as connection:
        assert notifications.counts(connection, request_id) == {
            NotificationStatus.SENT: 1,
            NotificationStatus.REFUSED: 1,
        }
    assert account(database) == (None, 0, 0, 0)


def test_a_cancel_waits_for_a_payment_and_gives_it_back(database: sa.Engine) -> None:
    """Were it not to wait, it would find nothing reserved, and the payment of a canceled request would stay."""
    bill(database, 5)
    request_id = running(database)
    uid = uid_of(database, request_id)
    started = threading.Event()

    def cancel() -> None:
        started.set()
        with database.begin() as connection:
            assert transitions.cancel(connection, request_id, by_requester="r", by_operator="o")

    canceling = threading.Thread(target=cancel)
    with database.begin() as connection:
        ownership.lock(connection, request_id, run_id="run-1")
        canceling.start()
        started.wait()
        canceling.join(timeout=0.2)  # a cancel that does not wait is through by then
        assert canceling.is_alive()
        billing.reserve(connection, "acme", uid, [ANA, BOB])
    canceling.join()
    assert account(database) == (5, 0, 0, 2)
    with pytest.raises(ExportCanceled), database.begin() as connection:
        ownership.lock(connection, request_id, run_id="run-1")
