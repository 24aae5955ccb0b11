"""Standard normal numbers by counter, in compiled loops: number k of a stream is the same whoever asks, in any block.

Bits come from Philox4x32-10 (Salmon et al., SC 2011), normals from pairs of them by Box and Muller's formula. The
logarithm and the sine are polynomials so that the loops run in vector registers.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.physics.compiled_numba import compiled

LANES = 128
"""Counters that are worked on together; each gives four numbers, `LANES` apart."""
CHUNK = 4 * LANES

_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
_TWO = np.float32(2.0)
_U32 = np.uint64(32)


@compiled()
def philox(key: npt.NDArray[np.uint32], start: int, stream: int, purpose: int, bits: npt.NDArray[np.uint32]) -> None:
    """Bits ``(4, LANES)`` of the counters ``(start + lane, stream, purpose)``; the key has two words."""
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    for lane in range(bits.shape[1]):
        index = np.uint64(start + lane)
        c0, c1 = np.uint32(index & low), np.uint32(index >> high)
        c2, c3 = np.uint32(stream), np.uint32(purpose)
        k0, k1 = key[0], key[1]
        for _ in range(10):
            a = np.uint64(c0) * np.uint64(0xD2511F53)
            b = np.uint64(c2) * np.uint64(0xCD9E8D57)
            c0 = np.uint32(b >> high) ^ c1 ^ k0
            c1 = np.uint32(b & low)
            c2 = np.uint32(a >> high) ^ c3 ^ k1
            c3 = np.uint32(a & low)
            k0 = np.uint32(k0 + np.uint32(0x9E3779B9))
            k1 = np.uint32(k1 + np.uint32(0xBB67AE85))
        bits[0, lane] = c0
        bits[1, lane] = c1
        bits[2, lane] = c2
        bits[3, lane] = c3


@compiled("contract", "nsz")
def _box_muller(first: npt.NDArray[np.uint32], second: npt.NDArray[np.uint32], a: Any, b: Any) -> None:
    """Two normal numbers of each two words, with the radius from the first and the angle from the second."""
    exponents = second.view(np.int32)
    words, floats = first.view(np.int32), first.view(np.float32)
    for i in range(first.shape[0]):  # a uniform number in (0, 1], as a mantissa in [sqrt(1/2), sqrt(2)) and exponent
        floats[i] = (np.float32(np.int32(first[i] >> np.uint32(1))) + _HALF) * np.float32(2.0**-31)
        a[i] = np.float32(exponents[i]) * np.float32(2.0**-32)  # the angle in turns, in [-1/2, 1/2]
    for i in range(first.shape[0]):
        exponent = (words[i] - np.int32(0x3F3504F3)) >> np.int32(23)
        words[i] -= exponent << np.int32(23)
        exponents[i] = exponent
    for i in range(first.shape[0]):
        y = floats[i] - _ONE
        p = np.float32(7.0376836292e-2)  # of log(1 + y), after Cephes' logf
        p = p * y - np.float32(1.1514610310e-1)
        p = p * y + np.float32(1.1676998740e-1)
        p = p * y - np.float32(1.2420140846e-1)
        p = p * y + np.float32(1.4249322787e-1)
        p = p * y - np.float32(1.6668057665e-1)
        p = p * y + np.float32(2.0000714765e-1)
        p = p * y - np.float32(2.4999993993e-1)
        p = p * y + np.float32(3.3333331174e-1)
        log = y + y * y * (p * y - _HALF) + np.float32(exponents[i]) * np.float32(0.693147180559945)
        radius = np.sqrt(max(-_TWO * log, np.float32(0.0)))
        x = np.float32(a[i]) * np.float32(3.14159265358979)  # half the angle: its sine and cosine, by Taylor's series
        q = x * x
        sine = np.float32(1.6059043837e-10)
        sine = sine * q - np.float32(2.5052108385e-8)
        sine = sine * q + np.float32(2.7557319224e-6)
        sine = sine * q - np.float32(1.9841269841e-4)
        sine = sine * q + np.float32(8.3333333333e-3)
        sine = sine * q - np.float32(1.6666666667e-1)
        sine = x + x * q * sine
        cosine = np.float32(2.0876756988e-9)
        cosine = cosine * q - np.float32(2.7557319224e-7)
        cosine = cosine * q + np.float32(2.4801587302e-5)
        cosine = cosine * q - np.float32(1.3888888889e-3)
        cosine = cosine * q + np.float32(4.1666666667e-2)
        cosine = _ONE + q * (cosine * q - _HALF)
        a[i] = radius * (cosine - sine) * (cosine + sine)
        b[i] = radius * _TWO * sine * cosine


@compiled()
def fill_normals(key: npt.NDArray[np.uint32], first: int, stream: int, purpose: int, out: Any) -> None:
    """Numbers ``first, first + 1, ...`` of a stream into `out`.

    Parameters
    ----------
    key : (2,) uint32
        The seed.
    first
        Number of the first.
    stream, purpose
        Which sequence under the key, 32 bits each.
    out : (count,) float32 or float64
        Filled with standard normal numbers, of single precision in either type.
    """
    bits = np.empty((4, LANES), np.uint32)
    chunk = np.empty((4, LANES), np.float32)
    flat = chunk.reshape(CHUNK)
    count = out.shape[0]
    at = 0
    while at < count:
        number, skip = (first + at) // CHUNK, (first + at) % CHUNK
        philox(key, number * LANES, stream, purpose, bits)
        take = min(CHUNK - skip, count - at)
        if take == CHUNK:
            found = out[at : at + CHUNK].reshape(4, LANES)
            _box_muller(bits[0], bits[1], found[0], found[1])
            _box_muller(bits[2], bits[3], found[2], found[3])
        else:
            _box_muller(bits[0], bits[1], chunk[0], chunk[1])
            _box_muller(bits[2], bits[3], chunk[2], chunk[3])
            for i in range(take):
                out[at + i] = flat[skip + i]
        at += take
