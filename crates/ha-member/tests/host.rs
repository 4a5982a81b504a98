//! Beside a host that uses the same module itself. One test: it changes the process's environment.

mod support;

use ha_member::{Instance, ModuleConnector};
use ha_token::{Connector, Rv, ck};
use support::{Store, by_label, config, connect, connector, login, softhsm, token_label};

/// The labels that the host sees through the module it loaded.
fn hosts_labels(module: &ck::Pkcs11) -> Vec<String> {
    let mut slots = [0; 8];
    let mut count = 8;
    // SAFETY: a list with room for eight.
    let rv = unsafe { module.C_GetSlotList(ck::CK_TRUE, slots.as_mut_ptr(), &mut count) };
    assert_eq!(rv, ck::CKR_OK);
    let label = |slot: &ck::CK_SLOT_ID| {
        let mut info = ck::CK_TOKEN_INFO::default();
        // SAFETY: a place for the answer.
        assert_eq!(unsafe { module.C_GetTokenInfo(*slot, &mut info) }, ck::CKR_OK);
        ha_token::unpad(&info.label)
    };
    slots.iter().take(usize::try_from(count).expect("few")).map(label).filter(|l| !l.is_empty()).collect()
}

#[test]
fn the_hosts_instance_stays_the_hosts() {
    let (host, member) = (Store::with(&["host"]), Store::with(&["member"]));
    // SAFETY: the only test of this process, before anything else reads the environment.
    unsafe { std::env::set_var("SOFTHSM2_CONF", host.conf()) };
    // SAFETY: SoftHSM's own constructors.
    let module = unsafe { ck::Pkcs11::new(softhsm()) }.expect("loads");
    // SAFETY: no arguments.
    assert_eq!(unsafe { module.C_Initialize(std::ptr::null_mut()) }, ck::CKR_OK);

    let private = connector(&member, "member");
    assert_eq!(token_label(&*connect(&private)), "member");
    assert_eq!(hosts_labels(&module), ["host"]);
    assert_eq!(std::env::var_os("SOFTHSM2_CONF"), Some(host.conf().into()));
    private.disconnect();
    assert_eq!(hosts_labels(&module), ["host"]);

    // A shared member uses the host's instance, and never finalises it.
    let mut config = config(&host, by_label("host"));
    config.instance = Instance::Shared;
    let (one, two) = (ModuleConnector::new(config.clone()), ModuleConnector::new(config));
    assert!(!one.reinitialises());
    let (first, second) = (connect(&one), connect(&two));
    one.disconnect();
    assert_eq!(first.token_info(), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
    assert_eq!(token_label(&*second), "host");
    two.disconnect();
    assert_eq!(hosts_labels(&module), ["host"]);

    // Once the host has finalised, the first shared member initialises and the last one finalises.
    // SAFETY: no call is in it.
    assert_eq!(unsafe { module.C_Finalize(std::ptr::null_mut()) }, ck::CKR_OK);
    let (first, second) = (connect(&one), connect(&two));
    login(&*first);
    one.disconnect();
    assert_eq!(token_label(&*second), "host");
    two.disconnect();
    // SAFETY: no arguments.
    assert_eq!(unsafe { module.C_Initialize(std::ptr::null_mut()) }, ck::CKR_OK, "it was finalised");
    std::mem::forget(module);
}
