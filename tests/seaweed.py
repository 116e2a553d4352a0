"""A real S3 server for the tests: SeaweedFS, started and stopped by them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests import processes

KEY_ID, SECRET, BUCKET = "test-key-id", "test-secret-key", "models"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bucket_variables(endpoint: str, **more: str) -> dict[str, str]:
    """A worker's settings for a bucket at `endpoint`, whether or not anything is there."""
    return {
        "BUCKET_ENDPOINT_URL": endpoint,
        "BUCKET_ACCESS_KEY_ID": KEY_ID,
        "BUCKET_SECRET_ACCESS_KEY": SECRET,
        "BUCKET_NAME": BUCKET,
        **more,
    }


class SeaweedFs:
    """`with SeaweedFs(folder) as s3:` gives `s3.endpoint`, `s3.client` and an empty bucket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = f"http://127.0.0.1:{self._port}"

    @property
    def client(self) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
        )

    def variables(self) -> dict[str, str]:
        """The worker's settings for this bucket."""
        return bucket_variables(self.endpoint)

    def keys(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return [entry["Key"] for entry in listed]

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "s3.json"
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}],
            "actions": actions,
        }
        config.write_text(json.dumps({"identities": [identity]}))
        weed = Path(sys.executable).parent / "weed"
        ports = {name: free_port() for name in ("master.port", "volume.port", "filer.port")}
        for name in list(ports):  # each also opens a gRPC port: by default its own plus 10000
            ports |= {f"{name}.grpc": free_port()}
        with (self._folder / "log").open("wb") as log:
            self._process = self._popen(weed, config, ports, log)
        try:
            self._await()
        except BaseException:  # nobody will call `stop`: the `with` block was not entered
            self.stop()
            raise

    def _popen(
        self, weed: Path, config: Path, ports: dict[str, int], log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return processes.start(
            [
                str(weed), "server", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.port={self._port}", f"-s3.port.grpc={free_port()}", f"-s3.config={config}",
                "-filer", "-master.volumeSizeLimitMB=64", "-volume.max=0", "-volume.minFreeSpace=0",
                *(f"-{name}={port}" for name, port in ports.items()),
            ],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )  # fmt: skip

    def stop(self) -> None:
        if self._process is not None:
            processes.stop(self._process)
            self._process = None

    def _await(self) -> None:
        for _ in range(240):
            assert self._process is not None
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            try:
                if BUCKET not in [b["Name"] for b in self.client.list_buckets()["Buckets"]]:
                    self.client.create_bucket(Bucket=BUCKET)
                self.client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
                self.client.delete_object(Bucket=BUCKET, Key="ready")
            except (ClientError, BotoCoreError):
                time.sleep(0.25)
            else:
                return
        raise TimeoutError((self._folder / "log").read_text()[-2000:])

    def __enter__(self) -> SeaweedFs:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()
