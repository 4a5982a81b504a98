//! What the members are really called with: every call is recorded by OpenSC's pkcs11-spy, and the record searched.
#![allow(missing_docs, clippy::unwrap_used)]

mod sessions;
mod values;

use std::path::PathBuf;
use std::sync::Arc;

use ha_core::config::Config;
use ha_core::provider::Provider;
use ha_rig::{PIN, Tokens, name, softhsm};
use ha_token::{SessionHandle, Token, UserType};

struct Spied {
    tokens: Tokens,
    provider: Provider,
    slot: Arc<dyn Token>,
    s: SessionHandle,
}

fn spy() -> PathBuf {
    ["/usr/lib/x86_64-linux-gnu/pkcs11-spy.so", "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so"]
        .map(PathBuf::from)
        .into_iter()
        .find(|p| p.exists())
        .expect("pkcs11-spy.so is there: install the Debian package opensc")
}

/// A group whose members are reached through the spy. Each has a SoftHSM of its own, which the spy would share else.
fn spied(group: &str) -> Spied {
    let tokens = Tokens::new(2);
    let mut config = format!(
        "state_dir = {:?}\n[[group]]\nlabel = \"ha1\"\ndeadline = \"off\"\n{group}\n",
        tokens.path().join("state")
    );
    for i in 0..2 {
        let copy = tokens.path().join(format!("softhsm-{}.so", name(i)));
        std::fs::copy(softhsm(), &copy).unwrap();
        config += &format!(
            "[[group.member]]\nname = {:?}\nmodule = {:?}\ntoken = \"member-{0}\"\nenv = {{ SOFTHSM2_CONF = {:?}, PKCS11SPY = {copy:?}, PKCS11SPY_OUTPUT = {:?} }}\n",
            name(i),
            spy(),
            tokens.conf(i),
            tokens.path().join(format!("record-{}", name(i))),
        );
    }
    let provider = Provider::from_config(Config::parse(&config).unwrap()).unwrap();
    let slot = Arc::clone(provider.slot(0).unwrap());
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    Spied { tokens, provider, slot, s }
}

impl Spied {
    /// Ends the group, and answers what each member was called with.
    fn records(self) -> [String; 2] {
        drop(self.slot);
        assert!(self.provider.shutdown(std::time::Duration::from_secs(60)).is_empty());
        [0, 1].map(|i| {
            let record = self.tokens.path().join(format!("record-{}", name(i)));
            let record = String::from_utf8_lossy(&std::fs::read(record).unwrap()).into_owned();
            assert!(record.contains("C_OpenSession"), "the spy saw nothing");
            record
        })
    }
}
