"""LLM Gateway's ``config.json`` and ``assets/config/*.json``."""

import re
from pathlib import Path
from typing import Any, TypeGuard

from stentor.runtime.origins import SourceError, id_from_source, parse_source
from stentor.runtime.spec import ABILITIES
from stentor.settings.declared import BY_NAME
from stentor.settings.imported import Call, Change, Imported, ImportFailed, free_id, read_json_object

_KNOWN = frozenset({
    "slots", "hf_token", "admin_key", "default_threads", "default_ctx_size", "pricing", "rate_limits", "performance",
})  # fmt: skip
_CACHE_TYPES = frozenset({"f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})
_PORT = re.compile(r"[0-9]{1,5}")
_NANO_PER_MILLION = 1_000_000_000_000  # USD for one thousand as nano-USD for a million


def read_gateway_config(path: Path) -> Imported:
    """What ``config.json`` says. Raises ImportFailed."""
    config = read_json_object(path)
    found = Imported()
    for name in sorted(set(config) - _KNOWN):
        found.skip("field", name, "is not known")
    threads, ctx = config.get("default_threads"), config.get("default_ctx_size")
    if _is_number(threads) and threads > 0:
        found.settings["DEFAULT_THREADS"] = threads
    if _is_number(ctx) and ctx >= 128:
        found.settings["DEFAULT_CTX"] = ctx
    if "ROUTING" in BY_NAME:
        found.settings["ROUTING"] = "lenient"
    folder = path.absolute().parent / "models"
    if folder.is_dir():
        found.settings["MODEL_DIRS"] = [str(folder)]
    _read_slots(found, config, folder)
    _read_money(found, config)
    token = config.get("hf_token")
    if isinstance(token, str) and token and token != "hf_xxx":  # noqa: S105  # the sample's placeholder
        change = Change("set", "hub token", "default", "kept in the vault")
        found.calls.append(Call("POST", "/hf-tokens", {"token": token, "name": "default"}, change))
    if config.get("admin_key"):
        found.skip("key", "admin_key", "keys are made here: `stentor keys create USER --scope admin`")
    return found


def _read_slots(found: Imported, config: dict[str, Any], folder: Path) -> None:
    slots = config.get("slots")
    if not isinstance(slots, dict):
        return
    ports = {int(port): port for port in slots if _PORT.fullmatch(port) and 1024 <= int(port) <= 65535}
    if ports:
        found.settings["SLOT_FIRST_PORT"] = min(ports)
        found.settings["SLOT_COUNT"] = max(ports) - min(ports) + 1
    for _, port in sorted(ports.items()):
        slot = slots[port]
        if slot is None or slot == {}:
            continue
        entry = {"model_path": slot} if isinstance(slot, str) else slot
        if not isinstance(entry, dict):
            found.skip("slot", port, "is neither a file nor an object")
            continue
        _read_slot(found, port, entry, folder, config.get("performance"))


def _read_slot(found: Imported, port: str, slot: dict[str, Any], folder: Path, performance: Any) -> None:
    named = slot.get("model_path") or slot.get("model") or slot.get("path")
    if not isinstance(named, str) or not named:
        found.skip("slot", port, "names no model file")
        return
    path = find_file(named, folder)
    if path is None:
        found.skip("slot", port, f"its model {named} is neither in {folder} nor elsewhere")
        return
    source = f"file:{path}"
    model = {"id": free_id(id_from_source(source), (each["id"] for each in found.models)), "source": source}
    kind = slot.get("model_type") or slot.get("type") or "text"
    if kind in ABILITIES:
        model |= {"type": kind} if kind != "text" else {}
    else:
        found.skip("slot", port, f"its type '{kind}' is not known; it is taken as text")
    for ours, theirs in (("ctx", "ctx_size"), ("threads", "threads")):
        if _is_number(slot.get(theirs)) and slot[theirs] > 0:
            model[ours] = slot[theirs]
    projector = slot.get("mmproj_path")
    if isinstance(projector, str) and projector:
        beside = find_file(projector, folder)
        if beside is None:
            found.skip("slot", port, f"its projector {projector} is not there")
        else:
            model["mmproj"] = str(beside)
    found.models.append({**model, **_read_performance(performance), "preload": True})


def _read_performance(performance: Any) -> dict[str, Any]:
    if not isinstance(performance, dict):
        return {}
    fields: dict[str, Any] = {}
    if performance.get("flash_attention"):
        fields["flash_attention"] = "auto" if performance["flash_attention"] == "auto" else "on"
    if performance.get("mlock"):
        fields["load_mode"] = "mmap+mlock"
    cache = performance.get("kv_cache_quantization")
    if isinstance(cache, str) and cache in _CACHE_TYPES:
        fields |= {"cache_type_k": cache, "cache_type_v": cache}
    if isinstance(performance.get("batch_size"), int) and performance["batch_size"] > 0:
        fields["batch"] = performance["batch_size"]
    return fields


def _is_number(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number of a plausible size; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 40


def _read_money(found: Imported, config: dict[str, Any]) -> None:
    pricing = config.get("pricing")
    if isinstance(pricing, dict) and {"input_per_1k", "output_per_1k"} <= set(pricing):
        try:
            amounts = [round(float(pricing[name]) * _NANO_PER_MILLION) for name in ("input_per_1k", "output_per_1k")]
        except (TypeError, ValueError, OverflowError):
            raise ImportFailed("The prices in config.json are no numbers.") from None
        text = f"{pricing['input_per_1k']} and {pricing['output_per_1k']} USD per thousand tokens"
        body = {"model": "*", "input_nano": amounts[0], "output_nano": amounts[1]}
        found.calls.append(Call("POST", "/pricing", body, Change("set", "price", "*", text)))
    limits = config.get("rate_limits")
    for tier, limit in (limits if isinstance(limits, dict) else {}).items():
        if tier in ("payg", "sub") and isinstance(limit, int) and limit > 0:
            change = Change("set", "tier", tier, f"{limit} requests a minute")
            found.calls.append(Call("PATCH", f"/tiers/{tier}", {"requests_per_minute": limit}, change))
        else:
            found.skip("tier", str(tier), "is neither payg nor sub, or its limit is no number")


def read_model_configs(paths: list[Path]) -> Imported:
    """What ``assets/config/*.json`` say, a model each, named after its file. Raises ImportFailed."""
    found = Imported()
    for path in paths:
        config = read_json_object(path)
        model_id = free_id(id_from_source(f"file:/{path.stem}.gguf"), (each["id"] for each in found.models))
        source = _find_source(path, config)
        if source is None:
            found.skip("model", model_id, "neither its model_path is there nor does it name a model_repo")
            continue
        kind = config.get("model_type") or "text"
        if kind not in ABILITIES:
            found.skip("model", model_id, f"its type '{kind}' is not known; there are {', '.join(ABILITIES)}")
            continue
        model = {"id": model_id, "source": source} | ({"type": kind} if kind != "text" else {})
        name = id_from_source(f"file:/{config.get('model_name') or model_id}")
        found.models.append(model | ({"aliases": [name]} if name != model_id else {}))
        if config.get("think") is not None:
            found.skip("field", f"{model_id}: think", "thinking is asked for in each request")
    return found


def _find_source(path: Path, config: dict[str, Any]) -> str | None:
    name, repo = config.get("model_name"), config.get("model_repo")
    places = [config.get("model_path"), *([f"{config['cache_path']}/{name}"] if config.get("cache_path") else [])]
    for place in places:
        there = find_file(place, path.absolute().parent) if isinstance(place, str) and place else None
        if there is not None:
            return f"file:{there}"
    if not isinstance(repo, str) or not repo:
        return None
    file = isinstance(name, str) and name.lower().endswith(".gguf")
    for source in ([f"hf:{repo}#{name}"] if file else []) + [f"hf:{repo}"]:
        try:
            parse_source(source)
        except SourceError:
            continue
        return source
    return None


def find_file(named: str, folder: Path) -> Path | None:
    """A file by its path, absolute or below ``folder``; None where it isn't there."""
    path = folder / Path(named).expanduser()
    return path if path.is_file() else None
