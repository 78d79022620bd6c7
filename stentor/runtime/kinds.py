"""What kind of model a file is: from its head, and from the projector beside it, against what the operator declared.

A declared type that the file can't be is an error that names it: a model that answers every request with an error, or
with nonsense, is worse than one that doesn't start.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from stentor.runtime.gguf import GgufHeader, InvalidGguf, read_header, read_projector
from stentor.runtime.launchers.base import LaunchRefused
from stentor.runtime.probe import Props
from stentor.runtime.spec import ABILITIES, Learned, ModelSpec, ModelType

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_QUANT = re.compile(r"[-._](?:u?d-)?(?:i?q\d\w*|b?f16|f32|fp16|fp32|mxfp4\w*)$", re.IGNORECASE)
_PRECISION = ("f16", "bf16", "q8_0", "f32")
# Trained so that the first numbers of a vector are a vector themselves.
_SHORTENABLE = frozenset({"gemma-embedding", "jina-bert-v3"})
_TEXTUAL = ("text", "vision", "omni")


class Nature(msgspec.Struct, frozen=True):
    """What a model is. ``spec`` is the operator's with type and projector filled in; ``header`` and ``projector`` are
    the heads of its files, ``abilities`` what requests may ask of it."""

    spec: ModelSpec
    header: GgufHeader
    projector: GgufHeader | None
    abilities: tuple[str, ...]


def find_nature(spec: ModelSpec, weights: Path, *, quick: bool = False) -> Nature:
    """Look at the file and what lies beside it. Raises LaunchRefused.

    Reading it takes up to a tenth of a second, ``quick`` a thousandth: enough for the kind, not for the memory.
    """
    header = read_weights(spec, weights, quick=quick)
    if header.architecture == "clip":
        raise LaunchRefused(
            f"Model '{spec.id}': {weights} is a projector, the eyes or ears of a model, not a model. Name the model's "
            "own file as its source, and this one under 'mmproj'.",
            public="its file is a projector, not a model",
        )
    path, projector = _find_projector(spec, weights, header)
    kind = choose_type(header, projector)
    problem = None if spec.type is None else find_contradiction(spec.type, header, projector)
    if problem is not None:
        raise LaunchRefused(
            f"Model '{spec.id}' is declared as type = \"{spec.type}\", but {weights.name} {problem}. Found was "
            f"'{kind}': correct the type, leave it out, or name another file.",
            public=f"it is declared as '{spec.type}', which its file is not",
        )
    kind = spec.type or kind
    if kind not in ("vision", "omni", "vision-embedding", "audio"):
        path, projector = None, None
    full = msgspec.structs.replace(spec, type=kind, mmproj=path)
    return Nature(full, header, projector, choose_abilities(kind, full, header, projector))


def read_weights(spec: ModelSpec, weights: Path, *, quick: bool = False) -> GgufHeader:
    """The head of a model's file. Raises LaunchRefused."""
    try:
        return read_header(weights, quick=quick)
    except OSError as problem:
        raise LaunchRefused(
            f"Model '{spec.id}': its file {weights} can't be read ({problem.strerror}). Fetch it again or correct "
            f"its source '{spec.source}'.",
            public="its model file is missing",
        ) from problem
    except InvalidGguf as problem:
        raise LaunchRefused(
            f"Model '{spec.id}': {weights} is not a usable GGUF file: {problem} Fetch it again.",
            public="its model file is damaged",
        ) from problem


def choose_type(header: GgufHeader, projector: GgufHeader | None) -> ModelType:
    """What the files say: a classifier ranks, a model that pools or only encodes embeds, anything else talks."""
    if header.ranks:
        return "reranker"
    sees = projector is not None and projector.sees
    if header.encodes or header.pools:
        return "vision-embedding" if sees else "embedding"
    if projector is None:
        return "text"
    return "omni" if projector.hears else "vision"


def find_contradiction(declared: ModelType, header: GgufHeader, projector: GgufHeader | None) -> str | None:
    """Why the files can't be of the declared type, as the end of a sentence, or None."""
    sees = projector is not None and projector.sees
    hears = projector is not None and projector.hears
    if declared in _TEXTUAL and header.encodes:
        return f"can't generate text (architecture '{header.architecture[:40]}' only encodes)"
    if declared in _TEXTUAL and header.ranks:
        return "ends in a classifier and can't generate text"
    if declared == "reranker" and not header.ranks:
        return "has no classifier that could rank"
    if declared in ("embedding", "vision-embedding") and header.ranks:
        return "ends in a classifier and gives scores, not vectors"
    if declared in ("vision", "omni", "vision-embedding") and not sees:
        return "has no projector for images beside it (mmproj)"
    if declared in ("omni", "audio") and not hears:
        return "has no projector for sound beside it (mmproj)"
    if declared == "tts":
        return "can't speak: this engine has no speech"
    if declared == "listen":
        return 'can\'t listen: the engine for that is "listen"'
    return None


def choose_abilities(
    kind: ModelType, spec: ModelSpec, header: GgufHeader, projector: GgufHeader | None
) -> tuple[str, ...]:
    """What requests may ask of it; ``dimensions``: its vectors may be shortened."""
    abilities = ABILITIES[kind]
    if kind == "vision-embedding":
        blind = not embeds_pictures(spec, header)
    else:
        blind = projector is not None and not projector.sees
    if blind:
        abilities = tuple(ability for ability in abilities if ability != "image")
    shortenable = spec.matryoshka if spec.matryoshka is not None else header.architecture in _SHORTENABLE
    return (*abilities, "dimensions") if shortenable and "embedding" in abilities else abilities


def embeds_pictures(spec: ModelSpec, header: GgufHeader) -> bool:
    """Whether pictures get vectors that mean something.

    llama.cpp reads a picture before the text behind it and makes the vector of that text's tokens alone: right for
    models whose last token has seen everything, wrong for a mean. Other builds of its server don't know our marker.
    """
    last = spec.pooling == "last" or (not spec.pooling and header.pools_last)
    return last and not header.encodes and spec.engine == "llama"


def reconcile(found: Learned, declared: ModelType | None, props: Props) -> tuple[Learned, str]:
    """What a model is once its engine was asked, and in words where that contradicts its files or its declaration.

    What the engine doesn't take is taken from the abilities: it would answer such requests with an error. What it takes
    beyond is added, unless the operator declared the type.
    """
    said = (("image", "images", props.sees), ("audio", "sound", props.hears))
    abilities, kind = found.abilities, found.type
    doubts = []
    for ability, word, takes in said:
        if takes is False and ability in abilities:
            abilities = tuple(each for each in abilities if each != ability)
            doubts.append(f"its engine takes no {word}, other than its files say: such requests are refused")
        elif takes and ability not in abilities and kind in _TEXTUAL:
            if declared is not None:
                doubts.append(f"its engine takes {word}, which its type '{declared}' rules out")
                continue
            doubts.append(f"its engine takes {word}, of which its files say nothing")
            abilities = (*abilities, ability)
    if abilities != found.abilities and declared is None and kind in _TEXTUAL:
        kind = "omni" if "audio" in abilities else "vision" if "image" in abilities else "text"
    return msgspec.structs.replace(found, type=kind, abilities=abilities), "; ".join(doubts)


def _find_projector(spec: ModelSpec, weights: Path, header: GgufHeader) -> tuple[Path | None, GgufHeader | None]:
    """The projector that the operator named, or the one beside the weights that fits them."""
    if spec.mmproj is not None:
        path = spec.mmproj
        try:
            return path, read_projector(path)
        except (OSError, InvalidGguf) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else problem
            raise LaunchRefused(
                f"Model '{spec.id}': its projector {path} can't be used: {reason}",
                public="its projector is missing or damaged",
            ) from problem
    for path in list_projectors(weights):
        try:
            projector = read_projector(path)
        except (OSError, InvalidGguf):
            continue  # nobody named it: what isn't a projector is none
        if not header.width or projector.projected in (0, header.width):
            return path, projector
    return None, None


def list_projectors(weights: Path) -> list[Path]:
    """Files beside ``weights`` that may be its projector, the likeliest first.

    In a folder of one model every ``*mmproj*.gguf`` is its own; among several models only one that bears its name.
    """
    try:
        beside = sorted(path for path in weights.parent.iterdir() if path.suffix == ".gguf" and path.name[0] != ".")
    except OSError:
        return []
    found = [path for path in beside if "mmproj" in path.name.lower()]
    others = {family(path) for path in beside if path not in found}
    if len(others) > 1:
        mine = re.compile(rf"(?<![a-z0-9]){re.escape(family(weights))}(?![a-z0-9])")
        found = [path for path in found if mine.search(path.name.lower())]
    return sorted(found, key=_precision)


def family(path: Path) -> str:
    """The model that a file belongs to: its name without shard and quantization."""
    name = _SHARD.sub("", path.stem)
    return _QUANT.sub("", name).lower()


def _precision(path: Path) -> tuple[int, str]:
    name = path.name.lower()
    places: Sequence[int] = [place for place, word in enumerate(_PRECISION) if re.search(rf"(?<![a-z]){word}", name)]
    return (min(places, default=len(_PRECISION)), name)
