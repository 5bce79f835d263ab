"""An S3-compatible server that verifies signatures and expiry (nanio), and a signer (boto3)."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"
BUCKET = "graphs"


@dataclass
class ObjectStore:
    url: str
    client: Any  # boto3's S3 client

    def presign(self, key, *, expires_s=600, **params):
        return self.client.generate_presigned_url(
            "put_object",
            Params={"Bucket": BUCKET, "Key": key, **params},
            ExpiresIn=expires_s,
        )

    def get(self, key):
        """(the bytes as they are stored, the stored headers)."""
        found = self.client.get_object(Bucket=BUCKET, Key=key)
        return found["Body"].read(), found["ResponseMetadata"]["HTTPHeaders"]


@contextlib.contextmanager
def running_store(directory):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "NANIO_ACCESS_KEY": ACCESS_KEY,
        "NANIO_SECRET_KEY": SECRET_KEY,
    }
    command = [sys.executable, "-m", "nanio", "serve", "--log-level", "error"]
    command += ["--data-dir", str(directory), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=environment)
    try:
        _wait_for(process, port)
        url = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, proxies={}),
        )
        client.create_bucket(Bucket=BUCKET)
        yield ObjectStore(url, client)
    finally:
        process.terminate()
        process.wait()


def _wait_for(process, port):
    for _ in range(600):
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        if process.poll() is not None:
            raise RuntimeError(f"the object store ended with {process.returncode}")
        time.sleep(0.1)
    raise RuntimeError("the object store did not start")
