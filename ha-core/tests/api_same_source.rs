//! One source file that calls every public method of cryptoki, compiled against cryptoki and against this library, and
//! run on a bare token and on a group: the same code, the same answers.

use std::path::Path;
use std::process::Command;

use ha_rig::{PIN, Store, Tokens, softhsm};

mod theirs {
    use cryptoki as lib;
    include!("api_surface/surface.rs");
}

mod ours {
    use ha_core as lib;
    include!("api_surface/surface.rs");
}

/// Where the same names stand too; it is enough that it compiles.
#[allow(dead_code)]
mod ours_in_api {
    use ha_core::api as lib;
    include!("api_surface/surface.rs");
}

/// Where a side writes its answers, and what it opens; set for the child processes only.
const ANSWERS: &str = "API_SURFACE_ANSWERS";
const OPENS: &str = "API_SURFACE_OPENS";

fn child_path(name: &str) -> std::path::PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is set by same_answers")).into()
}

macro_rules! side {
    ($lib:ident, $side:ident) => {{
        use $lib::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
        use $lib::session::UserType;
        let path = child_path(OPENS);
        let mut answers = $side::context(&path, PIN).0;
        let pkcs11 = Pkcs11::new(&path).expect("the library");
        pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("initialize");
        let slot = pkcs11.get_slots_with_initialized_token().expect("slots")[0];
        let session = pkcs11.open_rw_session(slot).expect("session");
        session.login(UserType::User, Some(&$lib::types::AuthPin::new(PIN.into()))).expect("login");
        answers.extend($side::session(&session).0);
        std::fs::write(child_path(ANSWERS), answers.join("\n")).expect("answers written");
    }};
}

#[test]
#[ignore = "one side of same_answers, in a process of its own"]
fn side_theirs() {
    side!(cryptoki, theirs);
}

#[test]
#[ignore = "one side of same_answers, in a process of its own"]
fn side_ours() {
    side!(ha_core, ours);
}

/// SoftHSM reads its configuration from the environment, which one process has only one of.
fn run(side: &str, opens: &Path, answers: &Path, softhsm_conf: Option<&Path>) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", side, "--ignored", "--nocapture"]).env(OPENS, opens).env(ANSWERS, answers);
    match softhsm_conf {
        Some(conf) => child.env("SOFTHSM2_CONF", conf),
        None => child.env_remove("SOFTHSM2_CONF"),
    };
    let done = child.output().expect("a child process");
    assert!(
        done.status.success(),
        "{side}: {}\n{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    let text = std::fs::read_to_string(answers).expect("the answers");
    // A function that a 2.40 module has no pointer for is one that the slot does not support.
    let unsupported =
        |line: &str| line.ends_with(": NullFunctionPointer") || line.contains("(FunctionNotSupported, ");
    let what = |line: &str| line.split(": ").next().unwrap_or(line).to_owned();
    text.lines()
        .map(|line| if unsupported(line) { what(line) + ": not supported" } else { line.to_owned() })
        .collect()
}

/// Where the slot keeps to the standard and SoftHSM does not: a second logout is refused, and an operation that could
/// not be started (SoftHSM has no function for it) is one that is not open.
fn better(theirs: &str, ours: &str) -> bool {
    ours == "logout twice: Pkcs11(UserNotLoggedIn, Logout)"
        || (theirs.ends_with(": not supported") && ours.contains(": Pkcs11(OperationNotInitialized, "))
}

#[test]
fn same_answers() {
    let (bare, members) = (Store::with(&["bare"]), Tokens::new(2));
    let dir = tempfile::tempdir().expect("a folder");
    let theirs = run("side_theirs", &softhsm(), &dir.path().join("theirs"), Some(bare.conf()));
    let config = members.write_config(&members.config_of(false, ""));
    let ours = run("side_ours", &config, &dir.path().join("ours"), None);
    assert!(theirs.len() > 60, "only {} answers: {theirs:#?}", theirs.len());
    assert_eq!(theirs.len(), ours.len());
    let different: Vec<_> = theirs.iter().zip(&ours).filter(|(t, o)| t != o && !better(t, o)).collect();
    assert!(different.is_empty(), "bare token and group: {different:#?}");
}

/// Every `pub fn` of the crate's context, session and slot is in the surface.
#[test]
fn the_surface_is_whole() {
    let surface = include_str!("api_surface/surface.rs");
    let metadata = Command::new(env!("CARGO"))
        // Without the filter it wants every platform's packages, which nobody has.
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform"])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo metadata");
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata = String::from_utf8(metadata.stdout).expect("UTF-8");
    let manifest = metadata
        .split('"')
        .find(|text| text.contains("/cryptoki-0.") && text.ends_with("/Cargo.toml"))
        .expect("cryptoki's manifest");
    let source = Path::new(manifest).parent().expect("its folder").join("src");
    let mut missing = Vec::new();
    let mut seen = 0;
    // Methods of the types that are ours; those of re-exported ones cannot differ.
    let ours = ["impl Pkcs11 {", "impl Session {"];
    for folder in ["context", "session"] {
        for file in std::fs::read_dir(source.join(folder)).expect("sources") {
            let text = std::fs::read_to_string(file.expect("a file").path()).expect("its text");
            let mut inside = false;
            for line in text.lines() {
                if line.starts_with("impl") {
                    inside = ours.contains(&line);
                }
                let Some(name) = line.strip_prefix("    pub fn ").filter(|_| inside) else { continue };
                let name = name.split(['(', '<']).next().unwrap_or(name);
                seen += 1;
                if !surface.contains(&format!(".{name}(")) && !surface.contains(&format!("::{name}")) {
                    missing.push(name.to_owned());
                }
            }
        }
    }
    assert!(seen > 70, "only {seen} methods found in cryptoki's sources");
    assert_eq!(missing, Vec::<String>::new());
}
