"""An upload arrives whole or ends in an error that helps, and its secret stays one."""

import asyncio
import contextlib
import gzip
import hashlib
import logging
import os
import re
import socket
import ssl
import threading
import time
import traceback
from concurrent.futures import Future
from email.utils import formatdate

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from delivery import RetryPolicy, read_target, spool, upload
from delivery.addresses import is_public
from delivery.put import CheckingResolver, tls_context
from errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    UploadFailed,
    UploadUrlRefused,
)
from tests.support.polling import LONGEST_S
from tests.support.programs import free_port
from tests.support.raw_server import (
    RawServer,
    answer,
    answer_a_byte_at_a_time,
    answer_at_once,
    close_without_an_answer,
    error_xml,
    never_answer,
    reset_in_mid_body,
    stop_reading,
    talk_nonsense,
)

SECRET = "5ec4e7f00d5ec4e7"
QUERY = f"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=60&X-Amz-Signature={SECRET}"
AT_ONCE = RetryPolicy(first_wait_s=0.01, longest_wait_s=0.02)
LARGE = os.urandom(1 << 20) * 24  # more than the buffers of a connection hold


@pytest.fixture(autouse=True)
def nothing_logs_the_secret(caplog):
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        assert SECRET not in record.message


@pytest.fixture
def resolved_by(monkeypatch):
    """Gives every name the addresses of a function."""
    real = socket.getaddrinfo

    def replace(resolve):
        def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
            if flags & socket.AI_NUMERICHOST:
                return real(host, port, family, type, proto, flags)
            return [(socket.AF_INET, type, proto, "", (found, port)) for found in resolve(host)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return replace


@pytest.fixture
def body():
    with spool([b'{"nodes":', b"[]}"], compress=False) as spooled:
        yield spooled


@pytest.fixture
def large_body():
    with spool([LARGE], compress=False) as spooled:
        yield spooled


def send(spooled, url, headers=None, **changes):
    """Upload, in a thread that can be left behind if it hangs."""
    allowed_hosts = changes.pop("allowed_hosts", ("127.0.0.1", "localhost"))
    settings = {"timeout_s": 20, "policy": AT_ONCE, **changes}
    outcome = Future()

    def work():
        try:
            target = read_target(
                url, headers, compressed=spooled.compressed, allowed_hosts=allowed_hosts
            )
            outcome.set_result(upload(spooled, target, **settings))
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    outcome.result(LONGEST_S)


def failure(kind, spooled, url, headers=None, **changes):
    """The error an upload ends in, once it is known to keep the secret and to lose nothing."""
    with pytest.raises(kind) as caught:
        send(spooled, url, headers, **changes)
    assert_kept_secret(caught.value)
    assert_still_sendable(spooled)
    return caught.value


def assert_kept_secret(error):
    seen = "".join(traceback.format_exception(error))
    link = error
    while link is not None:
        seen += repr(link) + str(link) + repr(vars(link))
        link = link.__cause__ or link.__context__
    assert SECRET not in seen
    assert "X-Amz-Signature" not in seen


def assert_still_sendable(spooled):
    with RawServer([answer(200)]) as server:
        send(spooled, server.url())
    [request] = server.requests
    assert hashlib.sha256(request.body).hexdigest() == spooled.sha256


# --- what is sent


def test_a_request_has_its_length_and_no_header_that_was_not_asked_for(body):
    with RawServer([answer(200)]) as server:
        send(body, server.url(QUERY))
        [request] = server.requests
        assert request.request_line == f"PUT /bucket/graph.json{QUERY} HTTP/1.1"
        assert request.headers == [
            ("Host", f"127.0.0.1:{server.port}"),
            ("Content-Type", "application/json"),
            ("Content-Length", "12"),
        ]
        assert request.body == b'{"nodes":[]}'


def test_signed_headers_are_sent_as_they_are_and_not_twice(body):
    signed = {
        "content-type": "application/x-graph; v=1",
        "x-amz-acl": "public-read",
        "X-Amz-Meta-Name": "a graph's name  ",
    }
    with RawServer([answer(200)]) as server:
        send(body, server.url(QUERY), signed)
        assert server.requests[0].headers == [
            ("Host", f"127.0.0.1:{server.port}"),
            *signed.items(),
            ("Content-Length", "12"),
        ]


def test_a_gzipped_body_says_so_and_comes_back_byte_for_byte():
    text = b'{"links":' + b'[{"weight":0.125}]' * 10_000 + b"}"
    with spool([text[:1000], text[1000:]], compress=True) as spooled, RawServer([answer(200)]) as s:
        send(spooled, s.url(QUERY))
        [request] = s.requests
        assert ("Content-Encoding", "gzip") in request.headers
        assert request.length == len(request.body) == spooled.size < len(text) / 10
        assert hashlib.sha256(request.body).hexdigest() == spooled.sha256
        assert gzip.decompress(request.body) == text


def test_the_path_and_query_are_sent_as_they_were_signed(body):
    raw = "/b%20ucket/a%2Fb+c/%C3%A9.json?X-Amz-Date=20260101T000000Z&x=%2f~%7E&y=a=b;c"
    with RawServer([answer(200)]) as server:
        send(body, f"http://127.0.0.1:{server.port}{raw}#fragment")
        assert server.requests[0].request_line == f"PUT {raw} HTTP/1.1"


@pytest.mark.parametrize("status", [200, 201, 204])
def test_each_success_is_one(body, status):
    with RawServer([answer(status)]) as server:
        send(body, server.url(QUERY))
        assert len(server.requests) == 1


def test_proxies_of_the_environment_are_not_used(body, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with RawServer([answer(200)]) as server:
        send(body, server.url(QUERY))
        assert len(server.requests) == 1


# --- the fault table: what happens, how the upload ends, after how many attempts

SLOW_DOWN = answer(503, error_xml("SlowDown"), Retry_After="1")
FAULTS = {
    "500 then 200": ([answer(500), answer(200)], None, 2),
    "503 SlowDown with Retry-After then 200": ([SLOW_DOWN, answer(200)], None, 2),
    "408 then 200": ([answer(408), answer(200)], None, 2),
    "429 then 200": ([answer(429), answer(200)], None, 2),
    "400 RequestTimeout then 200": (
        [answer(400, error_xml("RequestTimeout")), answer(200)],
        None,
        2,
    ),
    "reset in mid-body then 200": ([reset_in_mid_body, answer(200)], None, 2),
    "closed without an answer then 200": ([close_without_an_answer, answer(200)], None, 2),
    "not HTTP then 200": ([talk_nonsense, answer(200)], None, 2),
    "five 500s": ([answer(500, error_xml("InternalError"))], r"5 attempts.* 500 InternalError", 5),
    "five resets": ([reset_in_mid_body], "5 attempts.*closed before the store answered", 5),
    "403 expired": (
        [answer(403, error_xml("AccessDenied", "Request has expired"))],
        "403 AccessDenied: the URL has expired .* sign a new one",
        1,
    ),
    "403 signature mismatch": (
        [answer(403, error_xml("SignatureDoesNotMatch", f"PUT\n/graph.json\n{QUERY}"))],
        "403 SignatureDoesNotMatch: .*signed_headers",
        1,
    ),
    "403 clock": (
        [answer(403, error_xml("RequestTimeTooSkewed"))],
        "403 RequestTimeTooSkewed: .*clock",
        1,
    ),
    "403 with nothing to read": ([answer(403)], "with 403: the URL has expired", 1),
    "400": ([answer(400, error_xml("InvalidRequest"))], "400 InvalidRequest: check signed_url", 1),
    "400 too large": (
        [answer(400, error_xml("EntityTooLarge"))],
        "of 12 bytes with 400 EntityTooLarge: ask for less .* or set compress",
        1,
    ),
    "413": ([answer(413, b"<html>too large</html>")], "12 bytes with 413: ask for less", 1),
    "404": ([answer(404, error_xml("NoSuchBucket"))], "404 NoSuchBucket: the bucket", 1),
    "redirect": (
        [answer(307, error_xml("TemporaryRedirect"), Location="http://127.0.0.1:1/?X-Amz-Other=1")],
        "307 TemporaryRedirect, and redirects are not followed",
        1,
    ),
    "a code that is none": (
        [answer(400, b"<Code><script>alert(1)</script></Code>")],
        "with 400: check",
        1,
    ),
}


@pytest.mark.parametrize(("script", "sentence", "attempts"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_store_or_the_network(body, script, sentence, attempts):
    with RawServer(script) as server:
        if sentence is None:
            send(body, server.url(QUERY))
            assert server.requests[-1].body == b'{"nodes":[]}'
        else:
            error = failure(UploadFailed, body, server.url(QUERY))
            assert re.search(sentence, str(error)), str(error)
            assert str(error).startswith("upload_failed: ")
        assert len(server.requests) == attempts


def test_each_attempt_sends_the_whole_body_anew(large_body):
    script = [reset_in_mid_body, answer(503), reset_in_mid_body, answer(200)]
    with RawServer(script) as server:
        send(large_body, server.url(QUERY))
        first, second, _, last = server.requests
        assert len(first.body) < len(LARGE)
        assert second.body == last.body == LARGE


def test_a_success_before_the_body_was_read_is_none(large_body):
    with RawServer([answer_at_once(200), answer(200)]) as server:
        send(large_body, server.url(QUERY))
        assert len(server.requests) == 2
        assert server.requests[1].body == LARGE


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_refusal_before_the_body_was_read_counts(large_body, authority, scheme):
    tls = serving(authority.issue_cert("localhost")) if scheme == "https" else None
    with RawServer([answer_at_once(403, error_xml("AccessDenied"))], tls) as server:
        url = server.url(QUERY, host="localhost")
        error = failure(UploadFailed, large_body, url, tls_context=believing(authority))
        assert "403 AccessDenied" in str(error)
        assert len(server.requests) == 1


def test_a_refused_connection_is_tried_again_and_fails(body):
    error = failure(UploadFailed, body, f"http://127.0.0.1:{free_port()}/graph.json{QUERY}")
    assert "5 attempts, the last because the connection was refused" in str(error)


def test_a_store_that_stops_reading_is_given_up(large_body):
    with RawServer([stop_reading, answer(200)]) as server:
        send(large_body, server.url(QUERY), timeout_s=4)  # enough for the second on a busy machine
        assert len(server.requests) == 2
        assert server.requests[1].body == LARGE


@pytest.mark.parametrize("act", [never_answer, answer_a_byte_at_a_time])
def test_a_store_that_does_not_come_to_an_answer_is_given_up(body, act):
    with RawServer([act]) as server:
        policy = RetryPolicy(2, 0.01, 0.02)
        error = failure(UploadFailed, body, server.url(QUERY), timeout_s=0.5, policy=policy)
        assert re.search("2 attempts, .*(no progress|closed before)", str(error))


def test_a_host_that_has_no_address_is_tried_again_and_fails(body, resolved_by):
    asked = []

    def resolve(host):
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    resolved_by(resolve)
    url = f"https://bucket.example.org/graph.json{QUERY}"
    error = failure(UploadFailed, body, url)
    assert "could not be resolved" in str(error)
    assert asked == ["bucket.example.org"] * 5


# --- how long it tries


def test_a_store_s_retry_after_is_waited_for(body, caplog):
    with RawServer([answer(503, Retry_After="3600"), answer(200)]) as server:
        policy = RetryPolicy(first_wait_s=0.01, longest_wait_s=0.02, longest_retry_after_s=0.7)
        send(body, server.url(QUERY), policy=policy)
    [waited] = [r for r in caplog.records if "the next in" in r.message]
    assert "it answered 503; the next in 0.7 s" in waited.message


def test_a_retry_after_may_be_a_date(body, caplog):
    later = formatdate(time.time() + 3600, usegmt=True)
    with RawServer([answer(429, Retry_After=later), answer(200)]) as server:
        policy = RetryPolicy(first_wait_s=0.01, longest_wait_s=0.02, longest_retry_after_s=0.3)
        send(body, server.url(QUERY), policy=policy)
    assert "the next in 0.3 s" in caplog.text


def test_a_retry_after_that_makes_no_sense_is_as_none(body):
    with RawServer([answer(503, Retry_After="soon"), answer(200)]) as server:
        send(body, server.url(QUERY))
        assert len(server.requests) == 2


def test_waits_grow_and_are_bounded(body, caplog):
    with RawServer([answer(500)]) as server:
        policy = RetryPolicy(6, first_wait_s=0.1, longest_wait_s=0.5)
        failure(UploadFailed, body, server.url(QUERY), policy=policy)
    waits = [float(wait) for wait in re.findall(r"next in ([\d.]+) s", caplog.text)]
    assert len(waits) == 5
    assert 0.1 <= waits[0] <= 0.2
    assert waits[-1] == 0.5


def test_no_attempt_is_waited_for_that_the_deadline_forbids(body):
    with RawServer([answer(503, Retry_After="30")]) as server:
        error = failure(UploadFailed, body, server.url(QUERY), deadline=time.time() + 5)
        assert "503; the deadline leaves no time for another" in str(error)
        assert len(server.requests) == 1


def once_asked(server, error):
    """The `check` of a job that stops half a second after its request has come to the server."""
    came = []

    def check():
        if server.requests and server.requests[0].head:
            came.append(time.monotonic())
        if came and came[-1] - came[0] > 0.5:
            raise error

    return check


def test_a_deadline_that_has_passed_sends_nothing(body):
    def check():
        raise DeadlineExceeded("the job's own sentence")

    with RawServer([answer(200)]) as server:
        error = failure(DeadlineExceeded, body, server.url(QUERY), check=check)
        assert error.sentence == "the job's own sentence"
        assert server.requests == []


@pytest.mark.parametrize("act", [stop_reading, never_answer, answer_a_byte_at_a_time])
def test_a_deadline_cuts_off_whatever_is_going_on(large_body, act):
    with RawServer([act]) as server:
        check = once_asked(server, DeadlineExceeded("the job's own sentence"))
        failure(DeadlineExceeded, large_body, server.url(QUERY), check=check)
        assert len(server.requests) == 1


@pytest.mark.parametrize("act", [stop_reading, never_answer, answer(500)])
def test_a_job_that_is_stopped_stops_its_upload(large_body, act):
    with RawServer([act]) as server:
        check = once_asked(server, Cancelled("the job's own sentence"))
        policy = RetryPolicy(first_wait_s=600, longest_wait_s=600)
        error = failure(Cancelled, large_body, server.url(QUERY), check=check, policy=policy)
        assert error.sentence == "the job's own sentence"
        assert len(server.requests) == 1


# --- where it goes

NOT_PUBLIC = [
    "http://127.0.0.1/x",
    "http://127.0.0.1:9000/x",
    "http://127.1/x",
    "http://2130706433/x",
    "http://0x7f000001/x",
    "http://0177.0.0.1/x",
    "http://0/x",
    "https://[::1]/x",
    "https://[::ffff:127.0.0.1]/x",
    "https://[64:ff9b::7f00:1]/x",
    "https://[2002:7f00:1::]/x",
    "https://[fe80::1]/x",
    "https://[fd00::1]/x",
    "http://10.0.0.1/x",
    "http://172.16.0.1/x",
    "http://192.168.1.1/x",
    "http://100.64.0.1/x",
    "http://169.254.169.254/latest/meta-data",
    "http://[fd00:ec2::254]/latest/meta-data",
    "http://224.0.0.1/x",
    "http://255.255.255.255/x",
    "http://localhost/x",
    "http://LOCALHOST.:9000/x",
    "http://anything.localhost/x",
]
NO_URL = [
    "file:///etc/passwd",
    "ftp://example.org/x",
    "gopher://example.org/x",
    "s3://bucket/key",
    "//example.org/x",
    "example.org/x",
    "",
    "https://",
    "https:///x",
    "https://user:password@example.org/x",
    "https://example.org:0/x",
    "https://example.org:99999/x",
    "https://example.org:http/x",
    "https://[::1/x",
    "https://example.org\\@127.0.0.1/x",
    "https://example.org/a b",
    "https://example.org/\r\nX-Injected: 1",
    "https://exämple.org/x",
    "https://example.org/\x00",
]


@pytest.mark.parametrize("url", NOT_PUBLIC + NO_URL)
def test_a_url_that_leads_inside_or_is_none_is_refused_before_any_work(body, url):
    with pytest.raises(UploadUrlRefused) as caught:
        read_target(url + QUERY, compressed=False)
    assert_kept_secret(caught.value)
    failure(UploadUrlRefused, body, url + QUERY, allowed_hosts=())


@pytest.mark.parametrize(
    "url",
    [
        "https://bucket.s3.us-east-1.amazonaws.com/user-graphs/x.json",
        "https://8.8.8.8/x",
        "https://[2606:4700::1111]:8443/x",
        "http://minio.internal:9000/x",
    ],
)
def test_a_url_that_may_be_public_is_not_refused_early(url):
    read_target(url + QUERY, compressed=False)


def test_a_host_that_the_owner_exempts_may_be_anywhere(body):
    for host, url in (("10.0.0.1", "http://10.0.0.1:9000/x"), ("::1", "https://[::1]:9000/x")):
        assert read_target(url + QUERY, compressed=False, allowed_hosts=(host,)).exempt
    with RawServer([answer(200)]) as server:
        send(body, server.url(QUERY, host="LOCALHOST"), allowed_hosts=("localhost",))
        assert len(server.requests) == 1
        failure(UploadUrlRefused, body, server.url(QUERY), allowed_hosts=("localhost",))
        assert len(server.requests) == 1


@pytest.mark.parametrize("others", [[], ["192.88.99.1"]])
def test_a_name_with_an_address_inside_is_refused_at_the_connection(body, others, resolved_by):
    resolved_by(lambda _: [*others, "127.0.0.1"])
    with RawServer([answer(200)]) as server:
        url = server.url(QUERY, host="rebound.example.org")
        error = failure(UploadUrlRefused, body, url)
        assert "127.0.0.1" not in str(error)
        assert server.requests == []


def test_a_name_is_asked_for_once_an_attempt_and_judged_each_time(resolved_by):
    """What was checked is what is connected to, so an answer that changes is seen."""
    target = read_target(f"https://rebound.example.org/x{QUERY}", compressed=False)
    answers = iter(["8.8.8.8", "127.0.0.1"])
    resolved_by(lambda _: [next(answers)])

    async def ask():
        resolver = CheckingResolver(target)
        [found] = await resolver.resolve("rebound.example.org", 443)
        assert (found["host"], found["port"]) == ("8.8.8.8", 443)
        with pytest.raises(UploadUrlRefused):
            await resolver.resolve("rebound.example.org", 443)

    asyncio.run(ask())


def test_an_attempt_asks_for_a_name_once(body, resolved_by):
    asked = []

    def resolve(host):
        asked.append(host)
        return ["127.0.0.1"]

    resolved_by(resolve)
    with RawServer([answer(500), answer(200)]) as server:
        url, allowed = server.url(QUERY, host="minio.internal"), ("minio.internal",)
        send(body, url, allowed_hosts=allowed)
        assert asked == ["minio.internal"] * len(server.requests) == ["minio.internal"] * 2


@given(st.ip_addresses(v=4))
def test_an_address_is_judged_alike_however_it_is_wrapped(v4):
    number = int(v4)
    public = is_public(str(v4))
    assert is_public(f"::ffff:{v4}") == public
    assert is_public(f"64:ff9b::{number >> 16:x}:{number & 0xFFFF:x}") == public
    if public:
        assert v4.is_global
        assert not v4.is_multicast


def test_an_object_s_url_is_the_signed_one_without_its_query():
    url = "https://bucket.s3.amazonaws.com/a%20b.json"
    assert read_target(url + QUERY + "#f", compressed=False).object_url == url


# --- which headers

WRONG_HEADERS = {
    "a line break": ({"x-amz-meta-a": "1\r\nX-Injected: 1"}, "character that HTTP headers"),
    "a name that is none": ({"x amz": "1"}, "character that HTTP headers"),
    "a letter beyond ASCII": ({"x-amz-meta-a": "é"}, "names and values are ASCII"),
    "framing": ({"Transfer-Encoding": "chunked"}, "Transfer-Encoding belongs to the connection"),
    "one header twice": ({"Content-Type": "a/b", "content-type": "c/d"}, "twice"),
    "another host": ({"Host": "127.0.0.1"}, "Host isn't the host of signed_url"),
    "gzip that is none": ({"Content-Encoding": "gzip"}, "compress is false"),
}


@pytest.mark.parametrize(("headers", "sentence"), WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_headers_that_cannot_work_are_refused_before_any_work(body, headers, sentence):
    url = f"https://bucket.example.org/x{QUERY}"
    with pytest.raises(InvalidInput, match=sentence):
        read_target(url, headers, compressed=False)
    failure(InvalidInput, body, url, headers)


def test_a_header_that_was_signed_and_is_missing_is_named_before_any_work():
    url = "https://b.example.org/x?X-Amz-SignedHeaders=content-type%3Bhost%3Bx-amz-acl%3Bx-amz-tag"
    with pytest.raises(InvalidInput, match="lacks x-amz-tag, which signed_url was signed with"):
        read_target(url, {"X-Amz-Acl": "private"}, compressed=False)
    read_target(url, {"X-Amz-Acl": "private", "x-amz-tag": "1"}, compressed=False)
    with pytest.raises(InvalidInput, match="lacks x-amz-acl, x-amz-tag"):
        read_target(url, None, compressed=False)


def test_a_compressed_body_cannot_be_called_plain():
    with pytest.raises(InvalidInput, match="'identity' and compress is true"):
        read_target("https://b.org/x", {"Content-Encoding": "identity"}, compressed=True)


def test_a_length_that_was_signed_has_to_be_the_body_s(body):
    with RawServer([answer(200)]) as server:
        send(body, server.url(QUERY), {"content-length": "12"})
        assert dict(server.requests[0].headers)["content-length"] == "12"
        error = failure(UploadFailed, body, server.url(QUERY), {"Content-Length": "13"})
        assert "Content-Length of 13, the graph has 12 bytes" in str(error)


# --- TLS


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def serving(certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


def believing(authority):
    def context():
        made = ssl.create_default_context()
        authority.configure_trust(made)
        return made

    return context


def test_a_large_body_goes_through_tls(large_body, authority):
    server_tls = serving(authority.issue_cert("localhost"))
    with RawServer([answer(503), answer(200)], server_tls) as server:
        url = server.url(QUERY, host="localhost")
        send(large_body, url, tls_context=believing(authority))
        assert server.requests[1].body == LARGE


def test_a_stopped_job_ends_its_tls_connection(large_body, authority):
    with RawServer([stop_reading], serving(authority.issue_cert("localhost"))) as server:
        url, tls = server.url(QUERY, host="localhost"), believing(authority)
        check = once_asked(server, DeadlineExceeded("the job's own sentence"))
        failure(DeadlineExceeded, large_body, url, tls_context=tls, check=check)


@pytest.mark.parametrize("fault", ["another name", "an unknown authority"])
def test_a_certificate_that_proves_nothing_is_final(body, authority, fault):
    certificate = authority.issue_cert(
        "other.example.org" if fault == "another name" else "localhost"
    )
    tls = believing(authority) if fault == "another name" else tls_context
    with RawServer([answer(200)], serving(certificate)) as server:
        url = server.url(QUERY, host="localhost")
        error = failure(UploadFailed, body, url, tls_context=tls)
        assert "certificate isn't valid" in str(error)
        assert [request.head for request in server.requests] == [b""]


# --- a store that verifies signatures and expiry


@pytest.mark.parametrize("compress", [False, True])
def test_a_signed_put_arrives_as_it_was(store, compress):
    text = b'{"links":' + b'[{"weight":0.125}]' * 200_000 + b"}"
    key = f"arrives-{compress}.json"
    with spool([text], compress=compress) as spooled:
        send(spooled, store.presign(key, ContentType="application/json"))
        stored, headers = store.get(key)
        assert (len(stored), hashlib.sha256(stored).hexdigest()) == (spooled.size, spooled.sha256)
    assert (gzip.decompress(stored) if compress else stored) == text
    assert headers["content-type"] == "application/json"
    assert headers.get("content-encoding") == ("gzip" if compress else None)


def test_headers_that_were_signed_verify(store, body):
    url = store.presign(
        "signed-headers.json", ContentType="application/x-graph", Metadata={"job": "17"}
    )
    send(body, url, {"Content-Type": "application/x-graph", "x-amz-meta-job": "17"})
    _, headers = store.get("signed-headers.json")
    assert headers["x-amz-meta-job"] == "17"


def test_one_url_can_be_used_again_until_it_expires(store, body):
    url = store.presign("again.json")
    send(body, url)
    send(body, url)


def test_an_expired_url_is_final(store, body):
    url = store.presign("late.json", expires_s=1)
    time.sleep(2.1)
    error = failure(UploadFailed, body, url)
    assert re.search(r"refused .* with 403 \w+: the URL has expired", str(error))


def test_a_url_signed_for_another_object_is_final(store, large_body):
    url = store.presign("one.json").replace("one.json", "two.json")
    error = failure(UploadFailed, large_body, url)
    assert re.search("403 SignatureDoesNotMatch: .*sign a PUT", str(error))


def test_a_content_type_other_than_the_signed_one_is_final(store, body):
    url = store.presign("type.json", ContentType="text/plain")
    assert "403 SignatureDoesNotMatch" in str(failure(UploadFailed, body, url))


def test_the_same_body_goes_to_a_fresh_url_after_a_failure(store, body):
    with contextlib.suppress(UploadFailed):
        send(body, store.presign("a.json").replace("a.json", "b.json"))
    send(body, store.presign("b.json"))
    assert store.get("b.json")[0] == b'{"nodes":[]}'


# --- the spool


@given(st.lists(st.binary(max_size=200)), st.booleans(), st.sampled_from([1, 100, 1 << 20]))
def test_what_was_spooled_is_what_is_read(chunks, compress, memory_limit):
    with spool(chunks, compress=compress, memory_limit_bytes=memory_limit) as spooled:
        data = b"".join(spooled.chunks())
        assert data == b"".join(spooled.chunks())
    assert len(data) == spooled.size
    assert hashlib.sha256(data).hexdigest() == spooled.sha256
    assert (gzip.decompress(data) if compress else data) == b"".join(chunks)


def test_equal_chunks_give_equal_gzip():
    with spool([b"a" * 1000], compress=True) as one, spool([b"a" * 1000], compress=True) as two:
        assert one.sha256 == two.sha256


def test_a_stopped_job_stops_spooling():
    taken = iter([b"a"] * 10)

    def stop():
        raise Cancelled("the job was stopped")

    with pytest.raises(Cancelled):
        spool(taken, compress=False, check=stop)
    assert len(list(taken)) == 9


def test_a_full_disk_is_said(tmp_path):
    """A limit on the size of files stands in for a disk that is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(Internal, match=r"disk did not take the graph .*node_threshold"):
            spool([LARGE], compress=False, memory_limit_bytes=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
