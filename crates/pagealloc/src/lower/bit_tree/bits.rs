//! Aligned groups of bits in a word: arithmetic, nothing else.

#![deny(unsafe_code)]

/// Pages of a row, a bit each.
pub(super) const ROW_PAGES: usize = 1 << ROW_ORDER;
pub(super) const ROW_ORDER: usize = 6;

/// Bits `start` to before `start + len`.
pub(super) const fn mask(start: u32, len: u32) -> u64 {
    (u64::MAX >> (u64::BITS - len)) << start
}

/// The first bits of the aligned groups of `2^order` set bits.
pub(super) const fn blocks(bits: u64, order: usize) -> u64 {
    const HEADS: [u64; ROW_ORDER + 1] = [
        u64::MAX,
        0x5555_5555_5555_5555,
        0x1111_1111_1111_1111,
        0x0101_0101_0101_0101,
        0x0001_0001_0001_0001,
        0x0000_0001_0000_0001,
        1,
    ];
    let (mut bits, mut o) = (bits, 0);
    while o < order {
        bits &= bits >> (1 << o);
        o += 1;
    }
    bits & HEADS[order]
}

/// The groups of `2^order` bits that begin at `heads`.
pub(super) const fn spread(heads: u64, order: usize) -> u64 {
    let (mut bits, mut o) = (heads, 0);
    while o < order {
        bits |= bits << (1 << o);
        o += 1;
    }
    bits
}

/// The lowest `n` set bits.
pub(super) const fn lowest(bits: u64, n: usize) -> u64 {
    if bits.count_ones() as usize <= n {
        return bits;
    }
    // Most rows are free from some bit on.
    let dense = bits
        & mask(
            bits.trailing_zeros(),
            (bits >> bits.trailing_zeros()).trailing_ones(),
        );
    if dense.count_ones() as usize >= n {
        return if n == 0 {
            0
        } else {
            dense & mask(dense.trailing_zeros(), n as u32)
        };
    }
    let (mut rest, mut left) = (bits, n);
    while left > 0 {
        rest &= rest - 1;
        left -= 1;
    }
    bits & !rest
}
