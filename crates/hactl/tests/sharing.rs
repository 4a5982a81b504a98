//! Several processes of one host on one group: what they tell each other of its members, what operators want of them, and
//! that nothing of it can hold anybody up.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ha_core::config::Config;
use ha_core::provider::Provider;
use ha_token::{Attribute, Mechanism, OpKind, Output, UserType, ck};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Made, pair};

const USER: &str = "HACTL_TEST_USER";
const PIN: &str = "HACTL_TEST_PIN";
const LEAVER: &str = "HACTL_TEST_LEAVER";

/// What a process that uses the group does: it signs, again and again, and says at the end how often that failed.
#[test]
fn user() {
    let (Ok(config), Ok(pin)) = (std::env::var(USER), std::env::var(PIN)) else { return };
    let provider = Provider::from_config(Config::from_file(Path::new(&config)).unwrap()).unwrap();
    let slot = Arc::clone(&provider.slots()[0]);
    let session = slot.open_session(true).unwrap();
    slot.login(session, UserType::User, Some(pin.as_bytes())).unwrap();
    let private =
        vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY), Attribute::bytes(ck::CKA_LABEL, "k")];
    slot.find_objects_init(session, &private).unwrap();
    let key = slot.find_objects(session, 2).unwrap()[0];
    slot.find_objects_final(session).unwrap();
    println!("ready");
    let ended = Arc::new(AtomicUsize::new(0));
    let input = Arc::clone(&ended);
    std::thread::spawn(move || {
        _ = std::io::stdin().read_to_end(&mut Vec::new());
        input.store(1, Ordering::Release);
    });
    let (mut done, mut failed) = (0u64, BTreeSet::new());
    while ended.load(Ordering::Acquire) == 0 {
        let mut space = [0; 128];
        let signed =
            slot.op_init(session, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), key).and_then(
                |()| slot.op_one_shot(session, OpKind::Sign, &[7; 32], &mut Output::buffer(&mut space)),
            );
        match signed {
            Ok(()) => done += 1,
            Err(rv) => _ = failed.insert(rv.to_string()),
        }
        // Others have to run on this machine too.
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(provider.shutdown(Duration::from_secs(5)).is_empty());
    println!("done {done} failed {failed:?}");
}

/// A program that ends without a word: it loads a module that it does not finalise, as many do.
#[test]
fn leaver() {
    let Ok(config) = std::env::var(LEAVER) else { return };
    let provider = Provider::from_config(Config::from_file(Path::new(&config)).unwrap()).unwrap();
    println!("used {}", provider.groups()[0].processes().len());
    std::process::exit(0);
}

/// A running one.
struct User {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl User {
    fn start(config: &Path, pin: &[u8]) -> User {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "user", "--nocapture"])
            .env(USER, config)
            .env(PIN, std::str::from_utf8(pin).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut user = User { child, stdin, lines };
        user.line("ready");
        user
    }

    fn of(made: &Made) -> User {
        User::start(&made.config(), &made.pin())
    }

    fn line(&mut self, with: &str) -> String {
        self.lines.find_map(|l| l.ok().filter(|l| l.contains(with))).unwrap_or_else(|| panic!("no {with:?}"))
    }

    fn pid(&self) -> u64 {
        u64::from(self.child.id())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    /// Ends it; it must have worked, and without an error.
    fn ends_well(mut self) {
        self.stdin = None;
        let said = self.line("done ");
        assert!(said.ends_with("failed {}") && !said.contains("done 0 "), "{said}");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for User {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A group with a key, and settings in its first group's table.
fn made(members: u8, settings: &str) -> Made {
    let made = Made::with(members);
    let text = std::fs::read_to_string(made.config()).unwrap();
    std::fs::write(made.config(), format!("{text}\n{settings}\n")).unwrap();
    made.as_application(|token, session| {
        pair(token, session, "k", 1, false);
    });
    made
}

/// The states that each process sees, by its number.
fn seen(status: &Value, pid: u64) -> Value {
    let processes = status["groups"][0]["processes"].as_array().unwrap();
    processes.iter().find(|p| p["pid"] == pid).unwrap_or_else(|| panic!("{status}"))["members"].clone()
}

fn pids(status: &Value) -> Vec<u64> {
    let processes = status["groups"][0]["processes"].as_array().unwrap();
    processes.iter().map(|p| p["pid"].as_u64().unwrap()).collect()
}

/// Asks for the status until it is so; a test that waits for what never comes is ended from outside.
fn until(made: &Made, is: impl Fn(&Value) -> bool) -> Value {
    loop {
        let status = made.run(&["status", "--json"]).json();
        if is(&status) {
            return status;
        }
    }
}

#[test]
fn status_shows_who_uses_the_group_and_a_killed_process_vanishes() {
    let made = made(2, "");
    assert_eq!(pids(&made.run(&["status", "--json"]).json()), [0u64; 0]);
    let (one, two) = (User::of(&made), User::of(&made));
    let status = made.run(&["status", "--json"]);
    assert_eq!(status.code, 0, "{}", status.out);
    let status = status.json();
    let mut there = pids(&status);
    there.sort_unstable();
    let mut expected = vec![one.pid(), two.pid()];
    expected.sort_unstable();
    assert_eq!(there, expected);
    assert_eq!(seen(&status, one.pid()), json!({"a": "up", "b": "up"}));
    let process = &status["groups"][0]["processes"][0];
    assert!(process["program"].as_str().unwrap().starts_with("sharing-"), "{process}");
    assert!(process["since"].as_u64().unwrap() > 1_700_000_000, "{process}");
    let text = made.run(&["status"]).out;
    assert!(text.contains("used by") && text.contains(&one.pid().to_string()), "{text}");

    one.signal(Signal::KILL);
    let pid = one.pid();
    drop(one);
    let status = made.run(&["status", "--json"]).json();
    assert_eq!(pids(&status), [two.pid()], "{pid} was killed");
    two.ends_well();
    assert_eq!(pids(&made.run(&["status", "--json"]).json()), [0u64; 0]);
}

#[test]
fn a_member_is_drained_and_resumed_under_load_and_no_operation_fails() {
    let made = made(2, "");
    let users = [User::of(&made), User::of(&made)];
    let drained = made.run(&["member", "drain", "b", "--json", "--timeout", "60"]);
    assert_eq!(drained.code, 0, "{}{}", drained.out, drained.err);
    let document = drained.json();
    assert_eq!(
        (&document["wish"], &document["done"], &document["member"]),
        (&json!("drain"), &json!(true), &json!("b"))
    );
    assert_eq!(document["processes"].as_array().unwrap().len(), 2);
    assert!(document["processes"].as_array().unwrap().iter().all(|p| p["state"] == "drained"), "{document}");

    // Who starts leaves it out, and so does who looks.
    let third = User::of(&made);
    let status = made.run(&["status", "--json"]);
    assert_eq!(status.code, 1);
    let status = status.json();
    assert_eq!(status["groups"][0]["members"][1]["state"], "drained");
    for user in users.iter().chain([&third]) {
        assert_eq!(seen(&status, user.pid()), json!({"a": "up", "b": "drained"}));
    }

    // With the last one nothing would serve.
    let last = made.run(&["member", "drain", "a"]);
    assert_eq!(last.code, 1, "{}", last.out);
    assert!(last.err.contains("nothing was changed") && last.err.contains("--force"), "{}", last.err);
    let wrong = made.run(&["member", "recover", "b"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("member resume b"), "{}", wrong.err);

    // Meanwhile its token is away, as in a maintenance.
    made.hide("b", true);
    made.hide("b", false);
    let resumed = made.run(&["member", "resume", "b", "--timeout", "60"]);
    assert_eq!(resumed.code, 0, "{}{}", resumed.out, resumed.err);
    assert_eq!(resumed.out.matches("b is up").count(), 3, "{}", resumed.out);
    assert_eq!(made.run(&["status", "--json"]).code, 0);
    users.into_iter().chain([third]).for_each(User::ends_well);
}

#[test]
fn where_members_are_taken_back_by_hand_the_command_does_it() {
    let made = made(2, "[group.recovery]\nmode = \"manual\"\ninterval = \"50ms\"\nmax_interval = \"100ms\"");
    let users = [User::of(&made), User::of(&made)];
    made.hide("b", true);
    until(&made, |s| users.iter().all(|u| seen(s, u.pid())["b"] != "up"));
    let vain = made.run(&["member", "recover", "b", "--timeout", "60", "--json"]);
    assert_eq!(vain.code, 1, "{}", vain.out);
    let vain = vain.json();
    assert!(vain["processes"][0]["fault"].as_str().unwrap().contains("member-b"), "{vain}");

    made.hide("b", false);
    // Nobody takes it back.
    std::thread::sleep(Duration::from_secs(2));
    let status = made.run(&["status", "--json"]).json();
    assert!(users.iter().all(|u| seen(&status, u.pid())["b"] != "up"), "{status}");
    let recovered = made.run(&["member", "recover", "b", "--timeout", "60"]);
    assert_eq!(recovered.code, 0, "{}{}", recovered.out, recovered.err);
    assert_eq!(recovered.out.matches("b is up").count(), 2, "{}", recovered.out);
    users.into_iter().for_each(User::ends_well);
}

#[test]
fn without_a_process_the_wish_waits_for_the_next_one() {
    let made = made(2, "");
    let drained = made.run(&["member", "drain", "a"]);
    assert_eq!(drained.code, 0, "{}", drained.err);
    assert!(drained.out.contains("no process uses the group now"), "{}", drained.out);
    assert!(drained.out.contains("min_copies is 2"), "{}", drained.out);
    let user = User::of(&made);
    assert_eq!(seen(&made.run(&["status", "--json"]).json(), user.pid()), json!({"a": "drained", "b": "up"}));
    assert_eq!(made.run(&["member", "resume", "a", "--timeout", "60"]).code, 0);
    user.ends_well();
    let endless = made.run(&["member", "drain", "a", "--timeout", &u64::MAX.to_string()]);
    assert!(endless.code == 2 && endless.err.contains("86400"), "{}", endless.err);
    let nobody = made.run(&["member", "drain", "z"]);
    assert_eq!(nobody.code, 2);
    assert!(nobody.err.contains("there are: a, b"), "{}", nobody.err);
    assert_eq!(made.run(&["member", "drain", "a", "--force"]).code, 0);
    assert_eq!(made.run(&["member", "drain", "b", "--force"]).code, 0);
    assert_eq!(made.run(&["status"]).code, 1);
}

/// A session object that is on the drained member only is used there, and so is what is under way; all else goes to the
/// other one.
#[test]
fn what_is_on_a_drained_member_only_is_not_lost() {
    drained_with_a_session_object(false);
}

/// Where it can be made again it is, and only what is under way ends where it is.
#[test]
fn what_is_on_a_drained_member_only_is_made_again_elsewhere() {
    drained_with_a_session_object(true);
}

fn drained_with_a_session_object(replay: bool) {
    let made = made(2, "");
    let text = std::fs::read_to_string(made.config()).unwrap();
    let session_objects = if replay { "replay" } else { "local" };
    let settings = format!("label = \"ha1\"\nbalance = \"primary\"\nsession_objects = \"{session_objects}\"");
    std::fs::write(made.config(), text.replacen("label = \"ha1\"", &settings, 1)).unwrap();
    let provider = Provider::from_config(Config::from_file(&made.config()).unwrap()).unwrap();
    let slot = Arc::clone(&provider.slots()[0]);
    let open = || slot.open_session(true).unwrap();
    let (s, under_way) = (open(), open());
    slot.login(s, UserType::User, Some(&made.pin())).unwrap();
    let value = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
        Attribute::bytes(ck::CKA_VALUE, [7; 32]),
        Attribute::bool(ck::CKA_SIGN, true),
    ];
    let key = slot.create_object(s, &value).unwrap();
    let hmac = || Mechanism::plain(ck::CKM_SHA256_HMAC);
    let mac = || {
        let mut space = [0; 32];
        slot.op_init(s, OpKind::Sign, Some(&mut hmac()), key)?;
        slot.op_one_shot(s, OpKind::Sign, b"data", &mut Output::buffer(&mut space)).map(|()| space)
    };
    let before = mac().unwrap();
    slot.op_init(under_way, OpKind::Sign, Some(&mut hmac()), key).unwrap();
    slot.op_update(under_way, OpKind::Sign, b"da", &mut Output::query()).unwrap();

    let drained = made.run(&["member", "drain", "a", "--timeout", "60"]);
    assert_eq!(drained.code, 0, "{}{}", drained.out, drained.err);
    let group = &provider.groups()[0];
    assert_eq!(group.members.get(0).unwrap().state().to_string(), "drained");
    let served = group.served();
    assert_eq!(mac(), Ok(before));
    assert_eq!(group.served()[0] > served[0], !replay, "the member has the key alone, if that cannot move");
    slot.op_update(under_way, OpKind::Sign, b"ta", &mut Output::query()).unwrap();
    let mut space = [0; 32];
    slot.op_final(under_way, OpKind::Sign, &mut Output::buffer(&mut space)).unwrap();
    assert_eq!(space, before);
    let by_it = group.served()[0];
    for _ in 0..10 {
        slot.generate_random(s, &mut [0; 16]).unwrap();
    }
    assert_eq!(group.served()[0], by_it, "nothing else goes there");
    slot.destroy_object(s, key).unwrap();
    assert_eq!(made.run(&["member", "resume", "a", "--timeout", "60"]).code, 0);
    assert!(provider.shutdown(Duration::from_secs(5)).is_empty());
}

/// Without threads of its own a process sees what is wished when it is called.
#[test]
fn a_process_without_threads_heeds_wishes_in_its_calls() {
    use ha_core::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
    let made = made(2, "[group.recovery]\nmode = \"manual\"");
    let text = std::fs::read_to_string(made.config()).unwrap();
    std::fs::write(made.config(), text.replacen("label = \"ha1\"", "label = \"ha1\"\ndeadline = \"off\"", 1))
        .unwrap();
    let context = Pkcs11::new(made.config()).unwrap();
    let flags = CInitializeFlags::OS_LOCKING_OK | CInitializeFlags::LIBRARY_CANT_CREATE_OS_THREADS;
    context.initialize(CInitializeArgs::new(flags)).unwrap();
    let group = context.groups().unwrap().remove(0);
    let session = context.open_rw_session(group.slot()).unwrap();
    let state = || {
        session.generate_random_vec(8).unwrap();
        group.status().members[1].state.to_string()
    };
    assert_eq!(state(), "up");
    for (verb, then) in [("drain", "drained"), ("resume", "up")] {
        // Nobody calls meanwhile, so that the command waits in vain.
        let asked = made.run(&["member", verb, "b", "--timeout", "1", "--json"]);
        assert_eq!(asked.code, 1, "{}", asked.err);
        assert_eq!(state(), then);
        let status = made.run(&["status", "--json"]).json();
        assert_eq!(status["groups"][0]["processes"][0]["members"]["b"], then);
    }
}

/// The files of the board, by their extension.
fn files(made: &Made, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(made.dir().join("state")).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| p.extension().is_some_and(|e| e == extension)).collect()
}

/// It is damaged, and an operator does as he is told then.
#[test]
fn after_damaged_wishes_were_removed_the_first_new_one_is_heeded() {
    let made = made(2, "");
    let user = User::of(&made);
    assert_eq!(made.run(&["member", "drain", "b", "--timeout", "60"]).code, 0);
    let wishes = files(&made, "wishes").pop().unwrap();
    std::fs::write(&wishes, "garbage").unwrap();
    let refused = made.run(&["member", "resume", "b"]);
    assert!(refused.code == 2 && refused.err.contains(wishes.to_str().unwrap()), "{}", refused.err);
    std::fs::remove_file(&wishes).unwrap();
    let resumed = made.run(&["member", "resume", "b", "--timeout", "60"]);
    assert_eq!(resumed.code, 0, "{}{}", resumed.out, resumed.err);
    assert_eq!(resumed.out.matches("b is up").count(), 1, "{}", resumed.out);
    user.ends_well();
}

/// Each looks whether another member serves, and each would leave the other's.
#[test]
fn of_two_operators_that_drain_the_last_two_members_one_is_refused() {
    let made = made(2, "");
    let user = User::of(&made);
    let both = ["a", "b"].map(|member| {
        let mut command = support::command(&["member", "drain", member, "--timeout", "60"]);
        command.arg("--config").arg(made.config());
        std::thread::spawn(|| support::finish(command))
    });
    let mut both = both.map(|ran| ran.join().unwrap());
    both.sort_by_key(|ran| ran.code);
    let [done, refused] = both;
    assert_eq!((done.code, refused.code), (0, 1), "{}{}", done.err, refused.err);
    assert!(refused.err.contains("nothing would serve"), "{}", refused.err);
    user.ends_well();
}

/// What it has done is not known, and so not that all is done.
#[test]
fn a_process_whose_file_cannot_be_read_is_not_taken_for_none() {
    let made = made(2, "");
    let user = User::of(&made);
    user.signal(Signal::STOP);
    for file in files(&made, "seat") {
        std::fs::write(file, "garbage").unwrap();
    }
    let drained = made.run(&["member", "drain", "b", "--json", "--timeout", "1"]);
    assert_eq!(drained.code, 1, "{}", drained.out);
    let process = &drained.json()["processes"][0];
    assert_eq!((&process["pid"], &process["state"]), (&json!(user.pid()), &json!("unknown")));
    assert_eq!(seen(&made.run(&["status", "--json"]).json(), user.pid()), json!({}));
    user.signal(Signal::CONT);
    until(&made, |s| seen(s, user.pid())["b"] == "drained");
    user.ends_well();
}

#[test]
fn a_program_that_ends_without_a_word_leaves_no_file() {
    let made = made(2, "");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "leaver", "--nocapture"]).env(LEAVER, made.config());
    let out = command.stderr(Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("used 1"), "{out:?}");
    assert!(files(&made, "seat").is_empty());
    // One that was killed could not do that: the next one does.
    User::of(&made).signal(Signal::KILL);
    assert_eq!(files(&made, "seat").len(), 1);
    User::of(&made).ends_well();
    assert!(files(&made, "seat").is_empty());
}

#[test]
fn a_stopped_process_and_damaged_files_hold_up_nobody() {
    let made = made(2, "");
    let (stopped, other) = (User::of(&made), User::of(&made));
    stopped.signal(Signal::STOP);
    let drained = made.run(&["member", "drain", "b", "--json", "--timeout", "2"]);
    assert_eq!(drained.code, 1, "{}", drained.out);
    let document = drained.json();
    for process in document["processes"].as_array().unwrap() {
        assert_eq!(process["done"], process["pid"] != stopped.pid(), "{document}");
    }
    stopped.signal(Signal::CONT);
    until(&made, |s| seen(s, stopped.pid())["b"] == "drained");
    assert_eq!(made.run(&["member", "resume", "b", "--timeout", "60"]).code, 0);

    for file in files(&made, "seat").into_iter().chain(files(&made, "wishes")) {
        std::fs::write(file, "garbage\n".repeat(100)).unwrap();
    }
    // What the damaged wishes were is not known: nothing is made of them, and nothing written over.
    let refused = made.run(&["member", "drain", "b"]);
    assert_eq!(refused.code, 2, "{}", refused.out);
    assert!(
        refused.err.contains("nothing was changed") && refused.err.contains("damaged"),
        "{}",
        refused.err
    );
    let third = User::of(&made);
    let status = made.run(&["status", "--json"]).json();
    assert!(pids(&status).contains(&third.pid()), "{status}");
    assert_eq!(status["groups"][0]["members"][1]["state"], "up");
    for user in [stopped, other, third] {
        user.ends_well();
    }
}

#[test]
fn where_the_board_cannot_be_written_each_process_is_alone_and_works() {
    let made = made(2, "");
    // Folders stand where its files would be: no user, and not root either, can open them.
    let number = files(&made, "board").pop().expect("a board");
    std::fs::remove_file(&number).unwrap();
    std::fs::create_dir(&number).unwrap();
    let user = User::of(&made);
    let status = made.run(&["status", "--json"]);
    assert_eq!((status.code, pids(&status.json())), (0, Vec::new()));
    let refused = made.run(&["member", "drain", "b"]);
    assert_eq!(refused.code, 2, "{}", refused.out);
    assert!(refused.err.contains("nothing was changed"), "{}", refused.err);
    user.ends_well();
}

/// A member behind a socket where nobody serves, and which counts who connects.
struct Dead {
    connections: Arc<AtomicUsize>,
    listener: UnixListener,
}

impl Dead {
    fn at(socket: &Path) -> Dead {
        let listener = UnixListener::bind(socket).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (counted, accepting) = (Arc::clone(&connections), listener.try_clone().unwrap());
        std::thread::spawn(move || {
            // Closed at once.
            while accepting.accept().is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Dead { connections, listener }
    }

    /// How many connect in so many seconds, for each of them.
    fn rate(&self, seconds: u64) -> f64 {
        let (before, began) = (self.connections.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(Duration::from_secs(seconds));
        (self.connections.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
    }
}

#[test]
fn eight_processes_try_a_dead_member_about_as_often_as_one() {
    let made = Made::with(2);
    made.as_application(|token, session| {
        pair(token, session, "k", 1, false);
    });
    let socket = made.dir().join("b.sock");
    let mut config = Config::from_file(&made.config()).unwrap();
    let group = &mut config.groups[0];
    let conf = group.members[1].env["SOFTHSM2_CONF"].clone();
    group.members[1].module = ha_rig::p11_kit_client();
    group.members[1].env =
        [("P11_KIT_SERVER_ADDRESS".to_owned(), format!("unix:path={}", socket.display()))].into();
    group.recovery.interval = Duration::from_secs(1);
    group.recovery.max_interval = Duration::from_secs(1);
    std::fs::write(made.config(), config.to_toml().unwrap()).unwrap();

    let dead = Dead::at(&socket);
    let one = User::of(&made);
    let alone = dead.rate(6);
    let users: Vec<User> = (0..7).map(|_| User::of(&made)).collect();
    let together = dead.rate(12);
    assert!(alone > 0.0, "it is tried");
    eprintln!("{alone:.2} connections a second by one process, {together:.2} by eight");
    // On its own each would add as many as the first. A process that has to wait for the processor may be late with its word, or
    // with its try while it is alone.
    assert!(together < 2.5 * alone.max(1.0), "{alone} a second by one process, {together} by eight");

    // It comes back: all of them use it.
    drop(dead.listener);
    let _server = ha_rig::Server::start(Path::new(&conf), "member-b", &socket).unwrap();
    until(&made, |s| users.iter().chain([&one]).all(|u| seen(s, u.pid())["b"] == "up"));
    users.into_iter().chain([one]).for_each(User::ends_well);
}
