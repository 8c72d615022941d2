"""The merge engine's random numbers in NumPy: Philox4x32-10 under a key made of seed and BLAKE3 of a tensor's name (at most 64 bytes)."""

import numpy as np

IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]


def blake3(content):
    """The first 8 bytes of the BLAKE3 of at most 64 bytes, as two words."""
    mask = 0xFFFFFFFF
    block = [int.from_bytes(content.ljust(64, b"\0")[i : i + 4], "little") for i in range(0, 64, 4)]
    # One block: chunk start, chunk end and root at once.
    state = IV + IV[:4] + [0, 0, len(content), 1 | 2 | 8]

    def turn(value, by):
        return ((value >> by) | (value << (32 - by))) & mask

    def mix(a, b, c, d, x, y):
        for word, first, second in ((x, 16, 12), (y, 8, 7)):
            state[a] = (state[a] + state[b] + word) & mask
            state[d] = turn(state[d] ^ state[a], first)
            state[c] = (state[c] + state[d]) & mask
            state[b] = turn(state[b] ^ state[c], second)

    for _ in range(7):
        for i in range(4):
            mix(i, 4 + i, 8 + i, 12 + i, block[2 * i], block[2 * i + 1])
        for i in range(4):
            mix(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, block[8 + 2 * i], block[9 + 2 * i])
        block = [block[p] for p in PERMUTATION]
    return [state[i] ^ state[i + 8] for i in range(2)]


def philox(counter, key):
    c = [np.asarray(x, np.uint64) for x in counter]
    k = [np.uint64(x) for x in key]
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> half) ^ c[1] ^ k[0], p1 & mask, (p0 >> half) ^ c[3] ^ k[1], p0 & mask]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return c


def draws(seed, name, model, count):
    """The 32-bit numbers of the first `count` elements of a tensor for one model of a merge."""
    group = np.arange((count + 3) // 4, dtype=np.uint64)
    tensor = blake3(f"{name}#{model}".encode())
    zero = np.zeros_like(group)
    words = philox([group, zero, zero + np.uint64(tensor[0]), zero + np.uint64(tensor[1])], [seed & 0xFFFFFFFF, seed >> 32])
    return np.stack(words, axis=1).reshape(-1)[:count]


def below(rate):
    """A number below this comes with probability `rate`."""
    return np.floor(np.clip(rate, 0, 1) * 2.0**32 + 0.5).astype(np.uint64)


assert [int(x) for x in philox([0] * 4, [0] * 2)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
# The published digest of the empty input begins af1349b9f5f9a1a6.
assert [x.to_bytes(4, "little").hex() for x in blake3(b"")] == ["af1349b9", "f5f9a1a6"]
