//! A program that is killed. It logs in, says `ready`, and does what it is told, a line each: `pair L`, `secret L`, `data L`
//! make something labelled L, `copy L M` copies, `name L M` gives another label, `use L` uses, `destroy L` destroys, `count L`
//! counts, `all` counts everything, `check` proves. It answers `ok`, with what was asked for in hexadecimal digits, or `no` and why not.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use ha_core::config::Config;
use ha_core::provider::Provider;
use ha_rig::PIN;
use ha_rig::shown::hex;
use ha_token::{
    Attribute, Fetched, Mechanism, ObjectHandle, OpKind, Output, Rv, SessionHandle, Template, Token,
    UserType, ck,
};

/// What is signed, and what secret keys answer.
pub(crate) const MESSAGE: &[u8; 32] = b"what is signed and authenticated";
/// The curve of the pairs.
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

struct Program {
    provider: Provider,
    slot: Arc<dyn Token>,
    session: SessionHandle,
}

/// Does what standard input says, until that ends.
pub(crate) fn serve(config: &Path) -> Result<()> {
    let log = config.with_file_name(format!("program-{}.log", std::process::id()));
    let log = std::sync::Mutex::new(std::fs::File::create(log)?);
    tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::INFO).with_writer(log).init();
    let provider = Provider::from_config(Config::from_file(config)?)?;
    let slot = Arc::clone(provider.slot(0).context("no slot")?);
    let session = slot.open_session(true)?;
    slot.login(session, UserType::User, Some(PIN.as_bytes()))?;
    let program = Program { provider, slot, session };
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let answer = match program.obey(&line?) {
            Ok(answer) => format!("ok {}\n", hex(&answer)),
            Err(error) => format!("no {error:#}\n"),
        };
        // At once: what was answered before a kill was answered.
        out.write_all(answer.as_bytes())?;
        out.flush()?;
    }
    program.provider.shutdown(std::time::Duration::from_secs(60));
    Ok(())
}

/// What every new object has.
fn named(label: &str) -> Template {
    vec![Attribute::bool(ck::CKA_TOKEN, true), Attribute::bytes(ck::CKA_LABEL, label)]
}

fn with(mut template: Template, more: impl IntoIterator<Item = Attribute>) -> Template {
    template.extend(more);
    template
}

impl Program {
    fn obey(&self, line: &str) -> Result<Vec<u8>> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["pair", label] => self.pair(label),
            ["secret", label] => {
                let template = with(
                    named(label),
                    [
                        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
                        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
                        Attribute::bool(ck::CKA_SIGN, true),
                        Attribute::bool(ck::CKA_PRIVATE, true),
                    ],
                );
                let mut generate = Mechanism::plain(ck::CKM_GENERIC_SECRET_KEY_GEN);
                let key = self.slot.generate_key(self.session, &mut generate, &template)?;
                self.sign(key, ck::CKM_SHA256_HMAC)
            }
            ["data", label] => {
                let value = [label.as_bytes(), MESSAGE].concat();
                let template = with(
                    named(label),
                    [
                        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
                        Attribute::bytes(ck::CKA_VALUE, value.as_slice()),
                    ],
                );
                self.slot.create_object(self.session, &template)?;
                Ok(value)
            }
            ["copy", label, new] => {
                self.slot.copy_object(self.session, self.the(label)?, &named(new))?;
                Ok(Vec::new())
            }
            ["name", label, new] => {
                let change = vec![Attribute::bytes(ck::CKA_LABEL, new)];
                self.slot.set_attributes(self.session, self.the(label)?, &change)?;
                Ok(Vec::new())
            }
            ["use", label] => self.used(label),
            ["destroy", label] => {
                for object in self.find(label, &[])? {
                    self.slot.destroy_object(self.session, object)?;
                }
                Ok(Vec::new())
            }
            ["count", label] => Ok(vec![u8::try_from(self.find(label, &[])?.len())?]),
            ["all"] => {
                self.slot.find_objects_init(self.session, &Template::new())?;
                let found = self.slot.find_objects(self.session, 100_000)?;
                self.slot.find_objects_final(self.session)?;
                Ok(found.len().to_string().into_bytes())
            }
            ["check"] => {
                let checked = self.provider.groups().first().context("no group")?.check(true)?;
                let bad: Vec<_> =
                    checked.iter().filter(|c| c.worst() != ha_core::group::Word::Same).collect();
                if !bad.is_empty() {
                    bail!("the group's own check says {bad:?}");
                }
                Ok(Vec::new())
            }
            _ => bail!("what is {line:?}?"),
        }
    }

    fn pair(&self, label: &str) -> Result<Vec<u8>> {
        let public = with(
            named(label),
            [Attribute::bytes(ck::CKA_EC_PARAMS, P256), Attribute::bool(ck::CKA_VERIFY, true)],
        );
        let private =
            with(named(label), [Attribute::bool(ck::CKA_SIGN, true), Attribute::bool(ck::CKA_PRIVATE, true)]);
        let mut generate = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
        let (public, _) = self.slot.generate_key_pair(self.session, &mut generate, &public, &private)?;
        self.value(public, ck::CKA_EC_POINT)
    }

    fn used(&self, label: &str) -> Result<Vec<u8>> {
        if let [private] = self.find(label, &[Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY)])?[..] {
            return self.sign(private, ck::CKM_ECDSA);
        }
        if let [data] = self.find(label, &[Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA)])?[..] {
            return self.value(data, ck::CKA_VALUE);
        }
        self.sign(self.the(label)?, ck::CKM_SHA256_HMAC)
    }

    fn sign(&self, key: ObjectHandle, mechanism: ha_token::Ulong) -> Result<Vec<u8>> {
        self.slot.op_init(self.session, OpKind::Sign, Some(&mut Mechanism::plain(mechanism)), key)?;
        let mut space = [0; 256];
        let mut out = Output::buffer(&mut space);
        self.slot.op_one_shot(self.session, OpKind::Sign, MESSAGE, &mut out)?;
        Ok(out.written().to_vec())
    }

    fn value(&self, object: ObjectHandle, kind: ha_token::AttributeType) -> Result<Vec<u8>> {
        match self.slot.get_attributes(self.session, object, &[kind])?.first() {
            Some(Fetched::Value(value)) => Ok(value.as_bytes().unwrap_or_default().to_vec()),
            other => bail!("an attribute is {other:?}"),
        }
    }

    /// The one object of a label.
    fn the(&self, label: &str) -> Result<ObjectHandle> {
        match self.find(label, &[])?[..] {
            [object] => Ok(object),
            ref several => bail!("{} objects have the label {label}", several.len()),
        }
    }

    fn find(&self, label: &str, more: &[Attribute]) -> Result<Vec<ObjectHandle>, Rv> {
        let template = with(vec![Attribute::bytes(ck::CKA_LABEL, label)], more.iter().cloned());
        self.slot.find_objects_init(self.session, &template)?;
        let found = self.slot.find_objects(self.session, 100)?;
        self.slot.find_objects_final(self.session)?;
        Ok(found)
    }
}
