//! A forked child never reaches the parent's module. One test: forking beside other threads is for children that
//! only exit.

mod support;

use ha_member::fork_generation;
use ha_token::{Connector, Rv};
use support::{Store, connect, connector, login, token_label};

/// Runs `child` in a forked process and gives its exit status.
fn in_child(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs `child`, which takes none of this process's locks but the allocator's (which the C library
    // makes usable in a child), and leaves without running exit handlers.
    match unsafe { libc::fork() } {
        0 => {
            let status = child();
            // SAFETY: ends the process.
            unsafe { libc::_exit(status) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: waits for the child just made.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            assert!(libc::WIFEXITED(status), "the child crashed: {status}");
            libc::WEXITSTATUS(status)
        }
    }
}

#[test]
fn a_child_is_not_initialised_and_can_connect_for_itself() {
    let store = Store::with(&["fork"]);
    let connector = connector(&store, "fork");
    let token = connect(&connector);
    let session = login(&*token);
    let generation = fork_generation();
    let status = in_child(|| {
        let gone = Err(Rv::CRYPTOKI_NOT_INITIALIZED);
        let mut random = [0; 8];
        if fork_generation() == generation {
            return 1;
        }
        if token.generate_random(session, &mut random) != gone || token.close_session(session) != gone {
            return 2;
        }
        match connector.connect() {
            Ok(own) if own.token_info().is_ok_and(|t| t.label == "fork") => 0,
            Ok(_) => 3,
            Err(_) => 4,
        }
    });
    assert_eq!(status, 0);
    assert_eq!(fork_generation(), generation);
    assert_eq!(token_label(&*token), "fork");
    token.close_session(session).expect("the parent's session is untouched");
}
