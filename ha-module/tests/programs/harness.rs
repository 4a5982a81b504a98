//! Runs each step of a program twice, on a bare token and on the slot, and compares exit status and output.
//!
//! What must differ is taken out first: serial numbers, slot numbers, the names of model and manufacturer, paths, and
//! what a program's own rules say (key material, random identifiers). Any other difference fails the step, unless the
//! step names it.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ha_rig::{Tokens, softhsm};
use regex::Regex;

/// The label of the group and of the bare token.
pub(crate) const LABEL: &str = "ha1";

/// Guards against a program that hangs; in seconds.
const PATIENCE: &str = "120";

/// What must differ for every program: a pattern, and what stands in its place.
const COMMON: &[(&str, &str)] = &[
    (r"SoftHSM slot ID 0x[0-9a-f]+|HA Virtual Card Slot", "SLOT"),
    (r"(?i)(serial(?: num(?:ber)?)?\s*[:=]\s*)[0-9a-f]{16}\b", "${1}SERIAL"),
    (r"SoftHSM(%20| )project|pkcs11-ha\b", "MANUFACTURER"),
    (r"SoftHSM(%20| )v2|\bHA(%20| )group\b", "MODEL"),
];

/// A difference that is right: this text of the bare token's output reads so in the slot's.
pub(crate) type Difference<'a> = (&'a str, &'a str);

/// One of the two: the bare token or the slot.
pub(crate) struct Side {
    /// What a program loads.
    pub(crate) module: PathBuf,
    /// Where programs run, and leave their files.
    pub(crate) dir: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
}

/// The same token twice: bare, and as a group.
pub(crate) struct Both {
    pub(crate) bare: Side,
    pub(crate) slot: Side,
    /// The members of the group.
    pub(crate) members: Tokens,
    rules: Vec<(Regex, &'static str)>,
    environment: Vec<(&'static str, String)>,
    _token: Tokens,
}

/// A program that goes on beside the test, and ends with it.
pub(crate) struct Beside(pub(crate) Child);

impl Drop for Beside {
    fn drop(&mut self) {
        // Asked, and not forced: what guards its time passes that on. It may have ended by itself.
        _ = Command::new("kill").arg(self.0.id().to_string()).stderr(Stdio::null()).status();
        _ = self.0.wait();
    }
}

/// What a program did on one side.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    /// Standard output, then standard error, with what must differ taken out.
    pub(crate) text: String,
    /// Where standard error begins in it.
    errors: usize,
    /// The same, as it came.
    pub(crate) raw: String,
}

/// What a step gave on both sides, before it was judged.
#[must_use = "a step is nothing until it is judged"]
pub(crate) struct Step(Judged);

/// What a step gave on both sides, which was found right.
pub(crate) struct Judged {
    line: String,
    pub(crate) bare: Ran,
    pub(crate) slot: Ran,
    log: String,
}

impl Both {
    /// A bare token and a group of two, with lines of its own for the group, and a program's own rules for what differs.
    pub(crate) fn new(group: &str, rules: &[(&str, &'static str)]) -> Both {
        let (token, members) = (Tokens::labelled(&[LABEL]), Tokens::new(2));
        let side = |tokens: &Tokens, module: PathBuf, environment| {
            let dir = tokens.path().join("work");
            std::fs::create_dir(&dir).unwrap();
            Side { module, dir, environment }
        };
        let log = members.path().join("log");
        let config = |served| {
            format!(
                "{}[log]\ntarget = {:?}\n",
                members.config(served, group),
                format!("file:{}", log.display())
            )
        };
        let (direct, served) = (members.path().join("ha.toml"), members.path().join("served.toml"));
        std::fs::write(&direct, config(false)).unwrap();
        std::fs::write(served, config(true)).unwrap();
        let rules = COMMON.iter().chain(rules).map(|(p, r)| (Regex::new(p).unwrap(), *r)).collect();
        Both {
            bare: side(&token, softhsm(), vec![("SOFTHSM2_CONF", token.conf(0))]),
            slot: side(&members, shared_object(), vec![("PKCS11_HA_CONF", direct)]),
            members,
            rules,
            environment: Vec::new(),
            _token: token,
        }
    }

    /// What the module has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.members.path().join("log")).unwrap_or_default()
    }

    /// Sets a variable for all steps to come.
    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.environment.push((name, value.into()));
    }

    /// From here on the members are reached through servers, which can be killed.
    pub(crate) fn serve(&mut self) {
        for member in 0..2 {
            self.members.serve(member);
        }
        self.slot.environment = vec![("PKCS11_HA_CONF", self.members.path().join("served.toml"))];
    }

    /// Writes a file into both work folders.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        for side in [&self.bare, &self.slot] {
            std::fs::write(side.dir.join(name), content.as_ref()).unwrap();
        }
    }

    /// Prepares the same files for both: a command that needs no token, run in one work folder.
    pub(crate) fn prepare(&self, line: &str, made: &[&str]) {
        let ran = self.run(&self.bare, line);
        assert_eq!(ran.code, Some(0), "{line}\n{}", ran.raw);
        for name in made {
            std::fs::copy(self.bare.dir.join(name), self.slot.dir.join(name)).unwrap();
        }
    }

    /// Runs a command line on both sides, at the same time. Its words are separated by spaces; `{module}` and `{dir}`
    /// are the side's own.
    pub(crate) fn step(&self, line: &str) -> Step {
        let (bare, slot) = std::thread::scope(|scope| {
            let bare = scope.spawn(|| self.run(&self.bare, line));
            let slot = self.run(&self.slot, line);
            (bare.join().unwrap(), slot)
        });
        let log = self.log();
        Step(Judged { line: line.to_owned(), bare, slot, log })
    }

    /// The command of a line, for one side.
    pub(crate) fn command(&self, side: &Side, line: &str) -> Command {
        let (module, dir) = (side.module.to_str().unwrap(), side.dir.to_str().unwrap());
        let mut words = line.split_whitespace().map(|w| w.replace("{module}", module).replace("{dir}", dir));
        let program = words.next().unwrap();
        let mut command = Command::new("timeout");
        command.args(["-k", "5", PATIENCE]).arg(&program).args(words).current_dir(&side.dir);
        for name in
            ["XDG_CONFIG_HOME", "XDG_STATE_HOME", "SSH_AUTH_SOCK", "RUST_BACKTRACE", "JAVA_TOOL_OPTIONS"]
        {
            command.env_remove(name);
        }
        // Where Debian has servers and their tools, which is on root's path only.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        command.env("PATH", path).env("HOME", &side.dir).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        for (name, value) in &self.environment {
            command.env(name, value.replace("{module}", module).replace("{dir}", dir));
        }
        command.envs(side.environment.iter().map(|(n, v)| (n, v)));
        command
    }

    /// Runs a command line on the slot's side only.
    pub(crate) fn on_slot(&self, line: &str) -> Ran {
        self.run(&self.slot, line)
    }

    /// Runs a command line on one side.
    pub(crate) fn run(&self, side: &Side, line: &str) -> Ran {
        let output =
            self.command(side, line).output().expect("timeout runs: install the Debian package coreutils");
        // What `timeout` answers for a program that is not there.
        assert_ne!(output.status.code(), Some(127), "{line}: is not there: install {}", package(line));
        assert_ne!(output.status.code(), Some(124), "{line}: still running after {PATIENCE} s");
        let [out, err] = [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned());
        let text = [&out, &err].map(|t| self.normal(side, t));
        // As a shell counts a death by a signal.
        let code = output.status.code().or_else(|| output.status.signal().map(|s| 128 + s));
        Ran { code, text: text.concat(), errors: text[0].len(), raw: out + &err }
    }

    fn normal(&self, side: &Side, text: &str) -> String {
        let paths = [(&side.module, "MODULE"), (&side.dir, "DIR")];
        let text =
            paths.iter().fold(text.to_owned(), |t, (path, word)| t.replace(path.to_str().unwrap(), word));
        self.rules.iter().fold(text, |t, (pattern, word)| pattern.replace_all(&t, *word).into_owned())
    }
}

impl Step {
    /// Whether the program said this, on either side.
    pub(crate) fn has_said(&self, words: &str) -> bool {
        [&self.0.bare, &self.0.slot].iter().any(|ran| ran.raw.contains(words))
    }

    /// A program that may crash in its own exit handlers, on either side, and ends with this status where it does not.
    pub(crate) fn may_crash(mut self, code: i32) -> Step {
        for ran in [&mut self.0.bare, &mut self.0.slot] {
            // A segmentation fault, as a shell counts it.
            if ran.code == Some(128 + 11) {
                ran.code = Some(code);
            }
        }
        self
    }

    /// It succeeded on both sides, and said the same.
    pub(crate) fn same(self) -> Judged {
        self.ends(0, &[])
    }

    /// It succeeded on both sides, and what it said differs in this only.
    pub(crate) fn differs(self, differences: &[Difference<'_>]) -> Judged {
        self.ends(0, differences)
    }

    /// It succeeded on both sides; what it said is made up anew each time.
    pub(crate) fn quietly_succeeds(self) -> Judged {
        let Step(step) = self;
        assert_eq!((step.bare.code, step.slot.code), (Some(0), Some(0)), "exit status\n{step}");
        step
    }

    /// It failed on both sides in the same way.
    pub(crate) fn fails(self, code: i32) -> Judged {
        self.ends(code, &[])
    }

    /// It ended on both sides with this status, and what it said differs in this only.
    pub(crate) fn ends(self, code: i32, differences: &[Difference<'_>]) -> Judged {
        self.ends_apart((code, code), differences)
    }

    /// It ended with one status on the bare token and the other on the slot, and what it said differs in this only.
    pub(crate) fn ends_apart(self, (bare, slot): (i32, i32), differences: &[Difference<'_>]) -> Judged {
        let Step(step) = self;
        assert_eq!((step.bare.code, step.slot.code), (Some(bare), Some(slot)), "exit status\n{step}");
        let mut expected = step.bare.text.clone();
        for (bare, slot) in differences {
            assert!(expected.contains(bare), "the bare token no longer says {bare:?}\n{step}");
            expected = expected.replace(bare, slot);
        }
        assert!(step.slot.text == expected, "the slot answers otherwise than a bare token\n{step}");
        step
    }

    /// The bare token does it and the slot does not, with this status and these words in its output.
    pub(crate) fn refused(self, code: i32, words: &str) -> Judged {
        let Step(step) = self;
        assert_eq!((step.bare.code, step.slot.code), (Some(0), Some(code)), "exit status\n{step}");
        assert!(step.slot.text.contains(words), "expected {words:?}\n{step}");
        step
    }

    /// Puts what standard output lists in no promised order into one order: blocks that begin with a line that this
    /// pattern is in.
    pub(crate) fn sorted(mut self, begins: &str) -> Step {
        let begins = Regex::new(begins).unwrap();
        for ran in [&mut self.0.bare, &mut self.0.slot] {
            let mut blocks: Vec<String> = vec![String::new()];
            let errors = ran.text.split_off(ran.errors);
            for line in ran.text.lines() {
                if begins.is_match(line) {
                    blocks.push(String::new());
                }
                let block = blocks.last_mut().unwrap();
                block.push_str(line);
                block.push('\n');
            }
            // What stands before the first block stays there.
            blocks[1..].sort();
            ran.text = blocks.concat();
            ran.errors = ran.text.len();
            ran.text += &errors;
        }
        self
    }
}

impl Judged {
    /// The output says this, on both sides.
    pub(crate) fn says(self, text: &str) -> Judged {
        assert!(self.bare.text.contains(text) && self.slot.text.contains(text), "expected {text:?}\n{self}");
        self
    }
}

impl std::fmt::Display for Judged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Judged { line, bare, slot, log } = self;
        writeln!(f, "$ {line}")?;
        writeln!(f, "--- bare: {:?}\n{}--- slot: {:?}\n{}", bare.code, bare.text, slot.code, slot.text)?;
        write!(f, "--- the module's log\n{log}")
    }
}

/// The package of the program that a line begins with.
fn package(line: &str) -> &'static str {
    match line.split_whitespace().next().unwrap_or_default() {
        "pkcs11-tool" => "opensc",
        "p11tool" | "certtool" => "gnutls-bin",
        "openssl" => "openssl",
        "ssh" | "ssh-keygen" | "ssh-add" | "ssh-agent" => "openssh-client",
        "certutil" | "modutil" => "libnss3-tools",
        "keytool" => "default-jre-headless",
        "jar" | "jarsigner" => "default-jdk-headless",
        "ods-hsmutil" => "libhsm-bin",
        "keymgr" => "knot",
        "ldns-verify-zone" => "ldnsutils",
        "dnssec-verify" => "bind9-utils",
        _ => "it",
    }
}

/// A file that must be there, of this package.
pub(crate) fn needed(paths: &[&str], package: &str) -> PathBuf {
    let found = paths.iter().map(Path::new).find(|p| p.exists());
    found
        .unwrap_or_else(|| panic!("none of {paths:?} is there: install the Debian package {package}"))
        .to_owned()
}

/// The shared object, which cargo builds with these tests.
fn shared_object() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let folder = tests.parent().unwrap();
    let places = [folder.join("libha_module.so"), folder.parent().unwrap().join("libha_module.so")];
    places.into_iter().find(|p| p.exists()).expect("libha_module.so is built with the tests")
}
