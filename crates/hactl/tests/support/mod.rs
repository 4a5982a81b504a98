//! A group made by `hactl init`, and the built command to run on it.
#![allow(dead_code)] // each test file uses a part of it

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use ha_core::board::{Board, Part, Process};
use ha_core::config::Config;
use ha_core::provider::{self, Provider};
use ha_member::{Instance, ModuleConfig, ModuleConnector};
use ha_token::{
    Attribute, Connector, Mechanism, ObjectHandle, OpKind, Output, SessionHandle, Template, Token, UserType,
    ck,
};
use serde_json::Value;

/// What the command answered.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Standard output as the one JSON document that it must be.
    pub(crate) fn json(&self) -> Value {
        let value: Value =
            serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {:?} {}", self.out, self.err));
        assert_eq!(value["schema"], 1);
        value
    }
}

/// The command, with nothing of the surroundings that it would read.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hactl"));
    command.args(arguments).stdin(Stdio::null()).env("HOME", "/nonexistent");
    for name in [
        "PKCS11_HA_CONF",
        "PKCS11_HA_PIN",
        "XDG_CONFIG_HOME",
        "XDG_STATE_HOME",
        "SOFTHSM2_MODULE",
        "SOFTHSM2_CONF",
    ] {
        command.env_remove(name);
    }
    command
}

pub(crate) fn finish(mut command: Command) -> Ran {
    let out = command.output().expect("hactl runs");
    Ran {
        code: out.status.code().expect("no signal"),
        out: String::from_utf8(out.stdout).expect("UTF-8"),
        err: String::from_utf8(out.stderr).expect("UTF-8"),
    }
}

pub(crate) fn hactl(arguments: &[&str]) -> Ran {
    finish(command(arguments))
}

/// A group of SoftHSM tokens in a folder of its own.
pub(crate) struct Made {
    folder: tempfile::TempDir,
}

impl Made {
    pub(crate) fn with(members: u8) -> Made {
        let made = Made { folder: tempfile::tempdir().expect("a folder") };
        let ran = hactl(&["init", "--softhsm", &members.to_string(), "--dir", made.dir().to_str().unwrap()]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        made
    }

    /// Another group whose tokens have the same PIN.
    pub(crate) fn with_pin_of(other: &Made, members: u8) -> Made {
        let made = Made { folder: tempfile::tempdir().expect("a folder") };
        let (dir, pin) = (made.dir(), other.dir().join("pin"));
        let (dir, pin) = (dir.to_str().unwrap(), pin.to_str().unwrap());
        let ran = hactl(&["init", "--softhsm", &members.to_string(), "--dir", dir, "--pin-file", pin]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        made
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.folder.path().join("group")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir().join("ha.toml")
    }

    pub(crate) fn pin(&self) -> Vec<u8> {
        std::fs::read(self.dir().join("pin")).expect("the PIN")
    }

    /// Runs a verb on the group, with the PIN.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = command(arguments);
        command.arg("--config").arg(self.config()).arg("--pin-file").arg(self.dir().join("pin"));
        finish(command)
    }

    /// Runs a verb on the group, without a PIN.
    pub(crate) fn run_without_pin(&self, arguments: &[&str]) -> Ran {
        let mut command = command(arguments);
        command.arg("--config").arg(self.config());
        finish(command)
    }

    /// Does something as an application does: on the virtual slot, logged in.
    pub(crate) fn as_application<T>(&self, f: impl FnOnce(&dyn Token, SessionHandle) -> T) -> T {
        let provider = Provider::from_config(Config::from_file(&self.config()).expect("a configuration"))
            .expect("starts");
        let slot = Arc::clone(&provider.slots()[0]);
        let done = logged_in(&*slot, &self.pin(), f);
        drop(slot);
        assert!(provider.shutdown(std::time::Duration::from_secs(5)).is_empty());
        done
    }

    /// Does something behind the group's back, on one member's own token, logged in.
    pub(crate) fn on_member<T>(&self, number: usize, f: impl FnOnce(&dyn Token, SessionHandle) -> T) -> T {
        let config = Config::from_file(&self.config()).expect("a configuration");
        let connector = provider::connector(&config.groups[0].members[number]);
        let token = connector.connect().expect("connects");
        let done = logged_in(&*token, &self.pin(), f);
        drop(token);
        connector.disconnect();
        done
    }

    /// A token of its own beside the group's, called as a member would be: blank but for its PINs. Answers its configuration.
    pub(crate) fn blank_token(&self, name: &str) -> PathBuf {
        let conf = self.dir().join(format!("member-{name}.conf"));
        let tokens = self.dir().join(format!("member-{name}"));
        std::fs::create_dir(&tokens).expect("a folder");
        let text = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
        std::fs::write(&conf, text).expect("written");
        self.initialise(name, &conf, &self.pin());
        conf
    }

    /// Initialises the one token of a configuration of SoftHSM.
    pub(crate) fn initialise(&self, name: &str, conf: &Path, pin: &[u8]) {
        let module =
            Config::from_file(&self.config()).expect("a configuration").groups[0].members[0].module.clone();
        let connector = ModuleConnector::new(ModuleConfig {
            path: module,
            instance: Instance::Private,
            env: vec![("SOFTHSM2_CONF".into(), conf.display().to_string())],
            selector: ha_token::Selector::default(),
        });
        let token = connector.connect_blank().expect("connects");
        let so = b"87654321";
        token.init_token(Some(so), &format!("member-{name}")).expect("initialised");
        let session = token.open_session(true).expect("a session");
        token.login(session, UserType::So, Some(so)).expect("login");
        token.init_pin(session, Some(pin)).expect("a PIN");
        token.close_session(session).expect("closed");
        drop(token);
        connector.disconnect();
    }

    /// The processes that use the group, as they say themselves.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let config = Config::from_file(&self.config());
        let state = config.map_or_else(|_| self.dir().join("state"), |c| c.state_dir);
        let board = Board::open(&state, "ha1", Part::Operator, std::time::Duration::ZERO).expect("a board");
        board.processes()
    }

    /// Takes a member's token away, or brings it back.
    pub(crate) fn hide(&self, name: &str, hidden: bool) {
        let tokens = self.dir().join(format!("member-{name}"));
        if hidden { ha_rig::hide(&tokens) } else { ha_rig::restore(&tokens) }
    }
}

fn logged_in<T>(token: &dyn Token, pin: &[u8], f: impl FnOnce(&dyn Token, SessionHandle) -> T) -> T {
    let session = token.open_session(true).expect("a session");
    token.login(session, UserType::User, Some(pin)).expect("login");
    let done = f(token, session);
    token.logout(session).expect("logout");
    token.close_session(session).expect("closed");
    done
}

/// A P-256 pair of token objects.
pub(crate) fn pair(
    token: &dyn Token,
    session: SessionHandle,
    label: &str,
    id: u8,
    extractable: bool,
) -> (ObjectHandle, ObjectHandle) {
    const P256: [u8; 10] = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let both = [
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_LABEL, label),
        Attribute::bytes(ck::CKA_ID, [id]),
    ];
    let mut public: Template = both.to_vec();
    public.extend([Attribute::bytes(ck::CKA_EC_PARAMS, P256), Attribute::bool(ck::CKA_VERIFY, true)]);
    let mut private: Template = both.to_vec();
    private.extend([
        Attribute::bool(ck::CKA_PRIVATE, true),
        Attribute::bool(ck::CKA_SENSITIVE, true),
        Attribute::bool(ck::CKA_EXTRACTABLE, extractable),
        Attribute::bool(ck::CKA_SIGN, true),
    ]);
    token
        .generate_key_pair(session, &mut Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN), &public, &private)
        .expect("a pair")
}

/// What has this label.
pub(crate) fn find(token: &dyn Token, session: SessionHandle, label: &str) -> Vec<ObjectHandle> {
    token.find_objects_init(session, &vec![Attribute::bytes(ck::CKA_LABEL, label)]).expect("search");
    let found = token.find_objects(session, 100).expect("found");
    token.find_objects_final(session).expect("search ends");
    found
}

pub(crate) fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

/// Signs with a member's own token, as if the group had never been; answers nothing where the key is not there.
pub(crate) fn signs(made: &Made, member: usize, label: &str) -> bool {
    made.on_member(member, |token, s| {
        let Some(key) = find(token, s, label).into_iter().find(|o| {
            let class = token.get_attributes(s, *o, &[ck::CKA_CLASS]).unwrap();
            class[0].value().and_then(|v| v.as_ulong()) == Some(ck::CKO_PRIVATE_KEY)
        }) else {
            return false;
        };
        token.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), key).unwrap();
        token.op_one_shot(s, OpKind::Sign, &[1; 32], &mut Output::buffer(&mut [0; 64])).is_ok()
    })
}
