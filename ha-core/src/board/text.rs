//! How a file of the board is written: a first line that says what it is, how long the rest is and what its digest is;
//! then lines of fields between tabs. Who reads while it is written sees a digest that does not fit, and reads again.

use crate::digest::short as digest;

/// The first words of a file, with the number of its form.
const MAGIC: &str = "pkcs11-ha board 1";
/// Longer than any file of the board: what is longer is none.
pub(super) const LONGEST: usize = 1 << 20;

/// A file's bytes.
pub(super) fn file(body: &str) -> Vec<u8> {
    format!("{MAGIC} {} {}\n{body}", body.len(), digest(body.as_bytes())).into_bytes()
}

/// The lines of a file; what was there before and is longer does not matter. `None`: it is none, or not whole.
pub(super) fn body(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let (first, rest) = bytes.split_at_checked(end + 1)?;
    let mut words = std::str::from_utf8(first).ok()?.trim_end().strip_prefix(MAGIC)?.split_ascii_whitespace();
    let len: usize = words.next()?.parse().ok()?;
    let body = rest.get(..len)?;
    if words.next()? != digest(body) {
        return None;
    }
    std::str::from_utf8(body).ok()
}

/// Adds a line of fields.
pub(super) fn line(out: &mut String, fields: &[&str]) {
    for (i, field) in fields.iter().enumerate() {
        if i > 0 {
            out.push('\t');
        }
        // Names, messages: whatever they hold, they are one field.
        for c in field.chars() {
            match c {
                '\t' => out.push_str("\\t"),
                '\n' => out.push_str("\\n"),
                '\\' => out.push_str("\\\\"),
                c => out.push(c),
            }
        }
    }
    out.push('\n');
}

/// The fields of a line.
pub(super) fn fields(line: &str) -> Vec<String> {
    let plain = |field: &str| {
        let mut out = String::new();
        let mut chars = field.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some('t') => out.push('\t'),
                    Some('n') => out.push('\n'),
                    Some(c) => out.push(c),
                    None => {}
                },
                c => out.push(c),
            }
        }
        out
    };
    line.split('\t').map(plain).collect()
}

/// A field that says yes or no.
pub(super) fn word(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// What such a field says.
pub(super) fn is(word: &str) -> Option<bool> {
    match word {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(rows in proptest::collection::vec(proptest::collection::vec(".*", 1..5), 0..5), old in ".*") {
            let mut text = String::new();
            for row in &rows {
                line(&mut text, &row.iter().map(String::as_str).collect::<Vec<_>>());
            }
            let mut bytes = file(&text);
            bytes.extend(old.as_bytes());
            let read: Vec<_> = body(&bytes).unwrap().split_terminator('\n').map(fields).collect();
            prop_assert_eq!(read, rows);
        }

        #[test]
        fn what_is_not_whole_is_none(text in ".{1,80}", cut in any::<prop::sample::Index>(), bit in 0u32..8) {
            let bytes = file(&text);
            let at = cut.index(bytes.len());
            prop_assert_eq!(body(&bytes[..at]), None);
            let mut torn = bytes.clone();
            torn[at] ^= 1 << bit;
            // The case of a digit of the digest and the kind of a space are the only changes that could be without meaning.
            prop_assert!(body(&torn).is_none_or(|read| read == text));
        }
    }

    #[test]
    fn garbage_is_none() {
        for garbage in [&b""[..], b"\n", b"pkcs11-ha board 1 18446744073709551615 00\n", &[0xff; 100]] {
            assert_eq!(body(garbage), None);
        }
    }
}
