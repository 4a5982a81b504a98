//! What other programs have made and destroyed, seen from this one's process: all of them use the same token.

use super::Application;
use crate::model::Standing;

impl Application<'_> {
    /// Looks for an object of another program's by its label, and uses it.
    pub(super) fn theirs(&self, n: u8) {
        let Some(thing) = self.stage.model.choose_theirs(self.me.program, n, Standing::There) else { return };
        // Whose first use has failed, or is yet to come, leaves that to its own thread.
        let used = self.find(&thing).and_then(|()| match &thing.proof {
            Some(_) => self.ask(&thing, false),
            None => Ok(()),
        });
        if let Err(failed) = used {
            self.failed_with(&thing, "use", &failed);
        }
    }

    /// Looks for, and uses, an object of another program's that is gone.
    pub(super) fn theirs_gone(&self, n: u8) {
        if let Some(thing) = self.stage.model.choose_theirs(self.me.program, n, Standing::Gone) {
            self.is_refused(&thing);
        }
    }

    /// Uses one of those that this process has a handle of.
    pub(super) fn theirs_kept(&self, n: u8) {
        let Some(thing) = self.stage.model.choose_known(self.me.program, self.process, n) else { return };
        match thing.standing {
            Standing::Gone => self.is_not_used(&thing),
            _ => {
                if thing.proof.is_some()
                    && let Err(failed) = self.ask(&thing, false)
                {
                    self.failed_with(&thing, "use", &failed);
                }
            }
        }
    }

    /// Destroys an object of another program's.
    pub(super) fn destroy_theirs(&self, n: u8) {
        if let Some(thing) = self.stage.model.choose_theirs(self.me.program, n, Standing::There) {
            self.destroy_one(&thing);
        }
    }
}
