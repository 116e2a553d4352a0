"""What the server refuses at its door, and what it tells RunPod's load balancer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from tests.test_server import body, free_port, serving
from trellis_runtime.contract.files import MODEL

KEYS = {"error", "code", "retryable", "job_id", "field"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("doors"), "--allow-host", "my.lan") as url:
        yield url


@pytest.mark.parametrize("path", ["/jobs", "/metrics", "/", "/jobs/a/files/model.glb"])
def test_a_foreign_host_reaches_nothing(url: str, path: str) -> None:
    refused = requests.get(url + path, headers={"Host": "evil.example"}, timeout=9)
    assert (refused.status_code, refused.json()["code"]) == (403, "foreign_page")


@pytest.mark.parametrize("name", ["localhost:1", "127.0.0.1", "[::1]:80", "my.lan", "MY.LAN."])
def test_names_of_its_own_are_taken(url: str, name: str) -> None:
    assert requests.get(f"{url}/jobs", headers={"Host": name}, timeout=9).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1"])
def test_a_page_of_another_origin_is_refused(url: str, origin: str) -> None:
    refused = requests.post(f"{url}/jobs", data="{}", headers={"Origin": origin}, timeout=9)
    assert refused.status_code == 403
    own = requests.get(f"{url}/jobs", headers={"Origin": url}, timeout=9)
    assert own.status_code == 200


def test_every_refusal_has_the_five_keys(url: str) -> None:
    for answer in (
        requests.get(f"{url}/jobs/none", timeout=9),
        requests.post(f"{url}/jobs", data="{", timeout=9),
        requests.post(f"{url}/jobs?endpoint=../x", json=body(), timeout=9),
        requests.delete(f"{url}/jobs", timeout=9),
        requests.post(f"{url}/generate", json=body(seed="x"), timeout=9),
    ):
        assert answer.status_code >= 400
        assert set(answer.json()) == KEYS
    assert answer.json()["field"] == "seed"


def test_both_forms_of_a_body_are_taken_and_no_content_type_is_needed(url: str) -> None:
    wrapped = requests.post(f"{url}/generate", json={"input": body()}, timeout=120)
    assert wrapped.status_code == 200, wrapped.text
    bare = requests.Request("POST", f"{url}/generate", json=body()).prepare()
    del bare.headers["Content-Type"]
    assert requests.Session().send(bare, timeout=120).status_code == 200
    assert requests.head(f"{url}/ping", timeout=9).status_code == 200


def test_a_signature_is_not_shown(url: str) -> None:
    target = "https://store.invalid/a?X-Amz-Signature=5ecret"
    asked = body(output={"delivery": "upload", "upload_url": target})
    shown = requests.post(f"{url}/jobs", json=asked, timeout=9)
    assert shown.status_code == 202, shown.text
    assert "5ecret" not in shown.text + requests.get(f"{url}/jobs", timeout=9).text


def test_a_caller_who_leaves_ends_the_job(url: str) -> None:
    with pytest.raises(requests.ReadTimeout):
        long = body(preset="balanced", decimation_target=60_000, output={"turntable": True})
        requests.post(f"{url}/generate", json=long, timeout=0.5)
    for _ in range(200):
        newest = requests.get(f"{url}/jobs", timeout=9).json()[0]
        if newest["state"] != "running":
            break
        time.sleep(0.05)
    assert newest["state"] == "cancelled"


def test_half_sent_headers_are_ended(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as half:
        half.sendall(b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n")
        assert half.recv(1) == b""  # closed by the server; a time-out would raise


def test_on_the_platform_health_has_its_port_and_no_result_is_a_file(tmp_path: Path) -> None:
    health = free_port()
    platform = {"RUNPOD_ENDPOINT_ID": "ep", "PORT_HEALTH": str(health)}
    with serving(tmp_path, **platform) as url:
        ping = requests.get(f"http://127.0.0.1:{health}/ping", timeout=9)
        assert ping.status_code == 200
        proxied = {"Host": "ep.api.runpod.ai"}
        made = requests.post(f"{url}/generate", json=body(), headers=proxied, timeout=120)
        assert made.status_code == 200, made.text
        assert "file://" not in made.text
        assert made.json()[MODEL.field]["base64"]


def test_a_full_disk_turns_ping_unhealthy(tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from trellis_runtime.engines.embedded import EmbeddedEngine
    from trellis_runtime.server import create_app
    from trellis_runtime.settings import Settings

    class Broken(EmbeddedEngine):
        def load(self, *_: object) -> None:  # type: ignore[override]
            raise RuntimeError("no kernel image")

    for engine, disk in ((None, "1e9"), (Broken(), "0")):
        settings = Settings.from_env({
            "TRELLIS2_ENGINE": "embedded", "TRELLIS2_OUTPUT_DIR": str(tmp_path),
            "TRELLIS2_MIN_FREE_DISK_GB": disk,
        })  # fmt: skip
        with TestClient(create_app(settings, engine=engine), base_url="http://localhost") as client:
            for _ in range(200):
                if (answer := client.get("/ping")).status_code != 204:
                    break
                time.sleep(0.05)
            assert answer.status_code == 503
            assert "kernel" not in answer.text


def test_an_inline_answer_reaches_its_caller_and_is_not_kept(url: str) -> None:
    inline = body(output={"delivery": "inline"})
    made = requests.post(f"{url}/generate", json=inline, timeout=120).json()
    assert made[MODEL.field]["base64"]
    kept = requests.get(f"{url}/jobs/{made['job_id']}", timeout=9)
    assert kept.json()["state"] == "done"
    assert "base64" not in kept.text


@pytest.mark.parametrize(("grace", "status"), [("60", 200), ("0.2", 503)])
def test_sigterm_gives_a_job_its_grace_and_then_an_answer(
    tmp_path: Path, grace: str, status: int
) -> None:
    long = body(preset="balanced", decimation_target=60_000, output={"turntable": True})
    with serving(tmp_path, TRELLIS2_SHUTDOWN_GRACE_S=grace) as url:
        port = int(url.rsplit(":", 1)[1])
        (server,) = {
            c.pid for c in psutil.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr.port == port
        }  # fmt: skip
        with ThreadPoolExecutor(1) as caller:
            asked = caller.submit(requests.post, f"{url}/generate", json=long, timeout=120)
            while not requests.get(f"{url}/jobs", timeout=9).json():
                time.sleep(0.02)
            psutil.Process(server).terminate()
            answer = asked.result(120)
    assert answer.status_code == status, answer.text
    if status == 503:
        assert (answer.json()["code"], set(answer.json())) == ("worker_stopping", KEYS)
