"""``stentor receipts``: a receipt from a live server checked offline, and its log watched."""

import json
import sys
from pathlib import Path

import pytest

from stentor.cli.root import run
from tests.http.harness import Gate, until


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = run(["receipts", *words])
    said = capsys.readouterr()
    return status, said.out + said.err


@pytest.fixture
def receipt(each: Gate, tmp_path: Path) -> Path:
    """A receipt with its proof, in a file, beside the public keys."""
    answer = each.chat()
    key = each.make_key(scopes=["ring"])["key"]
    path = f"/api/v1/receipts/rcpt_{answer.request_id}_1"
    found = until(lambda: each.ask("GET", path, key=key).json(), lambda one: "log" in one, 60)
    (tmp_path / "receipt.json").write_text(json.dumps(found))
    (tmp_path / "keys.json").write_bytes(each.ask("GET", "/receipts/public-keys.json", key="").body)
    return tmp_path / "receipt.json"


def test_a_receipt_is_verified_without_the_server(receipt: Path, capsys: pytest.CaptureFixture[str]):
    keys = str(receipt.with_name("keys.json"))
    status, said = call(capsys, "verify", str(receipt), "--keys", keys)
    assert status == 0, said
    assert "valid, leaf" in said
    forged = receipt.with_name("forged.json")
    forged.write_text(receipt.read_text().replace('"output": ', '"output": 1'))
    status, said = call(capsys, "verify", str(forged), "--keys", keys, "--json")
    assert (status, json.loads(said)["valid"]) == (1, False)
    pending = {name: value for name, value in json.loads(receipt.read_text()).items() if name != "log"}
    forged.write_text(json.dumps(pending))
    assert "no proof" in call(capsys, "verify", str(forged), "--keys", keys)[1]


def test_a_log_is_watched(each: Gate, receipt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    url, state = f"http://127.0.0.1:{each.port}", str(tmp_path / "seen.json")
    assert call(capsys, "audit", url, "--state", state, "--full")[0] == 0
    before = json.loads(Path(state).read_text())
    size = before["size"]
    each.chat()

    def grown() -> int:
        status, said = call(capsys, "audit", url, "--state", state, "--json", "--full")
        assert status == 0, said
        return int(json.loads(said)["seen"]["size"])

    until(grown, lambda now: now > size, 60)
    before["root"] = "00" * 32
    Path(state).write_text(json.dumps(before))
    status, said = call(capsys, "audit", url, "--state", state)
    assert status == 1
    assert "history" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verify", "{file}"), "Say whose keys to trust"),
        (("verify", "{file}", "--keys", "{file}", "--url", "http://x"), "Say whose keys to trust"),
        (("audit", "ftp://x"), "is no address of a server"),
        (("audit", "http://127.0.0.1:9"), "Can't reach"),
    ],
)
def test_wrong_usage_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str):
    file = tmp_path / "x.json"
    file.write_text("{}")
    named = [word.replace("{file}", str(file)) for word in words]
    if words[0] == "audit":
        named += ["--state", str(tmp_path / "seen.json")]
    status, text = call(capsys, *named)
    assert status == 1
    assert said in text
    assert sys.exc_info() == (None, None, None)
