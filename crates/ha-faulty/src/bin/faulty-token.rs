//! Says one command to a token's control socket.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use faulty_token::config::Config;
use faulty_token::kept::Kept;
use faulty_token::state::State;
use faulty_token::{commands, kept, rule};
use ha_token::Function;

/// How long an answer is waited for: it takes no call of the module.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells a faulty token what to do: add RULE, list, clear [NUMBER], reset, release, count, help.
#[derive(Parser)]
#[command(name = "faulty-token", version)]
#[command(after_help = format!("A RULE is CALLS FAULT [mechanism=…] [after=N] [count=N] [probability=P]; the faults: {}", rule::FAULTS))]
struct Cli {
    /// The control socket; where it is not given, that of the configuration which FAULTY_TOKEN_CONF names.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The command, for example: add "C_Sign error CKR_DEVICE_ERROR count=3"
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match say(cli.socket, &cli.command.join(" ")) {
        Ok(answer) => {
            // `ok` and nothing more is said by the exit status.
            if let Some(text) = answer.strip_prefix("ok ") {
                let mut out = std::io::stdout().lock();
                _ = text.split("; ").try_for_each(|line| writeln!(out, "{line}"));
                ExitCode::SUCCESS
            } else if answer == "ok" {
                ExitCode::SUCCESS
            } else {
                eprintln!("faulty-token: {}", answer.strip_prefix("error ").unwrap_or(&answer));
                ExitCode::from(1)
            }
        }
        Err(error) => {
            eprintln!("faulty-token: {error}");
            ExitCode::from(2)
        }
    }
}

fn say(socket: Option<PathBuf>, command: &str) -> Result<String, String> {
    if command.contains('\n') {
        return Err("a command is one line".into());
    }
    let (socket, config) = match socket {
        Some(socket) => (socket, None),
        None => {
            let config = Config::load()?;
            (config.socket.clone().ok_or("the configuration names no socket")?, Some(config))
        }
    };
    match ask(&socket, command) {
        Ok(answer) => Ok(answer),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            without_listener(&socket, config.as_ref(), command)
                .map_err(|why| format!("nobody listens at {}, and {why}", socket.display()))
        }
        Err(error) => Err(format!("{}: {error}", socket.display())),
    }
}

fn ask(socket: &Path, command: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    // One that is stopped takes connections, and never answers.
    stream.set_read_timeout(Some(PATIENCE))?;
    // Who is refused is told so at once, and not listened to.
    let written = stream.write_all(format!("{command}\n").as_bytes());
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        written?;
        return Err(std::io::Error::other("no answer: the process has just ended"));
    }
    if !answer.ends_with('\n') {
        return Err(std::io::Error::other("half an answer: the process has just ended"));
    }
    Ok(answer.trim_end().to_owned())
}

/// No process has the token now: the next one does as is said here.
fn without_listener(socket: &Path, config: Option<&Config>, command: &str) -> Result<String, String> {
    let counts = [0; Function::ALL.len()];
    match (command, config) {
        ("count", _) => Err("`count` is for a running token to answer".into()),
        ("reset", None) => {
            Err("what the script says is not known: FAULTY_TOKEN_CONF instead of --socket".into())
        }
        (_, None) => {
            let change = |state: &mut State| commands::answer(command, state, &state.clone(), &counts);
            kept::change(socket, change).map_err(|error| format!("nothing was left there: {error}"))
        }
        (_, Some(config)) => {
            faulty_token::check_socket(socket)?;
            let kept = Kept::new(config.script()?, Some(socket));
            kept.with(|state| commands::answer(command, state, kept.script(), &counts))
                .map_err(|error| error.to_string())
        }
    }
}
