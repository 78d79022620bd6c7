"""Models that are a folder: several files out of wheels, from the hub, or where an operator put them."""

import hashlib
import os

import pytest

from stentor.core.errors import StentorError
from stentor.runtime.hub import HubSettings
from stentor.runtime.offers import OFFERS, fill_in
from stentor.runtime.origins import id_from_source, parse_source
from stentor.runtime.quants import NoSuchFile, RepoFile, choose_files
from stentor.runtime.sources import KNOWN, SourceError, Sources
from stentor.runtime.spec import ModelSpec, declared_abilities
from stentor.runtime.wheel_shelf import WheelShelf
from tests.hub import running_hub

SOURCE = "pypi:p-1==1.0+p-2==1.0#model.bin=*/data/model.bin.part*,p_2/data/config.json"
HUB_SETTINGS = {"stall_s": 5.0, "tries": 2, "backoff_first_s": 0.02}


def add_parts(shelf):
    shelf.add("p-1", "1.0", {"p_1/data/model.bin.part1": b"one", "p_1/__init__.py": b"raise SystemExit"})
    shelf.add("p-2", "1.0", {"p_2/data/model.bin.part2": b"two", "p_2/data/config.json": b"{}"})


async def test_files_of_several_wheels_make_a_folder(shelf, sources, cache, leftovers):
    add_parts(shelf)
    folder = await sources.fetch(SOURCE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"model.bin": b"onetwo", "config.json": b"{}"}
    assert sources.find(SOURCE) == folder
    assert len(leftovers()) == 3  # the two files, and the record


@pytest.mark.parametrize("spoil", ["change", "delete"])
async def test_a_folder_of_which_something_changed_is_made_again(shelf, sources, spoil):
    add_parts(shelf)
    folder = await sources.fetch(SOURCE)
    if spoil == "change":
        (folder / "config.json").write_bytes(b"{ }")
    else:
        (folder / "model.bin").unlink()
    assert sources.find(SOURCE) is None
    assert await sources.fetch(SOURCE) == folder
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "model.bin").read_bytes() == b"onetwo"


async def test_the_sum_of_a_folder_is_that_of_its_files_sums(shelf, sources, cache):
    add_parts(shelf)
    lines = "".join(
        f"{name} {hashlib.sha256(data).hexdigest()}\n"
        for name, data in [("model.bin", b"onetwo"), ("config.json", b"{}")]
    )
    right = hashlib.sha256(lines.encode()).hexdigest()
    await sources.fetch(f"{SOURCE}@sha256={right}")
    with pytest.raises(StentorError, match="was expected"):
        await sources.fetch(f"{SOURCE}@sha256={'0' * 64}")


async def test_removing_a_folder_frees_its_bytes(shelf, sources, leftovers):
    add_parts(shelf)
    await sources.fetch(SOURCE)
    assert sources.remove(SOURCE) == 8
    assert leftovers() == []


async def test_a_folder_is_within_the_size_limit_as_a_whole(shelf, cache):
    add_parts(shelf)
    shelf_of_seven = WheelShelf(cache, shelf.environ, 7, 60.0)
    with pytest.raises(StentorError, match="bytes allowed"):
        await shelf_of_seven.pull(SOURCE, parse_source(SOURCE), lambda _done, _total: None)


@pytest.mark.parametrize(
    "text",
    [
        "pypi:a==1#a/m,../m",
        "pypi:a==1#a/m,",
        "pypi:a==1#x/../y=a/m",
        "pypi:a==1#.hidden=a/m,b",
        "pypi:a==1#a/m,b/m",
        "pypi:a==1#=m,n",
        "hf:a/b#x.bin,../y",
        "hf:a/b#x.bin,",
    ],
)
def test_a_bad_list_of_files_is_refused_and_quoted(text):
    with pytest.raises(SourceError) as refusal:
        parse_source(text)
    assert repr(text) in str(refusal.value)


def test_every_offer_is_understood_and_known_by_its_wheels():
    for name, offer in OFFERS.items():
        parsed = parse_source(offer.source)
        assert len(KNOWN[offer.source].wheel_sha256) == len(parsed.requirements), name


@pytest.mark.parametrize("said", ["whisper-base", OFFERS["whisper-base"].source])
def test_an_offer_brings_engine_and_id(said):
    full = fill_in({"source": said, "threads": 2})
    assert full == {"id": "whisper-base", "engine": "whisper", "source": OFFERS["whisper-base"].source, "threads": 2}
    assert fill_in({"source": said, "id": "mine"})["id"] == "mine"


def test_before_its_files_are_there_a_models_name_tells_what_it_can() -> None:
    english, base = (ModelSpec(**fill_in({"source": name})) for name in ("whisper-tiny.en", "whisper-base"))
    assert declared_abilities(english) == ("transcription",)
    assert declared_abilities(base) == ("transcription", "translation")


def test_a_folder_is_named_after_its_package_or_repository():
    assert id_from_source(SOURCE) == "p-1"
    assert id_from_source("hf:Org/faster-whisper-base@main#*") == "faster-whisper-base"
    assert id_from_source("hf:Org/voices#a/b.onnx,a/b.onnx.json") == "voices"


def test_patterns_choose_files_of_a_repository():
    files = [RepoFile(path, 1, f"sha256:{path}") for path in ("config.json", "model.bin", "vocabulary.txt", "x.md")]
    chosen = choose_files("o/r", files, filename="model.bin,vocabulary.*,config.json")
    assert [file.path for file in chosen.files] == ["config.json", "model.bin", "vocabulary.txt"]
    assert chosen.is_folder
    assert len(choose_files("o/r", files, filename="*").files) == 4
    with pytest.raises(NoSuchFile, match=r"has no 'tokenizer\.json'"):
        choose_files("o/r", files, filename="model.bin,tokenizer.json")
    with pytest.raises(NoSuchFile, match=r"#config\.json,model\.bin"):
        choose_files("o/r", files)


async def test_a_folder_comes_from_the_hub(tmp_path):
    files = {"en/voice.onnx": b"ONNX", "en/voice.onnx.json": b"{}", "README.md": b"#", "de/other.onnx": b"x"}
    with running_hub() as hub:
        hub.add("org/voices", files)
        sources = Sources(tmp_path / "cache", os.environ, hub=HubSettings(endpoint=hub.url, **HUB_SETTINGS))
        source = "hf:org/voices#en/voice.onnx,en/voice.onnx.json"
        folder = await sources.fetch(source)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            "voice.onnx": b"ONNX",
            "voice.onnx.json": b"{}",
        }
        assert sources.find(source) == folder
        (folder / "voice.onnx").unlink()
        assert sources.find(source) is None


def test_an_operators_folder_is_used_where_it_lies(tmp_path):
    (tmp_path / "whisper").mkdir()
    sources = Sources(tmp_path / "cache", os.environ)
    assert sources.find(f"file:{tmp_path}/whisper") == tmp_path / "whisper"
