//! A service that signs in several threads through a group, and keeps on when a member dies.
//!
//! ```text
//! PKCS11_HA_PIN=… cargo run -p ha-core --example signing_service -- ha.toml [SECONDS] [THREADS]
//! ```
//!
//! It takes the first group of the file, makes an EC key pair labelled `signing-service` if there is none yet, signs
//! until the time is over, and prints how many signatures were made, refused and verified. Stop a member meanwhile.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ha_core::api::{Key, KeyError, Signer};
use ha_core::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use ha_core::mechanism::Mechanism;
use ha_core::object::Attribute;
use ha_core::session::{Session, UserType};
use ha_core::types::AuthPin;

const LABEL: &str = "signing-service";
/// DER of the object identifier of prime256v1.
const P256: [u8; 10] = [0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];

#[derive(Default)]
struct Counts {
    signed: AtomicU64,
    refused: AtomicU64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: signing_service ha.toml [SECONDS] [THREADS]")?;
    let seconds: u64 = args.next().map_or(Ok(5), |a| a.parse())?;
    let threads: usize = args.next().map_or(Ok(4), |a| a.parse())?;
    let pin = AuthPin::new(std::env::var("PKCS11_HA_PIN").map_err(|_| "set PKCS11_HA_PIN")?.into());

    let pkcs11 = Pkcs11::new(path)?;
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let slot = *pkcs11.get_slots_with_token()?.first().ok_or("no member of the group is there")?;
    let session = pkcs11.open_rw_session(slot)?;
    session.login(UserType::User, Some(&pin))?;
    let public = key_pair(&session)?;
    let signer = Signer::new(&pkcs11, slot, &[Attribute::Label(LABEL.into())], &Mechanism::Ecdsa)?;

    let counts = Arc::new(Counts::default());
    let end = Instant::now() + Duration::from_secs(seconds);
    let workers: Vec<_> = (0..threads)
        .map(|number| {
            let (signer, counts) = (signer.clone(), Arc::clone(&counts));
            std::thread::spawn(move || work(number, &signer, &counts, end))
        })
        .collect();
    let mut verified = 0;
    for worker in workers {
        // Whichever member made it, the group's public key must agree.
        if let Some((digest, signature)) = worker.join().map_err(|_| "a worker panicked")? {
            session.verify(&Mechanism::Ecdsa, public.handle(), &digest, &signature)?;
            verified += 1;
        }
    }
    println!(
        "signed {}, refused {}; the last of each thread verified: {verified}",
        counts.signed.load(Ordering::Relaxed),
        counts.refused.load(Ordering::Relaxed)
    );
    drop((session, signer));
    for member in pkcs11.shutdown(Duration::from_secs(5))? {
        println!("member {member} still hangs");
    }
    Ok(())
}

/// Signs until the time is over; answers the last digest and its signature.
fn work(number: usize, signer: &Signer, counts: &Counts, end: Instant) -> Option<([u8; 32], Vec<u8>)> {
    let mut last = None;
    let digest = [number.to_le_bytes()[0]; 32];
    while Instant::now() < end {
        match signer.sign(&digest) {
            Ok(signature) => {
                counts.signed.fetch_add(1, Ordering::Relaxed);
                last = Some((digest, signature));
            }
            Err(error) => {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                eprintln!("thread {number}: {error}");
            }
        }
    }
    last
}

/// The service's public key; both halves are made the first time.
fn key_pair(session: &Session) -> Result<Key, KeyError> {
    let label = Attribute::Label(LABEL.into());
    match Key::find_public(session, std::slice::from_ref(&label)) {
        Err(KeyError::NotFound) => {
            let id = Attribute::Id(LABEL.into());
            let public = [
                Attribute::Token(true),
                Attribute::Verify(true),
                Attribute::EcParams(P256.to_vec()),
                id.clone(),
                label.clone(),
            ];
            let private = [
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Sign(true),
                id,
                label.clone(),
            ];
            session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
            Key::find_public(session, &[label])
        }
        found => found,
    }
}
