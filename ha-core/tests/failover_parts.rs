//! Operations in parts, and searches, whose member dies at any point of them: another one goes on, and the answer is the
//! same (guarantees G3 and G4).
#![allow(missing_docs, clippy::unwrap_used)]

mod watched;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_core::config::Config;
use ha_core::group::GroupEvent;
use ha_core::provider::Provider;
use ha_rig::{PIN, Tokens};
use ha_token::{
    Attribute, Function, Mechanism, ObjectHandle, OpKind, Output, Params, Result, Rv, SessionHandle,
    Template, Token, UserType, ck,
};
use sha2::Digest;

const PARTS: [&[u8]; 3] = [b"sixteen bytes 01sixteen bytes 02", b"sixteen bytes 03", b"sixteen bytes 04"];

struct Open {
    provider: Provider,
    slot: Arc<dyn Token>,
    session: SessionHandle,
}

fn open(tokens: &Tokens, served: bool, group: &str) -> Open {
    let provider = Provider::from_config(Config::parse(&tokens.config(served, group)).unwrap()).unwrap();
    let slot = Arc::clone(provider.slot(0).unwrap());
    let session = slot.open_session(true).unwrap();
    slot.login(session, UserType::User, Some(PIN.as_bytes())).unwrap();
    Open { provider, slot, session }
}

fn yes(kinds: &[u64]) -> Template {
    kinds.iter().map(|k| Attribute::bool(*k, true)).collect()
}

impl Open {
    fn find(&self, template: Template) -> Vec<ObjectHandle> {
        self.slot.find_objects_init(self.session, &template).unwrap();
        let found = self.slot.find_objects(self.session, 100).unwrap();
        self.slot.find_objects_final(self.session).unwrap();
        found
    }

    fn key(&self, class: u64, id: u8) -> ObjectHandle {
        let found =
            self.find(vec![Attribute::ulong(ck::CKA_CLASS, class), Attribute::bytes(ck::CKA_ID, [id])]);
        assert_eq!(found.len(), 1);
        found[0]
    }

    fn init(&self, kind: OpKind, mechanism: u64, key: ObjectHandle) {
        self.slot.op_init(self.session, kind, Some(&mut Mechanism::plain(mechanism)), key).unwrap();
    }

    /// One part; what comes out is added to `out`.
    fn update(&self, kind: OpKind, part: &[u8], out: &mut Vec<u8>) {
        let mut space = [0; 256];
        let mut output = match kind {
            OpKind::Encrypt | OpKind::Decrypt => Output::buffer(&mut space),
            _ => Output::query(),
        };
        self.slot.op_update(self.session, kind, part, &mut output).unwrap();
        if kind == OpKind::Encrypt || kind == OpKind::Decrypt {
            out.extend_from_slice(output.written());
        }
    }

    fn last(&self, kind: OpKind, out: &mut Vec<u8>) {
        let mut space = [0; 512];
        let mut output = Output::buffer(&mut space);
        self.slot.op_final(self.session, kind, &mut output).unwrap();
        out.extend_from_slice(output.written());
    }

    /// The whole operation but for the end of a verification; member a is killed before this step of it.
    fn whole(
        &self,
        tokens: &Tokens,
        (kind, mechanism): (OpKind, u64),
        key: ObjectHandle,
        parts: &[&[u8]],
        kill: usize,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        self.init(kind, mechanism, key);
        let kill_at = |step| {
            if step == kill {
                tokens.kill(0);
            }
        };
        for (step, part) in parts.iter().enumerate() {
            kill_at(step);
            self.update(kind, part, &mut out);
        }
        kill_at(parts.len());
        if kind != OpKind::Verify {
            self.last(kind, &mut out);
        }
        out
    }
}

/// Keys made directly, because p11-kit's servers carry no wrapping: an RSA pair (1), an AES key (2) and some data objects.
/// Answers an RSA signature of the parts.
fn make(tokens: &Tokens) -> Vec<u8> {
    let group = open(tokens, false, "");
    let (slot, s) = (&group.slot, group.session);
    let id = |n: u8| Attribute::bytes(ck::CKA_ID, [n]);
    let mut public = yes(&[ck::CKA_TOKEN, ck::CKA_VERIFY]);
    public.extend([Attribute::ulong(ck::CKA_MODULUS_BITS, 2048), id(1)]);
    let mut private = yes(&[ck::CKA_TOKEN, ck::CKA_SIGN, ck::CKA_PRIVATE]);
    private.push(id(1));
    let mechanism = &mut Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
    let (_, private) = slot.generate_key_pair(s, mechanism, &public, &private).unwrap();
    let mut secret = yes(&[ck::CKA_TOKEN, ck::CKA_ENCRYPT, ck::CKA_DECRYPT]);
    secret.extend([Attribute::ulong(ck::CKA_VALUE_LEN, 32), id(2)]);
    slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &secret).unwrap();
    for n in 0..7u8 {
        let mut data = yes(&[ck::CKA_TOKEN]);
        data.extend([Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA), Attribute::bytes(ck::CKA_VALUE, [n])]);
        slot.create_object(s, &data).unwrap();
    }
    let mut signature = Vec::new();
    group.init(OpKind::Sign, ck::CKM_SHA256_RSA_PKCS, private);
    for part in PARTS {
        group.update(OpKind::Sign, part, &mut signature);
    }
    group.last(OpKind::Sign, &mut signature);
    signature
}

fn serve(tokens: &Tokens) -> Open {
    (0..2).for_each(|i| tokens.serve(i));
    open(tokens, true, "balance = \"primary\"")
}

/// Does something on a group of its own whose first member serves first; it must have moved away from it once.
fn moving<T>(tokens: &Tokens, what: impl FnOnce(&Open) -> T) -> T {
    tokens.kill(0);
    tokens.serve(0);
    let group = open(tokens, true, "balance = \"primary\"");
    let events = group.provider.groups()[0].events();
    let answer = what(&group);
    let moved = |e: &GroupEvent| matches!(e, GroupEvent::Moved { from, to, .. } if from == "a" && to == "b");
    assert_eq!(events.try_iter().filter(moved).count(), 1);
    answer
}

#[test]
fn encryption_decryption_and_digest_in_parts_go_on_elsewhere() {
    let tokens = Tokens::new(2);
    make(&tokens);
    let encrypt = (OpKind::Encrypt, ck::CKM_AES_ECB);
    let decrypt = (OpKind::Decrypt, ck::CKM_AES_ECB);
    let cipher = {
        let group = serve(&tokens);
        group.whole(&tokens, encrypt, group.key(ck::CKO_SECRET_KEY, 2), &PARTS, usize::MAX)
    };
    let parts: Vec<&[u8]> = cipher.chunks(24).collect();
    for kill in 0..=PARTS.len() {
        let out = moving(&tokens, |g| g.whole(&tokens, encrypt, g.key(ck::CKO_SECRET_KEY, 2), &PARTS, kill));
        assert_eq!(out, cipher, "encrypted, killed before step {kill}");
        let out = moving(&tokens, |g| g.whole(&tokens, decrypt, g.key(ck::CKO_SECRET_KEY, 2), &parts, kill));
        assert_eq!(out, PARTS.concat(), "decrypted, killed before step {kill}");
        let digest = (OpKind::Digest, ck::CKM_SHA256);
        let out = moving(&tokens, |g| g.whole(&tokens, digest, ObjectHandle(0), &PARTS, kill));
        assert_eq!(out, sha2::Sha256::digest(PARTS.concat()).to_vec(), "digested, killed before step {kill}");
    }
}

#[test]
fn a_verification_in_parts_goes_on_elsewhere() {
    let tokens = Tokens::new(2);
    let signature = make(&tokens);
    let mut wrong = signature.clone();
    wrong[9] ^= 1;
    tokens.serve(1);
    let verify = |signature: &[u8], kill| -> Result<()> {
        moving(&tokens, |group| {
            let key = group.key(ck::CKO_PUBLIC_KEY, 1);
            group.whole(&tokens, (OpKind::Verify, ck::CKM_SHA256_RSA_PKCS), key, &PARTS, kill);
            group.slot.verify_final(group.session, signature)
        })
    };
    for kill in 0..=PARTS.len() {
        assert_eq!(verify(&signature, kill), Ok(()), "killed before step {kill}");
        assert_eq!(verify(&wrong, kill), Err(Rv::SIGNATURE_INVALID), "killed before step {kill}");
    }
}

#[test]
fn a_search_in_progress_goes_on() {
    let tokens = Tokens::new(2);
    make(&tokens);
    let group = serve(&tokens);
    let (slot, s) = (&group.slot, group.session);
    let data = vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA)];
    let all = group.find(data.clone());
    assert_eq!(all.len(), 7);
    let mut found = Vec::new();
    slot.find_objects_init(s, &data).unwrap();
    found.extend(slot.find_objects(s, 3).unwrap());
    tokens.kill(0);
    found.extend(slot.find_objects(s, 2).unwrap());
    // What was found can be used, where it is.
    for object in &found {
        assert_eq!(slot.get_attributes(s, *object, &[ck::CKA_VALUE]).unwrap()[0].bytes().unwrap().len(), 1);
    }
    found.extend(slot.find_objects(s, 100).unwrap());
    slot.find_objects_final(s).unwrap();
    assert_eq!(found, all);
    assert_eq!(group.find(data), all, "the other member gives the same objects");
}

#[test]
fn input_over_the_limit_is_not_replayed_and_the_operation_ends() {
    let tokens = Tokens::new(2);
    (0..2).for_each(|i| tokens.serve(i));
    let group = open(&tokens, true, "balance = \"primary\"\nreplay_limit = \"64B\"");
    let (slot, s) = (&group.slot, group.session);
    let events = group.provider.groups()[0].events();
    group.init(OpKind::Digest, ck::CKM_SHA256, ObjectHandle(0));
    group.update(OpKind::Digest, &[1; 65], &mut Vec::new());
    tokens.kill(0);
    let mut space = [0; 32];
    let last = || slot.op_final(s, OpKind::Digest, &mut Output::buffer(&mut [0; 32]));
    assert_eq!(slot.op_update(s, OpKind::Digest, b"more", &mut Output::query()), Err(Rv::DEVICE_ERROR));
    assert_eq!(last(), Err(Rv::OPERATION_NOT_INITIALIZED));
    let refused = events.try_iter().any(
        |e| matches!(e, GroupEvent::Refused { function: Function::DigestUpdate, rv: Rv::DEVICE_ERROR, reason } if reason.contains("replay_limit")),
    );
    assert!(refused, "it is said why");
    // The next one is served by the other member.
    group.init(OpKind::Digest, ck::CKM_SHA256, ObjectHandle(0));
    let mut output = Output::buffer(&mut space);
    slot.op_one_shot(s, OpKind::Digest, b"whole", &mut output).unwrap();
    assert_eq!(output.written(), sha2::Sha256::digest(b"whole").as_slice());
}

#[test]
fn an_operation_does_not_go_on_where_another_parameter_is_made_up() {
    let tokens = Tokens::new(2);
    let (provider, members) = watched::start(&tokens.config(false, "balance = \"primary\""));
    let slot = Arc::clone(provider.slot(0).unwrap());
    let session = slot.open_session(true).unwrap();
    slot.login(session, UserType::User, Some(PIN.as_bytes())).unwrap();
    let mut template = yes(&[ck::CKA_TOKEN, ck::CKA_ENCRYPT, ck::CKA_DECRYPT]);
    template.push(Attribute::ulong(ck::CKA_VALUE_LEN, 16));
    let key = slot.generate_key(session, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
    members[1].makes_up.store(true, Ordering::Release);
    let mut space = [0; 64];
    let cbc = || Mechanism { kind: ck::CKM_AES_CBC, params: Params::Bytes([7; 16].into()) };
    // On the member that does as it is told it does, and elsewhere it would be sealed with what nobody knows.
    slot.op_init(session, OpKind::Encrypt, Some(&mut cbc()), key).unwrap();
    members[0].dead.store(true, Ordering::Release);
    let answer = slot.op_one_shot(session, OpKind::Encrypt, &[1; 16], &mut Output::buffer(&mut space));
    assert_eq!(answer, Err(Rv::DEVICE_ERROR));
    // One that was begun there is told what it wrote.
    let mut told = cbc();
    slot.op_init(session, OpKind::Encrypt, Some(&mut told), key).unwrap();
    assert_eq!(told.params, Params::Bytes([0x5a; 16].into()));
    slot.op_one_shot(session, OpKind::Encrypt, &[1; 16], &mut Output::buffer(&mut space)).unwrap();
    members[0].dead.store(false, Ordering::Release);
}
