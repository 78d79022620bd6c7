"""Ollama's local model store: manifests that name blobs, of which the models are GGUF files."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from stentor.runtime.downloads import require_space
from stentor.runtime.origins import id_from_source
from stentor.runtime.spec import id_from_name
from stentor.runtime.wheels import GGUF_MAGIC
from stentor.settings.imported import Imported, ImportFailed, free_id, read_json_object

CTX_MAX = 1 << 31
_DIGEST = re.compile(r"[A-Za-z0-9]+-[A-Za-z0-9]+")
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
    *place, tag = path.relative_to(store / "manifests").parts
    if not place:
        found.skip("model", tag, "is no manifest: those lie in folders of their models' names")
        return
    name = place[-1]
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
            blobs.setdefault(kind, _blob(store, str(layer.get("digest", ""))))
    weights = blobs.get("model")
    if weights is None or not _is_gguf(weights, store):
        why = "its blob is missing, lies elsewhere, or is no GGUF file" if weights else "it has no model of its own"
        found.skip("model", full, why)
        return
    if "adapter" in blobs:
        found.skip("model", full, "it needs an adapter, which isn't taken over")
        return
    model_id = free_id(
        id_from_source(f"file:/{name if tag == 'latest' else full}"), (each["id"] for each in found.models)
    )
    model: dict[str, Any] = {"id": model_id, "source": f"file:{_placed(weights, model_id, '', copy_to)}"}
    projector = blobs.get("projector")
    if projector is not None and _is_gguf(projector, store):
        model["mmproj"] = str(_placed(projector, model_id, ".mmproj", copy_to))
    if "template" in blobs:
        found.skip("template", full, "the model's own chat template is used")
    for kind in sorted({"system", "messages"} & set(blobs)):
        found.skip(kind, full, "belongs into requests: send it with each")
    # Names have their owner in them, and may have the registry.
    owned = [] if len(place) < 2 or place[-2] == "library" else [place[-2:], place]
    ends = [] if tag == "latest" else [tag]
    aliases = dict.fromkeys(id_from_name("-".join([*words, *ends])) for words in owned)
    extra = {"aliases": [alias for alias in aliases if alias != model_id]} if aliases else {}
    found.models.append(model | extra | _read_parameters(found, full, blobs.get("params"), store))


def _placed(blob: Path, model_id: str, mark: str, copy_to: Path | None) -> Path:
    return blob.absolute() if copy_to is None else copy_to / f"{model_id}{mark}.gguf"


def _blob(store: Path, digest: str) -> Path:
    """Where the blob of a digest would lie; that of one that is none is nowhere."""
    name = digest.replace(":", "-")
    return store / "blobs" / (name if _DIGEST.fullmatch(name) else "no-blob")


def _lies_inside(path: Path, store: Path) -> bool:
    """Whether it is a regular file of the store, links followed: a manifest may lead nowhere else."""
    try:
        return path.is_file() and path.resolve().is_relative_to((store / "blobs").resolve())
    except (OSError, RuntimeError):
        return False


def _is_gguf(path: Path, store: Path) -> bool:
    try:
        if not _lies_inside(path, store):
            return False
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False


def _read_parameters(found: Imported, full: str, path: Path | None, store: Path) -> dict[str, Any]:
    """``num_ctx`` is the only parameter that is the server's; the others belong into requests."""
    if path is None or not _lies_inside(path, store):
        return {}
    try:
        parameters = read_json_object(path)
    except ImportFailed:
        return {}
    others = ", ".join(sorted(name for name in parameters if name != "num_ctx"))
    if others:
        found.skip("parameters", full, f"{others[:200]}: belong into requests")
    ctx = parameters.get("num_ctx")
    return {"ctx": ctx} if isinstance(ctx, int) and not isinstance(ctx, bool) and 128 <= ctx <= CTX_MAX else {}


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
