//! A login brings a member up to date for a while, and leaves the rest to its keeper.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ha_core::config::Config;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_core::seam::{Event, System, Thread, World};
use ha_token::{Attribute, SessionHandle, Token, UserType, ck};
use simulations::token::{Device, Profile};

const PIN: &[u8] = b"1234";
const OBJECTS: u8 = 40;

/// Keeps keepers that wait from going on.
#[derive(Default)]
struct Keepers {
    asleep: AtomicBool,
    waiting: AtomicUsize,
}

/// A clock that goes on by a second whenever it is looked at, and keepers that can be kept asleep.
struct Slow {
    system: Arc<dyn World>,
    looks: AtomicU64,
    keepers: Arc<Keepers>,
}

struct Sleep {
    event: Arc<dyn Event>,
    keepers: Arc<Keepers>,
}

impl Event for Sleep {
    fn set(&self) {
        self.event.set();
    }

    fn wait(&self, limit: Option<Duration>) -> bool {
        if !std::thread::current().name().is_some_and(|name| name.starts_with("ha-m")) {
            return self.event.wait(limit);
        }
        self.keepers.waiting.fetch_add(1, Ordering::SeqCst);
        let is_set = self.event.wait(limit);
        while self.keepers.asleep.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        self.keepers.waiting.fetch_sub(1, Ordering::SeqCst);
        is_set
    }

    fn watch(&self, time: Duration) -> bool {
        self.event.watch(time)
    }
}

impl World for Slow {
    fn now(&self) -> Duration {
        self.system.now() + Duration::from_secs(self.looks.fetch_add(1, Ordering::SeqCst))
    }

    fn host_time(&self) -> Duration {
        self.system.host_time()
    }

    fn wall_clock(&self) -> Duration {
        self.system.wall_clock()
    }

    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        self.system.random(bytes)
    }

    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> std::io::Result<Box<dyn Thread>> {
        self.system.spawn(name, body)
    }

    fn event(&self) -> Arc<dyn Event> {
        Arc::new(Sleep { event: self.system.event(), keepers: Arc::clone(&self.keepers) })
    }
}

fn logs_in(slot: &dyn Token) -> SessionHandle {
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN)).unwrap();
    s
}

#[test]
fn a_login_does_not_wait_for_all_that_a_new_token_is_to_be_given() {
    let devices: Vec<Device> = (0..2)
        .map(|i| {
            Device::new(Profile::softhsm(), &format!("member-{i}"), &format!("{i:016x}"), b"12345678", PIN, i)
        })
        .collect();
    let state = tempfile::tempdir().unwrap();
    let mut text = format!(
        "state_dir = {:?}\n[[group]]\nlabel = \"ha\"\ndeadline = \"off\"\nmin_copies = 1\n[group.recovery]\ninterval = \"20ms\"\n",
        state.path()
    );
    for i in 0..2 {
        text +=
            &format!("[[group.member]]\nname = \"m{i}\"\nmodule = \"/simulated\"\ntoken = \"member-{i}\"\n");
    }
    let keepers = Arc::new(Keepers::default());
    let world =
        Arc::new(Slow { system: System::new(), looks: AtomicU64::new(0), keepers: Arc::clone(&keepers) });
    let connectors = devices.iter().map(Device::connector).collect();
    let provider = Provider::with_members(Config::parse(&text).unwrap(), world, vec![connectors]).unwrap();
    let group = &provider.groups()[0];
    let slot = &**provider.slot(0).unwrap();
    let all_up = || {
        while group.members.iter().any(|m| m.state() != State::Up) {
            std::thread::yield_now();
        }
    };
    let data = |device: usize| devices[device].inspect().iter().filter(|o| o.class == ck::CKO_DATA).count();
    all_up();
    let s = logs_in(slot);
    devices[1].lose_token();
    for i in 0..OBJECTS {
        let template = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_LABEL, [i]),
        ];
        slot.create_object(s, &template).unwrap();
    }
    while group.members[1].state() != State::Down {
        std::thread::yield_now();
    }
    // Nobody is logged in when the member comes back: it cannot be given anything before somebody is.
    slot.close_session(s).unwrap();
    devices[1].find_token();
    all_up();
    keepers.asleep.store(true, Ordering::SeqCst);
    while keepers.waiting.load(Ordering::SeqCst) < group.members.len() {
        std::thread::yield_now();
    }
    logs_in(slot);
    let given = data(1);
    assert!(given < usize::from(OBJECTS), "the login has waited for all of it");
    keepers.asleep.store(false, Ordering::SeqCst);
    while data(1) < usize::from(OBJECTS) {
        std::thread::yield_now();
    }
    assert_eq!(data(0), usize::from(OBJECTS));
}
