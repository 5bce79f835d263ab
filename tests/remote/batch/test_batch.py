"""`client.py batch`: what it keeps, what it does again, how it ends."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest
from rich.console import Console

from client import main
from remote.batch.display import BatchDisplay
from remote.batch.folder import Record
from remote.batch.index import COLUMNS
from remote.batch.prompt_files import PromptRow, read_prompts
from remote.batch.running import Event
from remote.client import DEADLINE_AFTER_S
from remote.jobs import Progress
from tests.support.control_plane import ControlPlane
from tests.support.demo_worker import PROMPT, TOO_LONG, ask, without_times
from tests.support.http_server import serving
from tests.support.object_store import BUCKET, running_store
from tests.support.polling import LONGEST_S, until
from tests.support.programs import ROOT, free_port
from tests.support.raw_server import RawServer
from tests.support.runpod_endpoint import ENDPOINT_ID, RunpodEndpoint

PROMPTS = [PROMPT, "Rafael Nadal juega al", "Roger Federer joue au"]
ESCAPES = "\x1b[2J\x9b1m\u202e[bold]x[/bold]"


@pytest.fixture
def batch(tmp_path, capsys, monkeypatch):
    """Run a batch in an empty folder, in this process; the exit code, and what was said."""
    monkeypatch.chdir(tmp_path)

    def run(prompts, *arguments):
        path = write(tmp_path, prompts)
        code = main(["batch", str(path), "--out", "runs", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def write(folder, prompts):
    path = folder / "prompts.jsonl"
    rows = [{"prompt": row} if isinstance(row, str) else row for row in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def index(folder):
    with (folder / "runs" / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def states(folder):
    return [line["state"] for line in index(folder)]


def names_of(folder):
    return [row.name for row in read_prompts(folder / "prompts.jsonl", {})]


def test_each_prompt_s_graph_is_the_worker_s_own_and_the_index_says_what_is_in_it(
    batch, server, tmp_path
):
    rows = [
        {"prompt": PROMPTS[0], "max_n_logits": 2, "athlete": "Jordan"},
        *PROMPTS[1:],
        PROMPTS[1],
    ]
    code, said = batch(rows, "--url", server.url, "--keep", "athlete", "--batch-size", 5)
    assert code == 0
    assert "done    3, 0 failed, 0 missing" in said
    lines = index(tmp_path)
    assert [line["prompt"] for line in lines] == [*PROMPTS, PROMPTS[1]]
    assert [line["line"] for line in lines] == ["1", "2", "3", "4"]
    assert lines[1] == {**lines[3], "line": "2"}
    first = lines[0]
    graph = json.loads((tmp_path / "runs" / first["file"]).read_bytes())
    job = {"prompt": PROMPT, "max_n_logits": 2, "batch_size": 5, "slug_identifier": first["name"]}
    assert without_times(graph) == without_times(ask({"action": "generate-graph", **job}))
    assert first["athlete"] == "Jordan"
    assert first["prediction"] == " basket"
    assert json.loads(first["predictions"])[0] == [" basket", float(first["probability"])]
    assert int(first["features"]) > 5
    assert first["model"] == graph["metadata"]["scan"]
    assert first["transcoders"] == graph["metadata"]["info"]["transcoder_set"]
    assert "model   demo with demo/transcoders\n" in said


def test_the_parquet_index_says_what_the_csv_one_says(batch, server, tmp_path):
    assert batch([PROMPTS[0], TOO_LONG], "--url", server.url)[0] == 1
    table = pyarrow.parquet.read_table(tmp_path / "runs" / "index.parquet").to_pylist()
    assert [list(line) for line in table] == [list(COLUMNS)] * 2
    for line, as_csv in zip(table, index(tmp_path), strict=True):
        assert {name: "" if v is None else str(v) for name, v in line.items()} == as_csv
    assert isinstance(table[0]["probability"], float)
    assert table[1]["probability"] is None


def test_what_is_done_is_not_asked_for_again_and_what_is_missing_is(batch, server, tmp_path):
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert batch(PROMPTS[:2], "--url", server.url)[0] == 0
    before = index(tmp_path)
    assert batch(PROMPTS[1::-1], "--url", nowhere)[0] == 0
    assert index(tmp_path)[1]["name"] == before[0]["name"]
    code, said = batch(PROMPTS, "--url", nowhere)
    assert code == 3
    assert "nothing takes connections there" in said
    assert states(tmp_path) == ["done", "done", "missing"]
    (tmp_path / "runs" / before[0]["file"]).unlink()
    assert batch(PROMPTS, "--url", nowhere)[0] == 3
    assert states(tmp_path) == ["missing", "done", "missing"]
    assert batch(PROMPTS, "--url", server.url)[0] == 0
    assert states(tmp_path) == ["done"] * 3


def test_a_graph_whose_client_was_killed_before_it_said_so_is_done(batch, server, tmp_path):
    assert batch(PROMPTS[:1], "--url", server.url)[0] == 0
    whole = index(tmp_path)
    [record] = (tmp_path / "runs" / "rows").iterdir()
    record.unlink()
    half = tmp_path / "runs" / "graphs" / ".half.json.99.part"
    half.write_text("{")
    assert batch(PROMPTS[:1], "--url", f"http://127.0.0.1:{free_port()}")[0] == 0
    assert [{**line, "seconds": whole[0]["seconds"]} for line in index(tmp_path)] == whole
    assert not half.exists()


def test_a_failed_row_keeps_its_error_until_it_is_asked_for_again(batch, server, tmp_path):
    code, said = batch([TOO_LONG, *PROMPTS[:1]], "--url", server.url)
    assert code == 1
    assert "1 row of 2 failed, the first with prompt_too_long: " in said
    assert "1 failed, 0 missing" in said
    error = index(tmp_path)[0]["error"]
    assert error.startswith("prompt_too_long: the prompt has 6")
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert batch([TOO_LONG, *PROMPTS[:1]], "--url", nowhere)[0] == 1
    assert index(tmp_path)[0]["error"] == error
    assert batch([TOO_LONG, *PROMPTS[:1]], "--url", nowhere, "--retry-failed")[0] == 3
    code, said = batch([TOO_LONG, *PROMPTS[:1]], "--url", server.url, "--retry-failed")
    assert code == 1
    assert states(tmp_path) == ["failed", "done"]


def test_two_clients_do_not_work_on_one_batch(batch, server, tmp_path):
    from remote.batch.folder import BatchFolder

    with BatchFolder(tmp_path / "runs").held():
        code, said = batch(PROMPTS[:1], "--url", server.url)
    assert code == 2
    assert "another client works on this batch" in said
    assert batch(PROMPTS[:1], "--url", server.url)[0] == 0


def test_a_prompt_that_can_not_be_right_stops_the_batch_before_anything_is_sent(batch, tmp_path):
    code, said = batch([PROMPT, {"prompt": "b", "batch_size": 0}])
    assert code == 2
    assert "prompts.jsonl: line 2: batch_size: " in said
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_can_not_be_written_is_one_sentence(batch, server, tmp_path):
    (tmp_path / "runs").write_text("a file")
    code, said = batch(PROMPTS[:1], "--url", server.url)
    assert code == 2
    assert said.count("\n") == 1


def answers(body, status=200):
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    return lambda connection, _: connection.sendall(head.encode() + content)


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (answers({"error": f"internal: {ESCAPES}"}, 500), 1, "internal: \\x1b[2J"),
        (answers({"nodes": [], "links": [], "metadata": {}}), 1, "no_graph: what came is no graph"),
        (answers({"sha256": 3}), 1, "no_graph: what came is no graph"),
        (answers(["not an object"]), 3, "an action's output"),
        (answers({"error": "no"}, 403), 2, "set SECRET"),
    ],
)
def test_what_no_worker_sends_is_one_error_and_no_file(batch, tmp_path, answer, code, words):
    with RawServer([answer]) as worker:
        url = f"http://127.0.0.1:{worker.port}"
        ended, said = batch(PROMPTS[:1], "--url", url, "--server", "http")
    assert ended == code, said
    assert words in said
    assert not {"\x1b", "\x9b", "\u202e"} & set(said)
    assert list((tmp_path / "runs" / "graphs").iterdir()) == []


def test_uploaded_graphs_are_downloaded_where_a_row_says_from_where(batch, tmp_path):
    with running_store(tmp_path / "store") as store, serving(upload_allowed_hosts="127.0.0.1") as s:
        get = store.client.generate_presigned_url
        at = {"Bucket": BUCKET, "Key": "a"}
        puts = [{"prompt": prompt, "signed_url": store.presign(key)} for prompt, key in FIRST_TWO]
        puts[0] |= {"compress": True, "download_url": get("get_object", Params=at)}
        assert batch(puts, "--url", s.url)[0] == 0
        first, second = index(tmp_path)
        graph = json.loads((tmp_path / "runs" / first["file"]).read_bytes())
        assert graph["metadata"]["prompt"].endswith(PROMPTS[0])
        assert (first["prediction"], first["url"]) == (" basket", "")
        assert (second["file"], second["prediction"]) == ("", "")
        assert second["url"] == f"{store.url}/{BUCKET}/b"
        assert int(second["nodes"]) == len(json.loads(store.get("b")[0])["nodes"])
        # URLs that are signed anew are of the same rows.
        fresh = [{**row, "signed_url": f"{row['signed_url']}&x=1"} for row in puts]
        assert batch(fresh, "--url", f"http://127.0.0.1:{free_port()}")[0] == 0
        refused = [{**puts[0], "prompt": "a", "download_url": f"{store.url}/{BUCKET}/none"}]
        code, said = batch(refused, "--url", s.url)
        assert code == 1
        assert "no_graph: the store answered 403 to the download" in said
    kept = b"".join(
        path.read_bytes() for path in (tmp_path / "runs").rglob("*.*") if path.is_file()
    )
    assert b"X-Amz-Signature" not in kept


FIRST_TWO = [*zip(PROMPTS, "ab", strict=False)]


def test_without_pyarrow_there_is_a_csv_index_and_a_word_about_the_other(
    batch, server, tmp_path, monkeypatch
):
    assert batch(PROMPTS[:1], "--url", server.url)[0] == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    code, said = batch(PROMPTS[:1], "--url", server.url)
    assert code == 0
    assert "no index.parquet: it needs `pip install pyarrow`" in said
    assert not (tmp_path / "runs" / "index.parquet").exists()


@pytest.fixture
def endpoint(plane, worker, monkeypatch):
    with RunpodEndpoint(plane) as endpoint:
        for name, value in endpoint.environment().items():
            monkeypatch.setenv(name, value)
        yield endpoint


@pytest.fixture
def idle_endpoint(monkeypatch):
    """An endpoint without a worker: the test answers the jobs itself."""
    with ControlPlane() as plane, RunpodEndpoint(plane) as endpoint:
        for name, value in endpoint.environment().items():
            monkeypatch.setenv(name, value)
        yield endpoint


def start(endpoint, folder, prompts, *arguments):
    command = [sys.executable, ROOT / "client.py", "batch", write(folder, prompts)]
    command += ["--out", folder / "runs", "--endpoint", ENDPOINT_ID, *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **endpoint.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


MANY = [f"{name} joue au" for name in ("Michael", "Rafael", "Roger", "Kobe", "LeBron", "Serena")]


def stop_in_flight(endpoint, worker, client, folder, in_flight):
    """Stop a worker after its first result, and wait until a client has that and has sent as many
    jobs as it may, with their ids written down."""
    endpoint.plane.wait(endpoint.finished)
    worker.stop()
    until(
        lambda: (
            client.poll() is not None
            or len(set(sent_ids(folder)).difference(endpoint.finished())) == in_flight
        )
    )
    assert client.poll() is None, client.communicate()


def test_a_killed_client_s_jobs_are_collected_and_none_is_sent_twice(
    batch, endpoint, worker, tmp_path
):
    with start(endpoint, tmp_path, MANY, "--in-flight", "3") as client:
        stop_in_flight(endpoint, worker, client, tmp_path, 3)
        client.kill()
    worker.go_on()
    assert batch(MANY, "--endpoint", ENDPOINT_ID)[0] == 0
    assert sorted(body["input"]["prompt"] for body in endpoint.submitted) == sorted(MANY)
    assert states(tmp_path) == ["done"] * len(MANY)


def sent_ids(folder):
    """The ids in the records of rows that are sent and not done."""
    records = [json.loads(p.read_bytes()) for p in (folder / "runs" / "rows").glob("[!.]*.json")]
    return [record["job_id"] for record in records if record["state"] == "sent"]


def test_ctrl_c_cancels_what_is_in_flight_and_the_next_run_does_the_rest(
    batch, endpoint, worker, tmp_path
):
    with start(endpoint, tmp_path, MANY, "--in-flight", "3") as stopped:
        stop_in_flight(endpoint, worker, stopped, tmp_path, 3)
        in_flight = sent_ids(tmp_path)
        stopped.send_signal(signal.SIGINT)
        said, _ = stopped.communicate(timeout=LONGEST_S)
    worker.go_on()
    assert stopped.returncode == 130, said
    assert "the same command does what is missing" in said
    assert sorted(endpoint.cancelled) == sorted(in_flight)
    assert sent_ids(tmp_path) == []
    assert {*states(tmp_path)} == {"done", "missing"}
    assert batch(MANY, "--endpoint", ENDPOINT_ID)[0] == 0
    assert states(tmp_path) == ["done"] * len(MANY)


def test_ctrl_c_ends_a_client_whose_server_has_not_answered(server, held_model, tmp_path):
    entered, _ = held_model
    command = [sys.executable, ROOT / "client.py", "batch", write(tmp_path, PROMPTS)]
    command += ["--out", tmp_path / "runs", "--url", server.url]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as client:
        assert entered.wait(LONGEST_S)
        client.send_signal(signal.SIGINT)
        _, said = client.communicate(timeout=LONGEST_S)
    assert client.returncode == 130
    assert "the same command does what is missing" in said
    assert states(tmp_path) == ["missing"] * 3


def test_no_more_jobs_are_in_flight_than_asked_for(idle_endpoint, tmp_path):
    client = start(idle_endpoint, tmp_path, MANY, "--in-flight", "2")
    until(lambda: len(sent_ids(tmp_path)) == 2 and idle_endpoint.count("status") > 6)
    assert len(idle_endpoint.submitted) == 2
    client.kill()
    client.communicate()


def end(endpoint, number, **result):
    """Give the endpoint's job of this number a result, as its worker would."""
    until(lambda: len(endpoint.submitted) >= number)
    until(lambda: endpoint.plane.withdraw(f"job-{number}"))
    endpoint.plane.jobs[f"job-{number}"].results.append(result)


def test_a_job_whose_worker_had_to_end_and_one_that_runpod_forgot_are_sent_again(
    idle_endpoint, tmp_path
):
    client = start(idle_endpoint, tmp_path, PROMPTS[:1])
    end(idle_endpoint, 1, error="cancelled: the worker was shut down; send it again")
    until(lambda: len(idle_endpoint.submitted) == 2)
    idle_endpoint.forget("job-2")
    end(idle_endpoint, 3, output=ask({"prompt": PROMPTS[0]}))
    said, _ = client.communicate(timeout=LONGEST_S)
    assert client.returncode == 0, said
    assert states(tmp_path) == ["done"]
    assert index(tmp_path)[0]["job_id"] == "job-3"


def test_a_killed_client_s_job_that_runpod_no_longer_has_is_sent_again(idle_endpoint, tmp_path):
    killed = start(idle_endpoint, tmp_path, PROMPTS[:1])
    until(lambda: sent_ids(tmp_path) == ["job-1"])
    killed.kill()
    killed.communicate()
    idle_endpoint.forget("job-1")
    client = start(idle_endpoint, tmp_path, PROMPTS[:1])
    end(idle_endpoint, 2, output=ask({"prompt": PROMPTS[0]}))
    said, _ = client.communicate(timeout=LONGEST_S)
    assert client.returncode == 0, said
    assert index(tmp_path)[0]["job_id"] == "job-2"


def test_a_job_that_never_comes_to_an_end_of_its_own_is_sent_three_times_and_no_more(
    idle_endpoint, tmp_path
):
    client = start(idle_endpoint, tmp_path, PROMPTS[:1])
    for number in (1, 2, 3):
        end(idle_endpoint, number, error="cancelled: the worker was shut down; send it again")
    said, _ = client.communicate(timeout=LONGEST_S)
    assert client.returncode == 1, said
    assert index(tmp_path)[0]["error"].startswith("cancelled: the worker was shut down")
    assert len(idle_endpoint.submitted) == 3


def test_a_row_s_time_limit_stops_its_job_and_is_its_error(batch, idle_endpoint, tmp_path):
    began = time.time()
    assert batch(PROMPTS[:2], "--endpoint", ENDPOINT_ID, "--timeout", "3")[0] == 1
    assert sorted(idle_endpoint.cancelled) == ["job-1", "job-2"]
    assert all(line["error"].startswith("job_timed_out: ") for line in index(tmp_path))
    for body in idle_endpoint.submitted:
        assert began + 3 < body["input"]["deadline"] < time.time() + 3 + DEADLINE_AFTER_S


def test_an_endpoint_that_refuses_the_key_ends_the_batch(batch, endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNPOD_API_KEY", "another")
    code, said = batch(MANY, "--endpoint", ENDPOINT_ID)
    assert code == 2
    assert "Runpod refuses the key" in said
    assert states(tmp_path) == ["missing"] * len(MANY)


def test_an_endpoint_that_fails_for_three_rows_ends_the_batch_and_one_row_does_not(
    batch, endpoint, tmp_path
):
    endpoint.fail("run", 500)
    assert batch(MANY, "--endpoint", ENDPOINT_ID, "--in-flight", "1")[0] == 3
    assert states(tmp_path).count("done") == len(MANY) - 1
    endpoint.fail("run", *[500] * 3)
    others = [f"{prompt} x" for prompt in MANY]
    assert batch(others, "--endpoint", ENDPOINT_ID, "--in-flight", "1")[0] == 3
    assert states(tmp_path) == ["missing"] * len(MANY)
    assert endpoint.count("run") == len(MANY) + 3


def event(state, prompt=PROMPT, **fields):
    return Event(PromptRow(1, f"row-{prompt[:3]}", {"prompt": prompt}), state, **fields)


def test_a_terminal_shows_a_table_in_which_nothing_from_outside_can_act():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=140, highlight=False, emoji=False)
    with BatchDisplay(console, total=5, done=1, failed=0) as display:
        display(event("running", ESCAPES, progress=Progress(f"attr{ESCAPES}", share=0.25)))
        display(event("failed", "b", record=Record(state="failed", code="x", error=ESCAPES)))
    said = file.getvalue()
    for words in ("2 of 5", "1 failed", "1 in flight, 2 waiting", "25%", "[bold]x[/bold]"):
        assert words in said
    assert "\\x1b[2J\\x9b1m\\u202e" in said
    assert "\x1b[2J" not in said
    assert not {"\x9b", "\u202e"} & set(said)
