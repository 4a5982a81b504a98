//! A bare token and a group side by side, each with its own handles for the same things.

mod play;
mod side;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use ha_core::config::Config;
use ha_core::provider::{Provider, connector};
use ha_rig::Tokens;
use ha_token::{Connector as _, ObjectHandle, OpKind, SessionHandle, UserType, ck};

use crate::accepted::{self, Then};
use crate::calls::{Call, Data, How, Id, Kind, Pin, Room, Signature};
use crate::sketch::Sketch;
use side::{NOBODY, Side, Values};

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const ED25519: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

pub struct Both {
    /// The bare one first.
    sides: [Side; 2],
    values: Values,
    /// Keys whose value is the same on both, and the pair or secret key that a key belongs to.
    equal: BTreeSet<Id>,
    pairs: BTreeMap<Id, Id>,
    /// Whether the operation of a session gives the same bytes on both.
    exact: BTreeMap<(Id, OpKind), bool>,
    blob_is_equal: bool,
    /// Whether something may go on in a session.
    begun: bool,
    /// What follows would differ for a reason that is known.
    ended: bool,
    /// The calls, and how the group answered them.
    told: String,
    provider: Provider,
    _rigs: [Tokens; 2],
}

impl Both {
    pub fn new() -> Self {
        let rigs = [Tokens::in_memory(1), Tokens::in_memory(2)];
        let alone = Config::parse(&rigs[0].config(false, "")).unwrap();
        let bare = connector(&alone.groups[0].members[0]).connect().unwrap();
        let provider = Provider::from_config(Config::parse(&rigs[1].config(false, "")).unwrap()).unwrap();
        let slot = Arc::clone(provider.slot(0).unwrap());
        Both {
            values: Values::new(&*bare),
            sides: [Side::new(bare), Side::new(slot)],
            equal: BTreeSet::new(),
            pairs: BTreeMap::new(),
            exact: BTreeMap::new(),
            blob_is_equal: false,
            begun: false,
            ended: false,
            told: String::new(),
            provider,
            _rigs: rigs,
        }
    }

    /// Nothing is left on the tokens; `None` where that cannot be had, with another PIN or what may not be destroyed.
    pub fn emptied(mut self) -> Option<Self> {
        self.equal.clear();
        self.pairs.clear();
        self.exact.clear();
        self.begun = false;
        self.ended = false;
        self.told.clear();
        let is_empty = self.faults().next().is_none() && self.sides.iter_mut().all(Side::empty);
        is_empty.then_some(self)
    }

    /// What every sequence begins with.
    pub fn start(&mut self) {
        for call in [
            Call::Open { id: Sketch::FIRST, read_write: true },
            Call::Login { s: Sketch::FIRST, user: UserType::User, pin: Pin::User },
        ] {
            self.make(&call).unwrap();
        }
    }

    /// Makes a call on both, and compares.
    pub fn make(&mut self, call: &Call) -> std::result::Result<(), String> {
        if self.ended {
            return Ok(());
        }
        let who = self.who();
        let before = self.sides.each_ref().map(|s| s.objects.clone());
        let [theirs, ours] = [0, 1].map(|side| match self.play(side, call) {
            Ok(answer) => format!("ok {answer}"),
            Err(rv) => format!("{rv}"),
        });
        let name = format!("{call:?} as {who}");
        writeln!(self.told, "{name} -> {ours}").unwrap();
        self.settle(call, theirs.starts_with("ok") && ours.starts_with("ok"));
        // SoftHSM goes on with an operation of a mechanism without parts that was given one.
        if let Call::Update { s, kind, .. } | Call::Final { s, kind, .. } = call
            && ["OPERATION_NOT_INIT", "FUNCTION_NOT_SUPP"].iter().any(|w| theirs.contains(w))
            && self.exact.contains_key(&(*s, *kind))
        {
            self.ended = true;
        }
        if theirs == ours || (matches!(call, Call::Get { .. }) && attributes_may_differ(&theirs, &ours)) {
            return self.check_members();
        }
        match accepted::answers(&name, &theirs, &ours) {
            None => Err(format!("{name}:\n bare  {theirs}\n group {ours}\nafter\n{}", self.told)),
            Some(Then::GoOn) => Ok(()),
            Some(Then::End) => {
                self.ended = true;
                Ok(())
            }
            Some(Then::TakeBack) => {
                self.take_back(call, before);
                Ok(())
            }
        }
    }

    /// Who is logged in.
    fn who(&self) -> &'static str {
        let bare = &self.sides[0];
        let state = bare.sessions.values().find_map(|s| bare.token.session_info(*s).ok()).map(|i| i.state);
        match state {
            Some(ck::CKS_RO_USER_FUNCTIONS | ck::CKS_RW_USER_FUNCTIONS) => "user",
            Some(ck::CKS_RW_SO_FUNCTIONS) => "so",
            _ => "nobody",
        }
    }

    fn faults(&self) -> impl Iterator<Item = String> {
        let members = self.provider.groups()[0].status().members;
        members.into_iter().filter_map(|m| m.last_fault.map(|fault| format!("{}: {fault:?}", m.name)))
    }

    /// Members that are well and are asked what one token is asked are never blamed.
    fn check_members(&mut self) -> std::result::Result<(), String> {
        let fault = self.faults().next();
        match fault {
            // SoftHSM may not find anything any more while there is what is left of a session object that it could not make.
            Some(fault) if fault.contains("FindObjectsInit, rv: CKR_GENERAL_ERROR") => {
                self.ended = true;
                Ok(())
            }
            Some(fault) => Err(format!("{fault}\nafter\n{}", self.told)),
            None => Ok(()),
        }
    }

    fn take_back(&mut self, call: &Call, before: [BTreeMap<Id, ObjectHandle>; 2]) {
        for (side, before) in self.sides.iter_mut().zip(before) {
            let new: Vec<Id> = side.objects.keys().filter(|id| !before.contains_key(id)).copied().collect();
            for id in new {
                let s = side.sessions.values().next().copied().unwrap_or(SessionHandle(NOBODY));
                self.ended |= side.token.destroy_object(s, side.object(id)).is_err();
                side.objects.remove(&id);
            }
        }
        match call {
            Call::Begin { s, kind, .. } => {
                let ours = &self.sides[1];
                self.ended |= ours.token.session_cancel(ours.session(*s), kind.flag()).is_err();
            }
            Call::FindInit { s, .. } => {
                let ours = &self.sides[1];
                self.ended |= ours.token.find_objects_final(ours.session(*s)).is_err();
            }
            _ => {}
        }
    }

    /// Notes what is the same on both.
    fn settle(&mut self, call: &Call, done: bool) {
        if !done {
            return;
        }
        match call {
            Call::Create { id, kind, .. } => {
                self.equal.insert(*id);
                let pair = match kind {
                    Kind::EcPublic | Kind::EcPrivate => Id::MAX - 1,
                    Kind::RsaPublic | Kind::RsaPrivate => Id::MAX - 2,
                    _ => *id,
                };
                self.pairs.insert(*id, pair);
            }
            Call::Generate { id, .. } | Call::Derive { id, .. } => {
                self.pairs.insert(*id, *id);
            }
            Call::Pair { public, private, .. } => {
                self.pairs.extend([(*public, *private), (*private, *private)]);
            }
            Call::Copy { id, of, .. } => {
                if self.equal.contains(of) {
                    self.equal.insert(*id);
                }
                let pair = self.pairs.get(of).copied().unwrap_or(*of);
                self.pairs.insert(*id, pair);
            }
            Call::Wrap { by, key, room: Room::Bytes(_), .. } => {
                self.blob_is_equal = self.equal.contains(by) && self.equal.contains(key);
            }
            Call::Unwrap { id, by, .. } => {
                if self.blob_is_equal && self.equal.contains(by) {
                    self.equal.insert(*id);
                }
                self.pairs.insert(*id, *id);
            }
            Call::Begin { s, kind, how, key } => {
                let by_chance = !how.is_exact() || (*kind == OpKind::Encrypt && *how == How::Rsa);
                let exact = *kind == OpKind::Digest || !by_chance && self.equal.contains(key);
                self.exact.insert((*s, *kind), exact);
                self.begun = true;
            }
            Call::FindInit { .. } => self.begun = true,
            // A logout ends what goes on in a session here, and not on SoftHSM.
            Call::Logout(_) => self.ended = self.begun,
            // All handles are new on SoftHSM when there was no session.
            Call::Open { .. } => self.sides.iter_mut().for_each(Side::look_again),
            Call::DigestKey { s, key } if !self.equal.contains(key) => {
                self.exact.insert((*s, OpKind::Digest), false);
            }
            Call::Login { user: UserType::User | UserType::So, .. } => {
                self.sides.iter_mut().for_each(Side::look_again);
            }
            _ => {}
        }
        if let Call::Derive { id, base, .. } = call
            && self.equal.contains(base)
        {
            self.equal.insert(*id);
        }
    }

    /// The bytes of a signature on one side.
    fn signature(&self, side: usize, key: Id, how: How, data: Data, which: Signature) -> Vec<u8> {
        let pair = self.pairs.get(&key).copied().unwrap_or(key);
        let place = (pair, how as u8, data.0);
        let from = if which == Signature::Others && self.equal.contains(&key) { 1 - side } else { side };
        let mut bytes = match which {
            Signature::Junk(n) => return vec![5; n],
            _ => self.sides[from].signatures.get(&place).cloned().unwrap_or(vec![5; 64]),
        };
        if which == Signature::Spoiled
            && let Some(byte) = bytes.get_mut(10)
        {
            *byte ^= 1;
        }
        bytes
    }
}

/// Whether only such attributes differ as may.
fn attributes_may_differ(theirs: &str, ours: &str) -> bool {
    let read = |text: &str| -> Option<BTreeMap<String, String>> {
        let pairs = text.strip_prefix("ok ")?.split_whitespace();
        Some(pairs.filter_map(|p| p.split_once(':')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    };
    let (Some(theirs), Some(ours)) = (read(theirs), read(ours)) else { return false };
    let kinds: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    kinds.into_iter().all(|kind| {
        let (t, o) = (theirs.get(kind).map_or("", |v| v), ours.get(kind).map_or("", |v| v));
        t == o || accepted::attribute(kind, t, o)
    })
}
