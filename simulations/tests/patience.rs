//! A login brings a member up to date for a while, and leaves the rest to its keeper: what may be left, and how the member
//! that lacks it serves meanwhile.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ha_core::config::Config;
use ha_core::group::Group;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_core::seam::{Event, System, Thread, World};
use ha_token::{
    Attribute, Mechanism, ObjectHandle, OpKind, Output, Result, SessionHandle, Template, Token, UserType, ck,
};
use simulations::token::{Device, Profile};

const PIN: &[u8] = b"1234";
const OBJECTS: u16 = 40;

/// Keeps keepers that wait from going on.
#[derive(Default)]
struct Keepers {
    asleep: AtomicBool,
    waiting: AtomicUsize,
    /// Those that have waited, and sleep on.
    kept: AtomicUsize,
}

/// A clock that goes on by so many seconds whenever it is looked at, and keepers that can be kept asleep.
struct Slow {
    system: Arc<dyn World>,
    now: AtomicU64,
    step: AtomicU64,
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
        let Keepers { asleep, waiting, kept } = &*self.keepers;
        waiting.fetch_add(1, Ordering::SeqCst);
        let is_set = self.event.wait(limit);
        waiting.fetch_sub(1, Ordering::SeqCst);
        if asleep.load(Ordering::SeqCst) {
            kept.fetch_add(1, Ordering::SeqCst);
            until(|| !asleep.load(Ordering::SeqCst));
            kept.fetch_sub(1, Ordering::SeqCst);
        }
        is_set
    }

    fn watch(&self, time: Duration) -> bool {
        self.event.watch(time)
    }
}

impl World for Slow {
    fn now(&self) -> Duration {
        let step = self.step.load(Ordering::SeqCst);
        Duration::from_secs(self.now.fetch_add(step, Ordering::SeqCst))
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

struct Rig {
    devices: Vec<Device>,
    world: Arc<Slow>,
    provider: Provider,
    state: tempfile::TempDir,
}

fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        std::thread::yield_now();
    }
}

impl Rig {
    fn new(members: usize) -> Self {
        let device = |i| {
            let label = format!("member-{i}");
            Device::new(Profile::softhsm(), &label, &format!("{i:016x}"), b"12345678", PIN, i as u64)
        };
        let devices: Vec<Device> = (0..members).map(device).collect();
        let state = tempfile::tempdir().unwrap();
        let (provider, world) = Rig::start(&devices, state.path(), 1);
        let rig = Rig { devices, world, provider, state };
        rig.all_up();
        rig
    }

    fn start(devices: &[Device], state: &Path, min_copies: usize) -> (Provider, Arc<Slow>) {
        let mut text = format!(
            "state_dir = {state:?}\n[[group]]\nlabel = \"ha\"\ndeadline = \"off\"\nmin_copies = {min_copies}\n[group.recovery]\ninterval = \"20ms\"\nmax_interval = \"50ms\"\n"
        );
        for i in 0..devices.len() {
            text += &format!(
                "[[group.member]]\nname = \"m{i}\"\nmodule = \"/simulated\"\ntoken = \"member-{i}\"\n"
            );
        }
        let world = Arc::new(Slow {
            system: System::new(),
            now: AtomicU64::new(0),
            step: AtomicU64::new(1),
            keepers: Arc::default(),
        });
        let connectors = devices.iter().map(Device::connector).collect();
        let outside = Arc::clone(&world) as Arc<dyn World>;
        (Provider::with_members(Config::parse(&text).unwrap(), outside, vec![connectors]).unwrap(), world)
    }

    /// The program is started again, with another configuration.
    fn starts_again(&mut self, min_copies: usize) {
        self.keepers_sleep(false);
        assert_eq!(self.provider.shutdown(Duration::from_secs(3600)), Vec::<String>::new());
        (self.provider, self.world) = Rig::start(&self.devices, self.state.path(), min_copies);
        self.all_up();
        self.keepers_sleep(true);
    }

    fn group(&self) -> &Group {
        &self.provider.groups()[0]
    }

    fn slot(&self) -> &dyn Token {
        &**self.provider.slot(0).unwrap()
    }

    fn all_up(&self) {
        until(|| self.group().members.iter().all(|m| m.state() == State::Up));
    }

    /// Does something with all members but the first one away, which come back when nobody is logged in: they cannot be
    /// given anything before somebody is. The keepers sleep from then on.
    fn without_the_others(&self, f: impl FnOnce(SessionHandle)) {
        let s = self.logs_in();
        let others = 1..self.devices.len();
        self.devices[others.clone()].iter().for_each(Device::lose_token);

        f(s);

        until(|| others.clone().all(|i| self.group().members.get(i).unwrap().state() == State::Down));

        self.slot().close_session(s).unwrap();
        self.devices[others].iter().for_each(Device::find_token);
        self.all_up();

        self.keepers_sleep(true);
    }

    fn keepers_sleep(&self, they: bool) {
        let keepers = &self.world.keepers;
        keepers.asleep.store(they, Ordering::SeqCst);
        if they {
            let asleep = || keepers.kept.load(Ordering::SeqCst) + keepers.waiting.load(Ordering::SeqCst);
            until(|| asleep() == self.devices.len());
        }
    }

    /// Whether the clock goes on from now on.
    fn time_goes_on(&self, does: bool) {
        self.world.step.store(u64::from(does), Ordering::SeqCst);
    }

    fn logs_in(&self) -> SessionHandle {
        let s = self.slot().open_session(true).unwrap();
        self.slot().login(s, UserType::User, Some(PIN)).unwrap();
        s
    }

    fn creates(&self, s: SessionHandle, names: std::ops::Range<u16>) -> Vec<ObjectHandle> {
        names.map(|name| self.slot().create_object(s, &data(name)).unwrap()).collect()
    }

    fn finds(&self, s: SessionHandle) -> Result<usize> {
        self.slot().find_objects_init(s, &vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA)])?;
        let found = self.slot().find_objects(s, 1000)?;
        self.slot().find_objects_final(s)?;
        Ok(found.len())
    }

    /// How many objects of a class a member has, but for the group's own.
    fn count(&self, device: usize, class: ha_token::Ulong) -> usize {
        let is_meant = |label: &[u8]| !label.starts_with(b"pkcs11-ha ");
        self.devices[device].inspect().iter().filter(|o| o.class == class && is_meant(&o.label)).count()
    }
}

fn data(name: u16) -> Template {
    vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bool(ck::CKA_PRIVATE, false),
        Attribute::bytes(ck::CKA_LABEL, name.to_be_bytes()),
    ]
}

#[test]
fn a_login_does_not_wait_for_all_that_a_new_token_is_to_be_given() {
    let rig = Rig::new(2);
    rig.without_the_others(|s| drop(rig.creates(s, 0..OBJECTS)));
    rig.logs_in();
    let given = rig.count(1, ck::CKO_DATA);
    assert!(given < usize::from(OBJECTS), "the login has waited for all of it");

    rig.keepers_sleep(false);
    until(|| rig.count(1, ck::CKO_DATA) == usize::from(OBJECTS));
    assert_eq!(rig.count(0, ck::CKO_DATA), usize::from(OBJECTS));
}

/// The members serve at once: with a key of before, and by its names of before.
#[test]
fn a_login_waits_for_what_is_to_be_destroyed_and_changed() {
    let rig = Rig::new(2);
    let s = rig.logs_in();
    let before = rig.creates(s, 100..120);
    assert_eq!(rig.count(1, ck::CKO_DATA), 20);
    rig.slot().close_session(s).unwrap();
    rig.without_the_others(|s| {
        for object in &before[..10] {
            rig.slot().destroy_object(s, *object).unwrap();
        }
        for object in &before[10..] {
            rig.slot().set_attributes(s, *object, &vec![Attribute::bytes(ck::CKA_LABEL, *b"new")]).unwrap();
        }
        rig.creates(s, 0..OBJECTS);
    });
    rig.logs_in();
    let there = rig.devices[1].inspect();
    let called = |label: &[u8]| there.iter().filter(|o| o.label == label).count();
    assert_eq!(called(b"new"), 10);
    assert!((100..120u16).all(|name| called(&name.to_be_bytes()) == 0));
    assert!(rig.count(1, ck::CKO_DATA) < 10 + usize::from(OBJECTS), "the login has waited for all of it");

    rig.keepers_sleep(false);
    until(|| rig.count(1, ck::CKO_DATA) == 10 + usize::from(OBJECTS));
}

/// Each second call is tried on one that lacks the key, and no time passes in which tries are granted anew.
#[test]
fn a_key_that_the_other_members_lack_is_used_where_it_is() {
    let rig = Rig::new(3);
    rig.without_the_others(|s| {
        for name in 0..OBJECTS {
            let template = vec![
                Attribute::bool(ck::CKA_TOKEN, true),
                Attribute::ulong(ck::CKA_VALUE_LEN, 32),
                Attribute::bool(ck::CKA_ENCRYPT, true),
                Attribute::bytes(ck::CKA_LABEL, name.to_be_bytes()),
            ];
            rig.slot().generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
        }
    });
    rig.logs_in();
    rig.time_goes_on(false);
    let s = rig.slot().open_session(true).unwrap();
    let is_on = |device: usize, name: &[u8]| rig.devices[device].inspect().iter().any(|o| o.label == name);
    let mut names = (0..OBJECTS).map(u16::to_be_bytes);
    let name = names.find(|name| !is_on(1, name) && !is_on(2, name)).unwrap();
    let template =
        vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY), Attribute::bytes(ck::CKA_LABEL, name)];
    rig.slot().find_objects_init(s, &template).unwrap();
    let key = rig.slot().find_objects(s, 10).unwrap()[0];
    rig.slot().find_objects_final(s).unwrap();
    let encipher = |s| {
        let mut mechanism = Mechanism::plain(ck::CKM_AES_ECB);
        rig.slot().op_init(s, OpKind::Encrypt, Some(&mut mechanism), key)?;
        rig.slot().op_one_shot(s, OpKind::Encrypt, &[7; 16], &mut Output::buffer(&mut [0; 16]))
    };
    for _ in 0..200 {
        // A new session each time: one that has a member stays with it.
        let s = rig.slot().open_session(true).unwrap();
        assert_eq!(encipher(s), Ok(()));
        rig.slot().close_session(s).unwrap();
    }

    // Those that are left cannot say that there is no such key.
    let s = rig.slot().open_session(true).unwrap();
    rig.devices[0].lose_token();
    rig.time_goes_on(true);
    assert_eq!(encipher(s), Err(ha_token::Rv::DEVICE_ERROR));
    // And a search tells of all: who does not find its key makes another one.
    let find = |template| {
        rig.slot().find_objects_init(s, &template).unwrap();
        let found = rig.slot().find_objects(s, 1000).unwrap();
        rig.slot().find_objects_final(s).unwrap();
        found
    };
    let secret = Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY);
    let named = vec![Attribute::bytes(ck::CKA_LABEL, name), Attribute::bool(ck::CKA_ENCRYPT, true)];
    assert_eq!(find(vec![secret]).len(), usize::from(OBJECTS));
    assert_eq!(find(named), [key]);
    assert_eq!(find(vec![Attribute::bytes(ck::CKA_LABEL, *b"another")]), []);
    let types = [ck::CKA_CLASS, ck::CKA_KEY_TYPE, ck::CKA_LABEL, ck::CKA_ID, ck::CKA_ENCRYPT];
    let read = rig.slot().get_attributes(s, key, &types).unwrap();
    let label = Attribute::bytes(ck::CKA_LABEL, name).value;
    assert_eq!((read.len(), read[2].value()), (types.len(), Some(&label)));
}

#[test]
fn a_search_without_a_login_finds_what_a_member_was_not_given() {
    let rig = Rig::new(2);
    rig.without_the_others(|s| drop(rig.creates(s, 0..OBJECTS)));
    let find_often = || {
        for _ in 0..20 {
            let s = rig.slot().open_session(false).unwrap();
            assert_eq!(rig.finds(s), Ok(usize::from(OBJECTS)));
            rig.slot().close_session(s).unwrap();
        }
    };
    // Before anybody can give it anything; and after a login that was not long enough.
    find_often();
    let s = rig.logs_in();
    assert!(rig.count(1, ck::CKO_DATA) < usize::from(OBJECTS));
    rig.slot().logout(s).unwrap();
    find_often();
}

#[test]
fn the_end_does_not_wait_for_what_a_keeper_gives() {
    const MANY: u16 = 120;
    let rig = Rig::new(2);
    rig.without_the_others(|s| drop(rig.creates(s, 0..MANY)));
    rig.logs_in();
    let given = rig.count(1, ck::CKO_DATA);
    rig.time_goes_on(false);

    rig.keepers_sleep(false);
    until(|| rig.count(1, ck::CKO_DATA) > given);
    assert_eq!(rig.provider.shutdown(Duration::from_secs(3600)), Vec::<String>::new());
    let given = rig.count(1, ck::CKO_DATA);
    assert!(given < usize::from(MANY), "the end has waited for all of it");
}

#[test]
fn what_a_member_lacks_is_copied_there_too() {
    let mut rig = Rig::new(2);
    rig.without_the_others(|s| drop(rig.creates(s, 0..OBJECTS)));
    rig.starts_again(2);
    let s = rig.logs_in();
    let lacks = |name: &[u8]| rig.devices[1].inspect().iter().all(|o| o.label != name);
    let name = (0..OBJECTS).map(u16::to_be_bytes).find(|name| lacks(name)).unwrap();
    rig.slot().find_objects_init(s, &vec![Attribute::bytes(ck::CKA_LABEL, name)]).unwrap();
    let source = rig.slot().find_objects(s, 10).unwrap()[0];
    rig.slot().find_objects_final(s).unwrap();
    rig.slot().copy_object(s, source, &vec![Attribute::bytes(ck::CKA_LABEL, *b"copy")]).unwrap();
    for device in &rig.devices {
        assert!(device.inspect().iter().any(|o| o.label == b"copy"));
    }
}

/// A process that is not logged in is told by the ledger alone.
#[test]
fn a_search_of_another_process_finds_what_a_member_had_no_room_for() {
    let rig = Rig::new(2);
    let s = rig.logs_in();
    rig.creates(s, 0..1);
    let (other, _world) = Rig::start(&rig.devices, rig.state.path(), 1);
    until(|| other.groups()[0].members.iter().all(|m| m.state() == State::Up));
    let slot = &**other.slot(0).unwrap();
    // By now it knows that each of them has all there is.
    let theirs = slot.open_session(true).unwrap();
    slot.login(theirs, UserType::User, Some(PIN)).unwrap();
    slot.logout(theirs).unwrap();
    let finds = || {
        let s = slot.open_session(false).unwrap();
        slot.find_objects_init(s, &vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA)]).unwrap();
        let found = slot.find_objects(s, 10).unwrap().len();
        slot.find_objects_final(s).unwrap();
        slot.close_session(s).unwrap();
        found
    };
    assert_eq!([finds(), finds()], [1, 1]);
    rig.devices[1].set_full(true);
    rig.creates(s, 1..2);
    assert_eq!((rig.count(0, ck::CKO_DATA), rig.count(1, ck::CKO_DATA)), (2, 1));
    assert!((0..20).all(|_| finds() == 2));
}
