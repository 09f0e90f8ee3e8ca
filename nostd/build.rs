//! Links the programs as a kernel is linked: nothing but themselves.

fn main() {
    // Behind the compiler's own arguments, where the last word counts.
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
