//! The first of some bytes in a text, by the vector instructions that each processor of an architecture
//! has. The texts are short: to ask the processor for better ones, as the crate's own functions do, takes
//! longer than it saves, and in a virtual machine much longer.
#![forbid(unsafe_code)]

#[cfg(target_arch = "aarch64")]
use memchr::arch::aarch64::neon::memchr::{One, Three, Two};
#[cfg(target_arch = "x86_64")]
use memchr::arch::x86_64::sse2::memchr::{One, Three, Two};

/// Where `a` is first.
pub(crate) fn one(a: u8, text: &[u8]) -> Option<usize> {
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    if let Some(search) = One::new(a) {
        return search.find(text);
    }
    text.iter().position(|byte| *byte == a)
}

/// Where `a` or `b` is first.
pub(crate) fn two(a: u8, b: u8, text: &[u8]) -> Option<usize> {
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    if let Some(search) = Two::new(a, b) {
        return search.find(text);
    }
    text.iter().position(|byte| [a, b].contains(byte))
}

/// Where `a`, `b` or `c` is first.
pub(crate) fn three(a: u8, b: u8, c: u8, text: &[u8]) -> Option<usize> {
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    if let Some(search) = Three::new(a, b, c) {
        return search.find(text);
    }
    text.iter().position(|byte| [a, b, c].contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_them_is_found_wherever_it_is() {
        for length in 0..70 {
            let mut text = vec![b'.'; length];
            assert_eq!(one(b'a', &text), None);
            assert_eq!(two(b'a', b'b', &text), None);
            assert_eq!(three(b'a', b'b', b'c', &text), None);
            for at in (0..length).rev() {
                for byte in *b"abc" {
                    text[at] = byte;
                    assert_eq!(one(byte, &text), Some(at));
                    assert_eq!(three(b'a', b'b', b'c', &text), Some(at));
                }
                text[at] = b'b';
                assert_eq!(two(b'a', b'b', &text), Some(at));
            }
        }
    }
}
