"""Ollama's local model store: manifests that name blobs, of which the models are GGUF files."""

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from stentor.runtime.downloads import require_space
from stentor.runtime.origins import id_from_source
from stentor.runtime.wheels import GGUF_MAGIC
from stentor.settings.imported import Imported, ImportFailed, free_id, read_json_object

_KIND = "application/vnd.ollama.image."


def find_store(environ: dict[str, str]) -> Path:
    """Where Ollama keeps its models: OLLAMA_MODELS, else in the home folder."""
    named = environ.get("OLLAMA_MODELS")
    return Path(named).expanduser() if named else Path("~/.ollama/models").expanduser()


def read_ollama_store(store: Path, copy_to: Path | None = None) -> Imported:
    """The models of a store, used where they lie, or from ``copy_to`` where they will be. Raises ImportFailed."""
    if not (store / "manifests").is_dir() or not (store / "blobs").is_dir():
        raise ImportFailed(f"{store} is no store of Ollama's: it has no manifests and blobs. Name its models folder.")
    found = Imported()
    for path in sorted((store / "manifests").rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            _read_manifest(found, store, path, copy_to)
    return found


def _read_manifest(found: Imported, store: Path, path: Path, copy_to: Path | None) -> None:
    *_place, name, tag = path.relative_to(store / "manifests").parts
    full = f"{name}:{tag}"
    try:
        layers = read_json_object(path).get("layers")
    except ImportFailed as error:
        found.skip("model", full, str(error))
        return
    blobs: dict[str, Path] = {}
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, dict) and str(layer.get("mediaType", "")).startswith(_KIND):
            kind = str(layer["mediaType"]).removeprefix(_KIND)
            blobs.setdefault(kind, store / "blobs" / Path(str(layer.get("digest", "")).replace(":", "-")).name)
    weights = blobs.get("model")
    if weights is None or not _is_gguf(weights):
        found.skip("model", full, "its blob is missing or no GGUF file" if weights else "it has no model of its own")
        return
    if "adapter" in blobs:
        found.skip("model", full, "it needs an adapter, which isn't taken over")
        return
    model_id = free_id(
        id_from_source(f"file:/{name if tag == 'latest' else full}"), (each["id"] for each in found.models)
    )
    model: dict[str, Any] = {"id": model_id, "source": f"file:{_placed(weights, model_id, '', copy_to)}"}
    projector = blobs.get("projector")
    if projector is not None and _is_gguf(projector):
        model["mmproj"] = str(_placed(projector, model_id, ".mmproj", copy_to))
    if "template" in blobs:
        found.skip("template", full, "the model's own chat template is used")
    found.models.append(model | _read_parameters(blobs.get("params")))


def _placed(blob: Path, model_id: str, mark: str, copy_to: Path | None) -> Path:
    return blob.absolute() if copy_to is None else copy_to / f"{model_id}{mark}.gguf"


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False


def _read_parameters(path: Path | None) -> dict[str, Any]:
    """``num_ctx`` is the only parameter that is the server's; the others belong into requests."""
    if path is None:
        return {}
    try:
        parameters = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    ctx = parameters.get("num_ctx") if isinstance(parameters, dict) else None
    return {"ctx": ctx} if isinstance(ctx, int) and ctx >= 128 else {}


def copy_blobs(store: Path, copy_to: Path, models: list[dict[str, Any]]) -> None:
    """Copy the blobs of these models to where their tables say. Raises FetchError where the disk is too full."""
    plain = {model["id"]: model for model in read_ollama_store(store).models}
    wanted: list[tuple[Path, Path]] = []
    for model in models:
        for name in ("source", "mmproj"):
            if name in model:
                old, new = (Path(str(each[name]).removeprefix("file:")) for each in (plain[model["id"]], model))
                wanted.append((old, new))
    copy_to.mkdir(parents=True, exist_ok=True)
    missing = [(old, new) for old, new in wanted if not new.exists()]
    require_space(copy_to, sum(old.stat().st_size for old, _ in missing), "the copies")
    for old, new in missing:
        part = new.with_name(f".{new.name}.part")
        shutil.copyfile(old, part)
        os.replace(part, new)
