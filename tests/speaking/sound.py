"""What a test hears: sound files read back by FFmpeg."""

import io
from array import array

import av


def listen(data: bytes, form: str = "") -> tuple[float, int, "array[int]"]:
    """Length in seconds, rate in Hz and samples of a sound file; ``pcm`` has no head and is 24 kHz."""
    if form == "pcm":
        samples = array("h", data)
        return len(samples) / 24_000, 24_000, samples
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        plain = av.AudioResampler(format="s16", layout="mono", rate=stream.rate)
        samples = array("h")
        for frame in container.decode(stream):
            for ready in plain.resample(frame):
                samples.frombytes(bytes(ready.planes[0])[: 2 * ready.samples])
        return len(samples) / stream.rate, int(stream.rate), samples


def loudness(samples: "array[int]") -> float:
    """Mean of the absolute levels."""
    return sum(map(abs, samples)) / max(1, len(samples))
