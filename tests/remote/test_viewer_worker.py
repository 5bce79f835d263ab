"""A question of the viewer that is cancelled: its wait ends at once, and the worker's job too."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import remote.servers
from client import Client
from model_loader import get_model
from remote.retries import Patience
from remote.viewer_worker import worker_of
from serving import http_api, http_docs
from tests.support.demo_worker import demo_settings
from tests.support.held_jobs import n_failed, until_hung_up
from tests.support.http_server import get
from tests.support.polling import until
from tests.support.runpod_endpoint import ENDPOINT_ID, USER_KEY, RunpodEndpoint
from viewer.worker_door import NoAnswer

ACTIONS = ["forward-pass", "intervene", "steer"]


class Asked:
    """A question that waits for its worker in a thread of its own."""

    def __init__(self, client, action="intervene"):
        self.stopped, self.reports = threading.Event(), []
        job = {"action": action, **http_docs.EXAMPLES[action]}
        pool = ThreadPoolExecutor(1)
        self._waiting = pool.submit(worker_of(client).run, job, self.reports.append, self.stopped)
        pool.shutdown(wait=False)

    def cancel(self):
        """What the wait says at its end."""
        self.stopped.set()
        until(self._waiting.done)
        error = self._waiting.exception()
        assert isinstance(error, NoAnswer), error
        return str(error)


@pytest.mark.parametrize("action", ACTIONS)
def test_cancel_ends_the_wait_for_start_py_at_once_and_the_job_with_it(action, server, held_model):
    entered, go_on = held_model
    failed = n_failed(server)
    with Client.to_url(server.url) as client:
        asked = Asked(client, action)
        assert entered.wait(60)
        assert asked.cancel() == "the job is cancelled: the connection is closed"
    until_hung_up(server)
    go_on.set()
    assert n_failed(server) == failed + 1


def test_cancel_ends_the_wait_for_a_worker_that_is_busy(server, monkeypatch):
    monkeypatch.setattr(http_api, "RETRY_AFTER_S", 60)
    with get_model(demo_settings()).lock, Client.to_url(server.url) as client:
        asked = Asked(client)
        until(lambda: any("trying again" in words for words in asked.reports))
        assert "the job is cancelled" in asked.cancel()


def test_cancel_ends_the_wait_for_runpod_and_cancels_the_job_there(plane, monkeypatch):
    monkeypatch.setattr(remote.servers, "_FIRST_POLL_S", 100.0)
    with RunpodEndpoint(plane) as endpoint:
        where = {"base_url": endpoint.base_url, "patience": Patience(outage_s=5.0)}
        with Client.to_runpod(ENDPOINT_ID, USER_KEY, **where) as client:
            asked = Asked(client)
            until(lambda: any("in the queue" in words for words in asked.reports))
            said = asked.cancel()
        [job_id] = endpoint.cancelled
        assert said == f"job {job_id} is cancelled"


def test_a_question_that_is_cancelled_before_it_is_asked_never_becomes_a_job(server):
    done = get(server, "/health").json()["jobs"]
    with Client.to_url(server.url) as client:
        worker, stopped = worker_of(client), threading.Event()
        stopped.set()
        job = {"action": "forward-pass", **http_docs.EXAMPLES["forward-pass"]}
        with pytest.raises(NoAnswer, match="stopped"):
            worker.run(job, lambda _: None, stopped)
    assert get(server, "/health").json()["jobs"] == done
