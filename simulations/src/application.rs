//! The application: threads that use the virtual slot as programs do, and judge every answer.

mod mistakes;
mod objects;
mod search;
mod theirs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ha_token::*;
use sha2::{Digest as _, Sha256};

use crate::model::{Failed, Owner, Standing, Thing};
use crate::oracle;
use crate::plan::{Kind, Op};
use crate::stage::Stage;

const QUESTION: &[u8] = b"the question that each secret key is asked, of several blocks";

/// Whether this is what signing keys are asked, or its digest.
pub(crate) fn is_question(input: &[u8]) -> bool {
    input == QUESTION || input == Sha256::digest(QUESTION).as_slice()
}

/// One thread of the application, in one process.
pub struct Application<'a> {
    /// What it plays on.
    pub stage: &'a Stage,
    /// Its process.
    pub process: u32,
    /// The virtual slot.
    pub slot: Arc<dyn Token>,
    /// Which thread it is.
    pub me: Owner,
    /// Its session.
    pub session: SessionHandle,
}

type Step<T> = std::result::Result<T, Failed>;

impl Application<'_> {
    /// Does one thing.
    pub fn act(&mut self, op: &Op) {
        self.stage.say(format_args!("{op:?}"));
        self.stage.disk.operation_begins();
        match *op {
            Op::Make(kind) => self.make(kind),
            Op::Session(kind) => self.session_object(kind),
            Op::Use(n) => self.with(n, |a, t| a.ask(t, false)),
            Op::Parts(n) => self.with(n, |a, t| a.ask(t, true)),
            Op::Shared => self.shared(),
            Op::Find(n) => self.with(n, |a, t| a.find(t)),
            Op::FindAll => self.find_all(),
            Op::Change(n) => self.change(n),
            Op::Destroy(n) => self.destroy(n),
            Op::UseGone(n) => self.use_gone(n),
            Op::Theirs(n) => self.theirs(n),
            Op::TheirsGone(n) => self.theirs_gone(n),
            Op::TheirsKept(n) => self.theirs_kept(n),
            Op::DestroyTheirs(n) => self.destroy_theirs(n),
            Op::Mistake(n) => self.mistake(n),
            Op::Reopen => self.reopen(),
            Op::Digest => self.digest(),
            Op::Pause(ms) => self.stage.scheduler.sleep(Duration::from_millis(ms.into())),
        }
    }

    /// An answer of the slot's, which is counted.
    fn at<T>(&self, step: &'static str, answer: Result<T>) -> Step<T> {
        self.stage.called(self.process);
        if let Err(rv @ (Rv::NO_ANSWER | Rv::WRONG_SIGNATURE)) = answer {
            self.stage.broken("G8", format!("{step} answered what no standard knows: {rv}"));
        }
        answer.map_err(|rv| Failed { step, rv })
    }

    /// What a failed call means: nothing, where the members gave cause for it.
    fn failed(&self, what: &str, failed: &Failed) {
        self.may_fail(what, failed, !self.stage.must_succeed());
    }

    /// The same of a change, which nobody can make without the ledger: how that was is told from before the call.
    fn change_failed(&self, what: &str, failed: &Failed, ledger: Option<usize>) {
        let well = ledger.is_some() && ledger == self.stage.ledger_is_well();
        self.may_fail(what, failed, !(well && self.stage.must_succeed()));
    }

    fn may_fail(&self, what: &str, failed: &Failed, may: bool) {
        self.stage.say(format_args!("{what}: {} answered {}", failed.step, failed.rv));
        if !may {
            self.stage.broken(
                "G4",
                format!(
                    "{what}: {} answered {} while a member that can serve was up",
                    failed.step, failed.rv
                ),
            );
        }
    }

    /// The same, of a call with an object: nothing, where another process has destroyed that meanwhile.
    fn failed_with(&self, thing: &Thing, what: &str, failed: &Failed) {
        if self.stage.model.is_as_before(thing) {
            self.failed(&format!("{what} of {}", thing.name()), failed);
        } else {
            self.stage.say(format_args!(
                "{what} of {}: {} answered {}",
                thing.name(),
                failed.step,
                failed.rv
            ));
        }
    }

    fn make(&self, kind: Kind) {
        let things = self.stage.model.make(kind, self.me, self.process);
        let (copies, ledger) = (self.stage.copies_can_be_had(kind), self.stage.ledger_is_well());
        let set_backs = self.stage.set_backs();
        match self.create(&things, true) {
            Ok(handles) => {
                // What is acknowledged must be there now, whatever comes next.
                for (thing, handle) in things.iter().zip(&handles) {
                    self.stage.model.update(thing, |t| _ = t.handles.insert(self.process, *handle));
                    self.stage.model.set(thing, Standing::There);
                }
                match self.stage.set_backs() == set_backs {
                    true => oracle::durable(self.stage, &things),
                    // What one of them had by then went with its state.
                    false => self.stage.lost_where_nowhere(&self.stage.model.again(&things)),
                }
                let made = |thing: &Thing| Thing {
                    standing: Standing::There,
                    version: thing.version + 1,
                    ..thing.clone()
                };
                let things: Vec<Thing> = things.iter().map(made).collect();
                for (thing, handle) in things.iter().zip(&handles) {
                    match self.prove(thing, *handle, handles.last().copied()) {
                        Ok(proof) => self.stage.model.update(thing, |t| t.proof = Some(proof)),
                        // A private key is proven with its public half, which another process may have destroyed.
                        Err(failed) => {
                            let other = things.iter().find(|t| !self.stage.model.is_as_before(t));
                            self.failed_with(other.unwrap_or(thing), "first use", &failed);
                        }
                    }
                }
            }
            Err(failed) => {
                things.iter().for_each(|t| self.stage.model.set(t, Standing::Unknown));
                if copies && self.stage.copies_can_be_had(kind) {
                    self.change_failed("make", &failed, ledger);
                } else {
                    self.stage.say(format_args!("make: {} answered {}", failed.step, failed.rv));
                }
            }
        }
    }

    /// Does something with an object that is there.
    fn with(&self, n: u8, f: impl FnOnce(&Self, &Thing) -> Step<()>) {
        let Some(thing) = self.stage.model.choose(self.me, n, Standing::There) else { return };
        if let Err(failed) = f(self, &thing) {
            self.failed_with(&thing, "use", &failed);
        }
    }

    fn shared(&self) {
        let Some(thing) = self.stage.model.choose(Owner::SHARED, 0, Standing::There) else { return };
        if let Err(failed) = self.ask(&thing, false) {
            self.failed("use of the shared key", &failed);
        }
    }

    fn change(&self, n: u8) {
        let Some(thing) = self.stage.model.choose(self.me, n, Standing::There) else { return };
        // Data objects have no CKA_ID (section 4.5).
        if thing.kind == Kind::Data {
            return;
        }
        let id = self.stage.model.new_id();
        let ledger = self.stage.ledger_is_well();
        let changed = self.handle(&thing).and_then(|handle| {
            let Some(handle) = handle else { return Ok(false) };
            let template = vec![Attribute::bytes(ck::CKA_ID, id.clone())];
            // From now on it may have this one.
            self.stage.model.update(&thing, |t| t.ids.push(id.clone()));
            let set = self.slot.set_attributes(self.session, handle, &template);
            self.at("C_SetAttributeValue", set).map(|()| true)
        });
        match changed {
            Ok(true) => self.stage.model.update(&thing, |t| t.ids = vec![id]),
            Ok(false) => {}
            Err(failed) if self.stage.model.is_as_before(&thing) => {
                self.change_failed(&format!("change of {}", thing.name()), &failed, ledger);
            }
            Err(failed) => self.failed_with(&thing, "change", &failed),
        }
    }

    fn destroy(&self, n: u8) {
        if let Some(thing) = self.stage.model.choose(self.me, n, Standing::There) {
            self.destroy_one(&thing);
        }
    }

    fn destroy_one(&self, thing: &Thing) {
        let handle = match self.handle(thing) {
            Ok(Some(handle)) => handle,
            Ok(None) => return,
            Err(failed) => return self.failed_with(thing, "search", &failed),
        };
        let (ledger, set_backs) = (self.stage.ledger_is_well(), self.stage.set_backs());
        if !self.stage.model.leaves(thing, self.process) {
            return;
        }
        let destroyed = self.slot.destroy_object(self.session, handle);
        match self.at("C_DestroyObject", destroyed) {
            Ok(()) => self.stage.model.set(thing, Standing::Gone),
            Err(failed) => {
                self.stage.model.set(thing, Standing::Unknown);
                // Where the last token that held it was set back meanwhile, no member can destroy it.
                let ledger =
                    ledger.filter(|_| self.stage.set_backs() == set_backs || !self.stage.is_nowhere(thing));
                self.change_failed(&format!("destruction of {}", thing.name()), &failed, ledger);
            }
        }
    }

    fn use_gone(&self, n: u8) {
        if let Some(thing) = self.stage.model.choose(self.me, n, Standing::Gone) {
            self.is_refused(&thing);
        }
    }

    /// What is gone is refused as what is not there, whatever goes wrong with members.
    fn is_refused(&self, thing: &Thing) {
        self.is_not_used(thing);
        self.is_gone(thing);
    }

    /// The same of its handle alone: nothing is searched, so that nobody has another reason to look what others have done.
    fn is_not_used(&self, thing: &Thing) {
        let Some(handle) = thing.handle(self.process) else { return };
        match self.answer(thing, handle, false) {
            Ok(_) => self.stage.broken("G2", format!("{} is gone and was used", thing.name())),
            Err(Failed { rv: Rv::KEY_HANDLE_INVALID | Rv::OBJECT_HANDLE_INVALID, .. }) => {}
            Err(Failed { step, rv }) if self.stage.must_succeed() => {
                self.stage.broken("G2", format!("{} is gone, and {step} answered {rv}", thing.name()));
            }
            Err(_) => {}
        }
    }

    /// What was lost, or is elsewhere, may be refused in any words, but where it is answered for it is what it was.
    fn ask_lost(&self, thing: &Thing) {
        if let Err(failed) = self.find(thing).and_then(|()| self.ask(thing, false)) {
            let (name, rv) = (thing.name(), failed.rv);
            self.stage.say(format_args!("{name}, which need not be served: {} answered {rv}", failed.step));
        }
    }

    /// Session objects are on one member, and gone when that is.
    fn session_object(&self, kind: Kind) {
        // One that outlives its member may be left by a call that failed: no other one has its label.
        let label = match self.stage.plan.replay || self.stage.plan.only_leaves() {
            true => format!("session-{}-{:?}", self.me, self.stage.model.new_id()),
            false => format!("session-{}-{}", self.me, self.stage.model.things().len()),
        };
        let thing = Thing {
            number: None,
            label,
            kind,
            public: false,
            owner: self.me,
            busy: None,
            standing: Standing::There,
            version: 0,
            proof: None,
            handles: BTreeMap::new(),
            ids: vec![vec![3, self.me.thread as u8]],
        };
        let handles = match self.create(std::slice::from_ref(&thing), false) {
            Ok(handles) => handles,
            Err(failed) => return self.failed("making of a session object", &failed),
        };
        if self.stage.plan.replay || self.stage.plan.only_leaves() {
            return self.outlives(thing, &handles);
        }
        if let Ok(proof) = self.prove(&thing, handles[0], handles.last().copied()) {
            let handles = BTreeMap::from([(self.process, handles[0])]);
            _ = self.ask(&Thing { handles, proof: Some(proof), ..thing }, false);
        }
        for handle in handles {
            _ = self.slot.destroy_object(self.session, handle);
        }
    }

    /// Where session objects are made again, or no member goes that has one alone, one is there for as long as it is not destroyed, whatever becomes of members.
    fn outlives(&self, thing: Thing, handles: &[ObjectHandle]) {
        let pause = || self.stage.scheduler.sleep(Duration::from_millis(300));
        let known = BTreeMap::from([(self.process, handles[0])]);
        let thing = Thing { handles: known, ..thing };
        let what = format!("use of {}", thing.name());
        let proof = match self.prove(&thing, handles[0], handles.last().copied()) {
            Ok(proof) => proof,
            Err(failed) => return self.failed(&what, &failed),
        };
        let thing = Thing { proof: Some(proof), ..thing };
        for parts in [false, true] {
            pause();
            if let Err(failed) = self.ask(&thing, parts) {
                return self.failed(&what, &failed);
            }
        }
        pause();
        match self.search(&vec![Attribute::bytes(ck::CKA_LABEL, thing.label.as_bytes())]) {
            Ok(mut found) => {
                found.sort_unstable();
                let mut all = handles.to_vec();
                all.sort_unstable();
                if found != all && self.stage.must_succeed() {
                    self.stage.broken("G3", format!("{} is {all:?} and is found as {found:?}", thing.name()));
                }
            }
            Err(failed) => self.failed(&format!("search of {}", thing.name()), &failed),
        }
        // Data objects have no CKA_ID (section 4.5).
        if thing.kind != Kind::Data {
            let id = vec![Attribute::bytes(ck::CKA_ID, [4, 4])];
            let changed = self.slot.set_attributes(self.session, handles[0], &id);
            match self.at("C_SetAttributeValue", changed) {
                Ok(()) => {
                    pause();
                    let there = self.slot.get_attributes(self.session, handles[0], &[ck::CKA_ID]);
                    match self.at("C_GetAttributeValue", there) {
                        Ok(there) if there[0].bytes() == Some(&[4, 4]) => {}
                        Ok(_) => self.stage.broken("G8", format!("{} lost its change", thing.name())),
                        Err(failed) => return self.failed(&what, &failed),
                    }
                }
                Err(failed) => return self.failed(&format!("change of {}", thing.name()), &failed),
            }
        }
        for handle in handles {
            if let Err(failed) = self.at("C_DestroyObject", self.slot.destroy_object(self.session, *handle)) {
                return self.failed(&format!("destruction of {}", thing.name()), &failed);
            }
        }
        self.is_refused(&thing);
    }

    fn reopen(&mut self) {
        self.close();
        match self.slot.open_session(true) {
            Ok(session) => {
                self.stage.new_session(self.process, session);
                self.session = session;
            }
            Err(rv) => self.stage.broken("G4", format!("C_OpenSession answered {rv}")),
        }
    }

    /// Closes the session, after which there is none.
    pub fn close(&self) {
        let closed = self.slot.close_session(self.session);
        if let Err(failed) = self.at("C_CloseSession", closed) {
            self.failed("closing of a session", &failed);
        }
        let after = self.slot.session_info(self.session).map(|info| info.state);
        if after != Err(Rv::SESSION_HANDLE_INVALID) {
            let how = format!("a session that was closed answers {after:?}");
            self.stage.broken("sessions", how);
        }
    }

    fn digest(&self) {
        let mut space = [0u8; 64];
        let mut out = Output::buffer(&mut space);
        let mut mechanism = Mechanism::plain(ck::CKM_SHA256);
        let (slot, s) = (&self.slot, self.session);
        let begun = slot.op_init(s, OpKind::Digest, Some(&mut mechanism), ObjectHandle(0));
        let done = self.at("C_DigestInit", begun).and_then(|()| {
            let made = slot.op_one_shot(s, OpKind::Digest, QUESTION, &mut out);
            self.at("C_Digest", made)
        });
        match done {
            Ok(()) if out.written() != Sha256::digest(QUESTION).as_slice() => {
                self.stage.broken("G3", "a wrong digest".into());
            }
            Ok(()) => {}
            Err(failed) => self.failed("a digest", &failed),
        }
        let drawn = slot.generate_random(s, &mut space);
        if let Err(failed) = self.at("C_GenerateRandom", drawn) {
            self.failed("random bytes", &failed);
        }
    }

    /// Waits until the slot serves, at most so long.
    pub fn wait_for_service(&self, longest: Duration) {
        let until = self.stage.scheduler.now() + longest;
        let serves = || {
            self.slot.generate_random(self.session, &mut [0; 8]).is_ok()
                && self.search(&vec![Attribute::bool(ck::CKA_TOKEN, true)]).is_ok()
        };
        while !serves() {
            if self.stage.scheduler.now() >= until {
                self.stage
                    .broken("G4", format!("nothing is served for {longest:?} although a member is well"));
            }
            self.stage.scheduler.sleep(Duration::from_millis(100));
        }
    }

    /// Asks each object that is there, looks for each that is gone, and for everything, when everything is well: the end
    /// of a history.
    pub fn ask_all(&self) {
        let things = self.stage.model.things().clone();
        for thing in &things {
            match thing.standing {
                Standing::There if !self.stage.must_serve(thing) => self.ask_lost(thing),
                Standing::There => {
                    if let Err(failed) = self.ask(thing, false) {
                        self.failed(&format!("use of {} at the end", thing.name()), &failed);
                    }
                }
                Standing::Gone => self.is_gone(thing),
                Standing::Lost => self.ask_lost(thing),
                Standing::Making | Standing::Leaving | Standing::Unknown => {}
            }
        }
        self.find_all();
        self.survey();
    }
}
