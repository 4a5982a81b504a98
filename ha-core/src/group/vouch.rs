//! What signatures are verified with (`verify_signatures`), and what becomes of a member that made a wrong one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cryptoki::mechanism::MechanismType;
use ha_token::{AttributeType, Function, ObjectHandle, Ulong, ck};

use crate::config::RecoveryMode;

use super::{Group, Lease, Member, Object, Origin};
use crate::mutants::wrong;
use crate::policy::health::{Event, State, Until};
use crate::replica::proof::{Known, public_part};
use crate::replica::verifier::{PublicKey, Scheme, Verifier};

/// A private key's public half.
pub(crate) struct PublicHalf {
    pub key: PublicKey,
    /// The [numbers](Scheme::number) of the schemes by which a right signature was seen, a bit for each.
    shown: AtomicU64,
}

impl PublicHalf {
    fn of(verifier: &Verifier) -> Option<Arc<Self>> {
        PublicKey::of(verifier).map(|key| Arc::new(PublicHalf { key, shown: AtomicU64::new(0) }))
    }

    /// Whether a right signature by this scheme was seen, for one that signs any message.
    pub(crate) fn is_shown(&self, scheme: Scheme) -> bool {
        scheme.number().is_some_and(|n| self.shown.load(Ordering::Relaxed) >> n & 1 != 0)
    }

    /// A right signature by this scheme was seen.
    pub(crate) fn show(&self, scheme: Scheme) {
        if let Some(n) = scheme.number().filter(|_| !self.is_shown(scheme)) {
            self.shown.fetch_or(1 << n, Ordering::Relaxed);
        }
    }
}

impl Group {
    /// The public half of a private key, which this member has under this handle; `None` for a key that has none, or none
    /// that is known.
    pub(crate) fn public_half(
        &self,
        lease: &Lease,
        object: &Object,
        handle: ObjectHandle,
    ) -> Option<Arc<PublicHalf>> {
        if let Some(known) = self.public_halves.pin().get(&object.handle) {
            return known.clone();
        }
        let found = self.look_for_half(lease, object, handle)?;
        let half = found.as_ref().and_then(PublicHalf::of);
        self.remember_half(object, half.clone());
        half
    }

    /// `None` where nobody can say now, `Some(None)` where there is none.
    fn look_for_half(
        &self,
        lease: &Lease,
        object: &Object,
        handle: ObjectHandle,
    ) -> Option<Option<Verifier>> {
        let class = object.traits().class;
        if class != ck::CKO_PRIVATE_KEY {
            return Some(None);
        }
        let proven = match object.origin {
            Origin::Ledger(id) => self.ledger.as_ref()?.object(id).ok()?.map(|row| row.verifier())?,
            // It is learned when the key is used for the first time.
            Origin::Foreign if !object.is_used() => return None,
            Origin::Foreign => self.foreign_verifiers().get(&object.handle).cloned(),
            Origin::Session(_) => None,
        };
        if proven.as_ref().is_some_and(PublicKey::is_in) {
            return Some(proven);
        }
        // What the token says of the key itself is not proven: a member that signs wrongly from the first proves nothing.
        let told = public_part(&lease.on().read(handle, &PUBLIC).ok()?);
        match object.origin {
            Origin::Session(_) if told.is_none() => {
                self.make_verifier(lease, handle, class, Known::default()).ok()
            }
            _ => Some(told.or(proven)),
        }
    }

    /// A pair was made in a session: the public half of the private one can be read of the public one, and perhaps at no
    /// other time.
    pub(crate) fn learn_half(&self, lease: &Lease, public: &Object, private: &Object) {
        // What cannot be read now is looked for when the key is used.
        let read = self.backing(lease, public).and_then(|handle| lease.on().read(handle, &PUBLIC));
        if let Some(half) = read.ok().and_then(|read| PublicHalf::of(&public_part(&read)?)) {
            self.remember_half(private, Some(half));
        }
    }

    fn remember_half(&self, object: &Object, half: Option<Arc<PublicHalf>>) {
        let halves = self.public_halves.pin();
        halves.insert(object.handle, half);
        // Who takes it out of the table forgets what is remembered of it, before this or after.
        if self.objects.get(object.handle).is_err() {
            halves.remove(&object.handle);
        }
    }

    /// A signature is handed out that could not be verified: said once for each mechanism.
    pub(crate) fn not_verified(&self, mechanism: Ulong) {
        let told = self.unverified.pin();
        if told.get(&mechanism).is_none() && told.insert(mechanism, ()).is_none() {
            tracing::warn!(group = %self.config.label, mechanism = %name(mechanism),
                "verify_signatures: signatures by this mechanism, or with such a key, cannot be verified in software, and are handed out as the members make them");
        }
    }

    /// A member made a signature that is not the key's. Whether it is convicted of it is not said with that.
    pub(crate) fn signed_wrongly(
        &self,
        member: &Member,
        object: &Object,
        mechanism: Ulong,
        function: Function,
    ) {
        self.reporter.wrong_signature(member.name(), function, &object.traits(), &name(mechanism));
    }

    /// A member is convicted of a wrong signature with this key: it is not used again until somebody has looked. It would
    /// answer every probe, and the proof of every key but this one.
    pub(crate) fn convict(&self, member: &Member, object: &Object, mechanism: Ulong) {
        // Other threads may find it out at the same moment. One that is put aside for another reason would be back without it.
        if wrong!(LiarNotQuarantined) || member.health().waits_for_somebody() {
            return;
        }
        let traits = object.traits();
        let (label, id) = (String::from_utf8_lossy(&traits.label), hex(&traits.id));
        let reason = format!(
            "it made a wrong signature with the key {label:?} (id {id}) by {}, which was not handed out; it is not used again until its operator wants it back (`hactl member recover`)",
            name(mechanism)
        );
        tracing::error!(group = %self.config.label, member = member.name(), key = %label, id, mechanism = %name(mechanism),
            "the member makes wrong signatures, and is quarantined: have it examined before it is used again");
        member.set_connect_error(Some(reason));
        self.health_event(member, Event::Quarantine(Until::Wanted));
    }
}

impl Group {
    /// A member is wanted back by whoever operates it: one in quarantine or down is connected anew, and used again when it is
    /// up to date. One that refused its PIN is sent that once more. False where there is none of this name, and for one that
    /// is drained: `hactl member resume` takes that back.
    pub fn recover(self: &Arc<Self>, member: &str) -> bool {
        let Some(member) = self.members.iter().find(|m| m.name() == member) else { return false };
        if member.state() == State::Drained {
            return false;
        }
        self.wanted_back(member);
        if self.config.recovery.mode == RecoveryMode::Manual {
            // No keeper would do it by itself.
            self.connect_for_call(member);
        }
        true
    }
}

/// What a public part is made of.
const PUBLIC: [AttributeType; 5] =
    [ck::CKA_KEY_TYPE, ck::CKA_MODULUS, ck::CKA_PUBLIC_EXPONENT, ck::CKA_EC_PARAMS, ck::CKA_EC_POINT];

/// A mechanism's name, or its number.
fn name(mechanism: Ulong) -> String {
    MechanismType::try_from(mechanism).map_or_else(|_| format!("mechanism {mechanism:#x}"), |m| m.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
