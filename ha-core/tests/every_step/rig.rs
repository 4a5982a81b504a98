//! Two tokens, each of which fails as it is told, and what is played on their group.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ha_core::config::Config;
use ha_core::group::Group;
use ha_core::provider::Provider;
use ha_core::seam::System;
use ha_rig::{Hooked, PIN, Tokens};
use ha_token::{
    Connector, Mechanism, ObjectHandle, OpKind, Output, Params, Result, Rv, SessionHandle, Token, UserType,
};

use crate::cases::{Case, Keys, Shape};
use crate::fault::{Failing, Fault};

/// The members are probed often, so that the next row finds both.
const GROUP: &str = "balance = \"primary\"\n[group.recovery]\ninterval = \"1ms\"\nmax_interval = \"4ms\"";

pub(crate) struct Rig {
    pub slot: Arc<dyn Token>,
    pub session: SessionHandle,
    pub keys: Keys,
    provider: Provider,
    first: Failing,
    _tokens: Tokens,
}

/// What came of a case.
pub(crate) struct Row {
    calls: usize,
    /// How often each fault was met.
    met: Vec<(Fault, usize)>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let met: Vec<_> = self.met.iter().map(|(fault, met)| format!("{fault} {met}")).collect();
        write!(f, "{} calls: {}", self.calls, met.join(", "))
    }
}

impl Rig {
    pub(crate) fn new(deadline: &str) -> Self {
        let tokens = Tokens::new(2);
        {
            let config = Config::parse(&tokens.config(false, "deadline = \"off\"")).unwrap();
            let provider = Provider::from_config(config).unwrap();
            let (slot, session) = log_in(&provider);
            Keys::make(&*slot, session);
            assert!(provider.shutdown(Duration::from_secs(60)).is_empty());
        }
        let text = tokens.config(false, &format!("deadline = {deadline:?}\n{GROUP}"));
        let config = Config::parse(&text).unwrap();
        let members = &config.groups[0].members;
        let failing: Vec<Failing> = members.iter().map(|_| Failing::default()).collect();
        let connector = |(member, failing): (_, &Failing)| -> Box<dyn Connector> {
            Box::new(Hooked { real: ha_core::provider::connector(member), hook: failing.clone() })
        };
        let connectors = members.iter().zip(&failing).map(connector).collect();
        let provider = Provider::with_members(config, System::new(), vec![connectors]).unwrap();
        let (slot, session) = log_in(&provider);
        let keys = Keys::find(&*slot, session);
        Rig { slot, session, keys, provider, first: failing[0].clone(), _tokens: tokens }
    }

    fn group(&self) -> &Arc<Group> {
        &self.provider.groups()[0]
    }

    fn all_up(&self) {
        while !self.group().members.iter().all(|m| self.group().serves_fully(m)) {
            std::thread::yield_now();
        }
    }

    /// A case with every fault at every call of it.
    pub(crate) fn row(&self, case: &Case, faults: &[Fault]) -> Row {
        self.all_up();
        // Its copies are proven before the calls are counted.
        self.check(case, "without a fault");
        let (_, calls) = self.check(case, "without a fault");
        assert!(calls > 1, "{}: nothing was called", case.name);
        // An operation without a parameter is begun with its first call where it has just been made. A hang costs a deadline.
        let befores = |fault: Fault| -> &[&str] {
            match (&case.mechanism.params, fault) {
                (Params::None, Fault::Hangs) => &["once more, "],
                (Params::None, _) => &["", "once more, "],
                _ => &[""],
            }
        };
        let met = faults.iter().map(|fault| {
            let at = |step| {
                let is_met = |before: &&str| {
                    if !before.is_empty() {
                        self.run(case).unwrap();
                    }
                    self.first.arm(step, *fault);
                    self.check(case, &format!("{before}{fault} at call {step}")).0
                };
                befores(*fault).iter().all(is_met)
            };
            (*fault, (0..calls).filter(|step| at(*step)).count())
        });
        let met: Vec<_> = met.collect();
        assert!(met.iter().all(|(_, met)| *met == calls), "{}: a fault was not met", case.name);
        Row { calls, met }
    }

    /// Plays a case, heals the member, and judges the answer. Answers whether the member had failed, and how many calls of
    /// operations it saw.
    fn check(&self, case: &Case, when: &str) -> (bool, usize) {
        let answer = self.run(case);
        let seen = self.first.heal();
        self.all_up();
        let out = answer.unwrap_or_else(|rv| panic!("{}, {}, {when}: {rv}", case.name, case.shape));
        match (&case.expected, &case.undone_by) {
            (Some(expected), _) => {
                assert!(out == *expected, "{}, {}, {when}: another answer", case.name, case.shape);
            }
            (None, Some(undo)) => self.undo(case, undo, &out, when),
            (None, None) => panic!("{} is judged by nothing", case.name),
        }
        self.first.heal();
        seen
    }

    /// What was signed is verified, what was enciphered deciphered.
    fn undo(&self, case: &Case, (kind, key): &(OpKind, ObjectHandle), out: &[u8], when: &str) {
        let what = || format!("{}, {}, {when}", case.name, case.shape);
        let (slot, s) = (&self.slot, self.session);
        slot.op_init(s, *kind, Some(&mut case.mechanism.clone()), *key).unwrap();
        match kind {
            OpKind::Verify => {
                slot.verify(s, &case.input, out).unwrap_or_else(|rv| panic!("{}: {rv}", what()))
            }
            _ => {
                let mut space = [0; 2048];
                let mut output = Output::buffer(&mut space);
                slot.op_one_shot(s, *kind, out, &mut output).unwrap();
                assert_eq!(output.written(), case.input, "{}", what());
            }
        }
    }

    /// Plays a case once; what it puts out.
    fn run(&self, case: &Case) -> Result<Vec<u8>> {
        let (slot, s) = (&*self.slot, self.session);
        slot.op_init(s, case.kind, Some(&mut case.mechanism.clone()), case.key)?;
        match (case.kind, case.shape) {
            (OpKind::Verify, Shape::Whole) => slot.verify(s, &case.input, &case.signature)?,
            (OpKind::Verify, Shape::Parts) => {
                for part in case.parts() {
                    slot.op_update(s, case.kind, part, &mut Output::query())?;
                }
                slot.verify_final(s, &case.signature)?;
            }
            (_, Shape::Whole) => {
                return asked_and_short(|out| slot.op_one_shot(s, case.kind, &case.input, out));
            }
            (_, Shape::Parts) => {
                let mut whole = Vec::new();
                for part in case.parts() {
                    match case.kind {
                        OpKind::Encrypt | OpKind::Decrypt => {
                            whole.extend(asked_and_short(|out| slot.op_update(s, case.kind, part, out))?);
                        }
                        _ => slot.op_update(s, case.kind, part, &mut Output::query())?,
                    }
                }
                whole.extend(asked_and_short(|out| slot.op_final(s, case.kind, out))?);
                return Ok(whole);
            }
        }
        Ok(Vec::new())
    }
}

fn log_in(provider: &Provider) -> (Arc<dyn Token>, SessionHandle) {
    let slot = Arc::clone(provider.slot(0).unwrap()) as Arc<dyn Token>;
    let session = slot.open_session(true).unwrap();
    slot.login(session, UserType::User, Some(PIN.as_bytes())).unwrap();
    (slot, session)
}

/// Asks for the length, gives too little room where there may be too little, and then enough.
fn asked_and_short(mut call: impl FnMut(&mut Output<'_>) -> Result<()>) -> Result<Vec<u8>> {
    let mut query = Output::query();
    call(&mut query)?;
    let len = query.len();
    if len > 0 {
        let mut space = vec![0; len - 1];
        let mut short = Output::buffer(&mut space);
        match call(&mut short) {
            Err(Rv::BUFFER_TOO_SMALL) => {}
            Err(rv) => return Err(rv),
            // More was said than comes.
            Ok(()) => return Ok(short.written().to_vec()),
        }
    }
    let mut space = vec![0; len];
    let mut output = Output::buffer(&mut space);
    call(&mut output)?;
    Ok(output.written().to_vec())
}

impl Rig {
    pub(crate) fn cases(&self) -> Vec<Case> {
        crate::cases::all(self)
    }

    /// An operation without a fault, for what a case needs.
    pub(crate) fn once(
        &self,
        kind: OpKind,
        mechanism: &Mechanism,
        key: ObjectHandle,
        input: &[u8],
    ) -> Vec<u8> {
        let (slot, s) = (&self.slot, self.session);
        slot.op_init(s, kind, Some(&mut mechanism.clone()), key).unwrap();
        let mut space = [0; 2048];
        let mut output = Output::buffer(&mut space);
        slot.op_one_shot(s, kind, input, &mut output).unwrap();
        output.written().to_vec()
    }
}
