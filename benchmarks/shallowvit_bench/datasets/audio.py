"""Sound files as the log-mel spectrograms that the Audio Spectrogram Transformer takes (Kaldi's filter bank, in numpy).

A newcomer's trap: AST divides by *twice* the deviation. Mean and deviation are those of AudioSet unless the specification says
otherwise, as models tuned on Speech Commands or ESC-50 have their own.
"""

from __future__ import annotations

import wave
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BenchError
from .classes import labels_from_names, read_classes, read_text
from .dataset import UnreadableError, called
from .images import file_stamp, relative_name, split_line

if TYPE_CHECKING:
    from .dataset import Taker
    from .specs import DataSpec

__all__ = ["AudioItems", "log_mel", "open_audio", "read_wave"]

RATE = 16_000
_WINDOW, _STEP, _FFT = 400, 160, 512  # 25 ms, 10 ms
_LOWEST_HZ, _HIGHEST_HZ = 20.0, RATE / 2
_FLOOR = 1.192092955078125e-07  # the smallest step of float32, as in Kaldi
_PREEMPHASIS = 0.97
_MEAN, _STD = -4.2677393, 4.5689974  # of AudioSet, as in AST's published preprocessor


class AudioItems:
    """Sound files, each an item of one view."""

    in_memory = False

    def __init__(self, paths: tuple[Path, ...], shape: tuple[int, int], scale: tuple[float, float], root: Path) -> None:
        self._paths, self._shape, self._scale, self._root = paths, shape, scale, root

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, item: int) -> np.ndarray[Any, Any]:
        """Return float32 [1, times, mels]."""
        mean, std = self._scale
        return ((log_mel(read_wave(self._paths[item]), *self._shape) - mean) / (2 * std)).astype(np.float32)[None]

    def name(self, item: int) -> str:
        """Return the path below the folder."""
        return relative_name(self._paths[item], self._root)

    def stamp(self, item: int) -> int:
        """Return when the file was changed."""
        return file_stamp(self._paths[item])


def open_audio(spec: DataSpec, taker: Taker, labelled: bool) -> tuple[AudioItems, np.ndarray[Any, Any]]:
    """List the sound files of ``path label`` lines; nothing is read yet."""
    if len(taker.input.shape) != 2:
        raise BenchError(
            f"open_dataset: {called(taker)} takes {list(taker.input.shape)}, and audio: makes spectrograms [times, mels]; "
            "give a .npz with inputs"
        )
    lines = [split_line(line, spec.path) for line in read_text(spec.path).splitlines() if line.strip()]
    if not lines:
        raise BenchError(f"open_dataset: {spec.path} lists no files; give lines of 'path label'")
    file = spec.option_path("classes")
    classes = read_classes(file, taker) if file else None
    labels = labels_from_names([label for _, label in lines], taker, classes, labelled, spec)
    scale = spec.number("mean", _MEAN), spec.number("std", _STD)
    times, mels = map(int, taker.input.shape)
    return AudioItems(tuple(spec.root / path for path, _ in lines), (times, mels), scale, spec.root), labels


def read_wave(path: Path) -> np.ndarray[Any, Any]:
    """Read a PCM .wav as float32 [samples] in -1 to 1, its channels averaged, at 16 kHz.

    Raises:
        UnreadableError: it isn't there or is no PCM .wav.
        BenchError: it has another rate, and SciPy, which would resample it, isn't installed.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            data = file.readframes(count)
    except FileNotFoundError as err:
        raise UnreadableError(f"read_wave: no file {path}; correct the list or add it") from err
    except (wave.Error, EOFError, OSError) as err:
        raise UnreadableError(f"read_wave: {path} is no PCM .wav ({err}); convert it to 16 bit PCM") from err
    if not data:
        raise UnreadableError(f"read_wave: {path} holds no sound; replace it")
    samples = _floats(data[: len(data) // (width * channels) * width * channels], width).reshape(-1, channels).mean(axis=1)
    return samples if rate == RATE else _resampled(samples, rate, path)


def _floats(data: bytes, width: int) -> np.ndarray[Any, Any]:
    if width == 1:  # unsigned, unlike the others
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        bytes_ = np.frombuffer(data, np.uint8).reshape(-1, 3)
        whole = np.concatenate([np.zeros((len(bytes_), 1), np.uint8), bytes_], axis=1).view("<i4")[:, 0]
        return whole.astype(np.float32) / 2**31
    return np.frombuffer(data, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)


def _resampled(samples: np.ndarray[Any, Any], rate: int, path: Path) -> np.ndarray[Any, Any]:
    try:
        from scipy.signal import resample_poly
    except ModuleNotFoundError as err:
        raise BenchError(
            f"read_wave: {path} has {rate} Hz, the model takes {RATE}, and SciPy is not installed here. Run: pip install "
            "scipy, or resample the files"
        ) from err
    divisor = int(np.gcd(rate, RATE))
    return np.asarray(resample_poly(samples, RATE // divisor, rate // divisor), np.float32)


def log_mel(samples: np.ndarray[Any, Any], times: int, mels: int) -> np.ndarray[Any, Any]:
    """Return Kaldi's log-mel filter bank [times, mels] of 16 kHz sound: cut, or filled with zeros, to that many times."""
    count = max(0, 1 + (len(samples) - _WINDOW) // _STEP)
    features = np.zeros((times, mels))
    if not count:
        return features
    starts = np.arange(min(count, times)) * _STEP
    frames = samples.astype(np.float64)[starts[:, None] + np.arange(_WINDOW)]  # [times, window]
    frames -= frames.mean(axis=1, keepdims=True)
    frames[:, 1:] -= _PREEMPHASIS * frames[:, :-1]
    frames[:, 0] *= 1 - _PREEMPHASIS
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW), _FFT)) ** 2
    features[: len(starts)] = np.log(np.maximum(power @ _mel_filters(mels), _FLOOR))
    return features


@cache
def _mel_filters(mels: int) -> np.ndarray[Any, Any]:
    """Triangles in mel scale [frequencies, mels]; the highest frequency has none, as in Kaldi."""
    lowest, highest = _mel(np.array([_LOWEST_HZ, _HIGHEST_HZ]))
    edges = np.linspace(lowest, highest, mels + 2)
    frequencies = _mel(np.arange(_FFT // 2 + 1) * (RATE / _FFT))[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def _mel(hertz: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 1127.0 * np.log1p(hertz / 700.0)
