//! `hactl config check`: is the file right?

use anyhow::Result;
use serde_json::json;

use crate::context::Context;
use crate::{Answer, output};

/// Reads the configuration and says what it means.
pub(crate) fn check(context: &Context) -> Result<Answer> {
    let config = context.load()?;
    let path = config.path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    if context.json {
        let groups: Vec<_> = config
            .groups
            .iter()
            .map(|g| json!({"label": g.label, "members": g.members.iter().map(|m| m.name.as_str()).collect::<Vec<_>>()}))
            .collect();
        output::json(&json!({"schema": 1, "path": path, "state_dir": config.state_dir, "groups": groups}))?;
    } else {
        println!("{path}: right; state in {}", config.state_dir.display());
        for group in &config.groups {
            let names: Vec<_> = group.members.iter().map(|m| m.name.as_str()).collect();
            println!("group {:?}: members {}", group.label, names.join(", "));
        }
    }
    Ok(Answer::Well)
}
