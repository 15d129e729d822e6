"""Real inputs for models that others trained: speech, photographs, lines of text, files, notes, EEG-like waves.

Speech is spoken by the espeak-ng synthesizer in the package ``espeakng-loader``; photographs are those that
scikit-learn and scikit-image ship; lines of text are rendered with the fonts of matplotlib; files are those of this
environment; notes and brain waves are synthesized. Everything is the same on every run.
"""

from __future__ import annotations

import ctypes
import json
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.trained.packages import Package

Array = npt.NDArray[Any]
Feed = dict[str, Array]

ESPEAK = Package("espeakng-loader", "0.2.4")
SKIMAGE = Package("scikit-image", "0.26.0")
RATE = 16000
SENTENCES = (
    "Hello, this is a quiet room, and somebody begins to speak.",
    "The quick brown fox jumps over the lazy dog.",
    "Alexa, set a timer for ten minutes.",
    "What is the weather like in Lisbon tomorrow morning?",
    "Hey Jarvis, turn off the light in the kitchen, please.",
    "Nine hundred and forty two, point seven. No, wait: point eight.",
)
VOICES = ((b"en-us", 160, 50), (b"en-gb", 140, 30), (b"de", 170, 70), (b"es", 190, 45))
WORDS = (
    "Invoice total 1284.50 EUR",
    "Order no. 77310",
    "hello world",
    "Flight LH 482",
    "Best before 03/2027",
    "WARNING: hot surface",
    "12:45 Departure",
    "Room 214B",
    "quick brown fox",
    "Serial A7-XK-0093",
    "Thank you!",
    "Net weight 500 g",
    "Exit",
    "Taxi",
    "Call +49 30 1234",
    "Reboot the device",
    "Temperature 21.5 C",
    "Page 3 of 18",
    "Version 2.0.1",
    "lorem ipsum dolor",
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model lies.

    Attributes:
        cache: Folder of all packages.
        path: The model file.
    """

    cache: Path
    path: Path


@dataclass(frozen=True, slots=True)
class Samples:
    """What goes in.

    Attributes:
        like: Inputs of one size: the first part may calibrate, the rest judges.
        others: Inputs of other sizes of the free axes; they only judge.
    """

    like: list[Feed]
    others: list[Feed]


Maker = Callable[[Source], Samples]


# --- sound ---------------------------------------------------------------------------------------------------------


def speech(cache: Path) -> Array:
    """About a minute of speech of several voices with pauses and a noise floor, 16 kHz, float32 in -1..1."""
    stored = cache / "speech.npy"
    if not stored.exists():
        rng = np.random.default_rng(0)
        parts: list[Array] = []
        for index, (sentence, voice) in enumerate((s, v) for v in VOICES for s in SENTENCES[::2]):
            spoken = _spoken(cache, sentence, *voice) * rng.uniform(0.3, 0.9)
            parts += [spoken, np.zeros(int(RATE * (0.3 + 0.7 * (index % 3))))]
        joined = np.concatenate(parts)
        joined += rng.normal(0, 0.002, len(joined))
        np.save(stored, joined.astype(np.float32))
    found: Array = np.load(stored)
    return found


def _spoken(cache: Path, text: str, voice: bytes, words_a_minute: int, pitch: int) -> Array:
    root = ESPEAK.unpacked(cache) / "espeakng_loader"
    library = ctypes.CDLL(str(root / "libespeak-ng.so"))
    rate = library.espeak_Initialize(2, 0, str(root).encode(), 0)  # 2: synchronous, samples to the callback
    parts: list[Array] = []

    def take(samples: Any, count: int, _: Any) -> int:
        if samples and count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(take)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetVoiceByName(voice)
    library.espeak_SetParameter(1, words_a_minute, 0)
    library.espeak_SetParameter(3, pitch, 0)
    data = text.encode()
    library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, 1, None, None)
    return _resampled(np.concatenate(parts) / 32768.0, rate, RATE)


def _resampled(x: Array, old: int, new: int) -> Array:
    from scipy.signal import resample_poly

    found: Array = resample_poly(x, new // np.gcd(new, old), old // np.gcd(new, old))
    return found


def notes(rate: int, seconds: float, seed: int) -> Array:
    """Harmonic tones of a scale with attack and decay, one or two at a time, float32."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0, 0.001, int(rate * seconds))
    start = 0.0
    while start < seconds - 0.1:
        length = rng.uniform(0.15, 0.6)
        for _ in range(rng.integers(1, 3)):
            pitch = 55.0 * 2.0 ** (rng.integers(0, 48) / 12)
            t = np.arange(int(rate * min(length, seconds - start))) / rate
            tone = sum(np.sin(2 * np.pi * pitch * h * t) / h for h in range(1, 7) if pitch * h < rate / 2)
            begin = int(start * rate)
            envelope = np.minimum(t / 0.01, 1) * np.exp(-3 * t)
            found[begin : begin + len(t)] += (0.2 * tone * envelope)[: len(found) - begin]
        start += length * rng.uniform(0.6, 1.2)
    return found.astype(np.float32)


def windows(x: Array, size: int, count: int, seed: int = 0) -> list[Array]:
    """Stretches of a signal, spread over all of it."""
    starts = np.linspace(0, len(x) - size, count).astype(int)
    return [x[start : start + size] for start in np.random.default_rng(seed).permutation(starts)]


def mel(x: Array, bands: int, window: int, hop: int, fft: int | None = None, power: float = 2.0) -> Array:
    """Mel spectrogram, ``(frames, bands)``, of Slaney's scale and areas, as librosa's default is."""
    fft = fft or window
    padded = np.pad(x, fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft)[::hop]
    shape = np.zeros(fft)
    shape[(fft - window) // 2 : (fft - window) // 2 + window] = np.hanning(window + 1)[:-1]
    spectrum = np.abs(np.fft.rfft(frames * shape, axis=-1)) ** power

    def hertz(m: Array) -> Array:
        return np.where(m < 15, m * 200 / 3, 1000 * np.exp((m - 15) * np.log(6.4) / 27))

    top = 15 + 27 * np.log(RATE / 2 / 1000) / np.log(6.4)
    edges = hertz(np.linspace(0, top, bands + 2))
    bins = np.fft.rfftfreq(fft, 1 / RATE)
    up = (bins[None] - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - bins[None]) / np.diff(edges)[1:, None]
    weights = np.maximum(0, np.minimum(up, down)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    found: Array = (spectrum @ weights.T).astype(np.float32)
    return found


def mel_db(x: Array, bands: int, window: int, hop: int) -> Array:
    """As DNSMOS and AECMOS take it: dB below the loudest, ``(dB + 40) / 40``."""
    level = 10 * np.log10(np.maximum(mel(x, bands, window, hop), 1e-10))
    found: Array = ((np.maximum(level - level.max(), -80) + 40) / 40).astype(np.float32)
    return found


def noisy(x: Array, seed: int) -> Array:
    """Speech in noise of a level of its own, now and then clipped."""
    rng = np.random.default_rng(seed)
    found = x + rng.normal(0, 10 ** rng.uniform(-4, -1), x.shape)
    return np.clip(found * rng.uniform(0.5, 3), -1, 1).astype(np.float32)


def voice_frames(
    size: int, state: dict[str, tuple[int, ...]], carried: dict[str, str], rate: str | None = None
) -> Maker:
    """A voice detector's frames, with the recurrent state that the original had before each of them.

    Args:
        size: Samples of one frame at 16 kHz.
        state: Shapes of the state inputs.
        carried: Output by state input.
        rate: Input of the sampling rate, if there is one.
    """

    def make(source: Source) -> Samples:
        import onnxruntime as ort

        session = ort.InferenceSession(str(source.path), providers=["CPUExecutionProvider"])
        x = speech(source.cache)[: RATE * 16]
        feeds: list[Feed] = []
        memory = {name: np.zeros(shape, np.float32) for name, shape in state.items()}
        for start in range(0, len(x) - size, 512):
            feed = {"input": x[None, start : start + size], **memory}
            if rate:
                feed[rate] = np.array(RATE, np.int64)
            feeds.append(feed)
            outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
            memory = {name: outputs[carried[name]] for name in memory}
        order = np.random.default_rng(0).permutation(len(feeds))
        return Samples([feeds[i] for i in order], [])

    return make


def scripted_voice(source: Source) -> Samples:
    """Frames of 512 samples and the rate, as the TorchScript archive takes them; it keeps the state by itself."""
    rate = np.array(RATE, np.int64)
    return Samples([{"x": part[None], "sr": rate} for part in windows(speech(source.cache), 512, 64)], [])


def voice_sequence(source: Source) -> Samples:
    """Whole stretches of frames of 576 samples, the state at its start."""
    x = speech(source.cache)
    frames = np.lib.stride_tricks.sliding_window_view(x, 576)[::512]
    zero = np.zeros((1, 1, 128), np.float32)

    def feed(start: int, length: int) -> Feed:
        return {"input": np.ascontiguousarray(frames[start : start + length]), "h": zero, "c": zero}

    return Samples([feed(20 * i, 60) for i in range(64)], [feed(100, n) for n in (1, 7, 120, 301)])


def raw_speech(name: str, size: int, others: tuple[int, ...] = (), spoilt: bool = False) -> Maker:
    """Plain audio, ``(1, size)``."""

    def make(source: Source) -> Samples:
        x = speech(source.cache)
        spoil = noisy if spoilt else lambda part, _: part
        like = [{name: spoil(part, i)[None]} for i, part in enumerate(windows(x, size, 64))]
        return Samples(like, [{name: x[None, 8000 : 8000 + n]} for n in others])

    return make


def scaled_speech(name: str, size: int, others: tuple[int, ...]) -> Maker:
    """The same in the range of 16-bit samples, as openWakeWord's features take it."""

    def make(source: Source) -> Samples:
        made = raw_speech(name, size, others)(source)
        return Samples(
            *([{name: (feed[name] * 32767).round()} for feed in group] for group in (made.like, made.others))
        )

    return make


def wake_features(source: Source, stage: str) -> Array:
    """What openWakeWord's own first stages make of speech: mel frames, or embeddings of 96 numbers."""
    import onnxruntime as ort

    audio = (speech(source.cache)[None] * 32767).round().astype(np.float32)
    first = ort.InferenceSession(str(source.path.parent / "melspectrogram.onnx"), providers=["CPUExecutionProvider"])
    frames = first.run(None, {first.get_inputs()[0].name: audio})[0].reshape(-1, 32) / 10 + 2
    if stage == "mel":
        found: Array = frames.astype(np.float32)
        return found
    second = ort.InferenceSession(str(source.path.parent / "embedding_model.onnx"), providers=["CPUExecutionProvider"])
    patches = np.lib.stride_tricks.sliding_window_view(frames, 76, axis=0)[::8].transpose(0, 2, 1)[..., None]
    name = second.get_inputs()[0].name
    found = np.concatenate([second.run(None, {name: np.ascontiguousarray(part[None])})[0] for part in patches])
    return found.reshape(-1, 96).astype(np.float32)


def wake_mel(name: str) -> Maker:
    """Patches of 76 mel frames."""

    def make(source: Source) -> Samples:
        frames = wake_features(source, "mel")
        return Samples([{name: part[None, ..., None]} for part in _stretches(frames, 76, 120)], [])

    return make


def wake_words(name: str, length: int) -> Maker:
    """Stretches of embeddings."""

    def make(source: Source) -> Samples:
        return Samples([{name: part[None]} for part in _stretches(wake_features(source, "embedding"), length, 160)], [])

    return make


def _stretches(rows: Array, length: int, count: int) -> list[Array]:
    starts = np.random.default_rng(0).permutation(np.linspace(0, len(rows) - length, count).astype(int))
    return [np.ascontiguousarray(rows[start : start + length]) for start in starts]


def quality_mel(source: Source) -> Samples:
    """DNSMOS P.808: nine seconds of speech in noise."""
    parts = windows(speech(source.cache), RATE * 9 + 160, 64)
    return Samples([{"input_1": mel_db(noisy(p, i), 120, 321, 160)[None, :900]} for i, p in enumerate(parts)], [])


def echo_mel(source: Source) -> Samples:
    """AECMOS without a scenario: far end, microphone and enhanced speech of the same stretch."""
    x = speech(source.cache)
    zero = np.zeros((4, 1, 64), np.float32)

    def feed(seed: int, seconds: float) -> Feed:
        rng = np.random.default_rng(seed)
        n = int(RATE * seconds)
        far, near = (x[start : start + n] for start in rng.integers(0, len(x) - n, 2))
        echo = np.convolve(far, rng.normal(0, 1, 200) * np.exp(-np.arange(200) / 40))[:n] * rng.uniform(0, 0.2)
        signals = (far, near + echo, near + echo * rng.uniform(0, 1))
        return {"input": np.stack([mel_db(noisy(s, seed), 160, 513, 256) for s in signals])[None], "h0": zero}

    return Samples([feed(i, 4.0) for i in range(64)], [feed(100 + i, s) for i, s in enumerate((2.0, 3.3, 7.0))])


def loss_spectrum(source: Source) -> Samples:
    """PLCMOS: log power of speech with lost packets, and a rater."""
    x = speech(source.cache)

    def feed(seed: int, seconds: float) -> Feed:
        rng = np.random.default_rng(seed)
        n = int(RATE * seconds)
        start = rng.integers(0, len(x) - n)
        lost = np.repeat(rng.random(n // 320 + 1) < rng.uniform(0, 0.3), 320)[:n]
        part = noisy(np.where(lost, 0, x[start : start + n]), seed)
        frames = np.lib.stride_tricks.sliding_window_view(part, 512)[::256] * np.hanning(513)[:-1]
        level = np.log(np.maximum(np.abs(np.fft.rfft(frames, axis=-1)) ** 2, 1e-12)) / 20
        rater = rng.normal(size=(1, 64)).astype(np.float32)
        return {"degraded_audio": level[None, None].astype(np.float32), "rater_embed": rater}

    return Samples([feed(i, 4.0) for i in range(64)], [feed(100 + i, s) for i, s in enumerate((1.0, 2.7, 8.0))])


def melodies(_: Source) -> Samples:
    """Basic Pitch: two seconds of notes at 22.05 kHz."""
    name = "serving_default_input_2:0"
    return Samples([{name: notes(22050, 1.9886, i)[:43844].reshape(1, -1, 1)} for i in range(64)], [])


def pitch_frames(source: Source) -> Samples:
    """CREPE: frames of 1024 samples of notes and speech, each with mean 0 and deviation 1."""
    both = np.concatenate([notes(RATE, 20, 1), speech(source.cache)[: RATE * 20]])
    parts = [part for part in windows(both, 1024, 400) if part.std() > 0.01]
    return Samples([{"x": ((part - part.mean()) / part.std())[None].astype(np.float32)} for part in parts[:240]], [])


def pitch_mel(source: Source) -> Samples:
    """FCPE: log mel spectrum of notes and speech."""
    both = np.concatenate([notes(RATE, 40, 2), speech(source.cache)[: RATE * 30]])
    frames = np.log(np.maximum(mel(both, 128, 1024, 160, power=1.0), 1e-5)).astype(np.float32)
    rows = _stretches(frames, 128, 64)
    return Samples([{"x": part[None]} for part in rows], [{"x": frames[None, 50 : 50 + n]} for n in (31, 64, 333)])


def voice_mel(source: Source) -> Samples:
    """Resemblyzer: 1.6 seconds of 40 mel bands, partial utterances."""
    level = 10 ** (-30 / 20) / np.sqrt(np.mean(np.square(speech(source.cache))))
    frames = mel(speech(source.cache) * level, 40, 400, 160)
    return Samples(
        [{"mels": part[None]} for part in _stretches(frames, 160, 64)],
        [{"mels": frames[None, 100 : 100 + n]} for n in (80, 133, 320)],
    )


# --- pictures ------------------------------------------------------------------------------------------------------


def photographs(cache: Path) -> list[Array]:
    """Photographs that scikit-learn and scikit-image ship, uint8 ``(height, width, 3)``."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder = SKIMAGE.unpacked(cache) / "skimage" / "data"
    names = (
        "astronaut.png",
        "coffee.png",
        "chelsea.png",
        "rocket.jpg",
        "motorcycle_left.png",
        "camera.png",
        "page.png",
    )
    found = [np.asarray(picture) for picture in load_sample_images().images]
    return found + [np.asarray(Image.open(folder / name).convert("RGB")) for name in names]


def crops(cache: Path, height: int, width: int, count: int, seed: int = 0) -> list[Array]:
    """Parts of the photographs at several scales, uint8 ``(height, width, 3)``."""
    from PIL import Image

    rng, pictures = np.random.default_rng(seed), photographs(cache)
    found = []
    for index in range(count):
        picture = Image.fromarray(pictures[index % len(pictures)])
        share = rng.uniform(0.35, 1.0)
        w, h = int(picture.width * share), int(picture.height * share)
        left, top = rng.integers(0, picture.width - w + 1), rng.integers(0, picture.height - h + 1)
        found.append(np.asarray(picture.resize((width, height), box=(left, top, left + w, top + h))))
    return found


def planar(picture: Array, scale: float = 1 / 255, mean: Any = 0.0, deviation: Any = 1.0) -> Array:
    """``(1, channels, height, width)`` float32."""
    found: Array = ((picture * scale - np.asarray(mean)) / np.asarray(deviation)).astype(np.float32)
    return np.ascontiguousarray(found.transpose(2, 0, 1)[None])


IMAGENET = {"mean": (0.485, 0.456, 0.406), "deviation": (0.229, 0.224, 0.225)}
CENTRED = {"mean": 0.5, "deviation": 0.5}


def pictures(
    name: str, size: tuple[int, int], others: tuple[tuple[int, int], ...] = (), count: int = 64, **norm: Any
) -> Maker:
    """Crops of photographs, normalized as the model's package does it."""

    def make(source: Source) -> Samples:
        like = [{name: planar(part, **norm)} for part in crops(source.cache, *size, count)]
        rest = [{name: planar(crops(source.cache, *other, 3, 1)[2], **norm)} for other in others]
        return Samples(like, rest)

    return make


def documents(
    name: str,
    size: tuple[int, int],
    others: tuple[tuple[int, int], ...] = (),
    count: int = 64,
    turned: bool = False,
    **norm: Any,
) -> Maker:
    """Pages of a few lines on paper of uneven light."""

    def make(_: Source) -> Samples:
        def page(height: int, width: int, seed: int) -> Array:
            rng = np.random.default_rng(seed)
            light = 0.75 + 0.25 * np.sin(np.linspace(0, 3, width) + rng.uniform(0, 6))[None, :, None]
            found = np.full((height, width, 3), 235.0) * light
            top = 8
            while top < height - 40:
                line = text_line(WORDS[rng.integers(len(WORDS))], int(rng.integers(16, 30)))
                h, w = min(line.shape[0], height - top), min(line.shape[1], width - 12)
                left = int(rng.integers(6, max(7, width - w)))
                w = min(w, width - left)
                found[top : top + h, left : left + w] *= line[:h, :w, None] / 255.0
                top += h + int(rng.integers(6, 40))
            found = np.clip(found + rng.normal(0, 4, found.shape), 0, 255).astype(np.uint8)
            return np.rot90(found, seed % 4 if turned else 0)

        like = [{name: planar(page(*size, i), **norm)} for i in range(count)]
        return Samples(like, [{name: planar(page(*other, 90), **norm)} for other in others])

    return make


def text_line(text: str, size: int) -> Array:
    """Black on white, uint8 ``(height, width)``."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    faces = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSans-Oblique.ttf")
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / faces[(len(text) + size) % len(faces)]
    font = ImageFont.truetype(str(path), size)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("L", (int(right - left) + size, int(bottom - top) + size // 2), 255)
    ImageDraw.Draw(image).text((size // 2 - left, size // 4 - top), text, font=font, fill=0)
    return np.asarray(image)


def lines(
    name: str,
    height: int,
    width: int,
    others: tuple[int, ...] = (),
    grey: bool = False,
    turned: bool = False,
    **norm: Any,
) -> Maker:
    """Lines of text, fitted into a width; some upside down where that is what the model tells."""

    def make(_: Source) -> Samples:
        from PIL import Image

        def line(index: int, wide: int) -> Array:
            rng = np.random.default_rng(index)
            drawn = Image.fromarray(text_line(WORDS[index % len(WORDS)], int(rng.integers(18, 40))))
            fitted = drawn.resize((min(wide, max(8, round(drawn.width * height / drawn.height))), height))
            canvas = np.full((height, wide), 255.0)
            canvas[:, : fitted.width] = np.asarray(fitted)
            if turned and index % 2:
                canvas = canvas[::-1, ::-1]
            low, high = rng.uniform(0, 90), rng.uniform(160, 255)
            shown = low + canvas / 255 * (high - low) + rng.normal(0, 3, canvas.shape)
            return np.repeat(np.clip(shown, 0, 255)[..., None], 1 if grey else 3, axis=-1)

        like = [{name: planar(line(i, width), **norm)} for i in range(64)]
        return Samples(like, [{name: planar(line(200 + i, wide), **norm)} for i, wide in enumerate(others)])

    return make


# --- bytes and characters ------------------------------------------------------------------------------------------


def files(_: Source) -> Samples:
    """Magika: the first and the last 1024 bytes of files of this environment, of many types."""
    root = Path(sysconfig.get_paths()["purelib"])
    by_type: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*/**/*")):
        if path.is_file() and 600 < path.stat().st_size < 4_000_000:
            by_type.setdefault(path.suffix, []).append(path)
    chosen = [path for paths in by_type.values() if paths[0].suffix for path in paths[:: max(1, len(paths) // 6)][:6]]
    feeds = []
    for path in np.random.default_rng(0).permutation(np.array(chosen, dtype=object))[:160]:
        data = path.read_bytes().strip()
        row = np.full(2048, 256, np.int32)
        first, last = np.frombuffer(data[:1024], np.uint8), np.frombuffer(data[-1024:], np.uint8)
        row[: len(first)], row[2048 - len(last) :] = first, last
        feeds.append({"bytes": row[None]})
    return Samples(feeds, [])


def thai(source: Source) -> Iterator[str]:
    """Thai syllables as the package lists them, in runs of words."""
    listed = json.loads((source.path.parent / "attacut-sc-syllables.json").read_text())
    syllables = [one for one in listed if len(one) > 1 and all("\u0e00" <= c <= "\u0e7f" for c in one)]
    rng = np.random.default_rng(0)
    while True:
        yield "".join(syllables[i] for i in rng.integers(0, len(syllables), 40))


def thai_characters(source: Source) -> Samples:
    """AttaCut: characters as numbers, ``(1, length)``."""
    table = json.loads((source.path.parent / "attacut-c-characters.json").read_text())
    texts = thai(source)

    def feed(length: int) -> Feed:
        text = (next(texts) + next(texts) * 3)[:length]
        return {"input": np.array([[table.get(c, 1) for c in text]], np.int64)}

    return Samples([feed(80) for _ in range(64)], [feed(n) for n in (12, 31, 150)])


def thai_windows(source: Source) -> Samples:
    """DeepCut: 21 characters and their types around each place; tables are those in the package's source."""
    text = (source.path.parent.parent / "deepcut.py").read_text()
    tables = _literals(text, ("CHAR_TYPE", "CHARS", "CHAR_TYPES"))
    characters = {c: i for i, c in enumerate(tables["CHARS"])}
    types = {c: tables["CHAR_TYPES"].index(t) for chars, t in tables["CHAR_TYPE"].items() for c in chars}
    feeds: list[Feed] = []
    texts = thai(source)
    padded = " " * 10 + next(texts) + next(texts) + " " * 10
    for i in range(10, min(len(padded) - 10, 250)):
        seen = padded[i + 1 : i + 11] + padded[i - 10 : i][::-1] + padded[i]
        rows = ([characters.get(c, 80) for c in seen], [types.get(c, 4) for c in seen])
        feeds.append({f"input_{k}": np.array([row], np.float32) for k, row in enumerate(rows, 1)})
    return Samples([feeds[i] for i in np.random.default_rng(0).permutation(len(feeds))], [])


def _literals(source: str, names: tuple[str, ...]) -> dict[str, Any]:
    import ast

    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in names:
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def khmer(source: Source) -> Samples:
    """Khmer characters by how common they are, and a mask of those that count."""
    table = json.loads((source.path.parent / "config.json").read_text())["char2id"]
    rng = np.random.default_rng(0)

    def feed(length: int, padded: int) -> Feed:
        common = np.minimum(rng.geometric(0.06, length) + 1, len(table) - 1)
        row = np.zeros(length + padded, np.int64)
        row[:length] = common
        return {"x": row[None], "mask": (np.arange(length + padded) < length)[None]}

    return Samples([feed(64 - p, p) for p in rng.integers(0, 20, 64)], [feed(n, 0) for n in (9, 33, 120)])


NAMES = (
    "محمد",
    "أحمد",
    "علي",
    "فاطمة",
    "خديجة",
    "يوسف",
    "إبراهيم",
    "عبدالله",
    "مريم",
    "حسن",
    "حسين",
    "خالد",
    "سارة",
    "ليلى",
    "عمر",
    "عثمان",
    "زينب",
    "طارق",
    "سليمان",
    "نور",
    "هدى",
    "كريم",
    "جمال",
    "سمير",
    "رنا",
    "منى",
    "وليد",
    "ياسر",
    "لمياء",
    "سعيد",
)


def arabic_names(source: Source) -> Samples:
    """Names as characters behind a country and a role, padded to 16, with their mask."""
    index = {token: i for i, token in enumerate(json.loads((source.path.parent / "vocab.json").read_text())["tokens"])}
    countries = [i for token, i in index.items() if token.startswith("<") and len(token) == 4]

    def feed(name: str, country: int, size: int) -> Feed:
        ids = [country, index["<ROLE_GIVEN>"], *(index.get(c, index["<UNK>"]) for c in name), index["<EOS>"]][:size]
        row = np.zeros((1, size), np.int64)
        row[0, : len(ids)] = ids
        return {"src": row, "src_mask": np.arange(size)[None] < len(ids)}

    like = [feed(name, countries[i % len(countries)], 16) for i, name in enumerate(NAMES * 2)]
    return Samples(like, [feed(NAMES[i], countries[i], n) for i, n in enumerate((12, 17, 31, 40))])


def arabic_steps(source: Source) -> Samples:
    """The decoder's steps behind the encoder of the same package: prefix, memory, mask and hidden state."""
    import onnxruntime as ort

    first = ort.InferenceSession(str(source.path.with_name("encoder.onnx")), providers=["CPUExecutionProvider"])
    second = ort.InferenceSession(str(source.path), providers=["CPUExecutionProvider"])
    names = [o.name for o in first.get_outputs()]
    made, feeds, others = arabic_names(source), [], []
    for group, steps in ((made.like, feeds), (made.others, others)):
        for feed in group:
            outputs = dict(zip(names, first.run(None, feed), strict=True))
            prefix, hidden = np.array([[1]], np.int64), outputs["hidden_out"]
            for _ in range(4):
                step = {
                    "prefix": prefix,
                    "memory": outputs["memory_out"],
                    "src_mask": feed["src_mask"],
                    "hidden": hidden,
                }
                logits, hidden = second.run(None, step)
                if group is made.others or prefix.shape[1] == 3:
                    steps.append(step)
                prefix = np.concatenate([prefix, logits.argmax(-1)[:, None]], axis=1)
    return Samples(feeds, others)


# --- brain waves ---------------------------------------------------------------------------------------------------


def brain_waves(seconds: float, rate: int, seed: int) -> Array:
    """Pink noise with spindles (12 to 14 Hz) and, now and then, a seizure-like rhythm of 3 Hz spikes."""
    rng = np.random.default_rng(seed)
    n = int(seconds * rate)
    spectrum = np.fft.rfft(rng.normal(size=n))
    found = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.fft.rfftfreq(n, 1 / rate), 0.5)), n)
    found /= found.std()
    t = np.arange(n) / rate
    for centre in rng.uniform(0, seconds, max(1, int(seconds / 8))):
        found += rng.uniform(1, 3) * np.exp(-(((t - centre) / 0.4) ** 2)) * np.sin(2 * np.pi * rng.uniform(12, 14) * t)
    if seed % 3 == 0:
        begin = rng.uniform(0, seconds * 0.6)
        found += 5 * ((t > begin) & (t < begin + seconds * 0.3)) * np.sin(2 * np.pi * 3 * t) ** 9
    return found


def seizures(_: Source) -> Samples:
    """Spectrograms of 1 s segments each half second, normalized bin by bin, ``(1, 100, time)``."""

    def feed(seed: int, seconds: float) -> Feed:
        x = brain_waves(seconds, 250, seed)
        frames = np.lib.stride_tricks.sliding_window_view((x - x.mean()) / x.std(), 250)[::125]
        level = np.log10(np.abs(np.fft.rfft(frames * np.hanning(250), axis=-1)[:, :100].T) ** 2 + 1e-6)
        level = (level - level.mean()) / level.std()
        return {"x": level[None].astype(np.float32)}

    return Samples([feed(i, 60) for i in range(64)], [feed(i, s) for i, s in ((130, 20), (132, 45.5), (131, 150))])


def spindles(_: Source) -> Samples:
    """30 s at 250 Hz, and its wavelet magnitudes at 15 frequencies, each with mean 0 and deviation 1."""
    feeds = []
    for seed in range(64):
        x = brain_waves(30, 250, seed)
        t = np.arange(-250, 251) / 250
        kernels = [np.exp(2j * np.pi * f * t) * np.exp(-((t * f / 5) ** 2)) for f in np.linspace(9, 17, 15)]
        bands = np.stack([np.abs(np.convolve(x, kernel, mode="same")) for kernel in kernels])
        bands = (bands - bands.mean(-1, keepdims=True)) / bands.std(-1, keepdims=True)
        wave = (x - x.mean()) / x.std()
        feeds.append({"raw_signal": wave[None, None].astype(np.float32), "spectrogram": bands[None].astype(np.float32)})
    return Samples(feeds, [])
