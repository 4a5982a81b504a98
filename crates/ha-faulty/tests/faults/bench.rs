//! A SoftHSM token behind the faulty one. Each test has a copy of the library, so that they run side by side.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ha_member::{Instance, ModuleConfig, ModuleConnector};
use ha_rig::{PIN, Store, softhsm};
use ha_token::{
    Attribute, Connector as _, Mechanism, ObjectHandle, OpKind, Output, Result, Selector, SessionHandle,
    Token, UserType, ck,
};

pub(crate) const LABEL: &str = "faulty";

/// Where a rule comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum From {
    Script,
    Socket,
}

pub(crate) struct Bench {
    pub(crate) store: Store,
    pub(crate) connector: ModuleConnector,
    pub(crate) token: Arc<dyn Token>,
    pub(crate) s: SessionHandle,
    pub(crate) socket: PathBuf,
}

/// The library, as cargo has built it for these tests.
pub(crate) fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap();
    let places = [folder.join("libfaulty_token.so"), folder.parent().unwrap().join("libfaulty_token.so")];
    places.into_iter().find(|p| p.exists()).expect("libfaulty_token.so is built with the tests")
}

/// Writes the configuration and answers where it is.
pub(crate) fn configure(store: &Store, more: &str, rules: &[&str]) -> PathBuf {
    let path = store.dir().join("faulty.toml");
    let text = format!("module = {:?}\n{more}\nrules = {rules:?}\n", softhsm());
    std::fs::write(&path, text).unwrap();
    ha_rig::set_mode(&path, 0o600);
    path
}

pub(crate) fn config(store: &Store, conf: &Path, label: &str) -> ModuleConfig {
    ModuleConfig {
        path: library(),
        instance: Instance::Private,
        env: vec![
            ("FAULTY_TOKEN_CONF".into(), conf.display().to_string()),
            ("SOFTHSM2_CONF".into(), store.conf().display().to_string()),
        ],
        selector: Selector { label: Some(label.into()), ..Selector::default() },
    }
}

impl Bench {
    /// A token with these rules in its script, logged in.
    pub(crate) fn new(rules: &[&str]) -> Bench {
        Bench::with(&[LABEL], rules)
    }

    /// Several tokens in one module, of which the first is used.
    pub(crate) fn with(labels: &[&str], rules: &[&str]) -> Bench {
        let store = Store::with(labels);
        let socket = store.dir().join("socket");
        let conf = configure(&store, &format!("socket = {socket:?}\nseed = 1"), rules);
        let connector = ModuleConnector::new(config(&store, &conf, labels[0]));
        let token = connector.connect().unwrap();
        let s = token.open_session(true).unwrap();
        let bench = Bench { store, connector, token, s, socket };
        bench.login().unwrap();
        bench
    }

    /// One with the rule, wherever it comes from.
    pub(crate) fn ruled(from: From, rule: &str) -> Bench {
        match from {
            From::Script => Bench::new(&[rule]),
            From::Socket => {
                let bench = Bench::new(&[]);
                assert_eq!(bench.say(&format!("add {rule}")), "ok 1");
                bench
            }
        }
    }

    pub(crate) fn say(&self, line: &str) -> String {
        say(&self.socket, line)
    }

    pub(crate) fn login(&self) -> Result<()> {
        self.token.login(self.s, UserType::User, Some(PIN.as_bytes()))
    }

    /// What a rule has seen and hit, as it is told.
    pub(crate) fn told(&self, what: &str) -> bool {
        self.say("list").contains(what)
    }

    pub(crate) fn rsa(&self) -> (ObjectHandle, ObjectHandle) {
        self.pair(ck::CKM_RSA_PKCS_KEY_PAIR_GEN, Attribute::ulong(ck::CKA_MODULUS_BITS, 1024))
    }

    pub(crate) fn ec(&self) -> (ObjectHandle, ObjectHandle) {
        const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        self.pair(ck::CKM_EC_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, P256))
    }

    fn pair(&self, mechanism: u64, kind: Attribute) -> (ObjectHandle, ObjectHandle) {
        let on_token = Attribute::bool(ck::CKA_TOKEN, true);
        let public = vec![on_token.clone(), Attribute::bool(ck::CKA_VERIFY, true), kind];
        let private =
            vec![on_token, Attribute::bool(ck::CKA_SIGN, true), Attribute::bool(ck::CKA_PRIVATE, true)];
        self.token.generate_key_pair(self.s, &mut Mechanism::plain(mechanism), &public, &private).unwrap()
    }

    pub(crate) fn sign(&self, mechanism: u64, key: ObjectHandle) -> Result<Vec<u8>> {
        sign(&*self.token, self.s, mechanism, key)
    }

    pub(crate) fn verify(&self, mechanism: u64, key: ObjectHandle, signature: &[u8]) -> Result<()> {
        self.token.op_init(self.s, OpKind::Verify, Some(&mut Mechanism::plain(mechanism)), key)?;
        self.token.verify(self.s, &[7; 32], signature)
    }

    pub(crate) fn digest(&self) -> Result<Vec<u8>> {
        let mut space = [0; 64];
        let mut out = Output::buffer(&mut space);
        let mut mechanism = Mechanism::plain(ck::CKM_SHA256);
        self.token.op_init(self.s, OpKind::Digest, Some(&mut mechanism), ObjectHandle(0))?;
        self.token.op_one_shot(self.s, OpKind::Digest, b"digest this", &mut out)?;
        Ok(out.written().to_vec())
    }

    pub(crate) fn find(&self, class: u64) -> Result<Vec<ObjectHandle>> {
        self.token.find_objects_init(self.s, &vec![Attribute::ulong(ck::CKA_CLASS, class)])?;
        let found = self.token.find_objects(self.s, 10)?;
        self.token.find_objects_final(self.s)?;
        Ok(found)
    }
}

/// A signature of 32 bytes, in one call.
pub(crate) fn sign(
    token: &dyn Token,
    s: SessionHandle,
    mechanism: u64,
    key: ObjectHandle,
) -> Result<Vec<u8>> {
    token.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(mechanism)), key)?;
    let mut space = [0; 512];
    let mut out = Output::buffer(&mut space);
    token.op_one_shot(s, OpKind::Sign, &[7; 32], &mut out)?;
    Ok(out.written().to_vec())
}

/// Says a line to a control socket and answers what is answered.
pub(crate) fn say(socket: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer.trim_end().to_owned()
}
