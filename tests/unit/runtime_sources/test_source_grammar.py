"""How sources are written."""

from pathlib import Path

import pytest

from stentor.runtime.downloads import Requirement
from stentor.runtime.sources import KNOWN, FileSource, HubSource, PypiSource, SourceError, parse_source
from stentor.settings.models import STARTER_SOURCE

SHA = "ab" * 32


def test_a_wheel_source_has_packages_member_and_sum():
    assert parse_source(f"pypi:a-b==1.0+c==2.0.post1#d/e.gguf@sha256={SHA}") == PypiSource(
        (Requirement("a-b", "1.0"), Requirement("c", "2.0.post1")), "d/e.gguf", SHA
    )


def test_a_file_source_is_a_path():
    assert parse_source("file:/m/x.gguf") == FileSource(Path("/m/x.gguf"))


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("d/e.gguf", "e.gguf"),
        ("*/data/e.gguf.part*", "e.gguf"),
        ("*/e.gguf-*", "e.gguf"),
        ("*/part.bin", "part.bin"),
    ],
)
def test_the_file_is_named_after_the_member(member, name):
    source = parse_source(f"pypi:a==1#{member}")
    assert isinstance(source, PypiSource)
    assert source.name == name


@pytest.mark.parametrize(
    "text",
    [
        "model.gguf",
        "https://example.org/x.gguf",
        "pypi:",
        "pypi:a#m",
        "pypi:a==1",
        "pypi:a==1#",
        "pypi:a>=1#m",
        "pypi:a==1.*#m",
        "pypi:--evil==1#m",
        "pypi:a b==1#m",
        "pypi:a==1+#m",
        "pypi:a==1#../m",
        "pypi:a==1#/m",
        "pypi:a==1#b/../../m",
        "pypi:a==1#b\\m",
        "pypi:a==1#c:m",
        "pypi:a==1#*",
        "pypi:a==1#m@sha256=abc",
        f"pypi:a==1#m@sha256={SHA.upper()}",
        "file:",
        "hf:",
        "hf:a/b/c",
        "hf:../b",
        "hf:a/..b",
        "hf:a/b@",
        "hf:a/b@../x",
        "hf:a/b:",
        "hf:a/b:Q4 K",
        "hf:a/b#",
        "hf:a/b#../x.gguf",
        "hf:a/b:Q4_0#x.gguf",
        "hf:https://x/y",
    ],
)
def test_what_is_not_a_source_is_refused_and_quoted(text):
    with pytest.raises(SourceError) as refusal:
        parse_source(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf:org/repo", HubSource("org/repo")),
        ("hf:repo", HubSource("repo")),
        ("hf:org/repo:Q4_K_M", HubSource("org/repo", quant="Q4_K_M")),
        ("hf:org/repo@refs/pr/1:Q8_0", HubSource("org/repo", "refs/pr/1", "Q8_0")),
        ("hf:org/repo@v1#a/b.gguf", HubSource("org/repo", "v1", filename="a/b.gguf")),
    ],
)
def test_a_hub_source_has_repository_revision_and_quantization(text, source):
    assert parse_source(text) == source
    assert str(source) == text


def test_the_starter_is_known_by_its_sums():
    assert len(KNOWN[STARTER_SOURCE].sha256) == 64
    assert len(KNOWN[STARTER_SOURCE].wheel_sha256[0]) == 64
