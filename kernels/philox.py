"""Philox4x32-10, the counter-based generator of Random123 (Salmon et al., 2011), in plain PyTorch."""

from torch import Tensor

MASK = 2**32 - 1
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


Words = tuple[Tensor, Tensor, Tensor, Tensor]
"""Unsigned 32-bit words, held in int64 tensors."""


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Return the four random words of every counter; counter and key are int64 in 0 .. 2^32 - 1 and broadcast.

    A 32 x 32-bit product wraps in int64, but its 64 bits are right: the shift's copies of the sign are masked away.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((product1 >> 32) & MASK) ^ c1 ^ k0, product1 & MASK
        c2, c3 = ((product0 >> 32) & MASK) ^ c3 ^ k1, product0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3
