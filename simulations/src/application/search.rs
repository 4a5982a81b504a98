//! Looking for objects.

use std::collections::BTreeMap;

use ha_token::*;

use super::{Application, Step};
use crate::before;
use crate::model::{Standing, Thing};

/// The ids that objects have, for each class and label; none for what has no id.
type Seen = BTreeMap<(Ulong, Vec<u8>), Vec<Option<Vec<u8>>>>;

impl Application<'_> {
    /// The object's handle, looked for where it was made in an earlier life, and remembered.
    pub(super) fn handle(&self, thing: &Thing) -> Step<Option<ObjectHandle>> {
        if let Some(handle) = thing.handle(self.process) {
            return Ok(Some(handle));
        }
        let found = self.search(&named(thing))?;
        self.once(thing, &found);
        let handle = found.first().copied();
        if let Some(handle) = handle {
            self.stage.model.update(thing, |t| _ = t.handles.insert(self.process, handle));
        }
        Ok(handle)
    }

    /// What is there from the search's beginning to its end is found, and once.
    fn once(&self, thing: &Thing, found: &[ObjectHandle]) {
        if found.len() > 1 {
            self.stage.broken("G8", format!("{} is found {} times", thing.name(), found.len()));
        }
        if found.is_empty()
            && thing.standing == Standing::There
            && self.stage.must_serve(thing)
            && self.stage.model.is_as_before(thing)
        {
            self.stage.broken("G1", format!("{} is there and is not found by its label", thing.name()));
        }
    }

    /// Looks for an object that is there: it has the handle that it had.
    pub(super) fn find(&self, thing: &Thing) -> Step<()> {
        let found = self.search(&named(thing))?;
        self.once(thing, &found);
        if let (Some(found), Some(known)) = (found.first(), thing.handle(self.process))
            && *found != known
        {
            let (found, known) = (found.0, known.0);
            self.stage.broken("G3", format!("{} is {known} and is found as {found}", thing.name()));
        }
        Ok(())
    }

    /// Looks for an object that is gone.
    pub(super) fn is_gone(&self, thing: &Thing) {
        match self.search(&named(thing)) {
            Ok(found) if found.is_empty() => {}
            Ok(_) => {
                self.stage.broken("G2", format!("{} is gone and was found by its label", thing.name()));
            }
            Err(failed) => self.failed(&format!("search of {}", thing.name()), &failed),
        }
    }

    pub(super) fn search(&self, template: &Template) -> Step<Vec<ObjectHandle>> {
        let (slot, s) = (&self.slot, self.session);
        self.at("C_FindObjectsInit", slot.find_objects_init(s, template))?;
        let mut all = Vec::new();
        loop {
            let found = self.at("C_FindObjects", slot.find_objects(s, 7))?;
            if found.is_empty() {
                break;
            }
            all.extend(found);
        }
        self.at("C_FindObjectsFinal", slot.find_objects_final(s))?;
        Ok(all)
    }

    pub(super) fn find_all(&self) {
        let before: Vec<(Standing, u64)> =
            self.stage.model.things().iter().map(|t| (t.standing, t.version)).collect();
        let found = match self.search(&Vec::new()) {
            Ok(found) => found,
            Err(failed) => return self.failed("a search", &failed),
        };
        let mut sorted = found.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != found.len() {
            self.stage.broken("G8", "a search gave an object twice".into());
        }
        let things = self.stage.model.things().clone();
        for (thing, (standing, version)) in things.iter().zip(before) {
            let Some(handle) = thing.handle(self.process).filter(|_| thing.version == version) else {
                continue;
            };
            let there = found.contains(&handle);
            match standing {
                Standing::There if !there && self.stage.must_serve(thing) => {
                    let found: Vec<_> = found.iter().map(|h| h.0).collect();
                    let (name, handle) = (thing.name(), handle.0);
                    self.stage
                        .broken("G1", format!("{name} ({handle}) is there and was not found ({found:?})"));
                }
                Standing::Gone if there => {
                    self.stage.broken("G2", format!("{} is gone and was found", thing.name()));
                }
                _ => {}
            }
        }
    }

    /// When nobody else does anything: all that is found has its names, each of them once, and is known.
    pub(super) fn survey(&self) {
        let seen = match self.search(&Vec::new()).and_then(|found| self.names_of(&found)) {
            Ok(seen) => seen,
            Err(failed) => return self.failed("a survey", &failed),
        };
        let things = self.stage.model.things().clone();
        for ((class, label), ids) in seen.into_iter().filter(|((_, label), _)| !before::is_from_before(label))
        {
            let shown = String::from_utf8_lossy(&label).into_owned();
            let Some(thing) = things.iter().find(|t| t.class() == class && t.label.as_bytes() == label)
            else {
                self.stage
                    .broken("G2", format!("nobody made {shown:?}, of class {class:#x}, which is found"));
            };
            if let Some(id) = ids.iter().flatten().find(|id| !thing.ids.contains(id)) {
                self.stage.broken("G8", format!("{} is said to have the id {id:02x?}", thing.name()));
            }
            if ids.len() > 1 {
                self.stage.broken("G8", format!("{} is found {} times", thing.name(), ids.len()));
            }
        }
    }

    fn names_of(&self, found: &[ObjectHandle]) -> Step<Seen> {
        let mut seen = Seen::new();
        for handle in found {
            let types = [ck::CKA_CLASS, ck::CKA_LABEL, ck::CKA_ID];
            let read = self.slot.get_attributes(self.session, *handle, &types);
            let read = self.at("C_GetAttributeValue", read)?;
            let class = read[0].value().and_then(Value::as_ulong).unwrap_or_default();
            let label = read[1].bytes().unwrap_or_default().to_vec();
            seen.entry((class, label)).or_default().push(read[2].bytes().map(<[u8]>::to_vec));
        }
        Ok(seen)
    }
}

fn named(thing: &Thing) -> Template {
    let label = Attribute::bytes(ck::CKA_LABEL, thing.label.as_bytes());
    vec![Attribute::ulong(ck::CKA_CLASS, thing.class()), label]
}
