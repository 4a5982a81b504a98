//! Reading a Luna client's `Chrystoki.conf`: sections `NAME = { KEY = VALUE; … }`, with comments, each with its line.
//!
//! Keys are found in any case, as files with both `reconnAtt` and `ReconnAtt` are about. What is wrong is told with its line.

use std::collections::BTreeMap;
use std::fmt;

/// What is wrong with the file, and on which line, where one can be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) line: Option<usize>,
    pub(super) message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Mistake {}

pub(super) type Read<T> = std::result::Result<T, Mistake>;

pub(super) fn at(line: usize, message: impl Into<String>) -> Mistake {
    Mistake { line: Some(line), message: message.into() }
}

pub(super) fn of_file(message: impl Into<String>) -> Mistake {
    Mistake { line: None, message: message.into() }
}

/// A setting of a section.
pub(super) struct Setting<'a> {
    pub(super) line: usize,
    pub(super) key: &'a str,
    pub(super) value: &'a str,
}

/// Settings that have a value, by their keys in lower case.
pub(super) type Settings<'s, 'a> = BTreeMap<String, &'s Setting<'a>>;

/// A section, and the line that it begins on.
pub(super) struct Section<'a> {
    pub(super) line: usize,
    pub(super) name: &'a str,
    pub(super) settings: Vec<Setting<'a>>,
}

impl<'a> Section<'a> {
    /// Those that have a value, by their keys.
    ///
    /// # Errors
    /// One stands there twice.
    pub(super) fn by_key(&self) -> Read<Settings<'_, 'a>> {
        let mut settings = Settings::new();
        for setting in self.settings.iter().filter(|s| !s.value.is_empty()) {
            if let Some(before) = settings.insert(setting.key.to_ascii_lowercase(), setting) {
                return Err(at(setting.line, format!("{} stands on line {} too", setting.key, before.line)));
            }
        }
        Ok(settings)
    }
}

/// The sections, in the order of the file.
pub(super) struct Document<'a>(Vec<Section<'a>>);

impl<'a> Document<'a> {
    /// Reads the whole file.
    ///
    /// # Errors
    /// What is none, with its line.
    pub(super) fn read(text: &'a str) -> Read<Self> {
        let mut reader = Reader { rest: text, line: 1 };
        let mut sections = Vec::new();
        loop {
            reader.skip();
            if reader.rest.is_empty() {
                return Ok(Document(sections));
            }
            sections.push(reader.section()?);
        }
    }

    /// The section of this name, if there is one.
    ///
    /// # Errors
    /// There are two.
    pub(super) fn section(&self, name: &str) -> Read<Option<&Section<'a>>> {
        let mut named = self.0.iter().filter(|s| s.name.eq_ignore_ascii_case(name));
        let first = named.next();
        match (first, named.next()) {
            (Some(first), Some(second)) => {
                Err(at(second.line, format!("the section {name} begins on line {} too", first.line)))
            }
            _ => Ok(first),
        }
    }
}

/// The file as text.
pub(super) fn text(bytes: &[u8]) -> Read<&str> {
    let line = |n: usize| 1 + bytes.iter().take(n).filter(|b| **b == b'\n').count();
    let text =
        str::from_utf8(bytes).map_err(|e| at(line(e.valid_up_to()), "not UTF-8: this is no text file"))?;
    // Neither could be shown without harm: a control character of a key would act on the terminal.
    if let Some(n) = text.find(|c: char| c.is_control() && !"\t\r\n".contains(c)) {
        return Err(at(line(n), "a control character: this is no text file"));
    }
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// The longest name of a section or a key: what is longer is another kind of file, and is not to be repeated.
pub(super) const NAME: usize = 100;
/// What ends a name.
const ENDS: [char; 5] = ['=', '{', '}', ';', '\n'];

/// What is left of the text.
struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Reader<'a> {
    /// Takes the first `len` bytes.
    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, ""));
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken
    }

    /// Takes a sign, if it comes next.
    fn took(&mut self, sign: char) -> bool {
        let comes = self.rest.starts_with(sign);
        if comes {
            self.take(sign.len_utf8());
        }
        comes
    }

    /// Passes over blanks, comments, and a `;` that ends nothing.
    fn skip(&mut self) {
        loop {
            let said = self.rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
            self.take(self.rest.len() - said.len());
            if !(said.starts_with('#') || said.starts_with("//")) {
                return;
            }
            self.take(said.find('\n').unwrap_or(said.len()));
        }
    }

    /// Takes a name and the `=` after it.
    fn name(&mut self) -> Option<&'a str> {
        let name = self.take(self.rest.find(ENDS).unwrap_or(self.rest.len())).trim();
        (!name.is_empty() && name.len() <= NAME && self.took('=')).then_some(name)
    }

    fn section(&mut self) -> Read<Section<'a>> {
        let line = self.line;
        if self.rest.starts_with('[') {
            return Err(at(
                line,
                "this is the form of a crystoki.ini, which Windows clients have; a Chrystoki.conf was expected",
            ));
        }
        if self.rest.starts_with('}') {
            return Err(at(line, "a } that ends no section"));
        }
        let Some(name) = self.name() else { return Err(at(line, "a section, NAME = { … }, was expected")) };
        self.skip();
        if !self.took('{') {
            return Err(at(line, format!("{name} stands in no section: a {{ was expected after it")));
        }
        let mut settings = Vec::new();
        loop {
            self.skip();
            if self.took('}') {
                return Ok(Section { line, name, settings });
            }
            if self.rest.is_empty() {
                return Err(at(line, format!("the section {name} does not end: a }} was expected")));
            }
            settings.push(self.setting(name, line)?);
        }
    }

    fn setting(&mut self, section: &str, began: usize) -> Read<Setting<'a>> {
        let line = self.line;
        let Some(key) = self.name() else {
            return Err(at(line, format!("a setting, KEY = VALUE;, was expected in the section {section}")));
        };
        let value = self.value().ok_or_else(|| {
            let section = format!("{section}, which begins on line {began}");
            at(
                line,
                format!(
                    "{key}: a value and a ; were expected; or is a }} missing, for the section {section}?"
                ),
            )
        })?;
        Ok(Setting { line, key, value })
    }

    /// Takes a value and the `;` after it. A list may go on in the next line after a comma.
    fn value(&mut self) -> Option<&'a str> {
        let mut end = 0;
        loop {
            end += self.rest.get(end..)?.find([';', '\n'])?;
            let value = self.rest.get(..end)?;
            if value.trim_start().starts_with('{') {
                return None;
            }
            if self.rest.get(end..)?.starts_with(';') {
                self.take(end + 1);
                return Some(unquoted(value.trim()));
            }
            if !value.trim_end().ends_with(',') {
                return None;
            }
            end += 1;
        }
    }
}

fn unquoted(value: &str) -> &str {
    let inner = |quote| value.strip_prefix(quote)?.strip_suffix(quote).map(str::trim);
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}
