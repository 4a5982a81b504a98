//! Modules that behave badly, built for the test around a SoftHSM of their own.

mod support;

use std::path::Path;
use std::sync::Arc;

use ha_member::{Instance, ModuleConnector};
use ha_token::{
    ConnectError, Connector, Function, Mechanism, MessageKind, ObjectHandle, OpKind, Output, Rv,
    SessionHandle, ck,
};
use support::{Store, await_file, build, by_label, config, connect, connector, shim, softhsm, token_label};

fn shimmed(store: &Store, module: &Path, label: &str, instance: Instance) -> ModuleConnector {
    let mut config = config(store, by_label(label));
    (config.path, config.instance) = (module.into(), instance);
    ModuleConnector::new(config)
}

fn refused(connector: &ModuleConnector) -> ConnectError {
    connector.connect().map(|_| ()).expect_err("refused")
}

#[test]
fn an_error_from_c_get_interface_falls_back_to_the_old_list() {
    let store = Store::with(&["shim"]);
    for body in ["return 5;", "*i = 0; return 0;"] {
        let extra =
            format!("unsigned long C_GetInterface(void *n, void *v, void **i, unsigned long f) {{ {body} }}");
        let module = shim(store.dir(), &extra, &[]);
        let connector = shimmed(&store, &module, "shim", Instance::Private);
        assert_eq!(token_label(&*connect(&connector)), "shim");
        connector.disconnect();
    }
}

#[test]
fn a_dependencys_symbol_is_not_the_modules() {
    let store = Store::with(&[]);
    let (c, so) = (store.dir().join("empty.c"), store.dir().join("empty.so"));
    std::fs::write(&c, "int nothing;").expect("source");
    let softhsm = std::fs::canonicalize(softhsm()).expect("softhsm");
    build(&[&c, &softhsm], &so, &["-Wl,--no-as-needed"]);
    for instance in [Instance::Private, Instance::Shared] {
        let error = refused(&shimmed(&store, &so, "x", instance));
        assert!(matches!(error, ConnectError::Load { .. }), "{error}");
    }
}

#[test]
fn a_module_that_shows_our_slots_is_refused() {
    let store = Store::with(&["mirror"]);
    let overridden = [
        // C_GetInfo: the manufacturer after the version
        "static unsigned long f(char *i) { memset(i, ' ', 72); memcpy(i + 2, \"pkcs11-ha\", 9); return 0; }
         static void change(void **list) { list[3] = f; }",
        // C_GetSlotInfo: the description
        "static unsigned long f(unsigned long s, char *i) { memset(i, ' ', 96);
             memcpy(i, \"HA Virtual Card Slot\", 20); return 0; }
         static void change(void **list) { list[6] = f; }",
        // C_GetTokenInfo: the model after label and manufacturer
        "static unsigned long f(unsigned long s, char *i) { memset(i, ' ', 96);
             memcpy(i + 64, \"HA group\", 8); return 0; }
         static void change(void **list) { list[7] = f; }",
    ];
    for extra in overridden {
        let module = shim(store.dir(), extra, &[]);
        let error = refused(&shimmed(&store, &module, "mirror", Instance::Private));
        assert!(matches!(error, ConnectError::Itself { .. }), "{error}");
    }
}

#[test]
fn where_no_copy_can_be_loaded_auto_shares_and_private_refuses() {
    let store = Store::with(&["origin"]);
    let dir = store.dir();
    std::fs::write(dir.join("beside.c"), "int beside(void) { return 0; }").expect("source");
    build(&[&dir.join("beside.c")], &dir.join("libbeside.so"), &[]);
    let search = format!("-L{}", dir.display());
    let flags = [search.as_str(), "-Wl,--no-as-needed", "-lbeside", "-Wl,-rpath,$ORIGIN"];
    let module = shim(dir, "", &flags);
    let error = refused(&shimmed(&store, &module, "origin", Instance::Private));
    assert!(matches!(error, ConnectError::Load { .. }), "{error}");
    let auto = shimmed(&store, &module, "origin", Instance::Auto);
    assert!(auto.reinitialises());
    assert_eq!(token_label(&*connect(&auto)), "origin");
    assert!(!auto.reinitialises());
    auto.disconnect();
    assert_eq!(token_label(&*connect(&auto)), "origin");
}

#[test]
fn a_hung_call_costs_its_copy_and_not_the_member() {
    let store = Store::with(&["hangs"]);
    let (hang, inside) = (store.dir().join("hang"), store.dir().join("inside"));
    let extra = "static unsigned long session_info(unsigned long s, void *i) {
             wait_while(DIR \"/hang\");
             return ((unsigned long (*)(unsigned long, void *))original[16])(s, i);
         }
         static void change(void **list) { list[16] = session_info; }";
    let module = shim(store.dir(), extra, &[]);
    let connector = shimmed(&store, &module, "hangs", Instance::Private);
    let token = connect(&connector);
    let session = token.open_session(false).expect("a session");
    token.session_info(session).expect("does not hang yet");
    std::fs::write(&hang, "").expect("hang");
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| token.session_info(session));
        await_file(&inside);
        let next = connect(&connector);
        assert_eq!(token_label(&*next), "hangs");
        assert_eq!(token.token_info(), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
        assert!(!hung.is_finished());
        std::fs::remove_file(&hang).expect("go on");
        let _late = hung.join().expect("no crash");
    });
    assert_eq!(token_label(&*connect(&connector)), "hangs");
}

#[test]
fn who_hangs_in_initialising_loses_its_variables_to_the_next() {
    let extra = "static unsigned long initialise(void *args) {
             wait_while(DIR \"/hang\");
             return ((unsigned long (*)(void *))original[1])(args);
         }
         static void change(void **list) { list[1] = initialise; }";
    let (slow, quick) = (Store::with(&["slow"]), Store::with(&["quick"]));
    let (hang, inside) = (slow.dir().join("hang"), slow.dir().join("inside"));
    std::fs::write(&hang, "").expect("hang");
    let module = shim(slow.dir(), extra, &[]);
    let slow_one = Arc::new(shimmed(&slow, &module, "slow", Instance::Private));
    let quick_one = connector(&quick, "quick");
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| slow_one.connect().map(|_| ()));
        await_file(&inside);
        assert_eq!(token_label(&*connect(&quick_one)), "quick");
        assert!(!hung.is_finished());
        std::fs::remove_file(&hang).expect("go on");
        match hung.join().expect("no crash") {
            // What it read from the environment may have been the other's.
            Err(ConnectError::Call { function: Function::Initialize, rv: Rv::CANT_LOCK, .. }) => {}
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(token_label(&*connect(&slow_one)), "slow");
    assert_eq!(token_label(&*connect(&quick_one)), "quick");
}

#[test]
fn a_3_0_interface_is_used_as_far_as_it_reaches() {
    let store = Store::with(&["three"]);
    // 93 entries are a 3.0 list; what stands behind it must not be taken for 3.2's functions.
    let extra = r#"
static unsigned long cancel(unsigned long session, unsigned long flags) { return 0x80000000UL + flags; }
static unsigned long begin(unsigned long session, void *mechanism, unsigned long key) { return 0; }
static unsigned long end(unsigned long session) { return 0; }
unsigned long C_GetFunctionList(void **);
unsigned long C_GetInterface(char *name, unsigned char *version, void **answer, unsigned long flags) {
    static struct { char *name; void *list; unsigned long flags; } interface;
    static void *three[120];
    void *two;
    if (version && (version[0] != 3 || version[1] != 0)) return 7;
    C_GetFunctionList(&two);
    memcpy(three, two, 69 * sizeof(void *));
    ((unsigned char *)three)[0] = 3;
    ((unsigned char *)three)[1] = 0;
    three[72] = cancel;
    three[73] = begin;
    three[77] = end;
    three[93] = (void *)1;
    interface.name = "PKCS 11";
    interface.list = three;
    *answer = &interface;
    return 0;
}"#;
    let module = shim(store.dir(), extra, &[]);
    let token = connect(&shimmed(&store, &module, "three", Instance::Private));
    let session = token.open_session(false).expect("a session");
    assert_eq!(token.session_cancel(session, 5), Err(Rv(0x8000_0005)));
    let mut mechanism = Mechanism::plain(ck::CKM_AES_GCM);
    let key = ObjectHandle(1);
    let made = token.encapsulate_key(session, &mut mechanism, key, &vec![], &mut Output::query());
    assert_eq!(made, Err(Rv::FUNCTION_NOT_SUPPORTED));

    let kind = MessageKind::Encrypt;
    let gone = Err(Rv::OPERATION_NOT_INITIALIZED);
    for ends in 0..3 {
        token.message_init(session, kind, Some(&mut mechanism), key).expect("begins");
        assert_eq!(token.message_mechanism(session, kind), Ok(ck::CKM_AES_GCM));
        assert_eq!(token.message_mechanism(session, MessageKind::Sign), gone);
        assert_eq!(token.message_mechanism(SessionHandle(session.0 + 1), kind), gone);
        match ends {
            0 => token.message_final(session, kind),
            1 => token.message_init(session, kind, None, key),
            _ => token.close_session(session),
        }
        .expect("ends");
        assert_eq!(token.message_mechanism(session, kind), gone);
    }
}

#[test]
fn strange_lengths_and_missing_functions_do_no_harm() {
    let store = Store::with(&["strange"]);
    let extra = "static unsigned long digest(unsigned long s, void *d, unsigned long n, void *out, unsigned long *len) {
             if (!out) { *len = 20; return 0; }
             if (*len < 20) return 0x150; /* too small, and does not say how small */
             *len = *len == 21 ? 22 : ~0UL; return 0; /* claims more than there is room for */
         }
         static void change(void **list) { list[39] = digest; list[65] = 0; }";
    let module = shim(store.dir(), extra, &[]);
    let token = connect(&shimmed(&store, &module, "strange", Instance::Private));
    let session = token.open_session(false).expect("a session");
    let digest = |room: usize| {
        let mut space = vec![0; room];
        let mut out = Output::buffer(&mut space);
        let answer = token.op_one_shot(session, OpKind::Digest, b"", &mut out);
        (answer, out.len())
    };
    assert_eq!(digest(0), (Err(Rv::BUFFER_TOO_SMALL), 20));
    assert_eq!(digest(19), (Err(Rv::BUFFER_TOO_SMALL), 20));
    assert_eq!(digest(21), (Err(Rv::GENERAL_ERROR), 0));
    assert_eq!(digest(30), (Err(Rv::GENERAL_ERROR), 0));
    assert_eq!(token.generate_random(session, &mut [0; 8]), Err(Rv::FUNCTION_NOT_SUPPORTED));
}
