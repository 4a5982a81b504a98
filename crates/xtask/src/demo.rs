//! The demo: two SoftHSM tokens are one, every key is on both, and one of them dies under load.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::load::{Figures, Running};
use ha_rig::{Server, p11_kit_client, softhsm};

/// Signatures that must be made in each phase of the load.
const ENOUGH: u64 = 500;

/// How often pkcs11-tool is asked for an EC key that it may fail to put together.
const READS: usize = 8;

struct Demo {
    dir: PathBuf,
    module: PathBuf,
    hactl: PathBuf,
    step: u32,
}

/// Runs the demo; an error where anything was not as it must be.
pub(crate) fn run() -> Result<()> {
    crate::cargo(&["build", "--quiet", "--package", "ha-module", "--package", "hactl"])?;
    let built = target_dir()?;
    let temporary = tempfile::tempdir()?;
    let mut demo = Demo {
        dir: temporary.path().join("group"),
        module: built.join("libha_module.so"),
        hactl: built.join("hactl"),
        step: 0,
    };
    let started = Instant::now();
    demo.show(started)
}

fn target_dir() -> Result<PathBuf> {
    // This program is built into the same folder.
    let me = std::env::current_exe()?;
    Ok(me.parent().context("the program has no folder")?.to_owned())
}

impl Demo {
    fn show(&mut self, started: Instant) -> Result<()> {
        self.say("Two SoftHSM tokens and a group, enrolled");
        let dir = self.dir.display().to_string();
        print!("{}", self.hactl(&["init", "--softhsm", "2", "--dir", &dir])?);
        let pin = std::fs::read_to_string(self.dir.join("pin"))
            .context("hactl init leaves the PIN in DIR/pin")?
            .trim()
            .to_owned();

        self.say("What an application sees: one slot");
        print!("{}", self.hactl(&["slot", "list"])?);

        self.say("pkcs11-tool makes an EC and an RSA key pair through the slot, and signs");
        for (kind, id, label) in [("EC:prime256v1", "01", "demo-ec"), ("rsa:2048", "02", "demo-rsa")] {
            self.tool(&pin, &["--keypairgen", "--key-type", kind, "--id", id, "--label", label])?;
            println!("  made {label} ({kind})");
        }
        let (data, signature) = (self.dir.join("data"), self.dir.join("signature"));
        std::fs::write(&data, "signed by whichever member is least busy\n")?;
        let (data, signature) = (data.display().to_string(), signature.display().to_string());
        self.tool(
            &pin,
            &["--sign", "--mechanism", "SHA256-RSA-PKCS", "--id", "02", "-i", &data, "-o", &signature],
        )?;
        self.verify_with_openssl(&pin, &data, &signature)?;

        self.say("The bare tokens: each holds the same keys");
        for member in ["a", "b"] {
            let listing = self.bare(member, &pin)?;
            for label in ["demo-ec", "demo-rsa"] {
                let copies = listing.matches(&format!("label:      {label}\n")).count();
                if copies != 2 {
                    bail!(
                        "member {member} holds {copies} objects of {label}, not its two halves:\n{listing}"
                    );
                }
            }
            println!("  member-{member}: demo-ec (private, public), demo-rsa (private, public)");
        }

        self.say("Four threads sign; member a is killed, and comes back");
        let figures = self.kill_under_load(&pin)?;

        self.say("Every copy is challenged: is it the same key?");
        let check = self.hactl(&["check", "--prove"])?;
        print!("{check}");

        let (done, longest) = (figures.0, figures.1);
        println!("\n{}", bold("Summary"));
        println!("  2 tokens, 1 slot; 2 key pairs, on both tokens, proven to be the same keys");
        println!(
            "  {done} signatures through the death and return of a member: 0 failed, 0 wrong, longest call {:.1} ms",
            longest as f64 / 1000.0
        );
        println!("  {:.1} s in all", started.elapsed().as_secs_f64());
        Ok(())
    }

    fn say(&mut self, what: &str) {
        self.step += 1;
        println!("\n{}", bold(&format!("{}. {what}", self.step)));
    }

    fn kill_under_load(&self, pin: &str) -> Result<(u64, u64)> {
        // The same tokens, each behind a p11-kit server: one that is killed is a token that is gone.
        let served = self.dir.join("served.toml");
        let mut text = format!(
            "state_dir = {:?}\n[[group]]\nlabel = \"ha1\"\n[group.recovery]\ninterval = \"200ms\"\n",
            self.dir.join("state")
        );
        let mut servers = Vec::new();
        for member in ["a", "b"] {
            let socket = self.dir.join(format!("{member}.sock"));
            servers.push(Server::start(&self.conf(member)?, &format!("member-{member}"), &socket)?);
            text.push_str(&format!(
                "[[group.member]]\nname = \"{member}\"\nmodule = {:?}\ntoken = \"member-{member}\"\nenv = {{ P11_KIT_SERVER_ADDRESS = \"unix:path={}\" }}\n",
                p11_kit_client(),
                socket.display()
            ));
        }
        std::fs::write(&served, text)?;
        let mut load = Running::start(&self.module, &served, pin)?;
        load.signs(ENOUGH)?;
        let victim = servers.first_mut().context("a server")?;
        victim.kill();
        println!("  member a killed after {} signatures", load.figures.done);
        load.signs(ENOUGH)?;
        *victim = Server::start(&self.conf("a")?, "member-a", &self.dir.join("a.sock"))?;
        println!("  member a back after {} signatures", load.figures.done);
        load.signs(ENOUGH * 2)?;
        // Only member a is left then: signatures go on because it is in use again.
        let other = servers.last_mut().context("a second server")?;
        other.kill();
        println!("  member b killed after {} signatures", load.figures.done);
        load.signs(ENOUGH)?;
        let figures = load.stop()?;
        let Figures { done, failed, wrong, longest_us: longest } = figures;
        println!(
            "  {done} signatures: {failed} failed, {wrong} wrong, longest call {:.1} ms",
            longest as f64 / 1000.0
        );
        if failed + wrong > 0 {
            bail!("{failed} signatures failed and {wrong} were wrong");
        }
        Ok((done, longest))
    }

    /// The SoftHSM configuration of a member, as `hactl init` lays it out.
    fn conf(&self, member: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("member-{member}.conf"));
        if !path.exists() {
            bail!("hactl init made no {}", path.display());
        }
        Ok(path)
    }

    fn hactl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.hactl);
        if self.dir.join("ha.toml").exists() {
            command.arg("--config").arg(self.dir.join("ha.toml")).arg("--pin-file").arg(self.dir.join("pin"));
        }
        output_of(command.args(arguments))
    }

    fn tool(&self, pin: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(&self.module).args(["--login", "--pin", "env:DEMO_PIN"]).args(arguments);
        output_of(command.env("DEMO_PIN", pin).env("PKCS11_HA_CONF", self.dir.join("ha.toml")))
    }

    fn bare(&self, member: &str, pin: &str) -> Result<String> {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(softhsm()).args(["--login", "--pin", "env:DEMO_PIN", "-O"]);
        output_of(command.env("DEMO_PIN", pin).env("SOFTHSM2_CONF", self.conf(member)?))
    }

    fn verify_with_openssl(&self, pin: &str, data: &str, signature: &str) -> Result<()> {
        let public = self.dir.join("public.der").display().to_string();
        let read = || self.tool(pin, &["--read-object", "--type", "pubkey", "--id", "02", "-o", &public]);
        // OpenSC 0.23 makes an EC key of parameters that it has freed, and says so where it finds others there.
        let has_freed = |answer: &Result<String>| {
            answer.as_ref().is_err_and(|error| format!("{error:#}").contains("cannot create EVP_PKEY"))
        };
        let answer = (1..READS).map(|_| read()).find(|answer| !has_freed(answer));
        answer.unwrap_or_else(read)?;
        let words = output_of(Command::new("openssl").args([
            "dgst",
            "-sha256",
            "-verify",
            &public,
            "-keyform",
            "DER",
            "-signature",
            signature,
            data,
        ]))?;
        println!("  openssl on the signature: {}", words.trim());
        Ok(())
    }
}

fn output_of(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?} cannot be run"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn bold(text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}
