"""TLS, trusted proxies and sign-in over the open, each by a real client."""

from pathlib import Path

import pytest
from openai import OpenAI

from tests.certificates import write_certificate
from tests.http.harness import Gate
from tests.http.test_sessions import Browser, make_person
from tests.serving import Server, scripted_model


@pytest.mark.parametrize("workers", ["1", "2"])
def test_https_with_the_official_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str):
    chain, private = write_certificate(tmp_path)
    settings = {"TLS_CERT": str(chain), "TLS_KEY": str(private), "GATEWAY_WORKERS": workers}
    with Server(tmp_path, scripted_model(), "--admin-key", DURABILITY="process", **settings) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(chain))
        with OpenAI(base_url=f"https://localhost:{server.port}/v1", api_key=server.key, max_retries=0) as client:
            stream = client.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "hello"}], stream=True
            )
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert server.stop() == 0


def test_a_bad_certificate_is_told_at_the_start(tmp_path: Path):
    chain, private = write_certificate(tmp_path)
    private.write_text("nonsense")
    server = Server(tmp_path, scripted_model(), TLS_CERT=str(chain), TLS_KEY=str(private))
    with pytest.raises(AssertionError, match=r"TLS can't be served with TLS_CERT") as caught:
        server.start()
    server.stop()
    assert "Traceback" not in str(caught.value)


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("proxied")
    with Server(folder, scripted_model(), "--admin-key", DURABILITY="process", TRUSTED_PROXIES="127.0.0.0/8") as server:
        yield Gate(server)
        assert server.stop() == 0


def test_a_password_does_not_travel_readable(proxied: Gate):
    name = make_person(proxied)
    browser = Browser(proxied)
    body = {"username": name, "password": "correct horse battery"}
    status, answer = browser.ask("POST", "/admin/api/login", body, X_Forwarded_For="203.0.113.9")
    assert (status, answer["code"]) == (403, "insecure_sign_in")
    forwarded = {"X_Forwarded_For": "203.0.113.9", "X_Forwarded_Proto": "https"}
    status, answer = browser.ask("POST", "/admin/api/login", body, **forwarded)
    assert status == 200, answer
    assert "Secure" in browser.set_cookie
    rows = proxied.admin("GET", f"/sessions?user={name}")["data"]
    assert [row["address"] for row in rows] == ["203.0.113.9"]


def test_metrics_are_closed_to_whom_a_proxy_brings(proxied: Gate):
    assert proxied.ask("GET", "/metrics", key="").status == 200
    assert proxied.ask("GET", "/metrics", key="", X_Forwarded_For="203.0.113.9").status == 401


def test_an_operator_may_allow_it(tmp_path: Path):
    settings = {"TRUSTED_PROXIES": "127.0.0.0/8", "ALLOW_INSECURE_ADMIN": "1", "DURABILITY": "process"}
    with Server(tmp_path, scripted_model(), "--admin-key", **settings) as server:
        gate = Gate(server)
        body = {"username": make_person(gate), "password": "correct horse battery"}
        assert Browser(gate).ask("POST", "/admin/api/login", body, X_Forwarded_For="203.0.113.9")[0] == 200
        assert server.stop() == 0
