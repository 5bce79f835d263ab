"""The ways in which the Neuronpedia webapp reaches a worker, and what it reads of the answers."""

import asyncio
import json

import handler as door
from tests.support.http_server import post


def on_runpod(_server, _action, body):
    # The SDK posts JSON: what that can't hold would be lost.
    output = asyncio.run(door.handler({"id": "job", "input": json.loads(json.dumps(body))}))
    output = json.loads(json.dumps(output, allow_nan=False))
    return output if "error" in output else {"output": output}


def in_local_mode(server, action, body):
    answer = post(server, action, body).json()
    return answer if "error" in answer else {"output": answer}


def in_local_mode_with_a_runpod_host(server, action, body):
    headers = {"Authorization": "Bearer key-of-the-account", "x-secret-key": ""}
    return post(server, action, {"input": body}, **headers).json()


TRANSPORTS = (on_runpod, in_local_mode, in_local_mode_with_a_runpod_host)
