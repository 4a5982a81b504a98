//! pkcs11-tool in front of a faulty token, and the command that tells it what to do.
#![allow(missing_docs, clippy::unwrap_used)]

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use ha_rig::{PIN, Store, softhsm};

const LABEL: &str = "faulty";

fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap();
    let places = [folder.join("libfaulty_token.so"), folder.parent().unwrap().join("libfaulty_token.so")];
    places.into_iter().find(|p| p.exists()).expect("libfaulty_token.so is built with the tests")
}

struct Bench(Store);

impl Bench {
    fn new(rules: &[&str]) -> Bench {
        let bench = Bench(Store::with(&[LABEL]));
        bench.configure(rules);
        std::fs::write(bench.file("data"), [7; 32]).unwrap();
        bench
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.dir().join(name)
    }

    fn configure(&self, rules: &[&str]) {
        let socket = self.file("socket");
        let text = format!("module = {:?}\nsocket = {socket:?}\nrules = {rules:?}", softhsm());
        std::fs::write(self.file("faulty.toml"), text).unwrap();
        ha_rig::set_mode(&self.file("faulty.toml"), 0o600);
    }

    fn tool(&self, module: &PathBuf, arguments: &[&str]) -> Output {
        Command::new("pkcs11-tool")
            .arg("--module")
            .arg(module)
            .args(arguments)
            .current_dir(self.0.dir())
            .env("SOFTHSM2_CONF", self.0.conf())
            .env("FAULTY_TOKEN_CONF", self.file("faulty.toml"))
            .output()
            .expect("pkcs11-tool runs: install the Debian package opensc")
    }

    fn faulty(&self, arguments: &[&str]) -> Output {
        self.tool(&library(), arguments)
    }

    fn sign(&self) -> Output {
        self.faulty(&[
            "--login",
            "--pin",
            PIN,
            "--sign",
            "-m",
            "ECDSA",
            "--id",
            "01",
            "-i",
            "data",
            "-o",
            "signature",
        ])
    }

    fn verify(&self) -> String {
        let module = softhsm();
        let verify = ["--verify", "-m", "ECDSA", "--id", "01", "-i", "data", "--signature-file", "signature"];
        text(&self.tool(&module, &verify))
    }

    fn make_key(&self) {
        let made = self.faulty(&[
            "--login",
            "--pin",
            PIN,
            "--keypairgen",
            "--key-type",
            "EC:prime256v1",
            "--id",
            "01",
            "--label",
            "k",
        ]);
        assert!(made.status.success(), "{}", text(&made));
    }

    fn command(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_faulty-token"))
            .arg("--socket")
            .arg(self.file("socket"))
            .args(arguments)
            .output()
            .unwrap()
    }

    fn told(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn without_a_rule_nothing_is_different() {
    let bench = Bench::new(&[]);
    bench.make_key();
    for arguments in [
        &["-L"][..],
        &["-I"],
        &["-M"],
        &["-O"],
        &["--login", "--pin", PIN, "-O"],
        &["--login", "--pin", "0000", "-O"],
        &["--read-object", "--type", "pubkey", "--id", "01"],
    ] {
        let (bare, through) = (bench.tool(&softhsm(), arguments), bench.faulty(arguments));
        assert_eq!(text(&through), text(&bare), "{arguments:?}");
        assert_eq!(through.status, bare.status, "{arguments:?}");
    }
    assert!(bench.sign().status.success());
    assert!(bench.verify().contains("Signature is valid"), "{}", bench.verify());
}

#[test]
fn an_error_is_seen_from_the_script_and_from_the_command() {
    let bench = Bench::new(&["C_SignInit error CKR_DEVICE_ERROR count=1"]);
    bench.make_key();
    let seen = |output: Output| !output.status.success() && text(&output).contains("CKR_DEVICE_ERROR");
    assert!(seen(bench.sign()));
    assert!(bench.sign().status.success(), "the count holds from one process to the next");
    assert_eq!(bench.told(&["list"]), "1: C_SignInit error CKR_DEVICE_ERROR count=1 (seen 2, hit 1)");
    assert_eq!(bench.told(&["add", "C_SignInit error CKR_DEVICE_ERROR"]), "2");
    assert!(seen(bench.sign()) && seen(bench.sign()));
    assert_eq!(bench.told(&["clear", "2"]), "");
    assert!(bench.sign().status.success());
    assert_eq!(bench.told(&["add", "C_Sign", "wrong-signature"]), "3", "words or one argument");
    assert!(bench.sign().status.success());
    assert!(bench.verify().contains("Invalid signature"), "{}", bench.verify());
}

#[test]
fn the_command_needs_no_running_program() {
    let bench = Bench::new(&["C_Login delay 1ms"]);
    let by_configuration = |command: &str| {
        let mut faulty = Command::new(env!("CARGO_BIN_EXE_faulty-token"));
        let output =
            faulty.arg(command).env("FAULTY_TOKEN_CONF", bench.file("faulty.toml")).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    assert_eq!(by_configuration("add C_GetSlotList error CKR_DEVICE_ERROR count=1"), "2");
    assert!(text(&bench.faulty(&["-L"])).contains("CKR_DEVICE_ERROR"));
    assert!(bench.faulty(&["-L"]).status.success());
    assert!(by_configuration("list").contains("hit 1"));
    assert_eq!(by_configuration("reset"), "");
    assert_eq!(by_configuration("list"), "1: C_Login delay 1ms (seen 0, hit 0)");
}

#[test]
fn a_process_dies_by_the_script_and_by_the_command() {
    let bench = Bench::new(&["C_Sign die count=1"]);
    bench.make_key();
    assert_eq!(bench.sign().status.signal(), Some(9));
    assert!(bench.sign().status.success(), "once for all");
    bench.told(&["clear"]);
    // The call is made, and then it dies.
    bench.told(&["add", "C_CreateObject die done"]);
    let made = bench.faulty(&[
        "--login",
        "--pin",
        PIN,
        "--write-object",
        "data",
        "--type",
        "data",
        "--label",
        "written",
    ]);
    assert_eq!(made.status.signal(), Some(9));
    assert!(text(&bench.tool(&softhsm(), &["--login", "--pin", PIN, "-O"])).contains("written"));
}

#[test]
fn the_command_says_what_is_wrong() {
    let bench = Bench::new(&[]);
    let wrong = |arguments: &[&str], status: i32, reason: &str| {
        let output = bench.command(arguments);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert!(text.contains(reason), "{text}");
    };
    wrong(&["list"], 2, "nobody listens");
    // Afterwards there is something to be told.
    assert!(bench.faulty(&["-L"]).status.success());
    wrong(&["add", "C_Sign explode"], 1, "is no fault");
    wrong(&["explode"], 1, "is no command");
    wrong(&["count"], 2, "running token");
    wrong(&[], 2, "required");
    assert!(bench.told(&["help"]).contains("wrong-signature"));
    // A configuration that is wrong is one line on standard error.
    bench.configure(&["C_Sign hangs"]);
    let output = bench.faulty(&["-L"]);
    assert!(!output.status.success());
    let text = text(&output);
    assert_eq!(text.matches("faulty-token: ").count(), 1, "{text}");
    assert!(text.contains("faulty.toml: rule 1 (\"C_Sign hangs\")"), "{text}");
}
