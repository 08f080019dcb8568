"""Kills at random moments, while requests are always in flight.

What belongs here: who is killed when. What does not: killing (``supervisor``), what is promised (``promises``).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from export_pipeline_tests.faults.exports import KINDS, Asked, ask
from export_pipeline_tests.faults.promises import at_rest
from export_pipeline_tests.faults.supervisor import CODE_SERVER, DAEMON, Supervisor, kill
from export_pipeline_tests.stack import Stack

LONGEST_DELAY = {
    "plan": 0.05,
    "filter_entities": 0.25,
    "serialize": 0.2,
    "upload": 0.1,
    "publish": 0.04,
    "notify_recipients": 0.06,
}
"""Seconds after an op began, by op: about as long as it takes here."""
FORK_SERVER, ALL, BOTH = "fork-server", "code-server, fork-server and worker", "fork-server and worker"
IN_FLIGHT = 12
_KILL_SECONDS = 300.0

_TELL_STAGES = """
CREATE FUNCTION tell_stage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_notify('stage', NEW.stage || ' ' || NEW.run_id); RETURN NULL; END $$;
CREATE TRIGGER tell_stage AFTER UPDATE ON export_requests FOR EACH ROW
WHEN (NEW.stage IS DISTINCT FROM OLD.stage AND NEW.stage IS NOT NULL) EXECUTE FUNCTION tell_stage();
"""


@dataclass
class Storm:
    """Kills until the list is done; what was hit is counted in ``killed``."""

    stack: Stack
    supervisor: Supervisor
    chance: random.Random
    listener: psycopg.Connection[tuple[object, ...]]
    asked: list[Asked] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)

    def strike_all(self, targets: Sequence[str]) -> None:
        """Kill everything in the list; of the workers, whichever of the wanted ops one comes to first."""
        ops = Counter(target for target in targets if target in LONGEST_DELAY)
        for target in targets:
            deadline = time.monotonic() + _KILL_SECONDS
            if target not in LONGEST_DELAY:
                while not self._strike(target):
                    assert time.monotonic() < deadline, f"no {target} to kill; {self.stack.logs()}"
                continue
            while (hit := self._kill_in_op(ops)) is None:
                assert time.monotonic() < deadline, f"no worker to kill; {self.stack.logs()}"
            ops[hit] -= 1

    def _strike(self, target: str) -> bool:
        """Kill a process (or several together), and start again what a supervisor looks after."""
        run_id, _ = self._moment(LONGEST_DELAY)
        if target in (CODE_SERVER, DAEMON):
            restart = self.supervisor.kill(target)
            time.sleep(self.chance.uniform(0, 2))  # a supervisor's pause before it starts a process again
            restart()
            return self._count(target, hit=True)
        server, worker = self.supervisor.fork_server(run_id), self.supervisor.worker(run_id)
        if server is None or worker is None:
            return False
        restart = self.supervisor.kill(CODE_SERVER) if target == ALL else None
        hit = kill(server) and (target == FORK_SERVER or kill(worker))
        if restart is not None:
            restart()
        return self._count(target, hit=hit)

    def _kill_in_op(self, wanted: Counter[str]) -> str | None:
        """Kill a worker in one of the wanted ops: that in which its row says it died; None if it was another."""
        run_id, stage = self._moment([op for op, number in wanted.items() if number > 0])
        worker = self.supervisor.worker(run_id)
        if worker is None or not kill(worker) or self.supervisor.status(run_id) == "SUCCESS":
            return None
        with psycopg.connect(self.stack.database_url) as connection:
            found = connection.execute("SELECT stage FROM export_requests WHERE run_id = %s", [run_id]).fetchone()
        # Requeued already: it died where it was seen last.
        died_in = str(found[0]) if found is not None and found[0] is not None else stage
        self._count(died_in, hit=True)
        return died_in if wanted[died_in] > 0 else None

    def _count(self, target: str, *, hit: bool) -> bool:
        self.killed[target] += hit
        return hit

    def _moment(self, ops: Container[str]) -> tuple[str, str]:
        """A random moment in the middle of one of these ops: the run's id, and the op."""
        deadline = time.monotonic() + _KILL_SECONDS
        while time.monotonic() < deadline:
            self.refill()
            for told in self.listener.notifies(timeout=0.5, stop_after=1):
                op, run_id = told.payload.split()
                if op in ops:
                    time.sleep(self.chance.uniform(0, LONGEST_DELAY[op]))
                    return run_id, op
        raise AssertionError(f"no run came to {ops}; {self.stack.logs()}")

    def refill(self) -> None:
        """Ask for more, so that requests are always in flight."""
        with psycopg.connect(self.stack.database_url) as connection:
            found = connection.execute(
                "SELECT count(*) FROM export_requests WHERE status IN ('queued', 'running')"
            ).fetchone()
        assert found is not None
        for _ in range(IN_FLIGHT - found[0]):
            self.asked.append(ask(self.stack, self.chance.choice(list(KINDS))))

    def wait_for_rest(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not at_rest(self.stack, self.asked):
            assert time.monotonic() < deadline, self.stack.logs()
            time.sleep(0.5)


@contextmanager
def storm(stack: Stack, supervisor: Supervisor, chance: random.Random) -> Iterator[Storm]:
    with psycopg.connect(stack.database_url, autocommit=True) as listener:
        listener.execute(_TELL_STAGES)
        listener.execute("LISTEN stage")
        yield Storm(stack, supervisor, chance, listener)
