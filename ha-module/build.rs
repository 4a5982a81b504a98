//! Marks the library as one that stays loaded.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // A thread that waits for a hung member outlives `C_Finalize`; its code must not be unmapped by `dlclose`.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
