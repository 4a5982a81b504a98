//! PINs that were changed elsewhere: a login finds that out, and ends nothing that other applications' threads do.

use std::sync::Arc;

use ha_token::UserType;

use super::objects::Origin;
use super::refused::Digest;
use super::{Group, Member};
use crate::policy::health::State;

impl Group {
    /// That a member refused its PIN, and the application comes with another one now, is the sign that PINs were changed
    /// elsewhere: SoftHSM sees that only when it is initialised anew. One such member is connected anew, to judge this
    /// PIN; the others serve on, since the PIN may be a wrong one.
    pub(super) fn see_changed_pins(&self, user: UserType, digest: &Digest) -> Option<&Arc<Member>> {
        let refused_another = |m: &Arc<Member>| {
            self.may_hold_an_old_pin(m, user)
                && m.refused.has(user)
                && m.refused.answer(user, digest).is_none()
        };
        // Also one that its keeper is taking back, since nobody is logged in.
        let aside = |m: &&Arc<Member>| matches!(m.state(), State::Quarantined | State::Syncing);
        let back = |m: &&Arc<Member>| m.is_up() && self.is_idle(m);
        let (aside, back) = (self.members.iter().filter(aside), self.members.iter().filter(back));
        aside.chain(back).filter(|m| refused_another(m)).find(|member| {
            self.connect_for_pin(member);
            member.is_up()
        })
    }

    /// Whether a member is sent the application's PIN, and its instance may not know of a change.
    pub(super) fn may_hold_an_old_pin(&self, member: &Member, user: UserType) -> bool {
        member.connector().reinitialises() && !has_own_pin(member, user)
    }

    /// Whether a new connection of a member would end nothing.
    pub(super) fn is_idle(&self, member: &Member) -> bool {
        let Some(link) = member.link() else { return true };
        let lives_there = |o: &super::Object| {
            matches!(o.origin, Origin::Session(_)) && o.place(member.index, link.generation).is_some()
        };
        member.load() == 0 && self.objects.select(lives_there).is_empty()
    }

    pub(super) fn connect_for_pin(&self, member: &Arc<Member>) {
        tracing::info!(group = %self.config.label, member = member.name(), "connected anew: its PIN may have been changed elsewhere");
        self.connect_for_call(member);
    }
}

/// Whether a member has a PIN of its own for this user.
pub(super) fn has_own_pin(member: &Member, user: UserType) -> bool {
    user == UserType::User && member.config.pin.is_some()
}
