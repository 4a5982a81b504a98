//! Signing from async code: `Signer` inside tokio's `spawn_blocking`.
//!
//! ```text
//! PKCS11_HA_PIN=… cargo run -p ha-core --example spawn_blocking -- ha.toml LABEL
//! ```
//!
//! `LABEL` names an EC key of the first group (the example `signing_service` makes one labelled `signing-service`).
//! A call of PKCS#11 blocks its thread, so it must not run on the runtime's own; a `Signer` needs nothing more.

use std::error::Error;

use ha_core::api::Signer;
use ha_core::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use ha_core::mechanism::Mechanism;
use ha_core::object::Attribute;
use ha_core::session::UserType;
use ha_core::types::AuthPin;

const TASKS: u8 = 32;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(label)) = (args.next(), args.next()) else {
        return Err("usage: spawn_blocking ha.toml LABEL".into());
    };
    let pin = AuthPin::new(std::env::var("PKCS11_HA_PIN").map_err(|_| "set PKCS11_HA_PIN")?.into());
    let pkcs11 = Pkcs11::new(path)?;
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let slot = *pkcs11.get_slots_with_token()?.first().ok_or("no member of the group is there")?;
    let session = pkcs11.open_ro_session(slot)?;
    session.login(UserType::User, Some(&pin))?;
    let signer = Signer::new(&pkcs11, slot, &[Attribute::Label(label.into())], &Mechanism::Ecdsa)?;

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    runtime.block_on(sign_all(&signer))?;
    drop((session, signer));
    pkcs11.finalize()?;
    Ok(())
}

async fn sign_all(signer: &Signer) -> Result<(), Failure> {
    let mut tasks = Vec::new();
    for number in 0..TASKS {
        let signer = signer.clone();
        tasks.push(tokio::task::spawn_blocking(move || signer.sign(&[number; 32])));
    }
    for (number, task) in tasks.into_iter().enumerate() {
        let signature = task.await??;
        println!("{number}: a signature of {} bytes", signature.len());
    }
    Ok(())
}
