//! A load of signatures through the module, as a program makes it that knows nothing of groups. Every signature is
//! verified in software, outside of the module.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

/// What a load has come to.
#[derive(Clone, Copy, Default)]
pub(crate) struct Figures {
    /// Signatures made.
    pub(crate) done: u64,
    /// Calls that failed.
    pub(crate) failed: u64,
    /// Signatures that do not verify.
    pub(crate) wrong: u64,
    /// The longest signature, in microseconds.
    pub(crate) longest_us: u64,
}

#[derive(Default)]
struct Counters {
    done: AtomicU64,
    failed: AtomicU64,
    wrong: AtomicU64,
    longest_us: AtomicU64,
}

/// A load in a process of its own, told to end by closing its standard input.
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    /// Its figures so far.
    pub(crate) figures: Figures,
}

impl Running {
    /// Starts `cargo xtask load` on a module with a configuration.
    pub(crate) fn start(module: &Path, config: &Path, pin: &str) -> Result<Running> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("load")
            .arg(module)
            .env("PKCS11_HA_CONF", config)
            .env("DEMO_PIN", pin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the load cannot be started")?;
        let lines = BufReader::new(child.stdout.take().context("the load's output")?);
        Ok(Running { stdin: child.stdin.take(), child, lines, figures: Figures::default() })
    }

    /// Waits until so many more signatures were made.
    pub(crate) fn signs(&mut self, more: u64) -> Result<()> {
        let goal = self.figures.done + more;
        while self.figures.done < goal {
            if !self.read()? {
                bail!("the load ended by itself");
            }
            if self.figures.failed + self.figures.wrong > 0 {
                bail!("{} signatures failed and {} were wrong", self.figures.failed, self.figures.wrong);
            }
        }
        Ok(())
    }

    /// Ends the load.
    pub(crate) fn stop(mut self) -> Result<Figures> {
        self.stdin = None;
        while self.read()? {}
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the load failed: {status}");
        }
        Ok(self.figures)
    }

    fn read(&mut self) -> Result<bool> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .context("the load's figures")?;
        let [done, failed, wrong, longest_us] = numbers.as_slice() else {
            bail!("the load's figures: {line:?}")
        };
        self.figures = Figures { done: *done, failed: *failed, wrong: *wrong, longest_us: *longest_us };
        Ok(true)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where the demo failed, the load must not outlive it.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The load itself: signs in `threads` threads until standard input ends, printing its figures.
pub(crate) fn run(module: &Path, label: &str, threads: usize) -> Result<()> {
    let pin = std::env::var("DEMO_PIN").context("DEMO_PIN")?;
    let context = Pkcs11::new(module)?;
    context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let slot = context.get_slots_with_token()?.into_iter().next().context("the module shows no slot")?;
    // Holds the login while the threads' sessions come and go.
    let session = context.open_ro_session(slot)?;
    session.login(UserType::User, Some(&AuthPin::new(pin.into())))?;
    let find = |class| -> Result<_> {
        match session
            .find_objects(&[Attribute::Class(class), Attribute::Label(label.as_bytes().to_vec())])?
            .as_slice()
        {
            [one] => Ok(*one),
            found => bail!("{} objects of the label {label:?} are found, not one", found.len()),
        }
    };
    let (public, private) = (find(ObjectClass::PUBLIC_KEY)?, find(ObjectClass::PRIVATE_KEY)?);
    let point = match session.get_attributes(public, &[AttributeType::EcPoint])?.into_iter().next() {
        Some(Attribute::EcPoint(point)) => point,
        _ => bail!("the public key has no point"),
    };
    // A DER OCTET STRING of 65 bytes.
    let verifier =
        VerifyingKey::from_sec1_bytes(point.get(2..).unwrap_or(&[])).context("the public key's point")?;
    let sessions = (0..threads).map(|_| context.open_ro_session(slot)).collect::<Result<Vec<_>, _>>()?;
    let (stop, counters) = (AtomicBool::new(false), Arc::new(Counters::default()));
    std::thread::scope(|scope| -> Result<()> {
        for (number, session) in sessions.into_iter().enumerate() {
            let (stop, counters, verifier) = (&stop, &counters, &verifier);
            scope.spawn(move || {
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    one(&session, private, verifier, &format!("{number} {n}"), counters);
                    n += 1;
                }
            });
        }
        let ended = &stop;
        scope.spawn(move || {
            // Whatever ends the input ends the load.
            _ = std::io::stdin().read_to_end(&mut Vec::new());
            ended.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
            print(&counters)?;
        }
        Ok(())
    })?;
    print(&counters)?;
    drop(session);
    context.finalize()?;
    Ok(())
}

fn one(
    session: &cryptoki::session::Session,
    key: cryptoki::object::ObjectHandle,
    verifier: &VerifyingKey,
    message: &str,
    counters: &Counters,
) {
    let digest = Sha256::digest(message);
    let started = Instant::now();
    let answer = session.sign(&Mechanism::Ecdsa, key, &digest);
    counters.longest_us.fetch_max(started.elapsed().as_micros() as u64, Ordering::Relaxed);
    match answer {
        Err(_) => _ = counters.failed.fetch_add(1, Ordering::Relaxed),
        Ok(bytes) => {
            if !Signature::from_slice(&bytes).is_ok_and(|s| verifier.verify_prehash(&digest, &s).is_ok()) {
                counters.wrong.fetch_add(1, Ordering::Relaxed);
            }
            counters.done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn print(counters: &Counters) -> Result<()> {
    let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} {} {} {}",
        read(&counters.done),
        read(&counters.failed),
        read(&counters.wrong),
        read(&counters.longest_us)
    )?;
    Ok(out.flush()?)
}
