//! Two tokens as a group: member `a` behind a faulty token, member `b` bare.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ha_core::board::{Board, Part, What};
use ha_core::config::Config;
use ha_core::group::{Group, Word};
use ha_core::policy::health::State;
use ha_core::provider::{Provider, connector};
use ha_core::replica::verifier::Verifier;
use ha_rig::{PIN, Tokens, set_mode, softhsm};
use ha_token::{
    Attribute, Connector as _, Mechanism, ObjectHandle, OpKind, Output, SessionHandle, Token, UserType, ck,
};

use sha2::Digest as _;

/// A member is looked at again at once.
pub(crate) const SOON: &str = "[group.recovery]\ninterval = \"50ms\"\nmax_interval = \"200ms\"";

const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// The library, as cargo has built it for these tests.
pub(crate) fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap();
    let places = [folder.join("libfaulty_token.so"), folder.parent().unwrap().join("libfaulty_token.so")];
    places.into_iter().find(|p| p.exists()).expect("libfaulty_token.so is built with the tests")
}

pub(crate) struct Open {
    pub(crate) provider: Provider,
    slot: Arc<dyn Token>,
    s: SessionHandle,
    key: ObjectHandle,
    verifier: Verifier,
}

pub(crate) struct Pair {
    pub(crate) open: Open,
    /// The faulty token's configuration.
    pub(crate) conf: PathBuf,
    socket: PathBuf,
    pub(crate) tokens: Arc<Tokens>,
}

/// Says a line to a faulty token.
pub(crate) fn told(socket: &Path, line: &str) -> String {
    let ask = || {
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.write_all(format!("{line}\n").as_bytes()).ok()?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).ok()?;
        answer.ends_with('\n').then(|| answer.trim_end().to_owned())
    };
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        std::thread::yield_now();
    }
}

/// Configures a faulty token in front of one of the tokens; its control socket is beside the configuration.
fn configure(tokens: &Tokens, name: &str) -> (PathBuf, PathBuf) {
    let (conf, socket) =
        (tokens.path().join(format!("{name}.toml")), tokens.path().join(format!("{name}.control")));
    std::fs::write(&conf, format!("module = {:?}\nsocket = {socket:?}\nseed = 1", softhsm())).unwrap();
    set_mode(&conf, 0o600);
    (conf, socket)
}

impl Pair {
    /// A group with these lines, and an EC key in it.
    pub(crate) fn new(group: &str) -> Pair {
        let tokens = Arc::new(Tokens::new(2));
        tokens.add_beside(0, "stranger");
        let (conf, socket) = configure(&tokens, "a");
        let open = Open::new(&text_of(&tokens, group, &direct(&tokens, 0, &conf), &bare(&tokens, 1)), true);
        Pair { open, conf, socket, tokens }
    }

    /// The same where the other member is faulty too; with that one's control socket.
    pub(crate) fn both(group: &str) -> (Pair, PathBuf) {
        let tokens = Arc::new(Tokens::new(2));
        let ((conf, socket), (other, other_socket)) = (configure(&tokens, "a"), configure(&tokens, "b"));
        let members = (direct(&tokens, 0, &conf), direct(&tokens, 1, &other));
        let open = Open::new(&text_of(&tokens, group, &members.0, &members.1), true);
        (Pair { open, conf, socket, tokens }, other_socket)
    }

    /// The same tokens and key, with another group and another way to member `a`.
    pub(crate) fn again(&self, group: &str, member: &str) -> Pair {
        let open = Open::new(&text_of(&self.tokens, group, member, &bare(&self.tokens, 1)), false);
        Pair { open, conf: self.conf.clone(), socket: self.socket.clone(), tokens: Arc::clone(&self.tokens) }
    }

    /// The group's configuration with these lines.
    pub(crate) fn text(&self, group: &str) -> String {
        text_of(&self.tokens, group, &self.direct(), &bare(&self.tokens, 1))
    }

    /// Member `a` by a copy of the library in this process.
    pub(crate) fn direct(&self) -> String {
        direct(&self.tokens, 0, &self.conf)
    }

    pub(crate) fn group(&self) -> &Group {
        &self.open.provider.groups()[0]
    }

    /// So many signatures, none of which fails or is wrong.
    pub(crate) fn sign(&self, count: usize) {
        for n in 0..count {
            self.open.sign(n);
        }
    }

    /// Says a line to the faulty token; the answer. Who listens may just have ended: another one will.
    pub(crate) fn told(&self, line: &str) -> String {
        told(&self.socket, line)
    }

    /// What its operator wants of member `a`; the wish's number.
    pub(crate) fn wish(&self, what: What) -> u64 {
        let board = Board::open(&self.tokens.state(), "ha1", Part::Operator, Duration::ZERO).unwrap();
        board.ask_for(&board.turn().unwrap(), "a", what, Duration::ZERO).unwrap()
    }

    /// Changes the user's PIN of member `a`, as another program would.
    pub(crate) fn change_pin(&self, old: &str, new: &str) {
        let config =
            Config::parse(&text_of(&self.tokens, "", &bare(&self.tokens, 0), &bare(&self.tokens, 1)))
                .unwrap();
        let other = connector(&config.groups[0].members[0]);
        let token = other.connect().unwrap();
        let s = token.open_session(true).unwrap();
        token.set_pin(s, Some(old.as_bytes()), Some(new.as_bytes())).unwrap();
        drop(token);
        other.disconnect();
    }

    pub(crate) fn tell(&self, line: &str) {
        let answer = self.told(line);
        assert!(answer.starts_with("ok"), "{line}: {answer}");
    }

    /// Waits until both members are up: the test runner's own limit ends it otherwise.
    pub(crate) fn await_up(&self) {
        while !self.group().members.iter().all(|m| m.state() == State::Up) {
            self.sign(1);
        }
    }

    /// Whether every object is on both members, and proven to be the same.
    pub(crate) fn all_the_same(&self) -> bool {
        let all = self.group().check(true);
        self.group().up().count() == 2
            && all.is_ok_and(|all| all.iter().all(|object| object.worst() == Word::Same))
    }

    /// How many objects there are.
    pub(crate) fn objects(&self) -> usize {
        self.group().check(true).unwrap().len()
    }

    /// Waits until the faulty one signs again.
    pub(crate) fn served_by_the_faulty_one(&self) {
        let signed = || {
            let counts = self.told("count");
            let count = counts.split("; ").find_map(|c| c.trim_start_matches("ok ").strip_prefix("C_Sign "));
            count.map_or(0, |count| count.parse::<u64>().unwrap())
        };
        let before = signed();
        while signed() <= before {
            self.sign(1);
        }
    }
}

fn direct(tokens: &Tokens, i: usize, conf: &Path) -> String {
    format!(
        "module = {:?}\ntoken = \"member-{}\"\nenv = {{ FAULTY_TOKEN_CONF = {conf:?}, SOFTHSM2_CONF = {:?} }}",
        library(),
        ha_rig::name(i),
        tokens.conf(i)
    )
}

fn bare(tokens: &Tokens, i: usize) -> String {
    let (name, conf) = (ha_rig::name(i), tokens.conf(i));
    format!("module = {:?}\ntoken = \"member-{name}\"\nenv = {{ SOFTHSM2_CONF = {conf:?} }}", softhsm())
}

fn text_of(tokens: &Tokens, group: &str, a: &str, b: &str) -> String {
    let recovery = if group.contains("recovery") { "" } else { SOON };
    let deadline = if group.contains("deadline") { "" } else { "deadline = \"2s\"" };
    format!(
        "state_dir = {:?}\n[[group]]\nlabel = \"ha1\"\n{deadline}\n{group}\n{recovery}\n\
         [[group.member]]\nname = \"a\"\n{a}\ninstance = \"private\"\n\
         [[group.member]]\nname = \"b\"\n{b}\ninstance = \"private\"\n",
        tokens.state(),
    )
}

/// Makes a key pair on the token.
fn make_key(slot: &dyn Token, s: SessionHandle, id: &[u8]) -> ha_token::Result<()> {
    let public = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bool(ck::CKA_VERIFY, true),
        Attribute::bytes(ck::CKA_EC_PARAMS, P256),
        Attribute::bytes(ck::CKA_ID, id),
    ];
    let private = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bool(ck::CKA_PRIVATE, true),
        Attribute::bool(ck::CKA_SIGN, true),
        Attribute::bytes(ck::CKA_ID, id),
    ];
    slot.generate_key_pair(s, &mut Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN), &public, &private).map(drop)
}

impl Open {
    /// One more key pair, of a name of its own.
    pub(crate) fn make_key(&self, id: &[u8]) -> ha_token::Result<()> {
        make_key(&*self.slot, self.s, id)
    }

    fn new(config: &str, make: bool) -> Open {
        let provider = Provider::from_config(Config::parse(config).unwrap()).unwrap();
        let slot = Arc::clone(provider.slot(0).unwrap());
        let s = slot.open_session(true).unwrap();
        slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
        if make {
            make_key(&*slot, s, &[1]).unwrap();
        }
        let find = |class| {
            slot.find_objects_init(s, &vec![Attribute::ulong(ck::CKA_CLASS, class)]).unwrap();
            let found = slot.find_objects(s, 10).unwrap();
            slot.find_objects_final(s).unwrap();
            assert_eq!(found.len(), 1);
            found[0]
        };
        let (public, key) = (find(ck::CKO_PUBLIC_KEY), find(ck::CKO_PRIVATE_KEY));
        let point = slot.get_attributes(s, public, &[ck::CKA_EC_POINT]).unwrap();
        let verifier = Verifier::from_public(ck::CKK_EC, None, None, Some(&P256), point[0].bytes()).unwrap();
        Open { provider, slot, s, key, verifier }
    }

    fn sign(&self, n: usize) {
        let message = format!("message {n}").into_bytes();
        let mut digest = [0; 32];
        digest.copy_from_slice(&sha2::Sha256::digest(&message));
        let mut space = [0; 64];
        let mut out = Output::buffer(&mut space);
        self.slot
            .op_init(self.s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), self.key)
            .unwrap_or_else(|rv| panic!("C_SignInit of {n}: {rv}"));
        self.slot
            .op_one_shot(self.s, OpKind::Sign, &digest, &mut out)
            .unwrap_or_else(|rv| panic!("C_Sign of {n}: {rv}"));
        assert_eq!(self.verifier.check_signature(&message, out.written()), Some(true), "signature {n}");
    }
}
