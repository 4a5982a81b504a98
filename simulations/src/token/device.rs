//! The token as a thing: it outlives connections, can be tampered with, and can be looked into from outside.

use std::collections::BTreeMap;
use std::sync::Arc;

use ha_token::{Connector, Template, Ulong, ck};

use super::connection::DeviceConnector;
use super::hash::Hash;
use super::login::digest;
use super::material::Key;
use super::object::Object;
use super::pool::RsaPool;
use super::profile::Profile;
use super::state::{Durable, Shared, State, Store};
use crate::random::Random;

/// A simulated token. Clones are the same one.
///
/// Everything it does follows from its seed and the calls that are made: it reads no clock, draws nothing from the
/// operating system and starts no thread. Its one lock is held for a call and never across anything that waits.
#[derive(Clone)]
pub struct Device {
    shared: Arc<Shared>,
}

/// The durable half of a device at some moment.
#[derive(Clone)]
pub struct Snapshot(Durable);

/// A token object as it really is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspected {
    /// The device's number for it, given to no other object.
    pub number: u64,
    /// `CKA_CLASS`.
    pub class: Ulong,
    /// `CKA_KEY_TYPE`; all bits set where there is none.
    pub key_type: Ulong,
    /// `CKA_LABEL`.
    pub label: Vec<u8>,
    /// `CKA_ID`.
    pub id: Vec<u8>,
    /// All that it has, secret parts too.
    pub attributes: Template,
    /// What makes it the key it is: of an RSA key the modulus, of a public key on a curve the bare point, of anything else
    /// SHA-256 of its value.
    pub material: Vec<u8>,
}

/// The PINs that a device has seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoginAttempts {
    /// How often one was accepted.
    pub accepted: u64,
    /// How often each was refused, by its SHA-256. What a locked token did not look at is not counted.
    pub refused: BTreeMap<[u8; 32], u64>,
}

/// The counters of wrong PINs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PinState {
    /// The user's, since the last right one.
    pub user_failures: u32,
    /// The security officer's.
    pub so_failures: u32,
    /// Whether the user's PIN is locked.
    pub user_locked: bool,
    /// Whether the security officer's is.
    pub so_locked: bool,
}

impl Device {
    /// An initialised token without objects, with an RSA pool of its own.
    pub fn new(
        profile: Profile,
        label: &str,
        serial: &str,
        so_pin: &[u8],
        user_pin: &[u8],
        seed: u64,
    ) -> Self {
        Device::with_pool(profile, label, serial, so_pin, user_pin, seed, &RsaPool::default())
    }

    /// The same, with a pool that it shares with other devices, so that they make no RSA pair twice between them.
    pub fn with_pool(
        profile: Profile,
        label: &str,
        serial: &str,
        so_pin: &[u8],
        user_pin: &[u8],
        seed: u64,
        pool: &RsaPool,
    ) -> Self {
        let durable = Durable {
            label: label.to_owned(),
            serial: serial.to_owned(),
            so_pin: digest(so_pin),
            user_pin: Some(digest(user_pin)),
            so_failures: 0,
            user_failures: 0,
            objects: BTreeMap::new(),
        };
        let store = Store {
            durable,
            own: None,
            present: true,
            full: false,
            read_only: false,
            random: Random::new(seed),
            pool: pool.clone(),
            last_object: 0,
            next_process: 0,
            accepted: 0,
            refused: BTreeMap::new(),
        };
        Device { shared: Arc::new(Shared::new(profile, store)) }
    }

    /// The way of one more process to the token. Its sessions, logins and handles are its own; dropping the connector
    /// ends the process.
    pub fn connector(&self) -> Box<dyn Connector> {
        let process = self.with(|s| {
            s.store.next_process += 1;
            s.store.next_process
        });
        self.connector_of(process)
    }

    /// The same, for the process of this number.
    pub fn connector_of(&self, process: u32) -> Box<dyn Connector> {
        self.copy_of(process, 0)
    }

    /// The way of a process by another copy of the module, with sessions, login and handles of its own.
    pub fn copy_of(&self, process: u32, copy: u32) -> Box<dyn Connector> {
        let number = u64::from(copy) << 32 | u64::from(process);
        Box::new(DeviceConnector::new(Arc::clone(&self.shared), number))
    }

    /// A process was killed: its sessions are closed, and with them goes its login.
    pub fn process_died(&self, process: u32) {
        self.with(|s| s.processes.retain(|number, _| process_of(*number) != process));
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.shared.lock())
    }

    /// The durable half as it is: objects, PINs, counters, label and serial number.
    pub fn snapshot(&self) -> Snapshot {
        self.with(|s| Snapshot(s.store.durable.clone()))
    }

    /// Puts the durable half back to what it was: the token was set back. Connections go on, and find what is there now.
    pub fn restore(&self, snapshot: &Snapshot) {
        self.with(|s| s.store.durable = snapshot.0.clone());
    }

    /// Takes away every object of the token, which stays initialised.
    pub fn wipe(&self) {
        self.with(|s| s.store.durable.objects.clear());
    }

    /// Initialises the token anew: empty, with its label and PINs; another serial number, if one is given.
    pub fn initialise(&self, serial: Option<&str>) {
        self.with(|s| {
            let durable = &mut s.store.durable;
            (durable.so_failures, durable.user_failures) = (0, 0);
            durable.objects.clear();
            if let Some(serial) = serial {
                durable.serial = serial.to_owned();
            }
        });
    }

    /// From now on another token is behind the slot: empty, with this serial number, and the same label and PINs.
    pub fn become_other(&self, serial: &str) {
        self.with(|s| {
            s.store.own = Some(s.store.durable.clone());
            s.store.durable.serial = serial.to_owned();
            s.store.durable.objects.clear();
        });
    }

    /// It is itself again, as it was.
    pub fn become_itself(&self) {
        self.with(|s| {
            if let Some(own) = s.store.own.take() {
                s.store.durable = own;
            }
        });
    }

    /// Takes the token's files away, as when SoftHSM's folder is removed: searches find nothing, keys are gone, logins and
    /// writes fail; random numbers, digests and session objects still work.
    pub fn lose_token(&self) {
        self.with(|s| {
            s.store.present = false;
            s.processes.values_mut().for_each(|p| p.broken = true);
        });
    }

    /// Puts the token's files back. Who was connected in between sees them only after connecting anew.
    pub fn find_token(&self) {
        self.with(|s| s.store.present = true);
    }

    /// Closes every session of every process, which ends their logins.
    pub fn drop_sessions(&self) {
        self.with(|s| s.processes.values_mut().for_each(|p| p.close_all()));
    }

    /// Ends every process's login; sessions stay open.
    pub fn drop_logins(&self) {
        self.with(|State { store, processes }| {
            processes.values_mut().for_each(|p| p.log_out(&store.durable))
        });
    }

    /// Makes every object handle of every process invalid; a search gives new ones.
    pub fn drop_handles(&self) {
        self.with(|s| s.processes.values_mut().for_each(|p| p.drop_handles()));
    }

    /// Whether there is no room for new objects of the token.
    pub fn set_full(&self, full: bool) {
        self.with(|s| s.store.full = full);
    }

    /// Whether nothing of the token can be written.
    pub fn set_read_only(&self, read_only: bool) {
        self.with(|s| s.store.read_only = read_only);
    }

    /// Every object of the token, in the order in which they were made; also while another one is in its place.
    pub fn inspect(&self) -> Vec<Inspected> {
        self.with(|s| {
            let own = s.store.own.as_ref().unwrap_or(&s.store.durable);
            own.objects.iter().map(|(number, object)| inspected(*number, object)).collect()
        })
    }

    /// The PINs that it has seen.
    pub fn login_attempts(&self) -> LoginAttempts {
        self.with(|s| LoginAttempts { accepted: s.store.accepted, refused: s.store.refused.clone() })
    }

    /// The counters of wrong PINs.
    pub fn pin_state(&self) -> PinState {
        let tries = self.shared.profile.pin_tries;
        let locked = |failures| tries.is_some_and(|tries| failures >= tries);
        self.with(|s| {
            let Durable { user_failures, so_failures, .. } = s.store.durable;
            let (user_locked, so_locked) = (locked(user_failures), locked(so_failures));
            PinState { user_failures, so_failures, user_locked, so_locked }
        })
    }

    /// How many sessions are open in all processes.
    pub fn sessions_open(&self) -> usize {
        self.with(|s| s.processes.values().map(|p| p.sessions.len()).sum())
    }

    /// How many sessions are open in each process that has any.
    pub fn sessions_by_process(&self) -> BTreeMap<u32, usize> {
        let mut open = BTreeMap::new();
        self.with(|s| {
            for (number, process) in s.processes.iter().filter(|(_, p)| !p.sessions.is_empty()) {
                *open.entry(process_of(*number)).or_default() += process.sessions.len();
            }
        });
        open
    }
}

/// The process that has this copy of the module.
fn process_of(number: u64) -> u32 {
    number as u32
}

fn inspected(number: u64, object: &Object) -> Inspected {
    let class = object.class();
    let key_type = object.key_type();
    // The point of a private key on a curve would have to be computed, at each look.
    let is_named = class == ck::CKO_PUBLIC_KEY || (class == ck::CKO_PRIVATE_KEY && key_type == ck::CKK_RSA);
    let value = || Hash::Sha256.digest(object.bytes(ck::CKA_VALUE));
    Inspected {
        number,
        class,
        key_type,
        label: object.bytes(ck::CKA_LABEL).to_vec(),
        id: object.bytes(ck::CKA_ID).to_vec(),
        attributes: object.all(),
        material: Some(object)
            .filter(|_| is_named)
            .and_then(Key::of)
            .map_or_else(value, |key| key.identity()),
    }
}
