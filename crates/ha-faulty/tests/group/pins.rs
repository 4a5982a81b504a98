//! Many processes with one wrong PIN, and a token that would lock.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ha_core::config::Config;
use ha_core::provider::Provider;
use ha_rig::PIN;
use ha_token::{Rv, UserType};

use crate::pair::Pair;

const NAME: &str = "pins::workers_that_start_with_a_wrong_pin_at_once_send_it_once";
const WORKERS: usize = 12;

/// What one worker is told of its login.
fn log_in(config: &str, pin: &str) -> Result<(), Rv> {
    let provider = Provider::from_config(Config::parse(config).unwrap()).unwrap();
    let slot = Arc::clone(provider.slot(0).unwrap());
    let session = slot.open_session(true).unwrap();
    let told = slot.login(session, UserType::User, Some(pin.as_bytes()));
    provider.shutdown(Duration::from_secs(60));
    told
}

#[test]
fn workers_that_start_with_a_wrong_pin_at_once_send_it_once() {
    if let Ok(config) = std::env::var("WORKER_CONFIG") {
        assert_eq!(log_in(&config, "wrong"), Err(Rv::PIN_INCORRECT));
        return;
    }
    // It stays open: who has the module loaded answers for the token that all processes share.
    let pair = Pair::new("");
    let text = pair.text("");
    // A rule's count is all processes'.
    let logins = || {
        let rules = pair.told("list");
        let login = rules.split("; ").find(|rule| rule.contains("C_Login")).unwrap();
        let seen = login.split_once("seen ").unwrap().1.split_once(',').unwrap().0;
        seen.parse::<usize>().unwrap()
    };
    pair.tell("add * lock-pin 3");
    pair.tell("add C_Login delay 1ms");
    for round in ["they are the first", "it is known"] {
        let start = |_| -> Child {
            let mut worker = Command::new(std::env::current_exe().unwrap());
            worker.args([NAME, "--exact", "--nocapture"]).env("WORKER_CONFIG", &text);
            worker.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let workers: Vec<Child> = (0..WORKERS).map(start).collect();
        for worker in workers {
            let output = worker.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        assert_eq!(logins(), 1, "{round}");
    }
    assert_eq!(log_in(&text, PIN), Ok(()), "nothing is locked");
    pair.sign(5);
}
