//! Backing sessions, lent to virtual ones: for one operation, or kept for the next.

use std::sync::Arc;

use ha_token::{ObjectHandle, Result, SessionHandle, Template, Token};

use super::link::Link;
use super::member::Member;
use super::objects::{Object, Trust};
use crate::mutants::wrong;
use crate::replica::find_whole;

/// Handles fetched with one call.
const BATCH: usize = 512;

/// A backing session, lent; given back when dropped.
///
/// A lease counts as load of its member, apart from when it rests between two operations and when it only owns objects.
pub struct Lease {
    /// Whose it is.
    pub member: Arc<Member>,
    /// The connection it belongs to.
    pub link: Arc<Link>,
    /// The member's session handle.
    pub session: SessionHandle,
    clean: bool,
    works: bool,
    kept: bool,
}

impl Lease {
    /// Lends a session of a connection.
    ///
    /// # Errors
    /// The member's answer to `C_OpenSession`.
    pub(super) fn new(member: &Arc<Member>, link: Arc<Link>) -> Result<Self> {
        // Before the call: one that hangs in it is known to be there.
        member.work_begins();
        let session = link.take_session().inspect_err(|_| member.work_ends())?;
        Ok(Lease { member: Arc::clone(member), link, session, clean: true, works: true, kept: false })
    }

    /// The member's token.
    pub fn token(&self) -> &dyn Token {
        &*self.link.token
    }

    /// For the procedures of `replica`.
    pub fn on(&self) -> crate::replica::On<'_> {
        self.link.on(self.session)
    }

    /// The member's objects that match, and none that is half made: a thread of ours may be making one that was found.
    ///
    /// # Errors
    /// The member's answer.
    pub(crate) fn find(&self, template: &Template) -> Result<Vec<ObjectHandle>> {
        find_whole(self.on(), template, BATCH, &|handle| self.link.virtual_of(handle).is_some())
    }

    /// Whether this handle of the member's is the proven copy of an object: what it stands for may have been said by its
    /// names alone, before another one was proven to be it.
    pub(super) fn holds_proven(&self, object: &Object, handle: ObjectHandle) -> bool {
        object
            .place(self.member.index, self.link.generation)
            .is_some_and(|p| p.trust == Trust::Proven && (p.handle == handle || wrong!(NameStaysOnHandle)))
    }

    /// Marks whether something is going on in the session: if so it is closed, not lent again.
    pub fn set_busy(&mut self, busy: bool) {
        self.clean = !busy;
    }

    /// Keeps the session for the borrower's next operation. False if it has to be given back: something goes on in it,
    /// or the connection cannot spare another one.
    #[inline]
    pub(crate) fn rest(&mut self) -> bool {
        if !self.clean || !(self.kept || self.link.keep_one()) {
            return false;
        }
        self.kept = true;
        if std::mem::take(&mut self.works) {
            self.member.work_ends();
        }
        true
    }

    /// Keeps the session for the objects that it will own, not for operations: it is no load of its member.
    pub(crate) fn own(&mut self) {
        if std::mem::take(&mut self.works) {
            self.member.work_ends();
        }
    }

    /// The rest is over: an operation begins.
    #[inline]
    pub(crate) fn resume(&mut self) {
        if !std::mem::replace(&mut self.works, true) {
            self.member.work_begins();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.works {
            self.member.work_ends();
        }
        if self.kept {
            self.link.let_one_go();
        }
        if self.clean {
            self.link.give_session(self.session);
        } else {
            self.link.close_session(self.session);
        }
    }
}
