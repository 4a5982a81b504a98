//! What is drilled: a throw-away group whose servers are broken, or a configured one whose members are broken in front of
//! their modules.

use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::time::Duration;

use crate::plan::How;
use crate::rig::{self, Rig};
use crate::seam::Seam;

/// Where members are broken and mended. All methods may be called from any thread.
pub(crate) enum Ground {
    /// Tokens and servers of the drill's own.
    Own(Rig),
    /// What stands between a configured group and each of its members.
    Configured(Vec<Seam>),
}

impl Ground {
    /// Breaks a member.
    ///
    /// # Errors
    /// What the system says; there is no such member any more.
    pub(crate) fn break_down(&self, member: usize, how: How, deadline: Option<Duration>) -> Result<()> {
        match self {
            Ground::Own(rig) => rig.break_down(member, how, deadline),
            Ground::Configured(seams) => {
                seam(seams, member)?.break_down(how, rig::halt(deadline));
                Ok(())
            }
        }
    }

    /// Mends a member that was broken so.
    ///
    /// # Errors
    /// As [`break_down`](Self::break_down).
    pub(crate) fn mend(&self, member: usize, how: How) -> Result<()> {
        match self {
            Ground::Own(rig) => rig.mend(member, how),
            Ground::Configured(seams) => {
                seam(seams, member)?.mend();
                Ok(())
            }
        }
    }

    /// Removes what can be removed at once; answers what is still there. The objects of a configured group are removed by
    /// the drill itself, as that takes calls to its members.
    pub(crate) fn remove(&self) -> Option<PathBuf> {
        match self {
            Ground::Own(rig) => rig.remove(),
            Ground::Configured(_) => None,
        }
    }

    /// How often the drill is interrupted before the process ends at once.
    pub(crate) fn patience(&self) -> usize {
        match self {
            Ground::Own(_) => 2,
            // The second time nothing more is waited for; what was made on the members is still removed.
            Ground::Configured(_) => 3,
        }
    }
}

fn seam(seams: &[Seam], member: usize) -> Result<&Seam> {
    seams.get(member).ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such member"))
}
