//! Settings that change what may be made, and those that say that they do nothing.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::Write;
use std::sync::{Arc, Mutex};

use ha_core::config::Config;
use ha_core::provider::Provider;
use ha_rig::{PIN, Tokens};
use ha_token::{Attribute, Mechanism, Rv, SessionHandle, Template, Token, UserType, ck};

fn open(tokens: &Tokens, group: &str) -> (Provider, Arc<dyn Token>, SessionHandle) {
    let provider = Provider::from_config(Config::parse(&tokens.config(false, group)).unwrap()).unwrap();
    let slot = Arc::clone(provider.slot(0).unwrap());
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    (provider, slot, s)
}

fn yes(kinds: &[u64]) -> Template {
    kinds.iter().map(|k| Attribute::bool(*k, true)).collect()
}

/// Tries to make a key with these uses in every way; answers what each said.
fn make(slot: &dyn Token, s: SessionHandle, uses: &[u64]) -> Vec<Result<(), Rv>> {
    let mut generated = yes(uses);
    generated.extend(yes(&[ck::CKA_TOKEN]));
    let mut given = generated.clone();
    generated.push(Attribute::ulong(ck::CKA_VALUE_LEN, 16));
    given.extend([
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
        Attribute::bytes(ck::CKA_VALUE, [7; 16]),
    ]);
    vec![
        slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &generated).map(drop),
        slot.create_object(s, &given).map(drop),
    ]
}

#[test]
fn strict_usage_refuses_keys_that_wrap_and_decrypt() {
    let tokens = Tokens::new(2);
    let both = [ck::CKA_WRAP, ck::CKA_DECRYPT];
    let (provider, slot, s) = open(&tokens, "strict_usage = true");
    let refused = make(&*slot, s, &both);
    assert_eq!(refused, [Err(Rv::TEMPLATE_INCONSISTENT); 2]);
    slot.find_objects_init(s, &Vec::new()).unwrap();
    assert_eq!(slot.find_objects(s, 10), Ok(vec![]), "nothing was left behind");
    slot.find_objects_final(s).unwrap();
    for one in [[ck::CKA_WRAP, ck::CKA_SIGN], [ck::CKA_DECRYPT, ck::CKA_SIGN]] {
        assert_eq!(make(&*slot, s, &one), [Ok(()); 2], "each of the two alone");
    }
    // The two halves of a pair together do the same.
    let token = Attribute::bool(ck::CKA_TOKEN, true);
    let pair = |decrypt: bool| {
        let public = vec![
            token.clone(),
            Attribute::ulong(ck::CKA_MODULUS_BITS, 1024),
            Attribute::bool(ck::CKA_WRAP, true),
        ];
        let private = vec![
            token.clone(),
            Attribute::bool(ck::CKA_SIGN, true),
            Attribute::bool(ck::CKA_DECRYPT, decrypt),
        ];
        let mut mechanism = Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
        slot.generate_key_pair(s, &mut mechanism, &public, &private).map(drop)
    };
    assert_eq!(pair(true), Err(Rv::TEMPLATE_INCONSISTENT));
    assert_eq!(pair(false), Ok(()));
    provider.shutdown(std::time::Duration::from_secs(60));
    let (_provider, slot, s) = open(&tokens, "");
    assert_eq!(make(&*slot, s, &both), [Ok(()); 2], "many programs ask for both by default");
}

/// A log that a test can read.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn settings_without_effect_are_warned_of_once_each() {
    let tokens = Tokens::new(1);
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let mut text = tokens.config(false, "generate_deadline = \"60s\"");
    // In the last table, the member's.
    text.push_str(&format!("fingerprint = \"sha256:{}\"\n", "0".repeat(64)));
    let path = tokens.path().join("ha.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let config = Config::from_file(&path).unwrap();
    drop(tracing::subscriber::with_default(subscriber, || Provider::from_config(config)));
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for key in ["fingerprint", "generate_deadline"] {
        let about: Vec<_> = text.lines().filter(|l| l.contains(&format!("key=\"{key}\""))).collect();
        assert_eq!(about.len(), 1, "{text}");
        assert!(
            about[0].contains("WARN") && about[0].contains("ha.toml") && about[0].contains("consequence="),
            "{text}"
        );
    }
}
