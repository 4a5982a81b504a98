//! How the shared object is linked: it stays loaded, and it is its own.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // A call that hangs may return after `dlclose`, and a fork handler stays for ever: their code must not be unmapped.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
        // Every PKCS#11 library exports the same names, and p11-kit's is part of each program that uses GnuTLS: without
        // this our function lists would name its functions.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic");
    }
}
