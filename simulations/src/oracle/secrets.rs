//! G9: no PIN and no key's value in what the core logs, or in a file of the group's.

use std::collections::BTreeSet;
use std::path::Path;

use ha_token::{TemplateExt, ck};

use crate::history::{PIN, SO_PIN, WRONG};
use crate::token::Inspected;

/// So much of a key's value tells it.
const TELLING: usize = 16;

/// Takes from objects of tokens what keys consist of: it is looked for when the history is over.
pub(super) fn remember<'a>(values: &mut BTreeSet<Vec<u8>>, objects: impl Iterator<Item = &'a Inspected>) {
    for object in objects {
        if !matches!(object.class, ck::CKO_PRIVATE_KEY | ck::CKO_SECRET_KEY) {
            continue;
        }
        for part in [ck::CKA_VALUE, ck::CKA_PRIVATE_EXPONENT, ck::CKA_PRIME_1, ck::CKA_PRIME_2] {
            let value = object.attributes.get_bytes(part).and_then(|v| v.get(..TELLING));
            values.extend(value.map(<[u8]>::to_vec));
        }
    }
}

/// Where a secret is told: in the log, or in a file under `dir`.
pub fn told(values: &BTreeSet<Vec<u8>>, log: &str, dir: &Path) -> Option<String> {
    let forms = Forms::new(values);
    if forms.are_in(log.as_bytes()) {
        return Some("a secret is in the log".into());
    }
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if forms.are_in(&std::fs::read(&path).unwrap_or_default()) {
                let name = entry.file_name();
                return Some(format!("a secret is in the file {}", name.to_string_lossy()));
            }
        }
    }
    None
}

/// What secrets look like: as they are, as hexadecimal digits, and as a list of numbers.
struct Forms {
    /// The first [`TELLING`] bytes of each.
    all: BTreeSet<Vec<u8>>,
    /// Whether one of them begins so.
    begins: [bool; 256],
}

impl Forms {
    fn new(values: &BTreeSet<Vec<u8>>) -> Self {
        let mut all = BTreeSet::new();
        for value in [PIN, SO_PIN, WRONG].iter().map(|pin| pin.as_bytes()).chain(values.iter().map(|v| &**v))
        {
            let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
            let list = format!("{value:?}").trim_matches(['[', ']']).to_owned();
            all.extend([
                value.to_vec(),
                hex.to_uppercase().into_bytes(),
                hex.into_bytes(),
                list.into_bytes(),
            ]);
        }
        let all: BTreeSet<Vec<u8>> = all.iter().map(|form| form[..TELLING].to_vec()).collect();
        let mut begins = [false; 256];
        all.iter().for_each(|form| begins[usize::from(form[0])] = true);
        Forms { all, begins }
    }

    fn are_in(&self, text: &[u8]) -> bool {
        text.windows(TELLING).any(|w| self.begins[usize::from(w[0])] && self.all.contains(w))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_however_it_is_written() {
        let value: Vec<u8> = (100..116).collect();
        let values = BTreeSet::from([value.clone()]);
        let dir = tempfile::tempdir().unwrap();
        let told = |log: &str| told(&values, log, dir.path());
        assert_eq!(told("INFO all is well, simulated-pin is not it"), None);
        assert!(told(&format!("login with {PIN}")).is_some());
        assert!(told(&format!("login with {:?}", SO_PIN.as_bytes())).is_some());
        assert!(told("login with 73696D756C617465642D77726F6E672D70696E").is_some());
        assert!(told("a key 6465666768696a6b6c6d6e6f70717273").is_some());
        assert!(told(&format!("bytes: {value:?}")).is_some());
        let deeper = dir.path().join("state");
        std::fs::create_dir(&deeper).unwrap();
        std::fs::write(deeper.join("ledger.db"), [b"row", &value[..]].concat()).unwrap();
        assert_eq!(told(""), Some("a secret is in the file ledger.db".into()));
    }
}
