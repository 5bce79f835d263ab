"""The errors that a caller of a remote worker can get, and the exit code of `client.py` for each.

    RemoteError
     ├── WorkerFailure     1  the job failed; `code` and `message` are the worker's
     ├── WrongTarget       2  there is no such endpoint or server, or it can't do what is asked
     ├── NotAllowed        2  the key or secret is missing or wrong
     ├── WrongFile         2  a file that was named is not what the command reads
     ├── Unreachable       3  no usable answer came within the patience
     │    └── NobodyThere     nothing takes connections at the address
     ├── JobEnded          4  the job has no result
     │    ├── JobCancelled    someone cancelled it
     │    ├── JobTimedOut     Runpod's or the caller's own time limit passed
     │    └── JobGone         Runpod no longer knows it
     ├── NotTheGraph       5  the downloaded object is not the receipt's graph
     └── RowsFailed        1  prompts of a batch or graphs failed; the others are done

An invalid request is refused before it is sent, with `errors.InvalidInput` (2). No message
contains a key, a secret or the query of a signed URL.
"""


class RemoteError(Exception):
    """Its message says what to do; `exit_code` is what `client.py` ends with."""

    exit_code = 1


class WorkerFailure(RemoteError):
    """The job failed. `str(failure)` is the worker's own `code: message`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class WrongTarget(RemoteError):
    exit_code = 2


class NotAllowed(RemoteError):
    exit_code = 2


class WrongFile(RemoteError):
    exit_code = 2


class Unreachable(RemoteError):
    exit_code = 3


class NobodyThere(Unreachable):
    pass


class JobEnded(RemoteError):
    exit_code = 4


class JobCancelled(JobEnded):
    pass


class JobTimedOut(JobEnded):
    pass


class JobGone(JobEnded):
    pass


class NotTheGraph(RemoteError):
    exit_code = 5


class RowsFailed(RemoteError):
    exit_code = 1


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a wait for a job. The message says what happens to the job."""

    exit_code = 130  # that shells use for SIGINT
