// Every public method of cryptoki's `Pkcs11`, `Session` and `Slot`, called with the types and used with the results
// that the crate has. Compiled twice: `lib` is the cryptoki crate in one module and this library in the other.
//
// What a token cannot do is called too: whether it answers the same is what the caller compares.

use std::num::NonZeroUsize;

use lib::context::{CInitializeArgs, CInitializeFlags, Function, Info, Pkcs11};
use lib::error::{Error, Result, RvError};
use lib::mechanism::aead::{GcmMessageParams, GcmParams, GeneratorFunction};
use lib::mechanism::{Mechanism, MechanismInfo, MechanismType, MessageParam};
use lib::object::{Attribute, AttributeInfo, AttributeType, KeyType, ObjectClass, ObjectHandle};
use lib::session::{ObjectHandleIterator, Session, SessionInfo, SessionState, UserType, ValidationFlagsType};
use lib::slot::{Limit, Slot, SlotInfo, TokenInfo};
use lib::types::{AuthPin, RawAuthPin, Version};

/// What was answered, one line for each call, without what must differ between two tokens.
pub(crate) struct Record(pub(crate) Vec<String>);

impl Record {
    fn note(&mut self, what: &str, answer: impl std::fmt::Debug) {
        self.0.push(format!("{what}: {answer:?}"));
    }

    /// The call's error, or that it worked.
    fn outcome<T>(&mut self, what: &str, answer: Result<T>) -> Option<T> {
        match answer {
            Ok(value) => {
                self.note(what, "ok");
                Some(value)
            }
            Err(error) => {
                self.note(what, error);
                None
            }
        }
    }
}

fn pin(text: &str) -> AuthPin {
    AuthPin::new(text.into())
}

/// The life of a context and all that needs no session. `path` is what `Pkcs11::new` takes.
pub(crate) fn context(path: &std::path::Path, user: &str) -> Record {
    let mut r = Record(Vec::new());
    let pkcs11: Pkcs11 = Pkcs11::new(path).expect("the library");
    r.note("new is debug", format!("{pkcs11:?}").is_empty());
    r.outcome("slots before initialize", pkcs11.get_all_slots());
    let args = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    pkcs11.initialize(args).expect("initialize");
    r.outcome("initialize twice", pkcs11.initialize(args));
    let info: Info = pkcs11.get_library_info().expect("library info");
    let _: Version = info.cryptoki_version();
    for function in [Function::Sign, Function::MessageEncryptInit, Function::WaitForSlotEvent] {
        let _: bool = pkcs11.is_fn_supported(function);
    }
    let all: Vec<Slot> = pkcs11.get_all_slots().expect("all slots");
    let slot: Slot = pkcs11.get_slots_with_initialized_token().expect("initialised")[0];
    assert!(pkcs11.get_slots_with_token().expect("with token").contains(&slot) && all.contains(&slot));
    assert_eq!(Slot::try_from(slot.id()).expect("from its number"), slot);
    let _: (usize, String, String, String) =
        (slot.into(), slot.to_string(), format!("{slot:x}"), format!("{slot:X}"));
    let slot_info: SlotInfo = pkcs11.get_slot_info(slot).expect("slot info");
    r.note("token present", slot_info.token_present());
    let token_info: TokenInfo = pkcs11.get_token_info(slot).expect("token info");
    r.note("login required", token_info.login_required());
    r.note("initialised", token_info.token_initialized());
    let _: Limit = token_info.max_session_count();
    let list: Vec<MechanismType> = pkcs11.get_mechanism_list(slot).expect("mechanisms");
    r.note("has ECDSA", list.contains(&MechanismType::ECDSA));
    let mechanism: MechanismInfo =
        pkcs11.get_mechanism_info(slot, MechanismType::ECDSA).expect("mechanism info");
    r.note("ECDSA signs", mechanism.sign());
    r.outcome("info of no mechanism", pkcs11.get_mechanism_info(slot, MechanismType::SP800_108_FEEDBACK_KDF));
    let nowhere = Slot::try_from(999_999_999_u64).expect("a number");
    r.outcome("no such slot", pkcs11.get_slot_info(nowhere));
    r.outcome("no such token", pkcs11.get_token_info(nowhere));
    r.outcome("no session there", pkcs11.open_ro_session(nowhere));

    let ro: Session = pkcs11.open_ro_session(slot).expect("read-only session");
    let rw: Session = pkcs11.open_rw_session(slot).expect("read-write session");
    let info: SessionInfo = ro.get_session_info().expect("session info");
    r.note(
        "ro state",
        (info.session_state() == SessionState::RoPublic, info.read_write(), info.slot_id() == slot),
    );
    r.outcome("wrong pin", rw.login(UserType::User, Some(&pin("not the pin"))));
    let vendor = UserType::VendorExtension(0x8000_0001);
    r.note("vendor user", rw.login(vendor, Some(&pin(user))).is_err());
    rw.login_with_raw(UserType::User, &RawAuthPin::new(Box::new(user.as_bytes().to_vec()))).expect("login");
    r.outcome("login twice", rw.login(UserType::User, Some(&pin(user))));
    r.note("state", rw.get_session_info().expect("session info").session_state());
    r.outcome("init_pin as user", rw.init_pin(&pin(user)));
    r.outcome("set_pin", rw.set_pin(&pin("not the pin"), &pin("another pin")));
    r.outcome("logout", rw.logout());
    r.outcome("logout twice", rw.logout());
    r.note(
        "same handle",
        (
            rw.to_string() == rw.handle().to_string(),
            format!("{rw:x}") == format!("{:08x}", rw.handle()),
            format!("{rw:X}") == format!("{:08X}", rw.handle()),
        ),
    );
    rw.close().expect("close");
    drop(ro);
    let kept = [pkcs11.open_ro_session_no_drop(slot), pkcs11.open_rw_session_no_drop(slot)];
    for session in kept {
        session.expect("a session").close().expect("close by hand");
    }
    let late = pkcs11.open_ro_session(slot).expect("a session");
    r.outcome("event", pkcs11.get_slot_event().map(|event: Option<Slot>| event.is_some()));
    // Not called: it may wait for ever. That it is there, with this type, is what counts.
    let _: fn(&Pkcs11) -> Result<Slot> = Pkcs11::wait_for_slot_event;
    let _: fn(&Pkcs11, Slot, &AuthPin, &str) -> Result<()> = Pkcs11::init_token;
    let _: fn() -> Result<Pkcs11> = Pkcs11::new_from_self;
    let other = pkcs11.clone();
    pkcs11.finalize().expect("finalize");
    r.outcome("after finalize", other.get_all_slots());
    r.outcome("session after finalize", late.get_session_info());
    r.outcome("finalize twice", other.finalize());
    r
}

/// Everything that a session does, logged in, on one slot.
pub(crate) fn session(session: &Session) -> Record {
    let mut r = Record(Vec::new());
    objects(session, &mut r);
    let (public, private) = keys(session, &mut r);
    operations(session, public, private, &mut r);
    messages(session, &mut r);
    r
}

fn objects(session: &Session, r: &mut Record) {
    let data = |label: &str| {
        vec![
            Attribute::Class(ObjectClass::DATA),
            Attribute::Token(false),
            Attribute::Private(false),
            Attribute::Modifiable(true),
            Attribute::Label(label.into()),
            Attribute::Value(b"value".to_vec()),
        ]
    };
    let object: ObjectHandle = session.create_object(&data("surface-1")).expect("create");
    let copy = r.outcome("copy", session.copy_object(object, &[Attribute::Label(b"surface-2".to_vec())]));
    let class = [Attribute::Class(ObjectClass::DATA), Attribute::Token(false)];
    r.note("found", session.find_objects(&class).expect("find").len());
    let one = NonZeroUsize::MIN;
    let by_one: Vec<_> = session.iter_objects_with_cache_size(&class, one).expect("iterator").collect();
    r.note("found one by one", by_one.len());
    {
        let mut iterator: ObjectHandleIterator<'_> = session.iter_objects(&class).expect("iterator");
        r.note("first", iterator.next().is_some());
        r.outcome("a search within a search", session.find_objects(&class));
    }
    let types = [AttributeType::Label, AttributeType::Modulus, AttributeType::Value, AttributeType::Token];
    r.note("info", session.get_attribute_info(object, &types).expect("info"));
    let map = session.get_attribute_info_map(object, &types).expect("map");
    r.note("modulus", matches!(map.get(&AttributeType::Modulus), Some(AttributeInfo::TypeInvalid)));
    r.note("attributes", session.get_attributes(object, &types).expect("attributes"));
    r.outcome("update", session.update_attributes(object, &[Attribute::Label(b"surface-3".to_vec())]));
    r.note("label", session.get_attributes(object, &[AttributeType::Label]).expect("label"));
    r.outcome("destroy", session.destroy_object(object));
    r.outcome("destroy twice", session.destroy_object(object));
    if let Some(copy) = copy {
        r.outcome("destroy the copy", session.destroy_object(copy));
    }
    r.outcome("attributes of nothing", session.get_attributes(object, &types));
}

fn keys(session: &Session, r: &mut Record) -> (ObjectHandle, ObjectHandle) {
    // DER of prime256v1.
    let curve = vec![0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];
    let public = [Attribute::Token(false), Attribute::Verify(true), Attribute::EcParams(curve)];
    let private = [
        Attribute::Token(false),
        Attribute::Sign(true),
        Attribute::Derive(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
    ];
    let (public, private) =
        session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private).expect("key pair");
    let info = session.get_attribute_info(private, &[AttributeType::Value, AttributeType::KeyType]);
    r.note("private value", info.expect("info"));
    let aes = |encrypt: bool| {
        vec![
            Attribute::Token(false),
            Attribute::KeyType(KeyType::AES),
            Attribute::ValueLen(32.into()),
            Attribute::Encrypt(encrypt),
            Attribute::Decrypt(encrypt),
            Attribute::Wrap(!encrypt),
            Attribute::Unwrap(!encrypt),
            Attribute::Sensitive(true),
            Attribute::Extractable(true),
        ]
    };
    let wrapping = session.generate_key(&Mechanism::AesKeyGen, &aes(false)).expect("wrapping key");
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, wrapping, private);
    let wrapped: Vec<u8> = r.outcome("wrap", wrapped).unwrap_or_default();
    r.note("wrapped", wrapped.len() > 64);
    let again = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::EC),
        Attribute::Token(false),
        Attribute::Sign(true),
    ];
    r.outcome("unwrap", session.unwrap_key(&Mechanism::AesKeyWrapPad, wrapping, &wrapped, &again));
    r.outcome(
        "unwrap rubbish",
        session.unwrap_key(&Mechanism::AesKeyWrap, wrapping, &[0; 24], &aes(true)[..5]),
    );
    r.outcome("wrap without a key", session.wrap_key(&Mechanism::AesKeyWrap, wrapping, public));
    r.outcome("derive from a public key", session.derive_key(&Mechanism::AesKeyGen, public, &[]));
    r.outcome("encapsulate", session.encapsulate_key(&Mechanism::MlKem, public, &[]));
    r.outcome("decapsulate", session.decapsulate_key(&Mechanism::MlKem, private, &[], &[0; 32]));
    (public, private)
}

fn operations(session: &Session, public: ObjectHandle, private: ObjectHandle, r: &mut Record) {
    let digest = session.digest(&Mechanism::Sha256, b"data").expect("digest");
    session.digest_init(&Mechanism::Sha256).expect("digest in parts");
    session.digest_update(b"da").expect("part");
    session.digest_update(b"ta").expect("part");
    r.note("same digest", session.digest_final().expect("digest") == digest);

    let signature = session.sign(&Mechanism::Ecdsa, private, &digest).expect("sign");
    r.note("signature", signature.len());
    r.outcome("verify", session.verify(&Mechanism::Ecdsa, public, &digest, &signature));
    r.outcome("verify other data", session.verify(&Mechanism::Ecdsa, public, &[7; 32], &signature));
    r.outcome("verify short", session.verify(&Mechanism::Ecdsa, public, &digest, &signature[1..]));
    r.outcome("sign with a public key", session.sign(&Mechanism::Ecdsa, public, &digest));
    r.outcome("update of nothing", session.sign_update(b"data"));
    r.outcome("final of nothing", session.sign_final());

    let hmac = [
        Attribute::Token(false),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Sign(true),
        Attribute::Verify(true),
        Attribute::Value(vec![1; 32]),
    ];
    let hmac = session.create_object(&hmac).expect("HMAC key");
    session.sign_init(&Mechanism::Sha256Hmac, hmac).expect("sign in parts");
    session.sign_update(b"da").expect("part");
    session.sign_update(b"ta").expect("part");
    let mac = session.sign_final().expect("MAC");
    r.note("mac", &mac);
    session.verify_init(&Mechanism::Sha256Hmac, hmac).expect("verify in parts");
    session.verify_update(b"data").expect("part");
    r.outcome("verify in parts", session.verify_final(&mac));
    r.outcome(
        "digest of a key",
        session.digest_init(&Mechanism::Sha256).and_then(|()| session.digest_key(hmac)),
    );
    r.outcome("its end", session.digest_final());
    r.outcome("signature first", session.verify_signature_init(&Mechanism::Sha256Hmac, hmac, &mac));
    r.outcome("signature first, at once", session.verify_signature(b"data"));
    r.outcome("signature first, part", session.verify_signature_update(b"data"));
    r.outcome("signature first, end", session.verify_signature_final());

    let aes = [
        Attribute::Token(false),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Value(vec![2; 32]),
    ];
    let aes = session.create_object(&aes).expect("AES key");
    let cbc = Mechanism::AesCbcPad([3; 16]);
    let long = vec![4; 5000];
    let encrypted = session.encrypt(&cbc, aes, &long).expect("encrypt");
    r.note("encrypted", (encrypted.len(), &encrypted[..16]));
    r.note("decrypted", session.decrypt(&cbc, aes, &encrypted).expect("decrypt") == long);
    session.encrypt_init(&cbc, aes).expect("encrypt in parts");
    let mut parts = session.encrypt_update(&long[..100]).expect("part");
    parts.extend(session.encrypt_update(&long[100..]).expect("part"));
    parts.extend(session.encrypt_final().expect("end"));
    r.note("same in parts", parts == encrypted);
    session.decrypt_init(&cbc, aes).expect("decrypt in parts");
    let mut parts = session.decrypt_update(&encrypted).expect("part");
    parts.extend(session.decrypt_final().expect("end"));
    r.note("decrypted in parts", parts == long);
    r.outcome("decrypt a cut text", session.decrypt(&cbc, aes, &encrypted[..15]));
    let mut iv = [5; 12];
    let gcm = Mechanism::AesGcm(GcmParams::new(&mut iv, b"aad", 128.into()).expect("parameters"));
    r.note("gcm", session.encrypt(&gcm, aes, b"text"));

    let mut slice = [0; 32];
    session.generate_random_slice(&mut slice).expect("random");
    r.note("random", (slice != [0; 32], session.generate_random_vec(17).expect("random").len()));
    r.outcome("seed", session.seed_random(&slice));
    r.outcome("validation", session.get_validation_flags(ValidationFlagsType::VALIDATION_OK));
}

fn messages(session: &Session, r: &mut Record) {
    let key = [
        Attribute::Token(false),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Value(vec![6; 32]),
    ];
    let key = session.create_object(&key).expect("AES key");
    let (mut iv, mut tag) = ([7; 12], [0; 16]);
    let params = GcmMessageParams::new(&mut iv, 0.into(), GeneratorFunction::NoGenerate, &mut tag)
        .expect("parameters");
    let mechanism = Mechanism::AesGcmMessage(params);
    let param = || MessageParam::AesGcmMessage(params);
    r.outcome("message encrypt", session.message_encrypt_init(&mechanism, key));
    r.note("message", session.encrypt_message(&param(), b"aad", b"text").ok());
    r.outcome("message begin", session.encrypt_message_begin(param(), b"aad"));
    r.note("message next", session.encrypt_message_next(param(), b"text", true).ok());
    r.outcome("message end", session.message_encrypt_final());
    r.outcome("message decrypt", session.message_decrypt_init(&mechanism, key));
    r.note("message back", session.decrypt_message(&param(), b"aad", b"text").ok());
    r.outcome("message back begin", session.decrypt_message_begin(param(), b"aad"));
    r.note("message back next", session.decrypt_message_next(param(), b"text", true).ok());
    r.outcome("message back end", session.message_decrypt_final());
    // The error type is the crate's own: a program's match on it goes on to work.
    let refused = session.sign_final().expect_err("no signature is open");
    r.note("error", matches!(refused, Error::Pkcs11(RvError::OperationNotInitialized, Function::SignFinal)));
}
