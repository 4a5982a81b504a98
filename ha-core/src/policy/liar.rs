//! Who is convicted of a wrong signature.
//!
//! A signature that does not verify is never handed out. That its member is to blame is another question: the input may be
//! one for which there is no right signature, or one for which a token and the software here differ, and then every member
//! would be thrown out by one odd call. So a member is convicted by a witness: a right signature over the same input, whoever
//! made it; or, where the mechanism signs any message whatever, one that was right before, with the same key and mechanism.

/// The members that have made a wrong signature in one call.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Trial {
    /// A bit for each that is not convicted.
    accused: u32,
}

impl Trial {
    /// This member made a wrong signature. Answers whether it is convicted at once: `shown` says that the software has seen a
    /// right one, of the same kind.
    pub fn wrong(&mut self, member: usize, shown: bool) -> bool {
        if !shown {
            self.accused |= 1 << member;
        }
        shown
    }

    /// A member made a right signature over the same input: those that did not before are convicted, a bit for each.
    #[must_use]
    pub fn right(&mut self) -> u32 {
        std::mem::take(&mut self.accused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_signature_alone_convicts_nobody() {
        let mut trial = Trial::default();
        assert!(!trial.wrong(0, false) && !trial.wrong(2, false));
        assert_eq!(trial.accused, 0b101);
    }

    #[test]
    fn a_right_one_convicts_all_who_made_a_wrong_one_before_once() {
        let mut trial = Trial::default();
        assert_eq!(trial.right(), 0);
        trial.wrong(0, false);
        trial.wrong(31, false);
        assert_eq!(trial.right(), 1 << 31 | 1);
        assert_eq!(trial.right(), 0);
    }

    #[test]
    fn where_the_software_has_seen_right_ones_the_wrong_one_convicts() {
        let mut trial = Trial::default();
        assert!(trial.wrong(1, true));
        assert_eq!(trial.right(), 0, "once is enough");
    }
}
