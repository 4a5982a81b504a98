//! OpenDNSSEC's ods-hsmutil, with a `conf.xml` that names the module and the token.

use crate::harness::{Both, Difference, Step};

/// Identifiers that OpenDNSSEC makes up, and random numbers.
const RULES: &[(&str, &str)] = &[
    (r"\b[0-9a-f]{32}\b", "ID"),
    (r"(Generating \d+-bit random data\.\.\. )\d+", "${1}NUMBER"),
    (r"(IN\s+DNSKEY\s+\d+ \d+ \d+ ).*", "${1}KEY"),
    (r"(Slot:\s+)\d+", "${1}SLOT"),
    (r" +\n", "\n"),
];

const CONFIG: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<Configuration>
  <RepositoryList>
    <Repository name=\"ha\">
      <Module>MODULE</Module>
      <TokenLabel>ha1</TokenLabel>
      <PIN>1234</PIN>
      SKIP
    </Repository>
  </RepositoryList>
  <Common>
    <Logging><Syslog><Facility>local0</Facility></Syslog></Logging>
    <PolicyFile>DIR/kasp.xml</PolicyFile>
    <ZoneListFile>DIR/zonelist.xml</ZoneListFile>
  </Common>
  <Enforcer><Datastore><SQLite>DIR/kasp.db</SQLite></Datastore></Enforcer>
</Configuration>
";

fn both(skip: &str) -> Both {
    let both = Both::new("", RULES);
    for side in [&both.bare, &both.slot] {
        let (module, dir) = (side.module.to_str().unwrap(), side.dir.to_str().unwrap());
        let config = CONFIG.replace("MODULE", module).replace("DIR", dir).replace("SKIP", skip);
        std::fs::write(side.dir.join("conf.xml"), config).unwrap();
    }
    both
}

trait Tool {
    fn ods(&self, line: &str) -> Step;
}

impl Tool for Both {
    fn ods(&self, line: &str) -> Step {
        self.step(&format!("ods-hsmutil -c {{dir}}/conf.xml {line}"))
    }
}

/// SoftHSM has no wrapping mechanism for Edwards keys.
const NO_EDWARDS: &[Difference<'_>] = &[
    (
        "ED25519 key... OK\nExtracting key identifier... OK, ID\nSigning with key... OK\nDeleting key... OK\n",
        "ED25519 key... Failed\n",
    ),
    (
        "ED448 key... OK\nExtracting key identifier... OK, ID\nSigning with key... OK\nDeleting key... OK\n",
        "ED448 key... Failed\n",
    ),
    (
        "generate key pair: CKR_MECHANISM_INVALID\n",
        "generate key pair: CKR_MECHANISM_INVALID\ngenerate key pair: Unknown error\ngenerate key pair: Unknown error\n",
    ),
];

const LISTED: &str = "^ha ";

#[test]
fn makes_lists_and_purges_keys_while_members_come_and_go() {
    let both = both("");
    both.ods("info").same().says("Repository: ha");
    both.ods("generate ha rsa 2048").same().says("Key generation successful");
    both.ods("generate ha ecdsa 256").same().says("Key generation successful");
    let made = both.ods("list ha").sorted(LISTED).same().says("2 keys found.");
    let id = |text: &str| {
        text.lines().find(|l| l.contains("ECDSA/256")).unwrap().split_whitespace().nth(1).unwrap().to_owned()
    };
    let (bare, slot) = (id(&made.bare.raw), id(&made.slot.raw));
    let keys: Vec<String> = [None, Some(0), Some(1)]
        .into_iter()
        .map(|hidden| {
            hidden.inspect(|m| both.members.hide(*m));
            both.ods("list ha").sorted(LISTED).same().says("2 keys found.");
            let run = |side, id: &str| {
                both.run(side, &format!("ods-hsmutil -c {{dir}}/conf.xml dnskey {id} example.com 257 13"))
            };
            let (theirs, ours) = (run(&both.bare, &bare), run(&both.slot, &slot));
            assert_eq!((theirs.code, theirs.text), (ours.code, ours.text.clone()));
            assert!(ours.text.contains("KEY"), "{}", ours.raw);
            hidden.inspect(|m| both.members.restore(*m));
            ours.raw
        })
        .collect();
    assert!(keys.iter().all(|k| *k == keys[0]), "another key when a member is gone: {keys:#?}");
    both.ods("-f purge ha").quietly_succeeds().says("Purging all keys from repository: ha");
    for member in 0..2 {
        both.members.hide(member);
        both.ods("list ha").same().says("0 keys found.");
        both.members.restore(member);
    }
}

#[test]
fn keeps_no_public_keys_where_it_is_told_so() {
    let both = both("<SkipPublicKey/>");
    both.ods("generate ha rsa 2048").same();
    both.step("pkcs11-tool --module {module} --token-label ha1 --login --pin 1234 -O --type pubkey").same();
    both.members.hide(0);
    both.ods("list ha").same().says("1 key found.");
}

#[test]
fn its_own_test_says_the_same() {
    let both = both("");
    // It ends with the number of kinds of keys that cannot be made.
    both.ods("test ha").ends_apart((3, 5), NO_EDWARDS).says("Signing (RSA/SHA256) with key... OK");
}
