//! What is listed of a small crate, and what is missed in its documentation.

use super::super::source;
use super::*;

const CODE: &str = r#"
    pub use cell::RcuCell;
    #[doc(hidden)]
    pub mod models;
    /// A cell.
    #[derive(Debug)]
    pub struct Cell<T: Send> { /// Seen.
        pub seen: usize, hidden: T }
    #[non_exhaustive]
    pub enum Error { Full { /// How much.
        bytes: usize }, Gone }
    impl<T: Send> Cell<T> {
        crate::const_fn! {
            /// New.
            #[must_use = "why"]
            pub const fn new(value: T) -> Self { todo() }
        }
        pub(crate) fn inner(&self) {}
        /// Loads.
        pub fn load<'g>(&'g self, guard: &'g impl Section<T>) -> Option<&'g T> { None }
        /// # Errors
        /// Never.
        pub fn try_it(&self) -> Result<(), Error> { Ok(()) }
    }
    impl<T: Send> Drop for Cell<T> { fn drop(&mut self) {} }
    impl Drop for Private { fn drop(&mut self) {} }
    /// # Guarantees
    pub unsafe trait Seam: Sync { /// A type.
        type Guard: Copy; /// # Safety
        unsafe fn exit(&self, guard: Self::Guard); fn provided(&self) -> [u8; 4] { [0; 4] } }
    #[cfg(test)]
    pub fn only_in_tests() {}
    #[macro_export]
    macro_rules! seam_conformance { () => {} }
    /// # Safety
    /// See the example.
    pub const unsafe fn raw(at: *mut u8) -> *const u8 { at }
"#;

fn api(code: &str) -> Api {
    Api::of("slab", &[source("crates/slab/src/lib.rs", code)])
}

#[test]
fn what_others_can_name_is_listed_and_nothing_else() {
    let api = api(CODE);
    assert_eq!(api.complaints, [""; 0]);
    let lines: Vec<&str> = api.lines.iter().map(String::as_str).collect();
    assert_eq!(
        lines,
        [
            "#[derive(Debug)] pub struct Cell<T: Send>",
            "#[must_use] Cell<T>::const fn new(value: T) -> Self",
            "#[non_exhaustive] pub enum Error",
            "Cell.seen: usize",
            "Cell<T>::fn load<'g>(&'g self, guard: &'g impl Section<T>) -> Option<&'g T>",
            "Cell<T>::fn try_it(&self) -> Result<(), Error>",
            "Error::Full",
            "Error::Full.bytes: usize",
            "Error::Gone",
            "Seam::fn provided(&self) -> [u8; 4] { … }",
            "Seam::type Guard: Copy",
            "Seam::unsafe fn exit(&self, guard: Self::Guard)",
            "impl<T: Send> Drop for Cell<T>",
            "macro seam_conformance!",
            "pub const unsafe fn raw(at: *mut u8) -> *const u8",
            "pub unsafe trait Seam: Sync",
            "pub use cell::RcuCell",
        ]
    );
}

#[test]
fn modules_that_are_hidden_are_left_out() {
    let sources = [
        source("crates/slab/src/lib.rs", CODE),
        source("crates/slab/src/models.rs", "pub fn hidden() {}"),
        source("crates/slab/src/models/more.rs", "pub fn hidden_too() {}"),
        source("crates/slab/src/models_of.rs", "pub fn shown() {}"),
    ];
    let api = Api::of("slab", &sources);
    let of = |name: &str| api.lines.contains(&format!("pub fn {name}()"));
    assert!(!of("hidden") && !of("hidden_too") && of("shown"));
}

#[test]
fn documentation_says_what_is_owed() {
    for (code, what) in [
        ("/// An example.\npub unsafe fn f() {}", "Safety"),
        ("/// # Safety\npub unsafe fn f() {}", "example"),
        ("pub fn f() -> Result<(), E> { g() }", "Errors"),
        ("pub unsafe trait T {}", "Guarantees"),
        (
            "/// # Safety\npub unsafe trait T { unsafe fn f(); }",
            "Safety",
        ),
    ] {
        let found = api(code).complaints;
        assert!(found.len() == 1 && found[0].contains(what), "{found:?}");
    }
    assert!(api("pub struct").complaints[0].contains("lib.rs"));
}

#[test]
fn a_change_is_told_until_it_is_listed() {
    let code = "pub fn new_one() {}\n#[must_use]\npub fn another() -> ! { panic!() }";
    let code = source("crates/slab/src/lib.rs", code);
    let mut sources = vec![code];
    let found = changes(&sources);
    assert_eq!(found.len(), 3);
    assert!(found[0].contains("+ #[must_use] pub fn another() -> !"));
    assert!(found[1].contains("+ pub fn new_one()") && found[2].contains("--bless"));
    let listed = Api::of("slab", &sources).text("slab");
    sources.push(source(&file("slab"), &listed));
    assert_eq!(changes(&sources), [""; 0]);
    sources.remove(0);
    assert!(changes(&sources)[1].contains("- pub fn new_one()"));
}
