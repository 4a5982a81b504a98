//! The slot beside the bare token and beside p11-kit's proxy, through the C interface of each: rounds in turn, ratios of
//! medians.
//!
//! `cargo bench -p ha-module --bench slot` prints the table of `docs/speed.md`. `deadline = "off"`, two private SoftHSM
//! members; "bare" is SoftHSM itself with one of the same tokens, "side by side" two copies of SoftHSM, each with a token
//! and a thread of its own. Each is a process of its own, and they take turns: figures of single rounds mean little on a
//! shared machine; the ratio of the medians of interleaved rounds is what counts.
//!
//! `SLOT_BENCH_ROW` picks rows by a part of their name, `SLOT_BENCH_ROUNDS` says how many rounds (at least five; eleven
//! unless told), `SLOT_BENCH_THREADS` with how many threads (`1,2` unless told), `SLOT_BENCH_GROUP` is put into the group's
//! configuration.
#![allow(missing_docs, clippy::unwrap_used)]

mod subject;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ha_rig::{PIN, Tokens, softhsm};
use subject::{Keys, ROWS};

const PROXY: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/p11-kit-proxy.so", "/usr/lib/aarch64-linux-gnu/p11-kit-proxy.so"];

/// A process that is measured.
struct Subject {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Subject {
    fn start(name: &str, tokens: &Tokens, module: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env("SLOT_BENCH_SUBJECT", name)
            .env("SLOT_BENCH_MODULE", module)
            .env("SLOT_BENCH_DIR", tokens.path())
            .env("PKCS11_HA_CONF", tokens.path().join("ha.toml"))
            .env("SOFTHSM2_CONF", tokens.conf(0))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let mut from = BufReader::new(child.stdout.take().unwrap());
        // One after the other: SoftHSM shows a token half written to who looks while another process logs in to it.
        let mut ready = String::new();
        from.read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n", "{name}");
        Subject { child, to, from }
    }

    /// One round: microseconds for an operation of one thread.
    fn round(&mut self, row: usize, keys: Keys, threads: usize) -> f64 {
        writeln!(self.to, "{row} {} {threads}", keys as usize).unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim().parse().expect("the subject answers")
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// In a subject's process: never returns to the measuring.
fn subject(name: &str) {
    let path = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let (module, dir) = (path("SLOT_BENCH_MODULE"), path("SLOT_BENCH_DIR"));
    match name {
        "side by side" => {
            let copies = [0, 1].map(|i| {
                let copy = dir.join(format!("copy-{i}.so"));
                std::fs::copy(&module, &copy).unwrap();
                (copy, format!("member-{}", ha_rig::name(i)), dir.join(format!("{}.conf", ha_rig::name(i))))
            });
            subject::serve(&copies.each_ref().map(|(m, l, c)| (m.as_path(), l.as_str(), Some(c.as_path()))));
        }
        "slot" => subject::serve(&[(&module, "ha1", None)]),
        _ => subject::serve(&[(&module, "member-a", None)]),
    }
}

/// Makes the keys that are measured, through the slot: they are on both tokens.
fn make_token_keys(module: &Path, config: &Path) {
    for (kind, id) in [("EC:prime256v1", "01"), ("rsa:2048", "02"), ("GENERIC:32", "03")] {
        let verb = if id == "03" { "--keygen" } else { "--keypairgen" };
        let mut command = Command::new("pkcs11-tool");
        command.env("PKCS11_HA_CONF", config).arg("--module").arg(module).args([
            "--login",
            "--pin",
            PIN,
            verb,
            "--key-type",
            kind,
            "--id",
            id,
        ]);
        if id == "03" {
            command.arg("--usage-sign");
        }
        let made = command.output().unwrap();
        assert!(made.status.success(), "{made:?}");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn main() {
    // Cargo's test runner asks benches too whether they have tests.
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    let name = setting("SLOT_BENCH_SUBJECT");
    if !name.is_empty() {
        return subject(&name);
    }
    let tokens = Tokens::new(2);
    let config = tokens.path().join("ha.toml");
    std::fs::write(&config, tokens.config(false, &setting("SLOT_BENCH_GROUP"))).unwrap();
    let me = std::env::current_exe().unwrap();
    let module = me.ancestors().map(|d| d.join("libha_module.so")).find(|p| p.exists());
    let module = module.expect("libha_module.so is built beside this bench");
    make_token_keys(&module, &config);
    let proxy = PROXY.iter().map(Path::new).find(|p| p.exists()).expect("p11-kit's proxy is installed");

    let mut bare = Subject::start("bare", &tokens, &softhsm());
    let mut beside = Subject::start("side by side", &tokens, &softhsm());
    let mut proxied = Subject::start("proxy", &tokens, proxy);
    let mut slot = Subject::start("slot", &tokens, &module);
    let rounds = setting("SLOT_BENCH_ROUNDS").parse().unwrap_or(11).max(5);
    let only = setting("SLOT_BENCH_ROW");
    let threads: Vec<usize> = match setting("SLOT_BENCH_THREADS") {
        none if none.is_empty() => vec![1, 2],
        list => list
            .split(',')
            .map(|n| n.trim().parse().expect("SLOT_BENCH_THREADS is a list like 1,64"))
            .collect(),
    };
    println!(
        "| operation | keys | threads | bare, µs | proxy, µs | slot, µs | bare / slot | proxy / slot | side by side / slot |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    for (i, row) in ROWS.iter().enumerate().filter(|(_, r)| r.name.contains(&only)) {
        let kinds: &[Keys] = if row.has_keys { &[Keys::Token, Keys::Session] } else { &[Keys::None] };
        for &keys in kinds {
            for &threads in &threads {
                let mut times: [Vec<f64>; 4] = Default::default();
                for _ in 0..rounds {
                    for (times, of) in times.iter_mut().zip([&mut bare, &mut proxied, &mut slot, &mut beside])
                    {
                        times.push(of.round(i, keys, threads));
                    }
                }
                let [b, p, s, two] = times.map(median);
                let last = if threads == 2 { format!("{:.2}", two / s) } else { "–".into() };
                println!(
                    "| {} | {} | {threads} | {b:.2} | {p:.2} | {s:.2} | {:.2} | {:.2} | {last} |",
                    row.name,
                    keys.name(),
                    b / s,
                    p / s
                );
            }
        }
    }
}
