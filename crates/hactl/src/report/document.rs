//! The report as plain data: what is written as JSON, and shown as HTML.

use std::collections::BTreeMap;
use std::time::SystemTime;

use ha_core::group::{Asked, Examination, Examined, GroupStatus, Testimony, Word};
use ha_core::policy::health::State;
use serde::Serialize;

use super::proof::{KINDS, Proof};
use crate::check::{Summary, word};
use crate::output::hex;

/// How an answer is verified, in a few words.
const HOW: &str = "For an object write its public_key into the file key.pem; for one of its proofs write each of challenge, answer, \
expected, signature, block and throw_away_key that is there, turned from hexadecimal digits to bytes (xxd -r -p), into a file of that \
name; then run the command in verify. It succeeds where the answer is that of the key, and fails where the word is different; in a \
conflict it succeeds for each copy with a key of its own. OpenSSL 3 and standard commands are enough.";

/// What follows from that, and what does not.
pub(super) const LIMITS: [&str; 5] = [
    "A signature that verifies shows that whoever made it had the private key when the challenge was known. The challenges of \
signatures, decryptions and key agreements are drawn at random for each check.",
    "That it was this token that answered, at this time, is what hactl saw and wrote down. Nothing here shows it to somebody who does \
not trust the host: sign or timestamp the report where that matters, or be there when it is made.",
    "Other answers than signatures are known to who asks: they convince as far as the report's maker is trusted, or are asked again. \
Anybody who may use a token can ask it the same challenge again with any PKCS#11 program, and compare.",
    "A secret key is asked what it was asked when it was made, or first seen, since only its own answer tells it: equal answers of the members show \
that they hold the same key, not which key that is, nor who else has it.",
    "No PIN and no key is in this report. From an answer of a secret key, or the digest of a private data object, somebody can try \
guesses of it: that is of no use against a random key of 128 bits, and is against a password. Keep the report as such objects want.",
];

#[derive(Serialize)]
pub(crate) struct Document {
    schema: u8,
    pub(super) verdict: String,
    /// Whether every object was proven to be the same on every member.
    pub(super) well: bool,
    pub(super) program: &'static str,
    pub(super) version: &'static str,
    pub(super) begun: String,
    pub(super) ended: String,
    pub(super) how_to_verify: &'static str,
    pub(super) limits: [&'static str; 5],
    /// The kinds of proof that are in it.
    pub(super) kinds: BTreeMap<&'static str, &'static str>,
    pub(super) groups: Vec<Group>,
}

#[derive(Serialize)]
pub(crate) struct Group {
    pub(super) label: String,
    pub(super) members: Vec<Member>,
    pub(super) summary: Summary,
    pub(super) objects: Vec<Object>,
}

#[derive(Serialize)]
pub(super) struct Member {
    pub(super) name: String,
    /// When the check had ended.
    pub(super) state: String,
    /// What was asked; nothing was of a member that was not up.
    pub(super) token: Option<Token>,
}

#[derive(Serialize)]
pub(super) struct Token {
    pub(super) label: String,
    pub(super) serial: String,
    pub(super) model: String,
    pub(super) manufacturer: String,
    /// The firmware's version.
    pub(super) firmware: String,
}

#[derive(Serialize)]
pub(super) struct Object {
    pub(super) class: String,
    pub(super) key_type: String,
    pub(super) id: String,
    pub(super) label: String,
    pub(super) fingerprint: String,
    pub(super) copyable: bool,
    /// Whether another object has the same names and is a different one: neither is used.
    pub(super) conflict: bool,
    /// What the answers are verified with, as PEM: the public key that every copy should belong to. In a conflict, the one
    /// that this copy belongs to.
    pub(super) public_key: Option<String>,
    /// By member, in the order of the file.
    pub(super) copies: Vec<Copy>,
    /// The members that said nothing of it: they were not up, or failed.
    pub(super) not_asked: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Copy {
    pub(super) member: String,
    pub(super) token: String,
    pub(super) serial: String,
    pub(super) word: &'static str,
    pub(super) reason: Option<String>,
    pub(super) proof: Option<Proof>,
}

impl Group {
    pub(super) fn of(label: &str, status: &GroupStatus, examination: &Examination) -> Self {
        let members: Vec<Member> = status
            .members
            .iter()
            .map(|member| Member {
                name: member.name.clone(),
                state: member.state.to_string(),
                token: examination.asked.iter().find(|asked| asked.member == member.name).map(Token::of),
            })
            .collect();
        let mut sorted: Vec<&Examined> = examination.objects.iter().collect();
        sorted.sort_by(|a, b| a.object.order().cmp(&b.object.order()));
        Group {
            label: label.to_owned(),
            summary: Summary::of(sorted.iter().map(|one| &one.object)),
            objects: sorted.into_iter().map(|one| Object::of(one, &members)).collect(),
            members,
        }
    }

    /// How many objects a member said nothing of that should have.
    fn incomplete(&self) -> usize {
        self.objects.iter().filter(|object| !object.not_asked.is_empty()).count()
    }

    fn is_well(&self) -> bool {
        let all_fine = self.members.iter().all(|member| member.trouble().is_none());
        all_fine && self.summary.same == self.summary.objects && self.incomplete() == 0
    }
}

impl Member {
    /// Why what is said is not said of this member, or may not be so any more.
    fn trouble(&self) -> Option<String> {
        let is_up = self.state == State::Up.to_string();
        match &self.token {
            None if is_up => Some(format!("member {} was not asked", self.name)),
            None => Some(format!("member {} is {} and was not asked", self.name, self.state)),
            Some(_) if !is_up => Some(format!("member {} is {} by now", self.name, self.state)),
            Some(_) => None,
        }
    }
}

impl Token {
    fn of(asked: &Asked) -> Self {
        let token = &asked.token;
        Token {
            label: token.label.clone(),
            serial: token.serial.clone(),
            model: token.model.clone(),
            manufacturer: token.manufacturer.clone(),
            firmware: format!("{}.{}", token.firmware_version.major, token.firmware_version.minor),
        }
    }
}

impl Object {
    fn of(examined: &Examined, members: &[Member]) -> Self {
        let (object, verifier) = (&examined.object, examined.verifier.as_ref());
        let copy = |copy: &Testimony| {
            let token = members.iter().find(|m| m.name == copy.member).and_then(|m| m.token.as_ref());
            let (proof, more) = match &copy.shown {
                Some(shown) => Proof::of(shown, verifier),
                None => (None, None),
            };
            let conflict = || "another object of the same class, label and id is a different one".to_owned();
            let reasons = [
                copy.reason.clone(),
                more,
                (examined.conflicted && copy.word == Word::Different).then(conflict),
            ];
            let reasons: Vec<String> = reasons.into_iter().flatten().collect();
            Copy {
                member: copy.member.clone(),
                token: token.map(|t| t.label.clone()).unwrap_or_default(),
                serial: token.map(|t| t.serial.clone()).unwrap_or_default(),
                word: word(copy.word),
                reason: (!reasons.is_empty()).then(|| reasons.join(": ")),
                proof,
            }
        };
        // Of a conflict only those that hold the object have something to say.
        let is_silent =
            |m: &&Member| !examined.conflicted && !examined.copies.iter().any(|c| c.member == m.name);
        Object {
            class: ha_core::names::class(object.class),
            key_type: ha_core::names::key_type(object.class, object.key_type),
            id: hex(&object.id),
            label: String::from_utf8_lossy(&object.label).into_owned(),
            fingerprint: object.fingerprint.map(|f| hex(&f)).unwrap_or_default(),
            copyable: object.copyable,
            conflict: examined.conflicted,
            public_key: verifier.and_then(|v| v.public_key_pem()),
            copies: examined.copies.iter().map(copy).collect(),
            not_asked: members.iter().filter(is_silent).map(|m| m.name.clone()).collect(),
        }
    }
}

impl Document {
    pub(super) fn of(groups: Vec<Group>, begun: SystemTime, ended: SystemTime) -> Self {
        let used = |kind: &str| {
            let mut copies = groups.iter().flat_map(|g| &g.objects).flat_map(|o| &o.copies);
            copies.any(|c| c.proof.as_ref().is_some_and(|p| p.kind == kind))
        };
        let time = |at| humantime::format_rfc3339_millis(at).to_string();
        Document {
            schema: 1,
            verdict: verdict(&groups),
            well: groups.iter().all(Group::is_well),
            program: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            begun: time(begun),
            ended: time(ended),
            how_to_verify: HOW,
            limits: LIMITS,
            kinds: KINDS.into_iter().filter(|(kind, _)| used(kind)).collect(),
            groups,
        }
    }
}

/// One sentence.
fn verdict(groups: &[Group]) -> String {
    let sum = |count: fn(&Group) -> usize| groups.iter().map(count).sum::<usize>();
    let objects = sum(|g| g.summary.objects);
    let counted = if objects == 1 { "1 object".to_owned() } else { format!("{objects} objects") };
    if groups.iter().all(Group::is_well) {
        return match groups {
            _ if objects == 0 => "There is no object to prove.".into(),
            [group] if group.members.len() == 1 => {
                format!("The group has one member: there are no copies of its {counted} to compare.")
            }
            [group] => format!(
                "All is well: each of the group's {counted} is proven to be the same on every one of its {} members.",
                group.members.len()
            ),
            _ => format!(
                "All is well: each of {counted} is proven to be the same on every member of its group."
            ),
        };
    }
    let mut found: Vec<String> = [
        (sum(|g| g.summary.different), "different"),
        (sum(|g| g.summary.missing), "missing from a member"),
        (sum(|g| g.summary.unproven), "not proven"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    let troubles: Vec<String> = groups.iter().flat_map(|g| &g.members).filter_map(Member::trouble).collect();
    let incomplete = sum(Group::incomplete);
    if troubles.is_empty() && incomplete > 0 {
        found.push(format!("{incomplete} not asked for on a member that failed meanwhile"));
    }
    found.extend(troubles);
    let same = sum(|g| g.summary.same);
    format!("Not all is well: of {counted} {same} proven to be the same; {}.", found.join(", "))
}
