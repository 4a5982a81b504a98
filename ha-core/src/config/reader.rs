//! The file's tables and values with their places: what is wrong is told with its line, its key and what was expected.
//!
//! What stands in the file is never repeated: it may be a PIN where none should be. An unknown key is named, as long as
//! it looks like one.

use std::fmt;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// The key with those of the tables it stands in (`group.member.pin`); empty where none can be told.
    pub key: String,
    /// What is wrong, and what was expected.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

pub(super) type Result<T> = std::result::Result<T, Mistake>;

/// Where something stands.
#[derive(Clone)]
pub(super) struct Place<'a> {
    text: &'a str,
    key: String,
    at: usize,
}

impl<'a> Place<'a> {
    pub(super) fn line(&self) -> usize {
        line_of(self.text.as_bytes(), self.at)
    }

    pub(super) fn mistake(&self, message: impl Into<String>) -> Mistake {
        Mistake { line: self.line(), key: self.key.clone(), message: message.into() }
    }

    pub(super) fn expected(&self, what: impl fmt::Display) -> Mistake {
        self.mistake(format!("{what} was expected"))
    }

    fn below(&self, name: &str, at: usize) -> Place<'a> {
        let key = if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) };
        Place { text: self.text, key, at }
    }

    /// A key of this table that is not in the file: the place is the table's.
    pub(super) fn absent(&self, name: &str) -> Place<'a> {
        self.below(name, self.at)
    }
}

/// The line, from 1, of a byte of the text.
pub(super) fn line_of(text: &[u8], at: usize) -> usize {
    1 + text.iter().take(at).filter(|b| **b == b'\n').count()
}

/// The whole file: its tables must have none but the known keys.
pub(super) fn read<'a>(text: &'a str, known: &[&str]) -> Result<Section<'a>> {
    let table = DeTable::parse(text).map_err(|e| {
        let at = e.span().map_or(0, |s| s.start);
        Mistake {
            line: line_of(text.as_bytes(), at),
            key: key_near(text, at),
            message: e.message().trim_end().to_owned(),
        }
    })?;
    Section::new(Place { text, key: String::new(), at: 0 }, table.into_inner(), known)
}

/// The key of the line where the syntax is wrong, if the line begins with one.
fn key_near(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |n| n + 1);
    let line = text.get(start..).and_then(|l| l.lines().next()).unwrap_or_default();
    match line.split_once('=') {
        Some((key, _)) if looks_like_a_key(key.trim()) => key.trim().to_owned(),
        _ => String::new(),
    }
}

/// Whether a text may be told: our keys are like this, and hardly a PIN is.
fn looks_like_a_key(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphabetic() || b"_-.".contains(&b))
}

/// A key's value.
pub(super) struct Field<'a> {
    pub(super) place: Place<'a>,
    value: DeValue<'a>,
}

/// A table whose keys are all known.
pub(super) struct Section<'a> {
    pub(super) place: Place<'a>,
    fields: Vec<(Spanned<DeString<'a>>, Spanned<DeValue<'a>>)>,
}

impl<'a> Section<'a> {
    fn new(place: Place<'a>, table: DeTable<'a>, known: &[&str]) -> Result<Self> {
        let fields: Vec<_> = table.into_iter().collect();
        let strangers = fields.iter().map(|(key, _)| key).filter(|k| !known.contains(&k.get_ref().as_ref()));
        if let Some(stranger) = strangers.min_by_key(|k| k.span().start) {
            let name: &str = stranger.get_ref();
            let name = if looks_like_a_key(name) { name } else { "(a key that is not shown)" };
            return Err(place
                .below(name, stranger.span().start)
                .mistake(format!("unknown key; one of {} was expected", known.join(", "))));
        }
        Ok(Section { place, fields })
    }

    /// Takes a key out, if it is there.
    pub(super) fn take(&mut self, name: &str) -> Option<Field<'a>> {
        let i = self.fields.iter().position(|(key, _)| key.get_ref() == name)?;
        let (key, value) = self.fields.swap_remove(i);
        let place = self.place.below(name, key.span().start);
        Some(Field { place, value: value.into_inner() })
    }

    /// Every key that is left.
    pub(super) fn rest(self) -> impl Iterator<Item = (String, Field<'a>)> {
        let Section { place, fields } = self;
        fields.into_iter().map(move |(key, value)| {
            let field =
                Field { place: place.below("(a variable)", key.span().start), value: value.into_inner() };
            (key.into_inner().into_owned(), field)
        })
    }
}

impl<'a> Field<'a> {
    /// A string that `f` can read.
    pub(super) fn text<T>(self, expected: &str, f: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let read = match &self.value {
            DeValue::String(text) => f(text),
            _ => None,
        };
        read.ok_or_else(|| self.place.expected(expected))
    }

    /// A word of a list.
    pub(super) fn word<T>(self, words: &[&str], f: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let words: Vec<_> = words.iter().map(|w| format!("{w:?}")).collect();
        self.text(&words.join(" or "), f)
    }

    /// `true` or `false`.
    pub(super) fn flag(self) -> Result<bool> {
        match self.value {
            DeValue::Boolean(flag) => Ok(flag),
            _ => Err(self.place.expected("true or false")),
        }
    }

    /// A whole number that `f` takes.
    pub(super) fn number<T>(self, expected: &str, f: impl FnOnce(u64) -> Option<T>) -> Result<T> {
        let read = match &self.value {
            DeValue::Integer(n) => u64::from_str_radix(n.as_str(), n.radix()).ok().and_then(f),
            _ => None,
        };
        read.ok_or_else(|| self.place.expected(expected))
    }

    /// A list's elements.
    pub(super) fn list(self, expected: &str) -> Result<Vec<Field<'a>>> {
        match self.value {
            DeValue::Array(array) => Ok(array
                .into_iter()
                .map(|value| Field {
                    place: Place { at: value.span().start, ..self.place.clone() },
                    value: value.into_inner(),
                })
                .collect()),
            _ => Err(self.place.expected(expected)),
        }
    }

    /// A table.
    pub(super) fn section(self, expected: &str, known: &[&str]) -> Result<Section<'a>> {
        match self.value {
            DeValue::Table(table) => Section::new(self.place, table, known),
            _ => Err(self.place.expected(expected)),
        }
    }

    /// A table whose keys may be anything.
    pub(super) fn map(self, expected: &str) -> Result<Section<'a>> {
        match self.value {
            DeValue::Table(table) => Ok(Section { place: self.place, fields: table.into_iter().collect() }),
            _ => Err(self.place.expected(expected)),
        }
    }

    /// Whether it is a string.
    pub(super) fn is_text(&self) -> bool {
        matches!(self.value, DeValue::String(_))
    }
}
