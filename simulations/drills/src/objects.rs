//! Data objects that the load makes, reads and destroys, and whether every token has in the end what it must have.

use std::collections::{BTreeMap, VecDeque};

use ha_token::{
    Attribute, AttributeType, Connector, ObjectHandle, Result, Rv, SessionHandle, Template, Token, ck,
};
use sha2::{Digest, Sha256};

use crate::load::LABEL;
use crate::plan::FULL;

/// How many objects each thread keeps.
const KEPT: usize = 4;
/// How many of those that it destroyed last it remembers.
const GONE: usize = 256;
/// How many bytes their values have where files may not grow past [`FULL`]: more than there is room for.
pub(crate) const LARGE: usize = FULL as usize * 3 / 2;
/// How many they have where it is said that there is no room.
pub(crate) const SMALL: usize = 256;

/// What a thread has made.
#[derive(Clone, Debug)]
pub struct Objects {
    /// Of each value, in bytes.
    size: usize,
    made: u64,
    /// Acknowledged, and not destroyed.
    there: VecDeque<(String, ObjectHandle)>,
    /// Whose destruction was acknowledged.
    gone: VecDeque<String>,
}

fn template(label: &str, size: usize) -> Template {
    vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bool(ck::CKA_PRIVATE, false),
        Attribute::bytes(ck::CKA_LABEL, label.as_bytes()),
        Attribute::bytes(ck::CKA_VALUE, value(label, size)),
    ]
}

/// The value of the object with this label.
fn value(label: &str, size: usize) -> Vec<u8> {
    Sha256::digest(label).repeat(size / 32)
}

fn read(slot: &dyn Token, s: SessionHandle, object: ObjectHandle, kind: AttributeType) -> Result<Vec<u8>> {
    let values = slot.get_attributes(s, object, &[kind])?;
    values.first().and_then(|v| v.bytes()).map(<[u8]>::to_vec).ok_or(Rv::GENERAL_ERROR)
}

impl Objects {
    /// None yet, of values of so many bytes.
    pub fn of_size(size: usize) -> Self {
        Objects { size, made: 0, there: VecDeque::new(), gone: VecDeque::new() }
    }

    /// Makes one more, reads it, and destroys the oldest where there are enough. Answers whether what was read is right.
    ///
    /// # Errors
    /// The slot's answer.
    pub fn one_more(&mut self, slot: &dyn Token, s: SessionHandle, thread: usize) -> Result<bool> {
        self.made += 1;
        let label = format!("{LABEL} {thread} {}", self.made);
        // Nothing is known of one about which a call failed, and nothing is asked of it.
        let object = slot.create_object(s, &template(&label, self.size))?;
        let is_right = read(slot, s, object, ck::CKA_VALUE).map(|read| read == value(&label, self.size));
        self.there.push_back((label, object));
        if self.there.len() > KEPT
            && let Some((label, object)) = self.there.pop_front()
        {
            slot.destroy_object(s, object)?;
            self.gone.push_back(label);
            if self.gone.len() > GONE {
                self.gone.pop_front();
            }
        }
        is_right
    }

    /// How many there must be.
    pub fn count(&self) -> usize {
        self.there.len()
    }

    /// With those of another thread.
    pub fn add(&mut self, other: Objects) {
        self.made += other.made;
        self.there.extend(other.there);
        self.gone.extend(other.gone);
    }

    /// What is wrong with a token that holds these, in words.
    fn judge(&self, found: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
        let ours = |label: &&String| self.there.iter().any(|(own, _)| own == *label);
        let count = |what: &str, labels: Vec<&String>| {
            let some = labels.first().map(|label| format!("{} objects {what} ({label})", labels.len()));
            some.into_iter()
        };
        let missing = self.there.iter().map(|(label, _)| label).filter(|label| !found.contains_key(*label));
        let wrong = found.iter().filter(|(label, read)| ours(label) && **read != value(label, self.size));
        let risen = self.gone.iter().filter(|label| found.contains_key(*label));
        count("are missing", missing.collect())
            .chain(count("are not as they were made", wrong.map(|(label, _)| label).collect()))
            .chain(count("are there that were destroyed", risen.collect()))
            .collect()
    }

    /// Looks at every token itself; answers what is wrong, in words.
    pub(crate) fn compare(&self, members: &[(String, Box<dyn Connector>)]) -> Vec<String> {
        let mut words = Vec::new();
        for (name, connector) in members {
            let found = connector
                .connect()
                .map_err(|error| error.to_string())
                .and_then(|token| found(&*token).map_err(|rv| rv.to_string()));
            connector.disconnect();
            match found {
                Ok(found) => {
                    words.extend(self.judge(&found).into_iter().map(|what| format!("{name}: {what}")))
                }
                Err(why) => words.push(format!("{name}: what it holds cannot be looked at: {why}")),
            }
        }
        words
    }
}

/// Every object that a slot finds.
///
/// # Errors
/// The slot's answer.
pub(crate) fn find_all(slot: &dyn Token, s: SessionHandle, wanted: &Template) -> Result<Vec<ObjectHandle>> {
    slot.find_objects_init(s, wanted)?;
    let mut objects = Vec::new();
    loop {
        let some = slot.find_objects(s, 256)?;
        if some.is_empty() {
            break;
        }
        objects.extend(some);
    }
    slot.find_objects_final(s)?;
    Ok(objects)
}

/// The load's objects on a token.
fn found(slot: &dyn Token) -> Result<BTreeMap<String, Vec<u8>>> {
    let s = slot.open_session(false)?;
    let mut found = BTreeMap::new();
    for object in find_all(slot, s, &vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA)])? {
        let label = String::from_utf8_lossy(&read(slot, s, object, ck::CKA_LABEL)?).into_owned();
        if label.starts_with(LABEL) {
            found.insert(label, read(slot, s, object, ck::CKA_VALUE)?);
        }
    }
    slot.close_session(s)?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_wrong_or_back_is_said() {
        let mut objects = Objects::of_size(64);
        for n in 1..=3 {
            objects.there.push_back((format!("drill 0 {n}"), ObjectHandle(n)));
        }
        objects.gone.push_back("drill 0 0".into());
        let all = |labels: &[&str]| -> BTreeMap<String, Vec<u8>> {
            labels.iter().map(|l| ((*l).to_owned(), value(l, 64))).collect()
        };
        let good = all(&["drill 0 1", "drill 0 2", "drill 0 3", "drill 0 9"]);
        assert_eq!(objects.judge(&good), [""; 0]);
        let mut bad = all(&["drill 0 0", "drill 0 2", "drill 0 3"]);
        bad.get_mut("drill 0 3").unwrap()[7] ^= 1;
        let words = objects.judge(&bad);
        assert_eq!(words.len(), 3, "{words:?}");
        for (words, label) in words.iter().zip(["(drill 0 1)", "(drill 0 3)", "(drill 0 0)"]) {
            assert!(words.contains(label), "{words}");
        }
    }
}
