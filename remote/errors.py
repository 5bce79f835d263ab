"""What can go wrong for a caller, and the exit code of `client.py` for each.

    RemoteError
     ├── WorkerFailure     1  the job failed; `code` and `message` are the worker's
     ├── WrongTarget       2  there is no such endpoint or server, or it can't do what is asked
     ├── NotAllowed        2  the key or secret is missing or wrong
     ├── Unreachable       3  no usable answer came for as long as was waited for one
     ├── JobEnded          4  the job has no result
     │    ├── JobCancelled    somebody cancelled it
     │    ├── JobTimedOut     Runpod gave it up, or the caller's own time limit passed
     │    └── JobGone         Runpod no longer knows it
     └── NotTheGraph       5  what was downloaded is not the graph that the receipt speaks of

A request that can't be right is refused before it is sent, with `errors.InvalidInput` (2).
No message has a key, a secret or the query of a signed URL in it.
"""


class RemoteError(Exception):
    """A sentence to act on, and the exit code that goes with it."""

    exit_code = 1


class WorkerFailure(RemoteError):
    """The job failed. `str(failure)` is `code: message`, as the worker has it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class WrongTarget(RemoteError):
    exit_code = 2


class NotAllowed(RemoteError):
    exit_code = 2


class Unreachable(RemoteError):
    exit_code = 3


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


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a job was waited for. The message says what became of the job."""
