//! The ways to the members' tokens that a configuration names.

use std::path::Path;

use ha_member::{Instance, ModuleConfig, ModuleConnector};

use crate::config::{GroupConfig, InstanceMode, MemberConfig};
use crate::replica::ledger;

/// The way to a member's token that the configuration names.
pub fn connector(member: &MemberConfig) -> ModuleConnector {
    ModuleConnector::new(ModuleConfig {
        path: member.module.clone(),
        instance: match member.instance {
            InstanceMode::Auto => Instance::Auto,
            InstanceMode::Private => Instance::Private,
            InstanceMode::Shared => Instance::Shared,
        },
        env: member.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        selector: member.selector.clone(),
    })
}

/// The same, in turns with the other processes of this host that write to the token.
pub(super) fn shared_connector(dir: &Path, group: &GroupConfig, member: &MemberConfig) -> ModuleConnector {
    let mode = match ledger::place(dir, &group.label) {
        // Another user's ledger: nothing is written to the token either.
        Some(place) if !place.is_ours => return connector(member),
        Some(place) => place.mode,
        None => 0o600,
    };
    connector(member).taking_turns(ledger::writes(dir, &group.label, &member.name), mode)
}
