//! `hactl check --prove --report FILE`: what every copy was asked and answered, for who is to judge it afterwards.

mod document;
mod file;
mod html;
mod proof;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use anyhow::Result;
use ha_core::group::{Examination, Group};

use document::Document;
pub(crate) use file::ReportFile;

/// What is kept of a check until its report is written.
pub(crate) struct Kept {
    begun: SystemTime,
    groups: Vec<document::Group>,
}

impl Kept {
    /// Nothing yet; the check begins.
    pub(crate) fn new() -> Self {
        Kept { begun: SystemTime::now(), groups: Vec::new() }
    }

    /// A group was examined.
    pub(crate) fn add(&mut self, group: &Group, examination: &Examination) {
        self.groups.push(document::Group::of(&group.config.label, &group.status(), examination));
    }

    /// Writes the report into each of these files.
    ///
    /// # Errors
    /// One cannot be written; what was there is there still.
    pub(crate) fn write(self, files: &[ReportFile]) -> Result<()> {
        let document = Document::of(self.groups, self.begun, SystemTime::now());
        files.iter().try_for_each(|file| file.write(&document))
    }
}
