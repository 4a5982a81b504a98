//! How the token of a member that joins is said on the command line: with the keys that the configuration has for it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use ha_core::config::{Config, GroupConfig, MemberConfig};
use toml_edit::{DocumentMut, InlineTable, Item, Table, value};

/// The token of a member that joins, as the configuration's keys of the same names say it.
#[derive(Args)]
pub(crate) struct NewMember {
    /// Its PKCS#11 module; without it the one that the group's members have in common.
    #[arg(long, value_name = "PATH")]
    module: Option<PathBuf>,
    /// The token by its label.
    #[arg(long, value_name = "LABEL", group = "which")]
    token: Option<String>,
    /// The token by its serial number.
    #[arg(long, value_name = "SERIAL", group = "which")]
    serial: Option<String>,
    /// The token by a PKCS#11 URI.
    #[arg(long, value_name = "URI", group = "which")]
    uri: Option<String>,
    /// active or standby.
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// private, shared or auto.
    #[arg(long, value_name = "MODE")]
    instance: Option<String>,
    /// A variable that the module sees; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A file with the member's own PIN, where it is not the application's.
    #[arg(long, value_name = "FILE", conflicts_with = "own_pin_env")]
    own_pin_file: Option<PathBuf>,
    /// An environment variable with the member's own PIN.
    #[arg(long, value_name = "NAME")]
    own_pin_env: Option<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("NAME=VALUE was expected".into()),
    }
}

impl NewMember {
    /// Whether anything of it was said.
    pub(crate) fn is_given(&self) -> bool {
        self.module.is_some()
            || self.token.is_some()
            || self.serial.is_some()
            || self.uri.is_some()
            || self.role.is_some()
            || self.instance.is_some()
            || !self.env.is_empty()
            || self.own_pin_file.is_some()
            || self.own_pin_env.is_some()
    }

    /// What the configuration is to say: read as it will be, so that what is wrong is told in the same words.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn config(&self, name: &str, group: &GroupConfig) -> Result<MemberConfig> {
        let path = |p: &Path| {
            let p = std::path::absolute(p)?;
            p.to_str().map(str::to_owned).with_context(|| format!("{}: not UTF-8", p.display()))
        };
        let module = match &self.module {
            Some(module) => path(module)?,
            None => {
                let mut modules = group.members.iter().map(|m| &m.module);
                let first = modules.next().context("a group has members")?;
                if modules.any(|m| m != first) {
                    bail!(
                        "the group's members have several modules: say with --module which one is the new member's"
                    );
                }
                path(first)?
            }
        };
        let mut table = Table::new();
        let mut say = |key: &str, text: &str| _ = table.insert(key, value(text));
        say("name", name);
        say("module", &module);
        for (key, text) in [
            ("token", &self.token),
            ("serial", &self.serial),
            ("uri", &self.uri),
            ("role", &self.role),
            ("instance", &self.instance),
        ] {
            if let Some(text) = text {
                say(key, text);
            }
        }
        if !self.env.is_empty() {
            let env: InlineTable = self.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            table.insert("env", value(env));
        }
        let pin = match (&self.own_pin_file, &self.own_pin_env) {
            (Some(file), _) => Some(("file", path(file)?)),
            (None, Some(name)) => Some(("env", name.clone())),
            (None, None) => None,
        };
        if let Some((kind, place)) = pin {
            table.insert("pin", value(InlineTable::from_iter([(kind, place)])));
        }
        let mut alone = Table::new();
        alone.insert("label", value("new"));
        alone.insert("member", Item::ArrayOfTables([table].into_iter().collect()));
        let mut document = DocumentMut::new();
        document.insert("group", Item::ArrayOfTables([alone].into_iter().collect()));
        let read = Config::parse(&document.to_string()).context("the new member is not right")?;
        let mut members = read.groups.into_iter().flat_map(|g| g.members);
        members.next().context("a group has members")
    }
}
