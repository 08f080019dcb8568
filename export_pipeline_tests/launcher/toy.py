"""A code location of small jobs, which the launcher's tests launch."""

import os
import random
import secrets
import threading
import time
import uuid
from pathlib import Path

import dagster as dg
import numpy as np


class Place(dg.Config):
    """Where an op writes what it found."""

    path: str = ""


@dg.op
def write_pids(context: dg.OpExecutionContext, config: Place) -> None:
    context.log.info("written")
    print("captured")  # noqa: T201
    Path(config.path).write_text(f"{os.getpid()} {os.getppid()} {os.getpgid(0)} {threading.active_count()}")


@dg.op
def fail() -> None:
    raise dg.Failure("on purpose")


@dg.op
def write_tokens(config: Place) -> None:
    import polars as pl

    assert pl.DataFrame({"n": [3, 1, 2]}).sort("n")["n"].to_list() == [1, 2, 3]
    tokens = [random.random(), np.random.random(), secrets.token_hex(), uuid.uuid4(), uuid.uuid1()]  # noqa: NPY002
    Path(config.path).write_text("\n".join(map(str, tokens)))


@dg.op
def sleep(config: Place) -> None:
    Path(config.path).write_text(str(os.getpid()))
    for _ in range(600):
        time.sleep(0.1)


@dg.job(executor_def=dg.in_process_executor)
def good() -> None:
    write_pids()


@dg.job(executor_def=dg.in_process_executor)
def bad() -> None:
    fail()


@dg.job(executor_def=dg.in_process_executor)
def tokens() -> None:
    write_tokens()


@dg.job(executor_def=dg.in_process_executor)
def slow() -> None:
    sleep()


@dg.job(executor_def=dg.multiprocess_executor)
def many() -> None:
    write_pids()


defs = dg.Definitions(jobs=[good, bad, tokens, slow, many])
