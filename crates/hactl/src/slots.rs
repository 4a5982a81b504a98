//! `hactl slot list`: every slot an application sees, with its kind.

use anyhow::Result;
use ha_core::provider::Provider;
use serde_json::json;

use crate::context::Context;
use crate::{Answer, output};

/// Lists the slots.
pub(crate) fn list(context: &Context) -> Result<Answer> {
    let provider = Provider::for_operator(context.load()?)?;
    let mut table = output::table(&["slot", "kind", "label", "serial", "model"]);
    let mut documents = Vec::new();
    let mut answer = Answer::Well;
    for (number, slot) in provider.slots().iter().enumerate() {
        let kind = slot.slot_info()?.description;
        match slot.token_info() {
            Ok(token) => {
                table.add_row(vec![
                    number.to_string(),
                    kind.clone(),
                    token.label.clone(),
                    token.serial.clone(),
                    token.model.clone(),
                ]);
                documents.push(json!({"slot": number, "kind": kind, "label": token.label, "serial": token.serial, "model": token.model, "present": true}));
            }
            Err(rv) => {
                answer = Answer::BadNews;
                table.add_row(vec![
                    number.to_string(),
                    kind.clone(),
                    format!("({rv})"),
                    String::new(),
                    String::new(),
                ]);
                documents.push(json!({"slot": number, "kind": kind, "present": false}));
            }
        }
    }
    if context.json {
        output::json(&json!({"schema": 1, "slots": documents}))?;
    } else {
        println!("{table}");
    }
    Ok(answer)
}
