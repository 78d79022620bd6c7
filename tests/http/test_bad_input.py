"""Bad input: each kind is refused with a status, a code and words that say what to do, and nothing is booked."""

import json
import socket
import time

import pytest

from tests import media
from tests.http.harness import CHAT, COMPLETIONS, Gate, RawConnection, chat_body, raw_request, use_until_its_end
from tests.scripted_engine import script

IMAGE = media.image_part(media.png())


def post(gate: Gate, body, path: str = CHAT, **more):
    return gate.ask("POST", path, body, **more)


def assert_refused(answer, status: int, code: str, *words: str, param: str | None = None) -> None:
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (status, code, param)
    for word in words:
        assert word in error["message"], error["message"]


BODIES = {
    "no JSON": (b"{not json", "not valid JSON", None),
    "nothing": (b"", "not valid JSON", None),
    "cut short": (b'{"model":"scripted","messages":[{"role":"user","content":"hi"}', "not valid JSON", None),
    "a list": (b"[1,2]", "must be a JSON object", None),
    "null": (b"null", "must be a JSON object", None),
    "invalid UTF-8": (
        b'{"model":"scripted","messages":[{"role":"user","content":"\xff\xfe"}]}',
        "",
        "messages[0].content",
    ),
    "trailing words": (b'{"model":"scripted"} and more', "not valid JSON", None),
    "deep brackets": (b"[" * 5000 + b"]" * 5000, "", None),
    "deep field": (b'{"model":"scripted","messages":' + b"[" * 5000 + b"]" * 5000 + b"}", "", "messages"),
}


@pytest.mark.parametrize(("data", "words", "param"), BODIES.values(), ids=BODIES)
def test_a_body_that_can_not_be_read(each: Gate, data, words, param):
    answer = post(each, data)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (400, "invalid_request")
    assert words in error["message"]


@pytest.mark.parametrize("name", ["metadata", "unknown_thing", "tools", "response_format", "stop"])
def test_deep_nesting_anywhere_harms_nobody(gate: Gate, name):
    data = f'{{"model":"scripted","messages":[{{"role":"user","content":"hi"}}],"{name}":{"[" * 5000}{"]" * 5000}}}'
    assert post(gate, data.encode()).status in (200, 400, 502)
    assert gate.chat("hello").status == 200


def test_deep_nesting_inside_a_message(gate: Gate):
    deep = "[" * 5000 + "]" * 5000
    data = f'{{"model":"scripted","messages":[{{"role":"user","content":{deep}}}]}}'
    assert post(gate, data.encode()).status == 400
    data = f'{{"model":"scripted","messages":[{{"role":"user","content":"x","other":{deep}}}]}}'
    assert post(gate, data.encode()).status in (200, 400, 502)
    parts = f'[{{"type":"text","text":"x","other":{"[" * 300}{"]" * 300}}}]'
    data = f'{{"model":"scripted","messages":[{{"role":"user","content":{parts}}}]}}'
    assert post(gate, data.encode()).status == 200
    data = f'{{"model":"scripted","stream":{deep},"messages":[]}}'
    assert post(gate, data.encode()).status == 400


FIELDS = {
    "no model name": ({"model": 7}, "model"),
    "no messages": ({"messages": None}, "messages"),
    "messages as text": ({"messages": "hi"}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "a message without a role": ({"messages": [{"content": "hi"}]}, "messages"),
    "a number as content": ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    "a part without a type": ({"messages": [{"role": "user", "content": [{"text": "hi"}]}]}, "messages[0].content"),
    "an unknown part": ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content"),
    "stream as text": ({"stream": "yes"}, "stream"),
    "options without a stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "options as a list": ({"stream": True, "stream_options": [1]}, "stream_options"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "negative tokens": ({"max_completion_tokens": -5}, "max_completion_tokens"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens"),
    "tokens as text": ({"max_tokens": "many"}, "max_tokens"),
    "no answers": ({"n": 0}, "n"),
    "too many answers": ({"n": 17}, "n"),
    "very many answers": ({"n": 10**30}, "n"),
}


@pytest.mark.parametrize(("fields", "param"), FIELDS.values(), ids=FIELDS)
def test_a_wrong_field_is_named(gate: Gate, fields, param):
    answer = post(gate, {**chat_body(), **fields})
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "invalid_request", param)
    assert error["message"].endswith(".")


def test_a_missing_field_is_named(gate: Gate):
    assert_refused(post(gate, {"model": "scripted"}), 400, "invalid_request", "'messages' is missing", param="messages")
    assert_refused(
        post(gate, {"model": "scripted"}, COMPLETIONS), 400, "invalid_request", "'prompt' is missing", param="prompt"
    )


@pytest.mark.parametrize("prompt", ["", [], ["a", "b"], {"a": 1}, 7, None, [[1], [2]]])
def test_a_wrong_prompt_is_refused(gate: Gate, prompt):
    answer = post(gate, {"model": "scripted", "prompt": prompt}, COMPLETIONS)
    assert_refused(answer, 400, "invalid_request", param="prompt")


@pytest.mark.parametrize("name", ["id_slot", "n_predict", "ignore_eos", "lora", "chat_template", "best_of", "cache_x"])
def test_fields_that_change_cost_or_isolation_are_refused(each: Gate, name):
    answer = post(each, chat_body(**{name: 1}))
    if name == "cache_x":  # what we don't know may be the engine's own
        assert answer.status == 200
        return
    assert_refused(answer, 400, "unsupported_parameter", f"'{name}'", param=name)
    assert [(event["cost_nano"], event["status"]) for event in each.find_events(answer.request_id)] in (
        [],
        [(0, "failed")],
    )


@pytest.mark.parametrize("url", ["https://example.org/a.png", "http://127.0.0.1/", "file:///etc/passwd", "", "DATA:x"])
def test_images_are_never_fetched(gate: Gate, url):
    part = {"type": "image_url", "image_url": {"url": url}}
    answer = post(gate, {"model": "scripted", "messages": [{"role": "user", "content": [part]}]})
    assert_refused(answer, 400, "invalid_request", "data:", param="messages[0].content")


@pytest.mark.parametrize(
    ("part", "ability"),
    [(IMAGE, "image"), (media.audio_part(media.wav(0.1)), "audio")],
)
def test_a_missing_ability_is_named(each: Gate, part, ability):
    answer = post(each, {"model": "scripted", "messages": [{"role": "user", "content": [part]}]})
    assert_refused(answer, 400, "missing_ability", f"'{ability}'", "scripted", param="model")


@pytest.mark.parametrize("field", ["content", "name", "other"])
def test_half_a_surrogate_pair_is_no_text(each: Gate, field):
    message = f'{{"role":"user","content":"hi","{field}":"\\ud800"}}'
    answer = post(each, f'{{"model":"scripted","messages":[{message}]}}'.encode())
    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_request")


# -- models


def test_an_unknown_model_is_told_with_the_nearest(each: Gate):
    answer = post(each, {**chat_body(), "model": "scriptedd"})
    assert_refused(answer, 404, "model_not_found", "scriptedd", "scripted", param="model")
    assert each.find_events(answer.request_id) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 5000, "новый", "scripted\u0000", "%s{}", "mortal"])
def test_odd_model_names_are_only_unknown(each: Gate, name):
    answer = post(each, {**chat_body(), "model": name})
    assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert len(answer.body) < 2000


def test_a_model_that_the_key_may_not_use_looks_like_one_that_is_not_there(each: Gate):
    key = each.make_key(models=["narrow"])["key"]
    assert each.chat(key=key, model="narrow").status == 200
    answer = each.chat(key=key)
    assert_refused(answer, 404, "model_not_found", param="model")
    assert [model["id"] for model in each.ask("GET", "/v1/models", key=key).json()["data"]] == ["narrow"]
    assert each.ask("GET", "/v1/models/scripted", key=key).status == 404
    assert each.ask("GET", "/v1/models/narrow", key=key).json()["id"] == "narrow"


@pytest.mark.parametrize("name", ["nothing", "..", "%2e%2e%2fetc", "a%00b", "%ff%fe", "a/b", "a%2fb", "a" * 3000])
def test_an_unknown_model_in_the_path(each: Gate, name):
    answer = each.ask("GET", f"/v1/models/{name}")
    assert answer.status == 404
    assert answer.json()["error"]["code"] in ("model_not_found", "not_found")


# -- size


def test_a_prompt_over_the_context_is_refused_by_the_engine_with_both_numbers(each: Gate):
    answer = each.chat("word " * 9000, max_tokens=5)
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert error["details"]["context_size"] == 8192
    assert error["details"]["prompt_tokens"] > 9000
    assert each.event(answer.request_id)["cost_nano"] == 0


def big_body(size: int) -> bytes:
    return json.dumps(chat_body("x" * size)).encode()


def test_fifty_megabytes_are_refused_and_the_answer_arrives(each: Gate):
    answer = post(each, big_body(50 * 1024 * 1024))
    assert_refused(answer, 413, "body_too_large", "32 MiB", "STENTOR_BODY_MAX_MB")
    assert answer.headers["connection"] == "close"


def test_a_limit_names_its_setting_if_it_has_one(strict: Gate, double: Gate):
    def post_title(gate: Gate, path: str, scope: str, size: int):
        body = b'{"title": "' + b"x" * size + b'"}'
        return gate.server.ask("POST", path, body, key=gate.make_key(scopes=[scope])["key"])

    for path, scope in (("/conversations", "ring"), ("/admin/api/users", "admin")):
        answer = post_title(strict, path, scope, 2**20)
        assert (answer.status, answer.json()["code"]) == (413, "body_too_large")
        assert "1 MiB" in answer.json()["detail"]
        assert ("STENTOR_BODY_MAX_MB" in answer.json()["detail"]) == (scope == "ring")
    assert post_title(double, "/conversations", "ring", 9 * 2**20).status == 422


def test_fifty_megabytes_in_chunks_are_refused_and_the_answer_arrives(each: Gate):
    headers = {"Host": "localhost", "Authorization": f"Bearer {each.key}", "Transfer-Encoding": "chunked"}
    piece = b"%x\r\n%b\r\n" % (1024 * 1024, b" " * 1024 * 1024)
    with RawConnection(each.port) as connection:
        connection.send(raw_request("POST", CHAT, headers) + piece * 50 + b"0\r\n\r\n")
        assert_refused(connection.answer(), 413, "body_too_large", "32 MiB")
        assert connection.at_end()


def test_an_announced_body_that_is_too_large_is_not_waited_for(each: Gate):
    headers = {"Host": "localhost", "Authorization": f"Bearer {each.key}", "Content-Length": str(10**15)}
    with RawConnection(each.port) as connection:
        start = time.monotonic()
        connection.send(raw_request("POST", CHAT, {**headers, "Expect": "100-continue"}))
        assert connection.answer().status == 413
        assert time.monotonic() - start < 50.0


def test_a_body_below_the_limit_is_read(each: Gate):
    answer = post(each, {**chat_body("hello"), "padding": "x" * (20 * 1024 * 1024)})
    assert answer.status == 200


# -- paths and methods


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_a_method_that_a_path_does_not_answer(each: Gate, method):
    answer = each.ask(method, CHAT)
    assert_refused(answer, 405, "method_not_allowed", CHAT)
    assert answer.headers["allow"] == "POST"


def test_head_where_only_post_is_answered(gate: Gate):
    answer = gate.ask("HEAD", CHAT)
    assert (answer.status, answer.body) == (405, b"")


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/nothing", "/v1/chat/completions/", "//v1/models", "/V1/models", "/*"]
)
def test_an_unknown_path(each: Gate, path):
    answer = each.ask("GET", path)
    assert answer.status == 404
    if path.lstrip("/").startswith("v1"):
        assert answer.json()["error"]["code"] == "not_found"
    else:
        assert answer.json()["code"] == "not_found"


# -- keys


KEYS = {
    "none": ({}, "missing_api_key"),
    "empty": ({"Authorization": ""}, "missing_api_key"),
    "another scheme": ({"Authorization": "Basic YTpi"}, "missing_api_key"),
    "no token": ({"Authorization": "Bearer "}, "invalid_api_key"),
    "unknown": ({"Authorization": "Bearer sk-" + "a" * 48}, "invalid_api_key"),
    "no sk-": ({"Authorization": "Bearer hello"}, "invalid_api_key"),
    "very long": ({"Authorization": "Bearer " + "a" * 5000}, "invalid_api_key"),
    "two words": ({"Authorization": "Bearer one two"}, "invalid_api_key"),
    "not ASCII": ({"Authorization": "Bearer sk-\xff\xfe"}, "invalid_api_key"),
    "unknown X-API-Key": ({"X-API-Key": "sk-" + "a" * 48}, "invalid_api_key"),
}


@pytest.mark.parametrize(("headers", "code"), KEYS.values(), ids=KEYS)
def test_a_wrong_key(each: Gate, headers, code):
    data = json.dumps(chat_body()).encode()
    with RawConnection(each.port) as connection:
        known = {"Host": "localhost", "Content-Length": str(len(data))}
        connection.send(raw_request("POST", CHAT, {**known, **headers}, data))
        answer = connection.answer()
    each.contract.check("POST", CHAT, answer)
    assert_refused(answer, 401, code)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_is_taken_from_either_header(each: Gate):
    assert each.ask("GET", "/v1/models", key="", X_API_Key=each.key).status == 200
    assert each.ask("GET", "/v1/models", key="", authorization=f"bearer {each.key}").status == 200


def test_ended_keys_are_refused(each: Gate):
    revoked = each.make_key()
    each.admin("POST", f"/api-keys/{revoked['id']}/revoke")
    assert_refused(each.chat(key=revoked["key"]), 401, "invalid_api_key")
    expired, while_it_lived = use_until_its_end(each, lambda key: each.chat(key=key))
    assert while_it_lived.status == 200
    assert_refused(each.chat(key=expired), 401, "invalid_api_key")


def test_a_key_does_what_it_may_and_no_more(each: Gate):
    ring = each.make_key(scopes=["ring"])["key"]
    assert_refused(each.chat(key=ring), 403, "insufficient_scope", "'inference'")
    listed = each.make_key(endpoints=["/v1/models"])["key"]
    assert each.ask("GET", "/v1/models", key=listed).status == 200
    assert_refused(each.chat(key=listed), 403, "insufficient_scope", "/v1/models")
    inference = each.make_key()["key"]
    refused = each.ask("GET", "/admin/api/api-keys", key=inference)
    assert (refused.status, refused.json()["code"]) == (403, "insufficient_scope")


def test_no_key_text_is_ever_repeated(each: Gate):
    answer = each.chat(key="sk-" + "q" * 48)
    assert b"qqqq" not in answer.body
    assert b"qqqq" not in each.server.log
    assert each.key.encode() not in each.server.log


# -- headers


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil", "a b", ""]
)
def test_a_foreign_host_is_refused(each: Gate, host):
    with RawConnection(each.port) as connection:
        connection.send(raw_request("GET", "/health", {"Host": host}))
        answer = connection.answer()
    assert answer.status == 400
    assert answer.json()["code"] == "host_not_allowed"
    assert "STENTOR_ALLOWED_HOSTS" in answer.json()["detail"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:4000", "10.1.2.3"]
)
def test_own_hosts_are_known(gate: Gate, host):
    with RawConnection(gate.port) as connection:
        connection.send(raw_request("GET", "/health", {"Host": host}))
        assert connection.answer().status == 200


def test_no_host_at_all_is_refused(gate: Gate):
    with RawConnection(gate.port) as connection:
        connection.send(raw_request("GET", "/health", {}))
        assert connection.answer().status == 400


def test_no_cross_origin_headers_unless_asked_for(gate: Gate):
    answer = gate.ask("GET", "/health", key="", Origin="https://app.example")
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = gate.ask("OPTIONS", CHAT, key="", Origin="https://app.example", Access_Control_Request_Method="POST")
    assert preflight.status == 405


LABELS = {
    "plain": ("my-run-17", "my-run-17"),
    "long": ("x" * 500, "x" * 128),
    "latin-1": ("caf\xe9", "caf\xe9"),
    "invalid UTF-8": ("\xff\xfe", "\xff\xfe"),
    "spaces": ("  a b  ", "a b"),
    "markup": ("<script>'\";--", "<script>'\";--"),
}


@pytest.mark.parametrize(("label", "kept"), LABELS.values(), ids=LABELS)
def test_the_clients_own_request_id_is_kept_beside_ours(each: Gate, label, kept):
    data = json.dumps(chat_body()).encode()
    headers = {
        "Host": "localhost",
        "Authorization": f"Bearer {each.key}",
        "Content-Length": str(len(data)),
        "X-Client-Request-Id": label,
        "X-Request-Id": "chosen-by-the-client",
    }
    with RawConnection(each.port) as connection:
        connection.send(raw_request("POST", CHAT, headers, data))
        answer = connection.answer()
    each.contract.check("POST", CHAT, answer)
    assert each.event(answer.request_id)["client_request_id"] == kept


@pytest.mark.parametrize(
    "injection", ["a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\rX-Evil: 1", "a\x00b"], ids=["crlf", "lf", "cr", "nul"]
)
@pytest.mark.parametrize("where", ["X-Client-Request-Id", "Traceparent", "Origin", "Host"])
def test_header_lines_can_not_be_smuggled(gate: Gate, where, injection):
    data = json.dumps(chat_body()).encode()
    headers = {"Host": "localhost", "Authorization": f"Bearer {gate.key}", "Content-Length": str(len(data))}
    with RawConnection(gate.port) as connection:
        connection.send(raw_request("POST", CHAT, {**headers, where: injection}, data))
        status, answered = connection.head()
    assert "x-evil" not in answered
    assert status in (200, 400)


def test_a_response_header_never_holds_what_a_model_name_does(gate: Gate):
    answer = gate.chat(model="ALSO")
    assert answer.headers["x-stentor-model"] == "scripted"


def test_two_lengths_are_refused(gate: Gate):
    data = json.dumps(chat_body()).encode()
    lines = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {gate.key}\r\n"
        f"Content-Length: {len(data)}\r\n"
    )
    for second in ("Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n"):
        with RawConnection(gate.port) as connection:
            connection.send((lines + second + "\r\n").encode() + data)
            assert connection.head()[0] == 400


def test_a_connection_serves_on_after_a_refusal(each: Gate):
    """The rest of a body that nobody read is skipped, not taken for the next request."""
    body = json.dumps(chat_body("x" * 300_000)).encode()
    good = json.dumps(chat_body()).encode()
    wrong = {"Host": "localhost", "Authorization": "Bearer sk-wrong", "Content-Length": str(len(body))}
    right = {"Host": "localhost", "Authorization": f"Bearer {each.key}", "Content-Length": str(len(good))}
    with RawConnection(each.port) as connection:
        for _ in range(3):
            connection.send(raw_request("POST", CHAT, wrong, body))
            assert connection.answer().status == 401
            connection.send(raw_request("POST", CHAT, right, good))
            assert connection.answer().status == 200


def test_nothing_is_booked_for_what_was_refused(each: Gate):
    key = each.make_key()
    for body in (b"{", b"[]", json.dumps({"model": "scripted"}).encode(), json.dumps(chat_body(n=99)).encode()):
        assert post(each, body, key=key["key"]).status == 400
    assert each.chat(script({"say": "x"}), key=key["key"], model="none-such").status == 404
    assert each.events_of_key(key["id"]) == []


def test_a_refused_connection_is_no_harm(each: Gate):
    """A client that hangs up in the middle of being refused."""
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", each.port)) as client:
            client.sendall(raw_request("POST", CHAT, {"Host": "localhost", "Content-Length": "1000000"}, b"x" * 50_000))
    assert each.chat().status == 200
