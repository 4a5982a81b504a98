//! Settings that are read and checked, and that nothing acts on yet: whoever sets one is told.

use std::time::Duration;

use super::{Config, GroupConfig};

/// What `generate_deadline` is when the file does not say.
const GENERATE_DEADLINE: Duration = Duration::from_secs(120);

/// A setting that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithoutEffect {
    /// The group's label.
    pub group: String,
    /// The member's name, for a member's setting.
    pub member: Option<String>,
    /// The key in the file.
    pub key: &'static str,
    /// What that means.
    pub consequence: &'static str,
}

impl Config {
    /// Every setting that asks for something that this version does not do, in the order of the file. Values that are
    /// the default, or that ask for what is done anyway, are not among them.
    pub fn without_effect(&self) -> Vec<WithoutEffect> {
        self.groups.iter().flat_map(of_group).collect()
    }
}

fn of_group(group: &GroupConfig) -> Vec<WithoutEffect> {
    let mut found = Vec::new();
    let mut tell = |asked: bool, member: Option<&str>, key, consequence| {
        if asked {
            let member = member.map(str::to_owned);
            found.push(WithoutEffect { group: group.label.clone(), member, key, consequence });
        }
    };
    tell(
        group.deadline.is_none() && group.generate_deadline.is_some_and(|d| d != GENERATE_DEADLINE),
        None,
        "generate_deadline",
        "with deadline = \"off\" no call is cut off, that of making a key neither",
    );
    for member in &group.members {
        tell(
            member.fingerprint.is_some(),
            Some(&member.name),
            "fingerprint",
            "the member's enrolment key is not compared with it",
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(group: &str, member: &str) -> Vec<&'static str> {
        let text = format!(
            "[[group]]\nlabel = \"g\"\n{group}\n[[group.member]]\nname = \"a\"\nmodule = \"/m.so\"\ntoken = \"t\"\n{member}\n"
        );
        Config::parse(&text).unwrap().without_effect().into_iter().map(|w| w.key).collect()
    }

    #[test]
    fn a_plain_group_has_none() {
        assert_eq!(keys("", ""), [""; 0]);
        assert_eq!(keys("verify_signatures = true\nsession_objects = \"replay\"", ""), [""; 0]);
        let defaults = "deadline = \"10s\"\ngenerate_deadline = \"120s\"\nsession_objects = \"local\"\nverify_signatures = false";
        assert_eq!(keys(defaults, ""), [""; 0]);
        assert_eq!(keys("deadline = \"5s\"\ngenerate_deadline = \"60s\"", ""), [""; 0], "is what is done");
        assert_eq!(keys("deadline = \"off\"\ngenerate_deadline = \"off\"", ""), [""; 0], "is what is done");
    }

    #[test]
    fn each_is_named() {
        let group = "deadline = \"off\"\ngenerate_deadline = \"60s\"";
        let member = format!("fingerprint = \"sha256:{}\"", "0".repeat(64));
        assert_eq!(keys(group, &member), ["generate_deadline", "fingerprint"]);
    }
}
