"""An S3-compatible server that verifies signatures and expiry (nanio), and a signer (boto3)."""

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

from tests.support.polling import until
from tests.support.programs import free_port, is_listening

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
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "NANIO_ACCESS_KEY": ACCESS_KEY,
        "NANIO_SECRET_KEY": SECRET_KEY,
    }
    command = [sys.executable, "-m", "nanio", "serve", "--log-level", "error"]
    command += ["--data-dir", str(directory), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=environment)
    try:
        until(lambda: is_listening(port) or process.poll() is not None)
        if process.returncode is not None:
            raise RuntimeError(f"the object store ended with {process.returncode}")
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
