//! The configuration file of running groups: whether it has changed, and what it says then.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::PoisonError;

use ha_token::Connector;

use super::connectors::shared_connector;
use crate::config::{Config, GroupConfig, MemberConfig, Surroundings};
use crate::group::{ConfigSource, News};
use crate::sync::Mutex;

/// What tells a file's content from another one without reading it.
type Stamp = (u64, u64, u64, i64, i64, i64, i64);

/// A group's configuration file.
pub(super) struct FileSource {
    path: PathBuf,
    /// As they were at the start: the environment is the host's, and is not read again while its threads may write it.
    surroundings: Surroundings,
    state_dir: PathBuf,
    group: GroupConfig,
    seen: Mutex<Seen>,
}

/// The file as it was last looked at.
#[derive(Default)]
struct Seen {
    stamp: Option<Stamp>,
    /// Whether it was read as it was then.
    is_read: bool,
    /// Whether it could not be looked at the last time.
    is_gone: bool,
    digest: Option<String>,
}

impl FileSource {
    /// The sources of a configuration's groups, in order: nothing for one that no file says, or that is not what its file says.
    pub(super) fn of(config: &Config) -> Vec<Option<Self>> {
        let (Some(path), Some(digest)) = (&config.path, &config.digest) else { return Vec::new() };
        let surroundings = Surroundings::of_process();
        let there = std::fs::metadata(path).ok().filter(Metadata::is_file).map(|file| stamp(&file));
        // Whoever has changed it since it was read is not to lose that.
        let said = Config::read(path, &surroundings).ok().filter(|said| said.digest.as_ref() == Some(digest));
        // As it is now it was read: a program that gives up its rights later need not be able to.
        let stamp = there.filter(|_| said.is_some());
        let is_said = |group: &GroupConfig| said.as_ref().is_none_or(|said| said.groups.contains(group));
        // The host may go to another folder. A link is followed anew each time.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let of = |group: &GroupConfig| FileSource {
            path: path.clone(),
            surroundings: surroundings.clone(),
            state_dir: config.state_dir.clone(),
            group: group.clone(),
            seen: Mutex::new(Seen {
                stamp,
                is_read: stamp.is_some(),
                is_gone: false,
                digest: Some(digest.clone()),
            }),
        };
        config.groups.iter().map(|group| is_said(group).then(|| of(group))).collect()
    }
}

impl ConfigSource for FileSource {
    fn news(&self) -> Option<News> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = match std::fs::metadata(&self.path) {
            Ok(file) if file.is_file() => stamp(&file),
            // Reading what is none may take for ever.
            Ok(_) => return None,
            // It is being replaced, perhaps: told when it is still so at the next look.
            Err(error) => {
                if seen.is_gone && seen.stamp.take().is_some() {
                    let path = self.path.display();
                    tracing::warn!(group = %self.group.label, %path, %error, "the configuration cannot be looked at: the group goes on as it was");
                }
                seen.is_gone = true;
                return None;
            }
        };
        seen.is_gone = false;
        // Half of it may be a configuration, too: it is read when it has not changed between two looks.
        if seen.stamp != Some(stamp) {
            (seen.stamp, seen.is_read) = (Some(stamp), false);
            return None;
        }
        if std::mem::replace(&mut seen.is_read, true) {
            return None;
        }
        let config = Config::read(&self.path, &self.surroundings).inspect_err(|error| {
            tracing::warn!(group = %self.group.label, %error, "the configuration has changed, and cannot be read or is not right: the group goes on as it was");
        }).ok()?;
        let digest = config.digest.filter(|digest| seen.digest.as_ref() != Some(digest))?;
        seen.digest = Some(digest.clone());
        let group = config.groups.into_iter().find(|g| g.label == self.group.label);
        Some(News { digest, group })
    }

    fn connector(&self, member: &MemberConfig) -> Box<dyn Connector> {
        Box::new(shared_connector(&self.state_dir, &self.group, member))
    }
}

fn stamp(file: &Metadata) -> Stamp {
    let (dev, ino, len) = (file.dev(), file.ino(), file.len());
    (dev, ino, len, file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const TWO: &str = "[[group]]\nlabel=\"g\"\n[[group.member]]\nmodule=\"/m\"\ntoken=\"a\"\n[[group.member]]\nmodule=\"/m\"\ntoken=\"b\"\n";

    fn source(text: &str) -> (tempfile::TempDir, PathBuf, FileSource) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ha.toml");
        fs::write(&path, text).unwrap();
        let source = FileSource::of(&Config::from_file(&path).unwrap()).remove(0).unwrap();
        (dir, path, source)
    }

    /// What is found by the look after the next one.
    fn found(source: &FileSource) -> Option<News> {
        assert_eq!(source.news(), None, "it may be written at this moment");
        source.news()
    }

    fn names(news: News) -> Vec<String> {
        news.group.unwrap().members.into_iter().map(|m| m.name).collect()
    }

    #[test]
    fn what_is_said_otherwise_is_news_once() {
        let (_dir, path, source) = source(TWO);
        assert_eq!(found(&source), None);
        fs::write(&path, TWO.replace("\"b\"", "\"c\"")).unwrap();
        assert_eq!(found(&source).map(names), Some(vec!["a".to_owned(), "c".to_owned()]));
        assert_eq!(found(&source), None);
        // Written once more as it is, by another name put in its place.
        let new = path.with_extension("new");
        fs::copy(&path, &new).unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(found(&source), None);
        fs::write(&path, TWO.replace("\"g\"", "\"other\"")).unwrap();
        assert_eq!(found(&source).map(|news| news.group), Some(None));
    }

    #[test]
    fn what_is_not_right_or_not_there_is_no_news() {
        let (_dir, path, source) = source(TWO);
        fs::write(&path, &TWO[..TWO.len() - 5]).unwrap();
        assert_eq!(found(&source), None);
        fs::write(&path, "").unwrap();
        assert_eq!(found(&source).map(|news| news.group), Some(None));
        fs::remove_file(&path).unwrap();
        assert_eq!(found(&source), None);
        fs::write(&path, TWO).unwrap();
        assert_eq!(found(&source).map(names), Some(vec!["a".to_owned(), "b".to_owned()]));
        use std::os::unix::fs::PermissionsExt;
        fs::write(&path, TWO.replace("\"b\"", "\"c\"")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(found(&source), None, "others can write it");
    }

    #[test]
    fn what_a_program_says_otherwise_than_its_file_is_not_undone() {
        let (_dir, path, _) = source(TWO);
        let mut config = Config::from_file(&path).unwrap();
        config.groups[0].min_copies = 1;
        assert!(FileSource::of(&config)[0].is_none());
        config.digest = None;
        assert!(FileSource::of(&config).is_empty());
    }
}
