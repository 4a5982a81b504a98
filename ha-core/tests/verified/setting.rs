//! A group of two watched members, of which the first one serves as long as it is up, and keys on both.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_core::group::{Group, GroupEvent};
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_core::replica::verifier::Verifier;
use ha_rig::{PIN, Tokens, Watch};
use ha_token::{
    Attribute, Mechanism, ObjectHandle, OpKind, Output, Params, Result, SessionHandle, Template, Token,
    UserType, ck,
};

use crate::watched::{start, wait};

pub(crate) const ON: &str = "verify_signatures = true\n";
pub(crate) const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// What is always signed: it fits an RSA key without padding, and an elliptic curve.
pub(crate) const MESSAGE: &[u8] = b"thirty-two bytes that are signed";

pub(crate) struct Setting {
    pub provider: Provider,
    pub members: Vec<Arc<Watch>>,
    pub slot: Arc<dyn Token>,
    pub s: SessionHandle,
}

/// A private key, and how its signatures are verified.
#[derive(Clone)]
pub(crate) struct Key {
    pub handle: ObjectHandle,
    pub verifier: Verifier,
}

pub(crate) fn yes(kinds: &[u64]) -> Template {
    kinds.iter().map(|k| Attribute::bool(*k, true)).collect()
}

impl Setting {
    pub(crate) fn new(tokens: &Tokens, group: &str) -> Self {
        let recovery = "[group.recovery]\ninterval = \"5ms\"\nmax_interval = \"20ms\"";
        let balance = "balance = \"primary\"\n";
        let (provider, members) = start(&tokens.config(false, &format!("{balance}{group}{recovery}")));
        let slot = Arc::clone(provider.slot(0).unwrap());
        let s = slot.open_session(true).unwrap();
        slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
        Setting { provider, members, slot, s }
    }

    pub(crate) fn group(&self) -> &Arc<Group> {
        &self.provider.groups()[0]
    }

    pub(crate) fn state(&self, member: usize) -> State {
        self.group().members.get(member).unwrap().state()
    }

    pub(crate) fn all_up(&self) {
        wait(self.group(), "every member serves", |g| g.members.iter().all(|m| g.serves_fully(m)));
    }

    fn pair(&self, generate: u64, own: Attribute, token: bool) -> (ObjectHandle, ObjectHandle) {
        self.pair_with(generate, own, token, &[])
    }

    /// The private key may be more than sign.
    fn pair_with(
        &self,
        generate: u64,
        own: Attribute,
        token: bool,
        more: &[u64],
    ) -> (ObjectHandle, ObjectHandle) {
        let names = [Attribute::bytes(ck::CKA_LABEL, *b"signer"), Attribute::bytes(ck::CKA_ID, [0xab, 1])];
        let on_token = Attribute::bool(ck::CKA_TOKEN, token);
        let template = |flags: &[u64], more: &[Attribute]| {
            let all = yes(flags).into_iter().chain(more.iter().chain(&names).cloned());
            all.chain([on_token.clone()]).collect::<Template>()
        };
        let public = template(&[ck::CKA_VERIFY, ck::CKA_VERIFY_RECOVER], &[own]);
        let private = template(&[&[ck::CKA_SIGN, ck::CKA_SIGN_RECOVER], more].concat(), &[]);
        let mechanism = &mut Mechanism::plain(generate);
        self.slot.generate_key_pair(self.s, mechanism, &public, &private).unwrap()
    }

    /// A pair's private key.
    pub(crate) fn key_of(&self, public: ObjectHandle, handle: ObjectHandle) -> Key {
        let kind = self.slot.get_attributes(self.s, public, &[ck::CKA_KEY_TYPE]).unwrap();
        let kind = u64::from_ne_bytes(kind[0].bytes().unwrap().try_into().unwrap());
        let types: &[u64] = match kind {
            ck::CKK_RSA => &[ck::CKA_MODULUS, ck::CKA_PUBLIC_EXPONENT],
            _ => &[ck::CKA_EC_PARAMS, ck::CKA_EC_POINT],
        };
        let parts = self.slot.get_attributes(self.s, public, types).unwrap();
        let (a, b) = (parts[0].bytes(), parts[1].bytes());
        let verifier = match kind {
            ck::CKK_RSA => Verifier::from_public(kind, a, b, None, None),
            _ => Verifier::from_public(kind, None, None, a, b),
        };
        Key { handle, verifier: verifier.unwrap() }
    }

    pub(crate) fn rsa(&self, bits: u64, token: bool) -> Key {
        let bits = Attribute::ulong(ck::CKA_MODULUS_BITS, bits);
        let (public, private) = self.pair(ck::CKM_RSA_PKCS_KEY_PAIR_GEN, bits, token);
        self.key_of(public, private)
    }

    /// A token key that may leave its token wrapped.
    pub(crate) fn extractable_rsa(&self, bits: u64) -> Key {
        let bits = Attribute::ulong(ck::CKA_MODULUS_BITS, bits);
        let more = &[ck::CKA_EXTRACTABLE];
        let (public, private) = self.pair_with(ck::CKM_RSA_PKCS_KEY_PAIR_GEN, bits, true, more);
        self.key_of(public, private)
    }

    /// On a curve by its parameters: a Weierstrass curve, or Ed25519.
    pub(crate) fn ec(&self, params: &[u8], token: bool) -> Key {
        let generate = match params[0] {
            0x13 => ck::CKM_EC_EDWARDS_KEY_PAIR_GEN,
            _ => ck::CKM_EC_KEY_PAIR_GEN,
        };
        let (public, private) = self.pair(generate, Attribute::bytes(ck::CKA_EC_PARAMS, params), token);
        self.key_of(public, private)
    }

    /// The key of this class and id.
    pub(crate) fn find_one(&self, class: u64, id: u8) -> ObjectHandle {
        let template = vec![Attribute::ulong(ck::CKA_CLASS, class), Attribute::bytes(ck::CKA_ID, [0xab, id])];
        self.slot.find_objects_init(self.s, &template).unwrap();
        let found = self.slot.find_objects(self.s, 10).unwrap();
        self.slot.find_objects_final(self.s).unwrap();
        found[0]
    }

    pub(crate) fn begin(&self, mechanism: &Mechanism, key: &Key) {
        self.slot.op_init(self.s, OpKind::Sign, Some(&mut mechanism.clone()), key.handle).unwrap();
    }

    pub(crate) fn sign(&self, mechanism: &Mechanism, key: &Key, input: &[u8]) -> Result<Vec<u8>> {
        self.begin(mechanism, key);
        written(|out| self.slot.op_one_shot(self.s, OpKind::Sign, input, out))
    }

    pub(crate) fn sign_parts(&self, mechanism: &Mechanism, key: &Key, parts: &[&[u8]]) -> Result<Vec<u8>> {
        self.begin(mechanism, key);
        for part in parts {
            self.slot.op_update(self.s, OpKind::Sign, part, &mut Output::query())?;
        }
        written(|out| self.slot.op_final(self.s, OpKind::Sign, out))
    }
}

/// What a call writes. Where it fails nothing of it is left.
pub(crate) fn written(call: impl FnOnce(&mut Output<'_>) -> Result<()>) -> Result<Vec<u8>> {
    let mut space = [0; 1024];
    let mut out = Output::buffer(&mut space);
    let answer = call(&mut out);
    let signature = out.written().to_vec();
    if answer.is_err() {
        assert!(space.iter().all(|b| *b == 0), "something of a signature was handed out");
    }
    answer.map(|()| signature)
}

impl Key {
    /// Whether a signature over the [message](MESSAGE) is this key's.
    pub(crate) fn made(&self, mechanism: u64, signature: &[u8]) -> bool {
        let answer = match mechanism {
            ck::CKM_ECDSA => {
                // The same as of a message whose digest this is: there is no such message at hand.
                return self.made_over_digest(signature);
            }
            _ => self.verifier.check_signature_by(mechanism, MESSAGE, signature),
        };
        answer.unwrap()
    }

    fn made_over_digest(&self, signature: &[u8]) -> bool {
        use p256::ecdsa::signature::hazmat::PrehashVerifier;
        let Verifier::Ec { point, .. } = &self.verifier else { panic!("no curve") };
        let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(point).unwrap();
        let signature = p256::ecdsa::Signature::from_slice(signature).unwrap();
        key.verify_prehash(MESSAGE, &signature).is_ok()
    }
}

pub(crate) fn plain(mechanism: u64) -> Mechanism {
    Mechanism::plain(mechanism)
}

pub(crate) fn pss(mechanism: u64, hash: u64, mgf: u64, salt: u64) -> Mechanism {
    let params = [hash, mgf, salt].into_iter().flat_map(|n| n.to_ne_bytes()).collect();
    Mechanism { kind: mechanism, params: Params::Bytes(params) }
}

/// From now on so many signatures of a member are wrong.
pub(crate) fn lie(member: &Watch, times: usize) {
    member.lies.store(times, Ordering::Release);
}

pub(crate) fn lied(member: &Watch) -> usize {
    member.lied.load(Ordering::Acquire)
}

/// Who has signed wrongly, by the events so far.
pub(crate) fn told(events: &crossbeam::channel::Receiver<GroupEvent>) -> Vec<String> {
    let who = |event| match event {
        GroupEvent::WrongSignature { member, .. } => Some(member),
        _ => None,
    };
    events.try_iter().filter_map(who).collect()
}
