//! Changing which members a configuration file names, and nothing else in it: comments, order and spacing stay.
//!
//! The new file is written beside the one in use and read back before anything else is done; it takes the other's place in
//! one step, at the very end.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ha_core::config::{Config, MemberConfig, Role};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

/// What becomes of a group's members in the file.
pub(crate) enum Edit<'a> {
    /// One more, after the others.
    Add(&'a MemberConfig),
    /// One fewer.
    Remove(&'a str),
    /// Another one in the place of the one that is named.
    Replace(&'a str, &'a MemberConfig),
    /// Another role for the one that is named.
    Role(&'a str, Role),
}

/// The file's text with the group's members changed.
///
/// # Errors
/// The file does not have the group, or the member; its members are written in a way that is not changed here.
pub(crate) fn edited(text: &str, label: &str, edit: &Edit<'_>) -> Result<String> {
    let mut document: DocumentMut = text.parse()?;
    let groups = document.get_mut("group").and_then(Item::as_array_of_tables_mut);
    let group = groups
        .into_iter()
        .flat_map(ArrayOfTables::iter_mut)
        .find(|g| g.get("label").and_then(Item::as_str) == Some(label));
    let Some(members) = group.and_then(|g| g.get_mut("member")).and_then(Item::as_array_of_tables_mut) else {
        bail!(
            "group {label:?} is not written as [[group]] with [[group.member]]: change the file by hand, then run this again"
        );
    };
    match edit {
        Edit::Add(member) => members.push(table(member)?),
        Edit::Remove(name) => {
            let at = place(members, name)?;
            members.remove(at);
        }
        Edit::Role(name, role) => {
            let at = place(members, name)?;
            if let Some(table) = members.get_mut(at) {
                match table.get_mut("role").and_then(Item::as_value_mut) {
                    Some(there) => {
                        let decor = there.decor().clone();
                        *there = role.to_string().into();
                        *there.decor_mut() = decor;
                    }
                    None => _ = table.insert("role", value(role.to_string())),
                }
            }
        }
        Edit::Replace(name, member) => {
            let at = place(members, name)?;
            let mut new = table(member)?;
            if let Some(old) = members.get(at) {
                // What is said above it is said of its place.
                *new.decor_mut() = old.decor().clone();
                new.set_position(old.position());
            }
            if let Some(there) = members.get_mut(at) {
                *there = new;
            }
        }
    }
    Ok(document.to_string())
}

/// Where a member's table is. One without a name is called as its token.
fn place(members: &ArrayOfTables, name: &str) -> Result<usize> {
    let said = |t: &Table, key| t.get(key).and_then(Item::as_str).map(str::to_owned);
    let is_it = |t: &Table| match said(t, "name") {
        Some(own) => own == name,
        None => said(t, "token").is_some_and(|token| token == name),
    };
    match members.iter().position(is_it) {
        Some(at) => Ok(at),
        None => bail!(
            "the table of member {name:?} is not found in the file: give it a line name = {name:?}, then run this again"
        ),
    }
}

fn table(member: &MemberConfig) -> Result<Table> {
    let text: DocumentMut = member.to_toml()?.parse()?;
    let table = text
        .get("group")
        .and_then(|g| g.get("member"))
        .and_then(Item::as_array_of_tables)
        .and_then(|members| members.get(0));
    let mut table = table.cloned().context("a member's table is no table")?;
    table.set_position(None);
    table.decor_mut().set_prefix("\n");
    Ok(table)
}

/// A configuration file that is to be changed, by this process alone.
pub(crate) struct Editing {
    /// Where it is: a link's target, which is what is read and what is to change.
    path: PathBuf,
    /// Locked, and what is there.
    file: File,
    text: String,
}

/// A changed file that does not count yet; removed unless it is made to.
pub(crate) struct Candidate<'a> {
    editing: &'a Editing,
    new: PathBuf,
    in_place: bool,
}

impl Editing {
    /// Opens a file to change it.
    ///
    /// # Errors
    /// It cannot be read, or somebody else is changing it.
    pub(crate) fn begin(path: &Path) -> Result<Editing> {
        let words = || path.display().to_string();
        let path = path.canonicalize().with_context(words)?;
        let file = File::open(&path).with_context(words)?;
        if file.try_lock().is_err() {
            bail!("{}: another command is changing it; try again when it has ended", path.display());
        }
        let text = std::io::read_to_string(&file).with_context(words)?;
        let editing = Editing { path, file, text };
        editing.is_as_it_was()?;
        Ok(editing)
    }

    /// Writes the file with an edit beside it, for the same users, and reads it as a configuration.
    ///
    /// # Errors
    /// It cannot be written, or is no configuration that is right.
    pub(crate) fn candidate(&self, label: &str, edit: &Edit<'_>) -> Result<(Candidate<'_>, Config)> {
        let text = edited(&self.text, label, edit).with_context(|| self.path.display().to_string())?;
        self.write(&text)
    }

    fn write(&self, text: &str) -> Result<(Candidate<'_>, Config)> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let new = self.path.with_file_name(format!(".{name}.{}.new", std::process::id()));
        let words = || format!("{} cannot be changed: {}", self.path.display(), new.display());
        let old = self.file.metadata().with_context(words)?;
        _ = fs::remove_file(&new);
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&new).with_context(words)?;
        let candidate = Candidate { editing: self, new: new.clone(), in_place: false };
        file.write_all(text.as_bytes()).with_context(words)?;
        let made = file.metadata().with_context(words)?;
        if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid())).with_context(words)?;
        }
        file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777)).with_context(words)?;
        file.sync_all().with_context(words)?;
        let config = Config::from_file(&new).context("the changed configuration would not be right")?;
        Ok((candidate, config))
    }

    fn is_as_it_was(&self) -> Result<()> {
        let there = fs::metadata(&self.path).ok().map(|m| (m.dev(), m.ino()));
        let ours = self.file.metadata().ok().map(|m| (m.dev(), m.ino()));
        let text = fs::read_to_string(&self.path).ok();
        if there != ours || text.as_deref() != Some(self.text.as_str()) {
            bail!("{}: somebody has changed it meanwhile: run this again", self.path.display());
        }
        Ok(())
    }
}

impl Candidate<'_> {
    /// The changed file takes the place of the one in use.
    ///
    /// # Errors
    /// It cannot, or that one was changed meanwhile: the one in use stays.
    pub(crate) fn put_in_place(mut self) -> Result<()> {
        let path = &self.editing.path;
        self.editing.is_as_it_was()?;
        fs::rename(&self.new, path)
            .with_context(|| format!("{} could not be put in place", path.display()))?;
        self.in_place = true;
        if let Some(folder) = path.parent() {
            // A file system without it keeps one of the two files all the same.
            _ = File::open(folder).and_then(|f| f.sync_all());
        }
        Ok(())
    }
}

impl Drop for Candidate<'_> {
    fn drop(&mut self) {
        if !self.in_place {
            _ = fs::remove_file(&self.new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ha_token::Selector;

    const FILE: &str = r#"# our keys
state_dir = "/s" # kept

[[group]]
label = "one"

# the old appliance
[[group.member]]
module = "/m.so" # theirs
token = "a"

[[group.member]]
name = "b"
module = "/m.so"
serial = "12"

[[group]]
label = "two"

[[group.member]]
name = "x"
module = "/m.so"
token = "x"
"#;

    fn member(name: &str) -> MemberConfig {
        let selector = Selector { label: Some(name.into()), ..Selector::default() };
        MemberConfig { name: name.into(), ..MemberConfig::new("/new.so", selector) }
    }

    fn names(text: &str) -> Vec<Vec<String>> {
        let config = Config::parse(text).unwrap();
        config.groups.iter().map(|g| g.members.iter().map(|m| m.name.clone()).collect()).collect()
    }

    #[test]
    fn a_member_is_added_to_its_group_and_nothing_else_changes() {
        let text = edited(FILE, "one", &Edit::Add(&member("c"))).unwrap();
        assert_eq!(names(&text), [vec!["a", "b", "c"], vec!["x"]]);
        let added = "\n[[group.member]]\nname = \"c\"\nmodule = \"/new.so\"\ntoken = \"c\"\n";
        assert_eq!(text.replacen(added, "", 1), FILE, "{text}");
        let text = edited(FILE, "two", &Edit::Add(&member("y"))).unwrap();
        assert_eq!(names(&text), [vec!["a", "b"], vec!["x", "y"]]);
    }

    #[test]
    fn a_member_is_removed_and_replaced_in_its_place() {
        let text = edited(FILE, "one", &Edit::Remove("b")).unwrap();
        assert_eq!(names(&text), [vec!["a"], vec!["x"]]);
        assert!(
            text.contains("# our keys") && text.contains("# kept") && text.contains("# the old"),
            "{text}"
        );
        let text = edited(FILE, "one", &Edit::Replace("a", &member("n"))).unwrap();
        assert_eq!(names(&text), [vec!["n", "b"], vec!["x"]]);
        assert!(text.contains("# the old appliance\n[[group.member]]\nname = \"n\""), "{text}");
        assert!(!text.contains("# theirs"));
    }

    #[test]
    fn a_role_is_said_where_it_was_said_before() {
        let standby = edited(FILE, "one", &Edit::Role("b", Role::Standby)).unwrap();
        assert_eq!(standby.replacen("role = \"standby\"\n", "", 1), FILE);
        assert_eq!(Config::parse(&standby).unwrap().groups[0].members[1].role, Role::Standby);
        let noted = standby.replace("\"standby\"", "\"standby\" # for now");
        let active = edited(&noted, "one", &Edit::Role("b", Role::Active)).unwrap();
        assert_eq!(active, noted.replace("\"standby\"", "\"active\""));
    }

    #[test]
    fn what_is_not_there_or_written_otherwise_is_told() {
        let words = |text: &str, label, edit| edited(text, label, &edit).unwrap_err().to_string();
        assert!(words(FILE, "three", Edit::Remove("a")).contains("by hand"));
        assert!(words(FILE, "two", Edit::Remove("a")).contains("is not found in the file"));
        let inline = "[[group]]\nlabel = \"g\"\nmember = [{ module = \"/m.so\", token = \"a\" }]\n";
        assert!(words(inline, "g", Edit::Remove("a")).contains("by hand"));
    }

    #[test]
    fn a_candidate_counts_only_when_it_is_put_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ha.toml");
        fs::write(&path, FILE).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let remove = Edit::Remove("b");
        let text = edited(FILE, "one", &remove).unwrap();
        let count = || fs::read_dir(folder.path()).unwrap().count();
        let editing = Editing::begin(&path).unwrap();
        assert!(Editing::begin(&path).is_err(), "two at once");
        let (candidate, config) = editing.candidate("one", &remove).unwrap();
        assert_eq!(config.groups[0].members.len(), 1);
        drop(candidate);
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), count()), (FILE, 1));
        // Somebody edits it meanwhile: that stays.
        let (candidate, _) = editing.candidate("one", &remove).unwrap();
        fs::write(&path, format!("# mine\n{FILE}")).unwrap();
        assert!(candidate.put_in_place().is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("# mine\n{FILE}"));
        fs::write(&path, FILE).unwrap();
        editing.candidate("one", &remove).unwrap().0.put_in_place().unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap(), count()), (text.clone(), 1));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        let editing = Editing::begin(&path).unwrap();
        assert!(editing.write("[[group]]\n").is_err());
        assert_eq!((fs::read_to_string(&path).unwrap(), count()), (text, 1));
    }
}
