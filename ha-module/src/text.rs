//! Fixed-width text fields: padded with blanks, never terminated.

/// `text` as a field of `N` bytes, cut at a character's boundary.
pub(crate) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    let end = (0..=N.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    for (place, byte) in field.iter_mut().zip(text.as_bytes().iter().take(end)) {
        *place = *byte;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::padded;

    #[test]
    fn short_text_is_padded_and_long_text_cut() {
        assert_eq!(&padded::<6>("ab"), b"ab    ");
        assert_eq!(&padded::<6>(""), b"      ");
        assert_eq!(&padded::<6>("abcdef"), b"abcdef");
        assert_eq!(&padded::<6>("abcdefg"), b"abcdef");
    }

    #[test]
    fn a_character_is_never_cut_in_two() {
        assert_eq!(padded::<6>("abcdeé"), *b"abcde ");
        assert_eq!(padded::<7>("abcdeé"), *b"abcde\xC3\xA9");
        assert_eq!(padded::<4>("a😀"), *b"a   ");
    }
}
