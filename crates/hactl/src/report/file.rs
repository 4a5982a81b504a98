//! The file of a report: it is there whole, or not at all.

use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tempfile::NamedTempFile;

use super::document::Document;
use super::html;

/// How a report is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Html,
    Json,
}

/// Where a report goes, and how it is written.
#[derive(Clone, Debug)]
pub(crate) struct ReportFile {
    path: PathBuf,
    form: Form,
}

impl std::str::FromStr for ReportFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        let form = match path.extension().and_then(|e| e.to_str()) {
            Some(e) if e.eq_ignore_ascii_case("html") => Form::Html,
            Some(e) if e.eq_ignore_ascii_case("json") => Form::Json,
            _ => return Err("expected a file whose name ends with .html or .json".into()),
        };
        Ok(ReportFile { path, form })
    }
}

impl ReportFile {
    /// Where it goes.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Finds out before a long check, not after it. Nothing is left, and what is there already stays as it is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn may_be_written(&self) -> Result<()> {
        // What a link leads to is not written: the link is replaced.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|there| there.is_dir()) {
            bail!("{}: it is a folder", self.words());
        }
        self.begin().map(drop)
    }

    /// Writes it: for its owner only, in place of a file that is there.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, document: &Document) -> Result<()> {
        let write = || -> Result<()> {
            let mut file = self.begin()?;
            let mut out = BufWriter::new(file.as_file_mut());
            match self.form {
                Form::Html => html::write(&mut out, document)?,
                Form::Json => {
                    serde_json::to_writer_pretty(&mut out, document)?;
                    writeln!(out)?;
                }
            }
            out.flush()?;
            drop(out);
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            Ok(())
        };
        write().with_context(|| self.words())
    }

    fn begin(&self) -> Result<NamedTempFile> {
        // The name of a file alone has an empty folder before it.
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        tempfile::Builder::new().prefix(".hactl-report-").tempfile_in(folder).with_context(|| self.words())
    }

    fn words(&self) -> String {
        format!("--report {}: it cannot be written", self.path.display())
    }
}
